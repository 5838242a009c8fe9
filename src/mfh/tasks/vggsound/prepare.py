"""VGGSound clips to tar shards with an index: by many processes and machines, interruptible at any moment.

The annotations alone decide which clips a shard holds. So every machine can make its part of the shards without asking
the others, and the shards are the same, byte for byte, however the work was divided.

    OUT/part-1-of-4/           the part that one of four machines made; removed by the merge
    OUT/shard-train-00000.tar  clips, see `mfh.tasks.vggsound.writing`
    OUT/index.csv              the place of every clip
    OUT/skipped.csv            clips that cannot be used, and why
    OUT/classes.csv            counts per class and split
    OUT/meta.json              options, labels, shards with their checksums; written last
"""

import functools
import logging
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mfh import files
from mfh.errors import InputError
from mfh.progress import bars
from mfh.tasks.media import Decoded, MediaError, MediaFile, cover, read_clip, require_media
from mfh.tasks.preparing import (
    Deaths,
    check_options,
    counted,
    digest,
    finish,
    first_usable,
    make_from_files,
    preparing,
    read_meta,
    refuse_foreign,
)
from mfh.tasks.sizes import VGGSOUND_LEAST as LEAST_SAMPLES
from mfh.tasks.sizes import VGGSOUND_RATE as SAMPLE_RATE
from mfh.tasks.sizes import VggsoundSizes as Settings
from mfh.tasks.sources import stamped
from mfh.tasks.splits import SPLITS
from mfh.tasks.vggsound.annotations import Clip, choose_classes, find_clips, in_mixed_order, read_annotations
from mfh.tasks.vggsound.strips import Strip, find_strips, read_sound, read_strip
from mfh.tasks.vggsound.writing import INDEX, KIND, ShardWriter, jpeg, wav

log = logging.getLogger("mfh")

Source = MediaFile | Strip


#: The peak of a sound after normalisation is 1 / HEADROOM.
HEADROOM = 1.1

PART = "vggsound part"

SKIPPED = ("id", "start", "label", "split", "file", "reason")


@dataclass(frozen=True)
class Shard:
    """The clips of one tar.

    Args:
        name: File name of the tar.
        clips: Clips in order.
    """

    name: str
    clips: tuple[Clip, ...]


def prepare(
    clips: Path,
    out: Path,
    *,
    csv: Path | None = None,
    also: Sequence[Path] = (),
    classes: str | None = None,
    layout: Literal["clips", "strips"] = "clips",
    test: Path | None = None,
    settings: Settings | None = None,
    shard: tuple[int, int] | None = None,
    merge: bool = False,
    processes: int | None = None,
    quiet: bool = False,
) -> str:
    """Prepare VGGSound, or one part of it, or merge the parts.

    Args:
        clips: Folder or archive of clips, see `find_clips`. For "strips" the authors' folder.
        out: The prepared folder.
        csv: The annotations, which "clips" needs.
        also: More folders or archives like `clips`.
        classes: Classes to keep, see `choose_classes`.
        layout: "clips" for media files named after video and second, "strips" for `find_strips`.
        test: For "strips": the test root, if it is a separate folder.
        settings: Numbers of frames, pixels and samples (default: `Settings()`).
        shard: (i, n) makes only part i of n, with i from 0. All other arguments must be the same on all machines.
        merge: Merge the parts that are in `out`. Clips are not read.
        processes: Worker processes (default: the number of processors).
        quiet: Show no progress.

    Returns:
        What was done, in a few words.

    Raises:
        InputError: An argument or file cannot be used. Finished work is kept.
    """
    require_media()
    if shard is not None and not 0 <= shard[0] < shard[1] <= _MOST_PARTS:
        raise InputError(
            f"shard is {shard[0]}/{shard[1]}; i/n with n from 1 to {_MOST_PARTS} and i from 0 to n - 1 was expected"
        )
    if shard is not None and merge:
        raise InputError("shard and merge exclude each other; make all parts first, then merge them")
    settings = settings or Settings()
    sources: Mapping[Clip, Sequence[Source]] | None = None
    unusable: list[dict[str, Any]] = []
    if layout == "strips":
        strips, labels = find_strips(clips, test)
        sources = {clip: (strip,) for clip, strip in strips.items()}
        annotated = list(sources)
        if classes is not None:
            labels = choose_classes(annotated, classes)
    else:
        if csv is None:
            raise InputError("the annotations are missing; give --csv vggsound.csv")
        annotated = read_annotations(csv)
        labels = choose_classes(annotated, classes)
    wanted = set(labels)
    chosen = [clip for clip in annotated if clip.label in wanted]
    shards = plan(chosen, settings.clips_per_shard)
    options = {
        "layout": layout,
        "annotations": f"{len(chosen)} clips ({digest([asdict(clip) for shard in shards for clip in shard.clips])})",
        "classes": f"{len(labels)} ({digest(labels)})",
        **asdict(settings),
        "samples": settings.samples,
    }
    if (out / "meta.json").exists():
        check_options(out, read_meta(out, KIND), options)
        return f"{out} is complete already; remove it to prepare it anew, for instance with more clips"
    refuse_foreign(out)
    if not merge:
        if sources is None:
            found = find_clips(chosen, [clips, *also])
            sources, unusable = found.clips, found.unusable
        part, parts = shard or (0, 1)
        folder = out / f"part-{part}-of-{parts}"
        _make_part(folder, shards[part::parts], sources, unusable, labels, settings, options, processes, quiet)
        if shard is not None:
            return (
                f"part {part} of {parts} is complete, in {folder} (remove it to make it anew, for instance with more "
                "clips); after all parts run the same command with --merge"
            )
    return _merge(out, shards, labels, options)


