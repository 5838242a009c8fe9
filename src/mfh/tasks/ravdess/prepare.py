"""`mfh prepare ravdess`: from the official archives, or the authors' feature folders, to a prepared folder.

A prepared folder holds manifest.csv (one row per usable clip), mfcc.npy and frames.npy (in the order of the manifest,
for memory maps), skipped.csv (files that were not used, and why) and meta.json.
"""

import hashlib
import io
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mfh import files
from mfh.errors import InputError, in_a_line
from mfh.progress import bars
from mfh.tasks import preparing
from mfh.tasks.media import MediaError, MediaFile, cover, read_audio, read_frames, read_picture, require_media
from mfh.tasks.ravdess import names, splits
from mfh.tasks.ravdess.authors import find_features
from mfh.tasks.ravdess.clips import FACTS, Clip, find_clips, skip
from mfh.tasks.sizes import RavdessFeatures as Features
from mfh.tasks.splits import SPLITS

KIND = "ravdess"
MANIFEST = (*FACTS, "split")
SKIPPED = ("file", "reason")

#: Types of the arrays of a prepared folder.
TYPES: dict[str, Any] = {"mfcc": np.float32, "frames": np.uint8}

_FINDERS = {"archives": find_clips, "features": find_features}


class Prepared(NamedTuple):
    """The result of a preparation.

    Args:
        folder: The prepared folder.
        counts: Number of clips by split.
        skipped: Number of unused files by reason.
        fresh: Whether the folder was made now. False means that it was complete already.
    """

    folder: Path
    counts: dict[str, int]
    skipped: dict[str, int]
    fresh: bool


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    layout: str = "archives",
    split: str = "actors",
    seed: int = 0,
    features: Features | None = None,
    processes: int | None = None,
    quiet: bool = True,
) -> Prepared:
    """Prepare RAVDESS for training.

    It can be interrupted at any moment and called again: finished clips are kept, and the result is the same. Archives
    are read in place, and nothing is unpacked.

    Args:
        source: With layout "archives": a folder (or one zip file) with the official zip files, their unpacked content,
            or both, in any arrangement. Picture and sound of a clip may be in one file (full-AV mp4) or in two
            (video-only mp4 and wav). If both exist, the picture comes from the full-AV file and the sound from the wav.
            With layout "features": the authors' folder with aud_features, vid_features and data_file.
        out: The prepared folder.
        layout: "archives" or "features".
        split: "actors", "random" or a CSV, see `splits.assign`. With layout "features" the authors' tables decide.
        seed: Seed of the split "random".
        features: Sizes of the features (default: `Features()`). Layout "features" uses only the shapes of its arrays.
        processes: Worker processes (default: the number of processors).
        quiet: Show no progress.

    Raises:
        InputError: There are no clips or too few for the split, or `out` holds something else.
    """
    require_media()
    source, out, features = Path(source), Path(out), features or Features()
    if not source.exists():
        raise InputError(f"there is no {source}; the folder with RAVDESS archives or clips was expected")
    if layout not in _FINDERS:
        raise InputError(f"layout is {layout!r}; choose {' or '.join(_FINDERS)}")
    if layout == "features" and features.num_frames != 1:
        raise InputError(f"num_frames is {features.num_frames}, but the authors' features hold one frame per clip")
    found = _FINDERS[layout](source)
    options = {
        "layout": layout,
        "split": "authors" if layout == "features" else f"random, seed {seed}" if split == "random" else split,
        "split_table": files.file_digest(split)[:16] if Path(split).is_file() else None,
        **asdict(features),
        "source": preparing.digest([[clip.facts["id"], *map(str, clip.stamps)] for clip in found.clips]),
    }
    if layout == "archives":  # before hours are spent
        with _counting(found.skipped):
            splits.assign([clip.facts for clip in found.clips], split, seed)
    with preparing.preparing(out, KIND, options) as pieces:
        if pieces is not None:
            jobs = {pieces / f"{clip.facts['id']}-{preparing.digest(clip.stamps)}.npz": clip for clip in found.clips}
            if jobs and layout == "archives":
                mfcc(np.zeros(features.sample_rate, np.float32), features)  # compiles once, before workers all would
            work = Work(features, run := secrets.token_hex(8))
            with bars(not quiet, lines=True) as show:
                preparing.make_from_files(
                    jobs, work, run, processes=processes, progress=lambda done: show("clips", done, len(jobs))
                )
            _assemble(out, jobs, found.skipped, split, seed, features, options)
    counts, skipped = _summary(out)
    return Prepared(out, counts, skipped, pieces is not None)


