"""The media files of a source: in folders, zip archives and uncompressed tar files. What cannot be used is named too.

Archives are read in place. One inside another is opened if it is stored there as it is, which makes it a part of the
outer file; a second level is not opened.
"""

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from mfh.tasks.media import MediaError, MediaFile

#: Larger members of an archive are not read: they are read into memory, and a clip has a few MB.
MOST_MEMBER = 2**28

#: More bytes are never read at once for the table of contents of an archive, whatever its header claims.
_MOST_CONTENTS = 2**26

_OPENED = (".zip", ".tar")
_UNOPENED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".gz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True, order=True)
class Unusable(MediaFile):
    """Something in a source that no clip can be read from.

    Args:
        reason: Why, as skipped.csv says it.
    """

    reason: str = ""


@dataclass(frozen=True, order=True)
class _NestedFile(MediaFile):
    """A member of a zip archive that is itself a member of an archive.

    Args:
        within: First byte and number of bytes of the inner archive.
        inner: Name inside the inner archive.
    """

    within: tuple[int, int] = (0, 0)
    inner: str = ""

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The content, as a file that can be read and searched.

        Raises:
            MediaError: The archive is damaged there, or encrypted.
        """
        try:
            with self.path.open("rb") as file, zipfile.ZipFile(_part(file, *self.within)) as archive:
                content = archive.read(self.inner)
        except Exception:  # zipfile, zlib and lzma raise errors of many kinds
            raise MediaError("unreadable") from None
        yield io.BytesIO(content)


def media_files(source: Path) -> Iterator[MediaFile]:
    """Everything below a folder, or in an archive, in a fixed order: files on disk first, then members of archives.

    Folders are followed through links, each once. Hidden files and folders are left out.

    Args:
        source: A folder, an archive or a single file.

    Yields:
        Files, those on disk without a stamp (see `stamped`), and what cannot be used, as `Unusable`.
    """
    archives = []
    for file in [MediaFile(source)] if source.is_file() else _on_disk(source):
        if isinstance(file, Unusable) or not _ends(file, (*_OPENED, *_UNOPENED)):
            yield file
        elif _ends(file, _OPENED):
            archives.append(file.path)
        else:
            yield Unusable(file.path, reason="archive not opened")
    for path in archives:
        try:
            with path.open("rb") as opened:
                yield from _members(path, opened, "", (0, path.stat().st_size))
        except OSError:
            yield Unusable(path, reason="unreadable")


def stamped(file: MediaFile) -> MediaFile:
    """The file with a stamp that changes when its content does.

    Args:
        file: A file. One on disk that has no stamp yet gets its size and time.
    """
    if file.stamp or file.member or isinstance(file, Unusable):
        return file
    try:
        return MediaFile.of(file.path)
    except OSError:
        return Unusable(file.path, reason="unreadable")


# --- folders ----------------------------------------------------------------------------------------------------------


def _on_disk(source: Path) -> Iterator[MediaFile]:
    waiting, seen = [source], set()
    while waiting:
        folder, folders = waiting.pop(), []
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:  # a second link to it, or a link to a folder above
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            yield Unusable(folder, reason="unreadable")
            continue
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            path, fault = Path(entry.path), _fault(entry)
            if fault is not None:
                yield Unusable(path, reason=fault)
            elif entry.is_dir():
                folders.append(path)
            else:
                yield MediaFile(path)
        waiting += reversed(folders)


def _fault(entry: "os.DirEntry[str]") -> str | None:
    """Why an entry of a folder is neither a folder nor a regular file."""
    try:
        if entry.is_dir() or entry.is_file():
            return None
    except OSError:  # for instance a link to itself
        pass
    return "dangling link" if entry.is_symlink() and not Path(entry.path).exists() else "not a regular file"


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _ends(file: MediaFile, endings: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(endings)


# --- archives ---------------------------------------------------------------------------------------------------------


class _Part:
    """A part of a file as a file of its own. No read is larger than a limit, whatever an archive's header asks for."""

    def __init__(self, file: IO[bytes], start: int, size: int, most: int) -> None:
        self.file, self.start, self.size, self.most, self.position = file, start, size, most, 0

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.position)
        size = left if size is None or size < 0 else min(size, left)
        if size > self.most:
            raise OSError(f"{size} bytes at once; at most {self.most} were expected")
        self.file.seek(self.start + self.position)
        content = self.file.read(size)
        self.position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True


