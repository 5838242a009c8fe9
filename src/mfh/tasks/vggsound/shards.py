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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mfh.errors import InputError
from mfh.files import file_digest, locked, read_table
from mfh.tasks.preparing import read_meta
from mfh.tasks.sizes import VGGSOUND_RATE
from mfh.tasks.vggsound.writing import INDEX, KIND

_SHARD_NAME = re.compile(r"shard-(train|val|test)-\d{5}\.tar")
_BLOCK = 512


class Store:
    """A prepared folder: a local one, or an fsspec URL whose files are kept locally once they were read.

    Args:
        place: A folder, or a URL such as "s3://bucket/vggsound".
        cache: Folder for files of a URL (default: the environment variable MFH_CACHE, else ~/.cache/mfh). It grows to
            the size of what is read.
    """

    def __init__(self, place: str | Path, cache: str | Path | None = None) -> None:
        self.place = str(place)
        self.remote = "://" in self.place
        base = Path(cache or os.environ.get("MFH_CACHE") or Path.home() / ".cache" / "mfh")
        digest = hashlib.sha256(self.place.rstrip("/").encode()).hexdigest()[:16]
        self.folder = base / digest if self.remote else Path(self.place)

    def fetch(self, name: str, size: int | None = None) -> Path:
        """The local path of a file. A file at a URL is fetched if there is no local copy of the right size.

        Args:
            name: Name of the file in the prepared folder.
            size: Expected size in bytes. None accepts any, and fetches a file at a URL again.

        Raises:
            InputError: The file does not exist, cannot be fetched, or has another size.
        """
        path = self.folder / name
        if self.remote and not _is_whole(path, size):
            with locked(path.with_name(f".{name}.lock")):  # reading processes wait until one of them has fetched it
                if not _is_whole(path, size):
                    self._download(name, path, size)
        if not path.is_file():
            raise InputError(f"{self.place} has no file {name}; prepare it again, or copy all of it")
        if size is not None and path.stat().st_size != size:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes; {size} were expected: it is truncated or of another "
                "preparation; copy it again, or prepare again"
            )
        return path

    def _download(self, name: str, path: Path, size: int | None) -> None:
        import fsspec

        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.", suffix=".part")
        os.close(handle)
        try:
            system, root = fsspec.core.url_to_fs(self.place)
            system.get_file(f"{root.rstrip('/')}/{name}", temporary)
            Path(temporary).replace(path)
        except Exception as error:  # every file system has errors of its own
            if _is_whole(path, size):
                return  # another process that did not see the lock was first, and has the file open (Windows)
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.place}/{name} cannot be fetched: {type(error).__name__}: {reason}") from None
        finally:
            Path(temporary).unlink(missing_ok=True)


def _is_whole(path: Path, size: int | None) -> bool:
    return size is not None and path.is_file() and path.stat().st_size == size


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
    if store.remote:
        store.fetch("meta.json")
    meta = read_meta(store.folder, KIND)
    index, way_out = store.fetch("index.csv"), "copy it again, or prepare again"
    if file_digest(index) != meta.get("index_sha256"):
        raise InputError(f"{store.place}/index.csv is not the index of this preparation; {way_out}")
    for name, facts in meta["shards"].items():
        if not _SHARD_NAME.fullmatch(name):
            raise InputError(
                f"{store.place}/meta.json names a shard {name!r}; names like shard-train-00000.tar were expected"
            )
        if not store.remote:
            store.fetch(name, facts["size"])
    return Prepared(store, meta, read_table(index, INDEX, way_out))


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
        self._sizes = [int(prepared.meta["shards"][name]["size"]) for name in self.shards]
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
                path = self._store.fetch(self.shards[shard], self._sizes[shard])
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