def plan(clips: Sequence[Clip], clips_per_shard: int) -> list[Shard]:
    """Distribute clips over shards, each of one split, in an order that mixes classes.

    Args:
        clips: The chosen clips.
        clips_per_shard: Number of clips in a shard.

    Raises:
        InputError: A split has no clips.
    """
    shards = []
    for split in SPLITS:
        members = in_mixed_order(clip for clip in clips if clip.split == split)
        if not members:
            raise InputError(
                f"the annotations have no {split} clips of the chosen classes"
                + ("; a tenth of the training videos becomes this split, which is none here" if split == "val" else "")
            )
        for number, first in enumerate(range(0, len(members), clips_per_shard)):
            shards.append(Shard(f"shard-{split}-{number:05d}.tar", tuple(members[first : first + clips_per_shard])))
    return shards


# --- one part ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """Everything that a worker needs to make a shard."""

    shard: Shard
    sources: tuple[tuple[Source, ...], ...]
    indices: Mapping[str, int]
    settings: Settings
    run: str


def _make_part(
    folder: Path,
    shards: Sequence[Shard],
    sources: Mapping[Clip, Sequence[Source]],
    unusable: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    settings: Settings,
    options: Mapping[str, Any],
    processes: int | None,
    quiet: bool,
) -> None:
    indices, run = {label: index for index, label in enumerate(labels)}, secrets.token_hex(8)
    with preparing(folder, PART, options) as pieces:
        if pieces is None:
            return
        jobs = {}
        for shard in shards:
            found = tuple(tuple(_stamped(source) for source in sources.get(clip, ())) for clip in shard.clips)
            # The name depends on the files too: if clips were added or replaced, the shard is made again.
            piece = pieces / f"{shard.name}.{digest([repr(source) for source in found])}.json"
            jobs[piece] = _Job(shard, found, indices, settings, run)
        with bars(not quiet, lines=True) as show:
            make_from_files(
                jobs, _make_shard, run, processes=processes, progress=lambda done: show("shards", done, len(jobs))
            )
        for piece, job in jobs.items():
            # If this is interrupted, the next run moves the rest: pieces stay until the part is complete.
            if (pieces / job.shard.name).exists():
                (pieces / job.shard.name).replace(folder / job.shard.name)
            shutil.copyfile(piece, folder / f"{job.shard.name}.json")
        finish(folder, PART, options, {"shards": [shard.name for shard in shards], "unusable": unusable})


def _stamped(source: Source) -> Source:
    return stamped(source) if isinstance(source, MediaFile) else source


