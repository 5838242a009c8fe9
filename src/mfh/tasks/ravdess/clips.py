"""RAVDESS clips in the official archives, packed or unpacked, and the files of each clip."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfh.errors import InputError
from mfh.tasks.media import MediaFile
from mfh.tasks.preparing import counted
from mfh.tasks.ravdess import names
from mfh.tasks.sources import Unusable, media_files, stamped

#: Columns of the manifest besides the split.
FACTS = ("id", "actor", "channel", "emotion", "intensity", "statement", "repetition")


@dataclass(frozen=True)
class Clip:
    """One recording and its files.

    Args:
        facts: The clip's row of the manifest. `split` is missing unless the authors' tables give it.
        pictures: Files that hold the picture, also copies of one file, the preferred one first.
        sounds: Files that hold the sound, as for `pictures`. With layout "features" they are arrays of features.
    """

    facts: Mapping[str, Any]
    pictures: tuple[MediaFile, ...]
    sounds: tuple[MediaFile, ...]

    @property
    def stamps(self) -> list[str]:
        """Names and stamps of the files, which change when a file does."""
        return [f"{file.name} {file.stamp}" for file in (*self.pictures, *self.sounds)]


@dataclass(frozen=True)
class Found:
    """Clips in the order of their ids, and the files that belong to no clip, with the reason."""

    clips: list[Clip]
    skipped: list[dict[str, str]]


def find_clips(source: Path) -> Found:
    """Clips made of the official files below a folder, also inside zip archives and uncompressed tar files.

    Args:
        source: The folder, or one archive.

    Raises:
        InputError: There is no clip with picture and sound.
    """
    skipped: list[dict[str, str]] = []
    recordings: dict[str, dict[int, list[MediaFile]]] = {}  # clip -> modality -> copies
    parsed: dict[str, names.FileName] = {}
    others: list[str] = []
    for found in media_files(source):
        is_clip = found.name.lower().endswith((".mp4", ".wav"))
        file = stamped(found) if is_clip else found
        if isinstance(file, Unusable):
            skipped.append(skip(file, file.reason))
        elif not is_clip:
            others.append(str(file))
        elif (what := names.parse(file.name)) is None:
            skipped.append(skip(file, "misnamed"))
        else:
            recordings.setdefault(what.clip, {}).setdefault(what.modality, []).append(file)
            parsed[what.clip] = what
    clips = []
    for clip, of in sorted(recordings.items()):
        pictures = tuple(file for modality in (names.FULL, names.PICTURE) for file in of.get(modality, []))
        sounds = tuple(file for modality in (names.SOUND, names.FULL) for file in of.get(modality, []))
        if pictures and sounds:
            facts = {"id": clip, **{name: getattr(parsed[clip], name) for name in FACTS[1:]}}
            clips.append(Clip(facts, pictures, sounds))
        else:
            skipped += [skip(alone, "no partner") for copies in of.values() for alone in copies]
    if not clips:
        seen = [row["file"] for row in skipped] + others
        looks = f"found {len(seen)} other files, for instance {seen[0]}" if seen else "it is empty"
        if skipped:
            looks += f" ({skipped[0]['reason']}); not used: {counted(row['reason'] for row in skipped)}"
        raise InputError(
            f"no clip with picture and sound in {source}: looked for zip and tar archives, and for files called "
            f"MM-VC-EE-II-SS-RR-AA.mp4 or .wav, in all its folders; {looks}"
        )
    return Found(clips, skipped)


def skip(file: MediaFile | Path | str, reason: str) -> dict[str, str]:
    """A row of skipped.csv.

    Args:
        file: The file that is not used.
        reason: Why it is not used.
    """
    return {"file": str(file), "reason": reason}