def _part(file: IO[bytes], start: int, size: int, most: int = MOST_MEMBER) -> Any:
    return _Part(file, start, size, most)


def _members(path: Path, opened: IO[bytes], outer: str, place: tuple[int, int]) -> Iterator[MediaFile]:
    """Members of the archive that lies at `place` in the file `path`, which is open.

    Args:
        path: The file on disk.
        opened: The same file, open.
        outer: Name of the archive inside the file. Empty if it is the file itself.
        place: First byte and number of bytes of the archive.
    """
    read = _zip_members if (outer or path.name).lower().endswith(".zip") else _tar_members
    try:
        for member, start, size in read(path, opened, outer, place):
            if isinstance(member, Unusable) or not _ends(member, (*_OPENED, *_UNOPENED)):
                yield member
            elif start is None or outer or not _ends(member, _OPENED):
                yield Unusable(path, member.member, reason="archive not opened")
            else:
                yield from _members(path, opened, member.member, (start, size))
    except Exception:  # whatever a damaged archive raises belongs to it; the members before the damage are used
        yield Unusable(path, outer, reason="unreadable")


_Member = tuple[MediaFile, int | None, int]  # the member; if it is stored as it is, its first byte; its size


def _zip_members(path: Path, opened: IO[bytes], outer: str, place: tuple[int, int]) -> Iterator[_Member]:
    with zipfile.ZipFile(_part(opened, *place, _MOST_CONTENTS)) as archive:
        members = archive.infolist()
    for info in sorted(members, key=lambda info: info.filename):
        name, stamp = f"{outer}/{info.filename}" if outer else info.filename, f"{info.file_size} {info.CRC:08x}"
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:  # nothing is unpacked, but such a name is an attack
            yield Unusable(path, name, reason="unsafe path"), None, 0
        elif info.is_dir() or _is_left_out(parts):
            continue
        elif info.file_size > MOST_MEMBER and not parts[-1].lower().endswith(_OPENED):
            yield Unusable(path, name, reason="too large"), None, 0
        else:
            stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
            start = _start_of_content(opened, place[0] + info.header_offset) if stored else None
            if outer:
                yield _NestedFile(path, name, stamp, within=place, inner=info.filename), start, info.file_size
            else:
                yield MediaFile(path, name, stamp), start, info.file_size


def _start_of_content(file: IO[bytes], header: int) -> int:
    """First byte of a stored member of a zip archive, whose own header has names of two lengths."""
    file.seek(header + 26)
    lengths = file.read(4)
    return header + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _tar_members(path: Path, opened: IO[bytes], outer: str, place: tuple[int, int]) -> Iterator[_Member]:
    with tarfile.open(fileobj=_part(opened, *place, _MOST_CONTENTS), mode="r:") as archive:
        end = 0
        for info in archive:
            if info.size < 0 or info.offset_data <= end:  # it would be read for ever
                raise tarfile.ReadError("a member lies before the one before it")
            end = info.offset_data
            archive.members = []  # type: ignore[attr-defined]  # otherwise it remembers every member
            name = f"{outer}/{info.name}" if outer else info.name
            if info.isdir() or _is_left_out(info.name.split("/")):
                continue
            if not info.isreg() or info.issparse():
                yield Unusable(path, name, reason="not a regular file"), None, 0
            elif info.size > MOST_MEMBER and not info.name.lower().endswith(_OPENED):
                yield Unusable(path, name, reason="too large"), None, 0
            else:
                start = place[0] + info.offset_data
                yield MediaFile(path, name, str(info.mtime), (start, info.size)), start, info.size


def _is_left_out(parts: list[str]) -> bool:
    return any(_is_hidden(part) for part in parts if part not in ("", ".", ".."))
