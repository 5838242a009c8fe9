"""Annotations of VGGSound (`vggsound.csv`), and the clips' places in folders and tar files."""

import csv
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mfh import files
from mfh.errors import InputError, close_names
from mfh.tasks.media import MediaFile
from mfh.tasks.sources import Unusable, media_files
from mfh.values import whole

log = logging.getLogger("mfh")

#: Length of an annotated clip in seconds.
CLIP_SECONDS = 10

#: Share of the training videos that becomes the validation split.
VALIDATION_SHARE = 0.1

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv")


@dataclass(frozen=True)
class Clip:
    """One annotated clip.

    Args:
        id: YouTube id of the video. It may begin with "-".
        start: Second of the video at which the clip starts.
        label: Label of the clip's class.
        split: "train", "val" or "test".
    """

    id: str
    start: int
    label: str
    split: str

    @property
    def key(self) -> str:
        """Name of the clip in file names and shards: `<id>_<start, 6 digits>`."""
        return f"{self.id}_{self.start:06d}"


def read_annotations(path: Path) -> list[Clip]:
    """Read the official csv, which has no header: video id, start second, label, "train" or "test".

    A tenth of the training videos becomes the validation split, see `is_validation`.

    Args:
        path: Path of the csv.

    Returns:
        All clips, in the order of the file.

    Raises:
        InputError: There is no such file, a line has other columns or values, or two annotations of a clip differ.
    """
    clips: dict[str, Clip] = {}
    try:
        lines = csv.reader(io.StringIO(files.read_text(path), newline=""))
        for number, row in enumerate(lines, start=1):
            if row:
                clip = _clip(row, f"{path}, line {number}")
                if clips.setdefault(clip.key, clip) != clip:
                    raise InputError(f"{path}, line {number}: clip {clip.key} has another label or split before")
    except FileNotFoundError:
        raise InputError(f"no file {path}; the annotations vggsound.csv were expected") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a readable csv file ({error})") from None
    if not clips:
        raise InputError(f"{path} is empty; lines of video id, start second, label, split were expected")
    return list(clips.values())


def _clip(row: list[str], where: str) -> Clip:
    if len(row) != 4:
        raise InputError(
            f"{where} has {len(row)} columns; 4 were expected: video id, start second, label (in quotes if it has "
            "commas), split"
        )
    video, start, label, split = (value.strip() for value in row)
    second = whole(start)
    if second is None:
        raise InputError(f"{where}: the start second is {start!r}; a whole number was expected (and no header)")
    if split not in ("train", "test"):
        raise InputError(f"{where}: the split is {split!r}; 'train' or 'test' was expected")
    if not 1 <= len(video) <= 64 or not set(video) <= _ID_CHARACTERS or not label:
        raise InputError(f"{where}: expected a YouTube id and a non-empty label, got {video!r} and {label!r}")
    return Clip(video, second, label, "val" if split == "train" and is_validation(video) else split)


_ID_CHARACTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def is_validation(video: str) -> bool:
    """Whether a training video belongs to the validation split. The SHA-256 of its id decides, on every machine alike.

    Args:
        video: YouTube id.
    """
    return _hash(video) < VALIDATION_SHARE * 2**64


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def in_mixed_order(clips: Iterable[Clip]) -> list[Clip]:
    """Clips sorted by the SHA-256 of their keys: an order that mixes classes and is the same everywhere."""
    return sorted(clips, key=lambda clip: (_hash(clip.key), clip.key))


def choose_classes(clips: Sequence[Clip], classes: str | None) -> list[str]:
    """The labels to keep, in the order of their indices.

    Args:
        clips: All annotated clips.
        classes: A number takes the labels with the most annotated training clips, ties by name. It depends on the
            annotations only, so every machine takes the same labels, whichever clips it has. A path names a file:
            text with one label per line, or JSON from label to index as in the authors' `label.json`. None keeps all.

    Returns:
        The labels sorted by name, or in the order of a JSON file's indices.

    Raises:
        InputError: The number is out of range, or the file cannot be read or has unknown labels.
    """
    known = sorted({clip.label for clip in clips})
    if classes is None:
        return known
    if re.fullmatch("[0-9]+", classes):
        number = whole(classes)
        if number is None or not 2 <= number <= len(known):
            raise InputError(f"classes is {classes}; choose 2 to {len(known)}, the number of labels in the annotations")
        counts = Counter(clip.label for clip in clips if clip.split != "test")
        return sorted(sorted(known, key=lambda label: (-counts[label], label))[:number])
    labels = read_labels(Path(classes)) if classes.endswith(".json") else _read_lines(Path(classes))
    for label in labels:
        if label not in known:
            raise InputError(
                f"{classes} has the label {label!r}, which the annotations do not; {close_names(label, known)}"
            )
    if len(labels) < 2:
        raise InputError(f"{classes} has {len(labels)} labels; at least 2 were expected")
    return labels