# --- one clip -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Makes the piece of one clip: its arrays, or only the files that cannot be used. It runs in worker processes.

    Args:
        features: Sizes of the features.
        run: Name of this run of the preparation.
    """

    features: Features
    run: str

    def __call__(self, clip: Clip, piece: Path) -> None:
        """Write the piece, a .npz file.

        Args:
            clip: The clip and its files.
            piece: File to write.
        """
        faults: dict[MediaFile, str] = {}
        deaths = preparing.Deaths(piece, self.run)
        picture = preparing.first_usable(clip.pictures, self._frames, faults, deaths, "picture")
        sounds = sorted(clip.sounds, key=lambda file: file in faults)
        voice = preparing.first_usable(sounds, self._mfcc, faults, deaths, "sound")
        if picture is not None and picture[0] in faults:  # its sound has a fault: another copy is better
            whole = [file for file in clip.pictures if file not in faults]
            picture = preparing.first_usable(whole, self._frames, faults, deaths, "picture") or picture
        arrays: dict[str, NDArray[Any]] = {}
        if picture is not None and voice is not None:
            frames, sound = picture[1], voice[1]
            tried = {**faults, **_duplicates(clip, {picture[0], voice[0]}, faults)}
            # The checksum and the moments are kept in the piece, so that `_assemble` reads every array only once.
            checksum = hashlib.sha256(sound.tobytes() + frames.tobytes()).digest()
            arrays = {
                "mfcc": sound,
                "frames": frames,
                "checksum": np.frombuffer(checksum, np.uint8),
                "moments": _moments(sound),
            }
        else:
            tried = {**dict.fromkeys((*clip.pictures, *clip.sounds), "no partner"), **faults}
        rows = json.dumps(sorted((str(file), reason) for file, reason in tried.items()))
        with files.atomic_write(piece, "wb") as file:
            np.savez(file, allow_pickle=False, tried=np.frombuffer(rows.encode(), np.uint8), **arrays)
        deaths.forget()

    def _frames(self, file: MediaFile) -> NDArray[np.uint8]:
        fit = cover(self.features.height, self.features.width)
        with file.open() as content:
            if not file.name.lower().endswith(".mp4"):
                return read_picture(content, fit)[None]
            return read_frames(content, self.features.num_frames, fit, self.features.seconds)

    def _mfcc(self, file: MediaFile) -> NDArray[np.float32]:
        if file.name.endswith(".npy"):
            return self._read_array(file.path)
        with file.open() as content:
            return mfcc(read_audio(content, self.features.sample_rate, self.features.seconds), self.features)

    def _read_array(self, path: Path) -> NDArray[np.float32]:
        shape = self.features.shapes["mfcc"]
        try:
            array = files.load_array(path)
        except InputError:
            raise MediaError("unreadable") from None
        if array.size != shape[0] * shape[1] or not np.isfinite(array).all():
            raise MediaError("unreadable")
        return array.reshape(shape).astype(np.float32)


def _duplicates(clip: Clip, used: set[MediaFile], faults: Mapping[MediaFile, str]) -> dict[MediaFile, str]:
    """Further copies of files. A file of another modality that is not needed is none."""
    kinds, rows = {file.name[:2] for file in used}, {}
    for file in dict.fromkeys((*clip.pictures, *clip.sounds)):
        if file in used or file in faults:
            continue
        if file.name[:2] in kinds:
            rows[file] = "duplicate"
        kinds.add(file.name[:2])
    return rows


def mfcc(sound: NDArray[np.float32], features: Features) -> NDArray[np.float32]:
    """Mel-frequency cepstral coefficients of a sound, which is first brought to a fixed length.

    Args:
        sound: Samples at `features.sample_rate`, (T,).
        features: Sizes of the features.

    Returns:
        The coefficients, (num_mfcc, mfcc_frames), by librosa from 128 mel bands in dB, at most 80 dB below the loudest.
    """
    import librosa

    samples = (features.mfcc_frames - 1) * features.hop
    whole = librosa.util.fix_length(sound, size=samples)
    coefficients = librosa.feature.mfcc(
        y=whole,
        sr=features.sample_rate,
        n_mfcc=features.num_mfcc,
        n_fft=features.fft_size,
        hop_length=features.hop,
    )
    return np.ascontiguousarray(coefficients[:, : features.mfcc_frames], dtype=np.float32)


# --- putting together -----------------------------------------------------------------------------------------------


def _assemble(
    out: Path,
    jobs: Mapping[Path, Clip],
    skipped: Sequence[Mapping[str, str]],
    split: str,
    seed: int,
    features: Features,
    options: Mapping[str, Any],
) -> None:
    lines, usable, seen, moments = list(skipped), [], set(), {}
    for piece, clip in jobs.items():
        with _opened(piece) as content:
            lines += [skip(file, reason) for file, reason in json.loads(bytes(content["tried"]))]
            if "mfcc" not in content:
                continue
            same, moments[piece] = bytes(content["checksum"]), content["moments"]
        if same in seen:  # the same recording under two names could end up in two splits
            lines += [skip(file, "duplicate") for file in {*clip.pictures, *clip.sounds}]
        else:
            seen.add(same)
            usable.append(piece)
    _write_skipped(out, lines)  # also if no clip is left for a split
    facts = [jobs[piece].facts for piece in usable]
    with _counting(lines, f", see {out / 'skipped.csv'}"):
        if not usable:
            raise InputError(f"none of the {len(jobs)} clips can be used")
        if options["layout"] == "features":
            chosen = {str(clip["id"]): str(clip["split"]) for clip in facts}
            splits.check(facts, chosen, "of the authors")
        else:
            chosen = splits.assign(facts, split, seed)
    lines += [skip(str(clip["id"]), "in no split") for clip in facts if clip["id"] not in chosen]
    kept = [piece for piece in usable if jobs[piece].facts["id"] in chosen]
    rows = [{**jobs[piece].facts, "split": chosen[jobs[piece].facts["id"]]} for piece in kept]
    arrays = {}
    for name, shape in features.shapes.items():
        checksum = _write_array(out / f"{name}.npy", _rows(kept, name), (len(kept), *shape), TYPES[name])
        arrays[name] = {"shape": [len(kept), *shape], "type": np.dtype(TYPES[name]).name, "sha256": checksum}
    mean, std = _mean_and_std(moments[piece] for piece, row in zip(kept, rows, strict=True) if row["split"] == "train")
    files.write_table(out / "manifest.csv", MANIFEST, rows)
    _write_skipped(out, lines)
    facts_of_all = {
        "classes": names.EMOTIONS,
        "counts": {name: sum(row["split"] == name for row in rows) for name in SPLITS},
        "arrays": arrays,
        "statistics": {"mfcc_mean": mean, "mfcc_std": std},  # of the training split
    }
    preparing.finish(out, KIND, options, facts_of_all)


def _write_skipped(out: Path, lines: Iterable[Mapping[str, str]]) -> None:
    files.write_table(out / "skipped.csv", SKIPPED, sorted(lines, key=lambda line: (line["file"], line["reason"])))


@contextmanager
def _counting(lines: Sequence[Mapping[str, str]], where: str = "") -> Iterator[None]:
    """Say in an error of the block how many files were unusable: they may be why clips are missing."""
    try:
        yield
    except InputError as error:
        if not lines:
            raise
        reasons = preparing.counted(line["reason"] for line in lines)
        raise InputError(f"{error}; {len(lines)} files are not used ({reasons}){where}") from None


def _rows(pieces: Sequence[Path], name: str) -> Iterable[NDArray[Any]]:
    for piece in pieces:
        with _opened(piece) as content:
            row = content[name]
        yield row


@contextmanager
def _opened(piece: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The content of a piece, which is read in the block."""
    try:
        with piece.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
            yield content
    except Exception as error:  # zipfile, zlib and NumPy raise errors of many kinds
        raise InputError(
            f"{piece} is damaged ({in_a_line(error)}); remove it, and give the same command again"
        ) from None


