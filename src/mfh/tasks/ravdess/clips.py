"""RAVDESS clips in the official archives, packed or unpacked, and the files of each clip."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfh.errors import InputError
from mfh.tasks.media import MediaFile
from mfh.tasks.ravdess import names

#: Columns of the manifest besides the split.
FACTS = ("id", "actor", "channel", "emotion", "intensity", "statement", "repetition")


@dataclass(frozen=True)
class Clip:
    """One recording and its files.

    Args:
        facts: The clip's row of the manifest. `split` is missing unless the authors' tables give it.
        pictures: Files that hold the picture, the preferred one first.
        sounds: Files that hold the sound, the preferred one first. With layout "features" they are arrays of features.
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
    """Clips made of the official files below a folder, also inside zip archives.

    Args:
        source: The folder, or one zip archive.

    Raises:
        InputError: There is no clip with picture and sound.
    """
    skipped: list[dict[str, str]] = []
    recordings: dict[str, dict[int, MediaFile]] = {}  # clip -> modality -> file
    parsed: dict[str, names.FileName] = {}
    others: list[str] = []
    for file in _media_files(source, skipped):
        if not file.name.lower().endswith((".mp4", ".wav")):
            others.append(str(file))
            continue
        what = names.parse(file.name)
        if what is None:
            skipped.append(skip(file, "misnamed"))
        elif what.modality in recordings.setdefault(what.clip, {}):
            skipped.append(skip(file, "duplicate"))
        else:
            recordings[what.clip][what.modality] = file
            parsed[what.clip] = what
    clips = []
    for clip, of in sorted(recordings.items()):
        pictures = tuple(of[modality] for modality in (names.FULL, names.PICTURE) if modality in of)
        sounds = tuple(of[modality] for modality in (names.SOUND, names.FULL) if modality in of)
        if pictures and sounds:
            facts = {"id": clip, **{name: getattr(parsed[clip], name) for name in FACTS[1:]}}
            clips.append(Clip(facts, pictures, sounds))
        else:
            skipped += [skip(alone, "no partner") for alone in of.values()]
    if not clips:
        seen = [row["file"] for row in skipped] + others
        looks = f"found {len(seen)} other files, for instance {seen[0]}" if seen else "it is empty"
        if skipped:
            looks += f" ({skipped[0]['reason']})"
        raise InputError(
            f"no clip with picture and sound in {source}: looked for zip archives, and for files called "
            f"MM-VC-EE-II-SS-RR-AA.mp4 or .wav, in all its folders; {looks}"
        )
    return Found(clips, skipped)


def _media_files(source: Path, skipped: list[dict[str, str]]) -> Iterator[MediaFile]:
    """Files in a fixed order: first those on disk, then those in archives."""
    on_disk = [source] if source.is_file() else sorted(_walk(source))
    for path in on_disk:
        if not path.name.lower().endswith(".zip"):
            yield MediaFile.of(path)
    for path in on_disk:
        if not path.name.lower().endswith(".zip"):
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            skipped.append(skip(path, "unreadable"))
            continue
        for member in sorted(members, key=lambda info: info.filename):
            parts = member.filename.replace("\\", "/").split("/")
            file = MediaFile(path, member.filename, f"{member.file_size} {member.CRC:08x}")
            if ".." in parts or parts[0] == "" or ":" in parts[0]:  # nothing is unpacked, but such a name is an attack
                skipped.append(skip(file, "unsafe path"))
            elif not member.is_dir() and parts[0] != "__MACOSX" and not parts[-1].startswith("."):
                yield file


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, members in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        yield from (Path(parent) / name for name in members if not name.startswith("."))


def skip(file: MediaFile | Path | str, reason: str) -> dict[str, str]:
    """A row of skipped.csv.

    Args:
        file: The file that is not used.
        reason: Why it is not used.
    """
    return {"file": str(file), "reason": reason}