def _make_shard(job: _Job, piece: Path) -> None:
    """Decode the clips of a shard into a tar, one after the other. The piece lists its content and is written last."""
    skipped: list[dict[str, Any]] = []  # one row for each lost clip
    damaged: list[dict[str, Any]] = []  # further files with faults
    tar, deaths = piece.parent / job.shard.name, Deaths(piece, job.run)
    with files.atomic_write(tar, "wb") as file:
        writer = ShardWriter(file)
        for clip, candidates in zip(job.shard.clips, job.sources, strict=True):
            faults: dict[Source, str] = {}
            read = functools.partial(_encoded, settings=job.settings)
            made = first_usable(candidates, read, faults, deaths, clip.key)
            lost = [{**asdict(clip), "file": str(source), "reason": reason} for source, reason in faults.items()]
            if made is not None:
                writer.add(clip, job.indices[clip.label], *made[1])
            else:
                lost = lost or [{**asdict(clip), "file": "", "reason": "missing"}]
                skipped.append(lost.pop(0))
            damaged += lost
        writer.close()
        for other in piece.parent.glob(f"{job.shard.name}.*.json"):  # they describe other files than this shard holds
            other.unlink()
    rows = [{**row, "shard": job.shard.name} for row in writer.rows]
    content = {"rows": rows, "skipped": skipped, "damaged": damaged}
    files.write_json(piece, {**content, "size": tar.stat().st_size, "sha256": files.file_digest(tar)})
    deaths.forget()


def _encoded(source: Source, *, settings: Settings) -> tuple[list[bytes], bytes, float]:
    """Frames and sound of a clip's file as its shard holds them, and how many seconds both cover."""
    decoded = decode(source, settings)
    pictures = [jpeg(frame, settings.quality) for frame in decoded.frames]
    return pictures, wav(decoded.sound, SAMPLE_RATE), min(decoded.seconds, settings.seconds)


def decode(source: Source, settings: Settings) -> Decoded:
    """Frames (F, size, size, 3) and normalised sound (T,) of one clip, and how many seconds both cover.

    Args:
        source: The clip's media file or strip.
        settings: Sizes of the result.

    Raises:
        MediaError: The clip cannot be used.
    """
    if isinstance(source, Strip):
        sound = read_sound(source.audio, SAMPLE_RATE, settings.seconds)
        clip = Decoded(read_strip(source.video, settings.num_frames, settings.size), sound, len(sound) / SAMPLE_RATE)
    else:
        with source.open() as file:
            fit = cover(settings.size, settings.size)
            clip = read_clip(file, settings.num_frames, fit, SAMPLE_RATE, settings.seconds)
    return replace(clip, sound=normalised(clip.sound, settings.samples))


