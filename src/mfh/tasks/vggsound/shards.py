"""Prepared clips as a map-style data set: any clip by its place in a shard, in a folder or at an fsspec URL.

`index.csv` says where the members of each clip begin and end, see `mfh.tasks.vggsound.writing`. Reading checks the
members' names against it. Nothing is ever unpickled.
"""

import copy
import hashlib
import io
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mfh.errors import InputError, in_a_line
from mfh.files import MOST_TEXT, atomic_write, file_digest, locked, read_table
from mfh.tasks.packages import cache_folder
from mfh.tasks.preparing import fact, read_meta
from mfh.tasks.sizes import VGGSOUND_RATE, VggsoundOptions, VggsoundSizes
from mfh.tasks.vggsound.writing import INDEX, KIND
from mfh.values import whole

_SHARD_NAME = re.compile(r"shard-(train|val|test)-\d{5}\.tar")
_BLOCK = 512

#: A download is given up if it brings fewer than `LEAST` bytes in so many seconds, and is not complete then.
PATIENCE = 60.0
LEAST = 2**16


class Store:
    """A prepared folder: a local one, or an fsspec URL whose files are kept locally once they were read.

    Args:
        place: A folder, or a URL such as "s3://bucket/vggsound".
        cache: Folder for files of a URL (default: see `mfh.tasks.packages.cache_folder`). It grows to
            the size of what is read.
    """

    def __init__(self, place: str | Path, cache: str | Path | None = None) -> None:
        self.place = str(place)
        self.remote = "://" in self.place
        base = Path(cache) if cache else cache_folder()
        digest = hashlib.sha256(self.place.rstrip("/").encode()).hexdigest()[:16]
        self.folder = base / digest if self.remote else Path(self.place)

    def fetch(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """The local path of a file. A file at a URL is fetched if there is no local copy with this checksum.

        A checksum is computed when a copy is read for the first time, and again when the copy has changed since.

        Args:
            name: Name of the file in the prepared folder.
            size: Expected size in bytes. None accepts any.
            sha256: Expected checksum of a file at a URL. None fetches the file again.

        Raises:
            InputError: The file does not exist, cannot be fetched, or has another size or checksum.
        """
        path = self.folder / name
        if self.remote and not _is_verified(path, sha256):
            with locked(path.with_name(f".{name}.lock")):  # reading processes wait until one of them has fetched it
                if not _verify(path, size, sha256):
                    self._download(name, path, size, sha256)
        if not path.is_file():
            raise InputError(f"{self.place} has no file {name}; prepare it again, or copy all of it")
        if size is not None and path.stat().st_size != size:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes; {size} were expected: it is truncated or of another "
                "preparation; copy it again, or prepare again"
            )
        return path

    def clean(self) -> None:
        """Remove what killed downloads left in the local copy of a URL."""
        for part in self.folder.glob(".*.part") if self.remote else ():
            name = part.name[1:].rpartition(".part")[0].rpartition(".")[0]
            with suppress(OSError), locked(part.with_name(f".{name}.lock"), wait=False):  # else it is being fetched
                part.unlink()

    def _download(self, name: str, path: Path, size: int | None, sha256: str | None) -> None:
        import fsspec

        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.", suffix=".part")
        os.close(handle)
        limit = _Limit(MOST_TEXT if size is None else size)

        def get() -> None:
            system, root = fsspec.core.url_to_fs(self.place)
            system.get_file(f"{root.rstrip('/')}/{name}", temporary, callback=fsspec.Callback(hooks={"limit": limit}))

        try:
            _watched(get, Path(temporary), limit)
            if sha256 is not None and file_digest(temporary) != sha256:
                raise InputError("its content is not that of this preparation; copy it there again")
            Path(temporary).replace(path)
            _verify(path, size, sha256)
        except Exception as error:  # every file system has errors of its own
            if _verify(path, size, sha256):
                return  # another process that did not see the lock was first, and has the file open (Windows)
            reason = str(error) if isinstance(error, InputError) else in_a_line(error)
            raise InputError(f"{self.place}/{name} cannot be fetched: {reason[:300]}") from None
        finally:
            with suppress(OSError):
                Path(temporary).unlink(missing_ok=True)