def _moments(values: NDArray[Any]) -> NDArray[np.float64]:
    """Count, sum and sum of squares of the values."""
    return np.array([values.size, values.sum(dtype=np.float64), np.square(values, dtype=np.float64).sum()])


def _mean_and_std(moments: Iterable[NDArray[np.float64]]) -> tuple[float, float]:
    """Mean and standard deviation of all values. The latter is 1 if all values are the same."""
    count, total, squares = (float(part) for part in sum(moments, np.zeros(3)))
    variance = squares / count - (total / count) ** 2
    return total / count, float(np.sqrt(variance)) if variance > 0 else 1.0


def _write_array(path: Path, rows: Iterable[NDArray[Any]], shape: tuple[int, ...], kind: Any) -> str:
    """Write a .npy file row by row, and return its checksum."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    )
    checksum = hashlib.sha256(header.getvalue())
    with files.atomic_write(path, "wb") as file:
        file.write(header.getvalue())
        for row in rows:
            block = np.ascontiguousarray(row, dtype=kind).tobytes()
            file.write(block)
            checksum.update(block)
    return checksum.hexdigest()


def _summary(out: Path) -> tuple[dict[str, int], dict[str, int]]:
    counts = preparing.fact(preparing.read_meta(out, KIND), "counts", dict, str(out))
    skipped: dict[str, int] = {}
    for row in files.read_table(out / "skipped.csv", SKIPPED, "remove the folder to prepare it anew"):
        skipped[row["reason"]] = skipped.get(row["reason"], 0) + 1
    return counts, skipped