def normalised(sound: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Sound of a fixed length with its peak at 1 / 1.1. Zeros follow a shorter sound.

    Args:
        sound: Samples, (T,).
        samples: Number of samples of the result.

    Raises:
        MediaError: The sound has fewer than 1024 samples, or is silent.
    """
    sound = sound[:samples]
    if len(sound) < LEAST_SAMPLES:
        raise MediaError("too short")
    peak = float(np.abs(sound).max())
    if not peak > 0:
        raise MediaError("silent")
    result = np.zeros(samples, np.float32)
    result[: len(sound)] = sound / (HEADROOM * peak)
    return result


# --- all parts --------------------------------------------------------------------------------------------------------


def _merge(out: Path, shards: Sequence[Shard], labels: Sequence[str], options: Mapping[str, Any]) -> str:
    """Check that no part is missing, move the shards of all parts, and write index, counts and meta."""
    with preparing(out, KIND, options) as pieces:
        assert pieces is not None
        parts = _complete_parts(out)
        unusable: dict[str, dict[str, Any]] = {}
        for folder in parts:
            meta = read_meta(folder, PART)
            check_options(folder, meta, options)
            unusable |= {str(row["file"]): row for row in meta.get("unusable", [])}
        of_shard = {shard.name: parts[number % len(parts)] for number, shard in enumerate(shards)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(lambda shard: _verified(shard, of_shard[shard.name], out), shards))
        for shard in shards:
            here = of_shard[shard.name] / shard.name
            if here.exists():
                here.replace(out / shard.name)
        rows = [row for each in made for row in each["rows"]]
        skipped = [row for each in made for row in each["skipped"]]
        damaged = [row for each in made for row in each.get("damaged", [])]
        named = {row["file"] for row in (*skipped, *damaged)}
        damaged += [row for file, row in sorted(unusable.items()) if file not in named]
        files.write_table(out / "index.csv", INDEX, rows)
        files.write_table(out / "skipped.csv", SKIPPED, [*skipped, *damaged])
        files.write_table(out / "classes.csv", _COUNTED, _counts(labels, rows, skipped))
        usable = Counter(row["split"] for row in rows)
        for split in SPLITS:
            if not usable[split]:
                reasons = counted(row["reason"] for row in skipped if row["split"] == split)
                raise InputError(
                    f"there is no usable {split} clip, see {out / 'skipped.csv'} (clips for {split}: {reasons}); add "
                    f"clips, remove {out}, and prepare it anew"
                )
        trained = {row["label"] for row in rows if row["split"] == "train"}
        if lost := [label for label in labels if label not in trained]:
            log.warning("%d classes have no usable training clip, for instance %r", len(lost), lost[0])
        facts = {
            "labels": list(labels),
            "clips": dict(usable),
            "index_sha256": files.file_digest(out / "index.csv"),
            "shards": {
                shard.name: {"size": each["size"], "sha256": each["sha256"], "clips": len(each["rows"])}
                for shard, each in zip(shards, made, strict=True)
            },
        }
        finish(out, KIND, options, facts)
        for folder in parts:
            shutil.rmtree(folder)
    told = counted(row["reason"] for row in skipped)
    if damaged:
        told += f"; other files not used: {counted(row['reason'] for row in damaged)}"
    counts = ", ".join(f"{usable[split]} {split}" for split in SPLITS)
    return f"{len(rows)} clips of {len(labels)} classes ({counts}) in {len(shards)} shards; skipped: {told}; in {out}"


_COUNTED = ("class", "label", "split", "annotated", "usable", "missing", "broken")


def _counts(
    labels: Sequence[str], rows: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    usable = Counter((row["label"], row["split"]) for row in rows)
    lost = Counter((row["label"], row["split"], row["reason"] == "missing") for row in skipped)
    for index, label in enumerate(labels):
        for split in SPLITS:
            here, missing, broken = usable[label, split], lost[label, split, True], lost[label, split, False]
            counts = {"annotated": here + missing + broken, "usable": here, "missing": missing, "broken": broken}
            yield {"class": index, "label": label, "split": split, **counts}


# A folder's name says how many parts there are.
_MOST_PARTS = 100_000


def _complete_parts(out: Path) -> list[Path]:
    """The folders of a complete set of parts, in order."""
    sets: dict[int, set[int]] = {}
    for folder in out.glob("part-*-of-*"):
        numbers = re.fullmatch("part-([0-9]{1,6})-of-([0-9]{1,6})", folder.name)
        part, count = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
        if part < count <= _MOST_PARTS and (folder / "meta.json").exists():
            sets.setdefault(count, set()).add(part)
    for count, found in sorted(sets.items()):
        if len(found) == count:
            return [out / f"part-{part}-of-{count}" for part in range(count)]
    if not sets:
        raise InputError(f"{out} has no complete part to merge; make all parts first, with --shard i/n")
    count, found = max(sets.items(), key=lambda item: len(item[1]))
    missing = [str(part) for part in range(count) if part not in found]
    listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    raise InputError(
        f"{out} lacks part {listed} of {count}, or it is not complete; run --shard for it, or copy it there"
    )


def _verified(shard: Shard, folder: Path, out: Path) -> dict[str, Any]:
    """The list of a shard's content, after a check that the shard is whole and has the expected clips."""
    made = files.read_json(folder / f"{shard.name}.json")
    try:
        found = sorted([*(row["key"] for row in made["rows"]), *(_key(row) for row in made["skipped"])])
        written = made["size"], made["sha256"]
    except (KeyError, TypeError, ValueError):
        found, written = [], (0, "")
    if found != sorted(clip.key for clip in shard.clips):
        raise InputError(
            f"{folder / shard.name}.json is not of this preparation: it lists other clips, or it was changed"
        )
    # An interrupted merge has moved some of them already.
    path = next((path for path in (folder / shard.name, out / shard.name) if path.exists()), None)
    if path is None:
        raise InputError(f"{folder} has no {shard.name}; copy the whole part, or make it again")
    if path.stat().st_size != written[0] or files.file_digest(path) != written[1]:
        raise InputError(f"{path} is not as it was written (truncated?); copy it again, or make the part again")
    return made


def _key(row: Mapping[str, Any]) -> str:
    return Clip(row["id"], row["start"], row["label"], row["split"]).key