class _Limit:
    """Ends a download that is larger than expected, or is not wanted any more. Called with every block."""

    def __init__(self, most: int) -> None:
        self.most, self.received, self.stopped = most, 0, False

    def __call__(self, _size: int | None, received: int, **_: Any) -> None:
        self.received = max(self.received, received)
        if self.received > self.most:
            raise InputError(f"it is larger than the expected {self.most} bytes")
        if self.stopped:
            raise InterruptedError


def _watched(get: Callable[[], None], temporary: Path, limit: _Limit) -> None:
    """Run a download in a thread that is left behind if it brings too much or nothing any more."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            get()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    before, since = 0, time.monotonic()
    while thread.is_alive():
        thread.join(min(0.2, PATIENCE / 5))
        limit(None, temporary.stat().st_size)  # not every file system reports its blocks
        if limit.received - before >= LEAST:
            before, since = limit.received, time.monotonic()
        elif thread.is_alive() and time.monotonic() - since > PATIENCE:
            limit.stopped = True
            raise InputError(f"the server has sent nothing for {PATIENCE:g} seconds; run the same command again later")
    if errors:
        raise errors[0]
    limit(None, temporary.stat().st_size)


def _verify(path: Path, size: int | None, sha256: str | None) -> bool:
    """Whether a copy is the expected file. A file beside it notes that it is, so that its content is read only once."""
    if sha256 is None or not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    if _is_verified(path, sha256):
        return True
    note = _note(path, sha256)
    if file_digest(path) != sha256:
        return False
    with suppress(OSError), atomic_write(_note_file(path)) as file:  # without it, it is only slower
        file.write(note)
    return True


def _is_verified(path: Path, sha256: str | None) -> bool:
    try:
        return sha256 is not None and _note_file(path).read_text(encoding="utf-8") == _note(path, sha256)
    except (OSError, UnicodeDecodeError):
        return False


def _note_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _note(path: Path, sha256: str) -> str:
    """The checksum, and what changes when somebody writes to the file."""
    status = path.stat()
    return f"{sha256} {status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}\n"


@dataclass(frozen=True)
class Prepared:
    """A complete prepared folder.

    Args:
        store: Where the folder is.
        meta: Content of meta.json, see `mfh.tasks.preparing.finish`.
        rows: Rows of index.csv.
    """

    store: Store
    meta: Mapping[str, Any]
    rows: Sequence[Mapping[str, str]]

    @property
    def labels(self) -> list[str]:
        """Labels in the order of their indices."""
        return list(self.meta["labels"])


def open_prepared(place: str | Path, cache: str | Path | None = None) -> Prepared:
    """Read meta.json and index.csv of a prepared folder, and check that they belong together.

    Args:
        place: A folder or an fsspec URL.
        cache: Folder for files of a URL, see `Store`.

    Raises:
        InputError: The folder is no complete preparation of VGGSound, the index is missing or of another preparation,
            or a shard of a local folder is missing or has another size.
    """
    store = Store(place, cache)
    store.clean()
    if store.remote:
        store.fetch("meta.json")
    meta = read_meta(store.folder, KIND)
    _check(meta, store.place)
    way_out = "copy it again, or prepare again"
    index = store.fetch("index.csv", sha256=meta["index_sha256"])
    if not store.remote and file_digest(index) != meta["index_sha256"]:
        raise InputError(f"{store.place}/index.csv is not the index of this preparation; {way_out}")
    for name, facts in meta["shards"].items():
        if not _SHARD_NAME.fullmatch(name):
            raise InputError(
                f"{store.place}/meta.json names a shard {name!r}; names like shard-train-00000.tar were expected"
            )
        if not store.remote:
            store.fetch(name, facts["size"])
    rows = read_table(index, INDEX, way_out)
    for line, row in enumerate(rows, start=2):
        if not _is_possible(row, meta):
            raise InputError(f"{store.place}/index.csv line {line} names no place in a shard; {way_out}")
    return Prepared(store, meta, rows)


def _is_possible(row: Mapping[str, str], meta: Mapping[str, Any]) -> bool:
    shard = meta["shards"].get(row["shard"])
    label, offset, size = (whole(row[name]) for name in ("class", "offset", "size"))
    if shard is None or label is None or offset is None or not size:
        return False
    return bool(label < len(meta["labels"]) and offset + size <= shard["size"])


def _check(meta: Mapping[str, Any], place: str) -> None:
    """Refuse a meta.json whose values are missing, or impossible: a number of frames is also an amount of memory."""
    options = fact(meta, "options", dict, place)
    kinds: dict[str, type[Any]] = {field.name: type(field.default) for field in fields(VggsoundOptions)}
    try:
        sizes = VggsoundSizes(**{name: fact(options, name, kind, place) for name, kind in kinds.items()})
    except InputError as error:
        raise InputError(f"{place} cannot be used: {error}") from None
    if options.get("samples") != sizes.samples:
        raise InputError(f"{place}/meta.json has samples {options.get('samples')!r}; {sizes.samples} were expected")
    labels, shards = fact(meta, "labels", list, place), fact(meta, "shards", dict, place)
    fact(meta, "index_sha256", str, place)
    if not labels or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{place}/meta.json has labels {str(labels)[:60]!r}; a list of names was expected")
    for name, facts in shards.items():
        fact(shards, name, dict, place)
        fact(facts, "size", int, place)
        fact(facts, "sha256", str, place)


class Clips(Dataset[tuple[Tensor, Tensor, int]]):
    """The clips of one split as (sound, video, class).

    The sound is float32 (T,) in [-1, 1] at 16 kHz. The video is uint8 (F, H, W, 3) in RGB, with F frames evenly spaced
    over the clip. With `augment`, both come from the same random window of the clip, and half of the videos are
    mirrored.

    Args:
        prepared: Prepared folder from `open_prepared`.
        split: "train", "val" or "test".
        num_frames: Number F of frames, at most as many as were prepared (default: all).
        augment: Whether items vary at random, by torch's global generator.
        crop: Length of the random window, as a share of the clip.
        modality: "teacher" reads only sound, "student" only video. The other part is then empty, (0,). None reads both.

    Raises:
        InputError: num_frames or crop is out of range.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        *,
        num_frames: int | None = None,
        augment: bool = False,
        crop: float = 0.8,
        modality: str | None = None,
    ) -> None:
        options = prepared.meta["options"]
        self.stored_frames, self.size = int(options["num_frames"]), int(options["size"])
        self.num_frames = self.stored_frames if num_frames is None else num_frames
        if not 1 <= self.num_frames <= self.stored_frames:
            raise InputError(
                f"num_frames is {num_frames}; choose 1 to {self.stored_frames}, the number of prepared frames"
            )
        if not 0 < crop <= 1:
            raise InputError(f"crop is {crop}; a share of the clip, above 0 and at most 1, was expected")
        self.samples, self.augment, self.crop, self.modality = int(options["samples"]), augment, crop, modality
        self.seconds = self.samples / VGGSOUND_RATE
        rows = [row for row in prepared.rows if row["split"] == split]
        self.shards = sorted({row["shard"] for row in rows})
        place = {name: number for number, name in enumerate(self.shards)}
        # Arrays, not objects: reading processes share their memory.
        self.keys = np.array([row["key"] for row in rows], dtype=np.bytes_)
        self.targets = np.array([int(row["class"]) for row in rows], dtype=np.int64)
        self._where = np.array(
            [(place[row["shard"]], int(row["offset"]), int(row["size"])) for row in rows], dtype=np.int64
        ).reshape(-1, 3)
        facts = [prepared.meta["shards"][name] for name in self.shards]
        self._sizes, self._sha256 = [int(each["size"]) for each in facts], [str(each["sha256"]) for each in facts]
        self._store = prepared.store
        self._opened: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.targets)

    def only(self, modality: str) -> "Clips":
        """The same clips, reading only the input of one network.

        Args:
            modality: "teacher" or "student".
        """
        clips = copy.copy(self)
        clips.modality = modality
        return clips

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        start, mirrored, crop = 0.0, False, 1.0
        if self.augment:
            draws = torch.rand(2).tolist()
            start, mirrored, crop = draws[0] * (1 - self.crop), draws[1] < 0.5, self.crop
        members = self._members(index)
        sound, video = torch.empty(0), torch.empty(0, dtype=torch.uint8)
        if self.modality != "student":
            sound = self._sound(members, index)
            sound = sound[int(start * self.samples) :][: int(crop * self.samples)]
        if self.modality != "teacher":
            share = (np.arange(self.num_frames) + 0.5) / self.num_frames
            if self.augment:  # as a share of the clip, which may be shorter than the sound with its silence
                share = (start + crop * share) * self._stretch(members)
            chosen = (share * self.stored_frames).astype(int).clip(0, self.stored_frames - 1)
            video = self._video(members, chosen, index)
            video = video.flip(2) if mirrored else video
        return sound, video, int(self.targets[index])

    def _sound(self, members: Mapping[str, bytes], index: int) -> Tensor:
        content = members.get("wav", b"")
        samples = np.frombuffer(content[44:], dtype="<i2") if content[:4] == b"RIFF" else np.empty(0)
        if len(samples) != self.samples:
            raise self._foreign(index, f"{len(samples)} sound samples, {self.samples} were expected")
        return torch.from_numpy(samples.astype(np.float32) / 32767)

    def _stretch(self, members: Mapping[str, bytes]) -> float:
        """Length of the prepared sound, as a multiple of the length that the frames cover."""
        try:
            seconds = float(json.loads(members.get("json", b"{}")).get("seconds", self.seconds))
        except (ValueError, TypeError, AttributeError):
            seconds = self.seconds
        return self.seconds / seconds if 0 < seconds <= self.seconds else 1.0

    def _video(self, members: Mapping[str, bytes], chosen: NDArray[np.int64], index: int) -> Tensor:
        from PIL import Image

        video = np.empty((len(chosen), self.size, self.size, 3), np.uint8)
        for place, number in enumerate(chosen):
            try:
                # Only JPEG, and nothing is decoded before its size is known to be right.
                with Image.open(io.BytesIO(members[f"{number:02d}.jpg"]), formats=["JPEG"]) as picture:
                    if picture.size != (self.size, self.size):
                        raise ValueError(f"{picture.size} pixels")
                    video[place] = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
            except (KeyError, OSError, ValueError, SyntaxError) as error:
                raise self._foreign(index, f"no readable frame {number} ({error})") from None
        return torch.from_numpy(video)

    def _members(self, index: int) -> dict[str, bytes]:
        """Content of the clip's members, by the part of their names after the key."""
        shard, offset, size = (int(value) for value in self._where[index])
        content = self._read(shard, size, offset)
        key = self.keys[index].decode()
        members: dict[str, bytes] = {}
        position = 0
        while position + _BLOCK <= len(content):
            name = content[position : position + 100].rstrip(b"\0").decode("ascii", "replace")
            digits = content[position + 124 : position + 135]
            if not name.startswith(f"{key}.") or not digits.isdigit():
                raise self._foreign(index, f"{name[:60]!r} there")
            length, position = int(digits, 8), position + _BLOCK
            members[name.removeprefix(f"{key}.")] = content[position : position + length]
            position += -(-length // _BLOCK) * _BLOCK
        if len(content) != size or position != len(content):
            raise self._foreign(index, "another end")
        return members

    def _foreign(self, index: int, found: str) -> InputError:
        shard = self._store.folder / self.shards[self._where[index, 0]]
        return InputError(
            f"{shard} does not hold clip {self.keys[index].decode()} as the index says ({found}): it is damaged or of "
            "another preparation; copy it again, or prepare again"
        )

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        handle = self._handle(shard)
        if hasattr(os, "pread"):
            return os.pread(handle, size, offset)
        with self._lock:  # Windows reads only from the current position
            os.lseek(handle, offset, os.SEEK_SET)
            return os.read(handle, size)

    def _handle(self, shard: int) -> int:
        """A descriptor of the shard. Reads give a position, so that forked processes and threads may share it."""
        with self._lock:
            if shard not in self._opened:
                path = self._store.fetch(self.shards[shard], self._sizes[shard], self._sha256[shard])
                if len(self._opened) >= _MOST_OPEN:
                    os.close(self._opened.pop(next(iter(self._opened))))
                self._opened[shard] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            return self._opened[shard]

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which opens its own files."""
        return {**self.__dict__, "_opened": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self) -> None:
        for handle in self.__dict__.get("_opened", {}).values():
            os.close(handle)


_MOST_OPEN = 64  # descriptors; a process can usually have 1024