def read_labels(path: Path) -> list[str]:
    """Labels in the order of their indices, from a JSON object of label to index (the authors' `label.json`).

    Args:
        path: Path of the JSON file.

    Raises:
        InputError: The file holds something else, or the indices are not 0, 1, 2, ...
    """
    content = files.read_json(path)
    labels = sorted(content, key=lambda label: (str(type(content[label])), content[label]))
    if [content[label] for label in labels] != list(range(len(labels))):
        raise InputError(f"{path} does not map labels to 0, 1, 2, ...; an object of label to index was expected")
    return labels


def _read_lines(path: Path) -> list[str]:
    try:
        lines = files.read_text(path).splitlines()
    except FileNotFoundError:
        raise InputError(f"classes is {str(path)!r}; a number or a file with one label per line was expected") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable text file ({error})") from None
    return sorted({line.strip() for line in lines if line.strip()})


@dataclass(frozen=True)
class Found:
    """The clips' files in the sources.

    Args:
        clips: Files of each clip, the best one first. A clip may have several copies. If none of them can be read from,
            the first of them is here, as `Unusable`.
        unusable: Rows of skipped.csv for everything that cannot be read from.
    """

    clips: dict[Clip, tuple[MediaFile, ...]]
    unusable: list[dict[str, Any]]


def find_clips(clips: Iterable[Clip], sources: Sequence[Path]) -> Found:
    """Find the media files of clips by their names, in any folder.

    The names are `<id>_<start, 6 digits>` (official), then `<id>_<start>`, `<id>_<start>_<end>` in seconds, and the
    same in milliseconds. A file called `<id>` only is not used, because it may be the whole video. If there are several
    files for a clip, the better name comes first, then the earlier source.

    Args:
        clips: Clips to look for.
        sources: Folders, which are searched with everything below them, also in uncompressed tar files and in zip
            archives; or such archives.

    Raises:
        InputError: A source does not exist, or none of the clips is in any source.
    """
    names: dict[str, tuple[int, Clip]] = {}
    for clip in clips:
        start, end = clip.start, clip.start + CLIP_SECONDS
        patterns = (
            clip.key,
            f"{clip.id}_{start}",
            f"{clip.id}_{start}_{end}",
            f"{clip.id}_{start * 1000}_{end * 1000}",
        )
        for rank, name in enumerate(patterns):
            names.setdefault(name, (rank, clip))
    copies: dict[Clip, list[tuple[bool, int, int, MediaFile]]] = {}
    unusable: list[dict[str, Any]] = []
    for source in sources:
        if not source.is_file() and not source.is_dir():
            raise InputError(f"there is no folder or tar file {source}; give what holds the clips")
        for file in media_files(source):
            stem, _, ending = file.name.rpartition(".")
            rank, wanted = names.get(stem, (0, None)) if f".{ending.lower()}" in ENDINGS else (0, None)
            if wanted is not None:
                of = copies.setdefault(wanted, [])
                of.append((isinstance(file, Unusable), rank, len(of), file))
            if isinstance(file, Unusable):
                unusable.append({**_facts(wanted), "file": str(file), "reason": file.reason})
    where = ", ".join(map(str, sources))
    if unusable:
        example = f"{unusable[0]['file']} ({unusable[0]['reason']})"
        log.warning("%d files in %s cannot be read, for instance %s", len(unusable), where, example)
    if all(copy[0] for of in copies.values() for copy in of):
        raise InputError(
            f"no clip of the annotations is in {where}; names as <id>_<start, 6 digits>.mp4 were expected"
            + (f"; {len(unusable)} files cannot be read, for instance {example}" if unusable else "")
        )
    return Found({clip: _best(of) for clip, of in copies.items()}, unusable)


def _facts(clip: Clip | None) -> dict[str, Any]:
    return dict.fromkeys(("id", "start", "label", "split"), "") if clip is None else asdict(clip)


def _best(copies: list[tuple[bool, int, int, MediaFile]]) -> tuple[MediaFile, ...]:
    ordered = sorted(copies, key=lambda copy: copy[:3])
    return tuple(file for bad, *_, file in ordered if not bad) or (ordered[0][-1],)
