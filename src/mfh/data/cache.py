"""Outputs of frozen networks in a folder that several runs share: each is computed once, then mapped into memory."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfh.data.epochs import PairLoader
from mfh.data.pairs import only_role, tensors
from mfh.errors import InputError
from mfh.files import atomic_write, locked

log = logging.getLogger(__name__)

#: The head of a file, in bytes: a line of JSON, filled with blanks. The rows begin on a page of memory.
_HEAD = 4096
_BLOCK_BYTES = 16 * 2**20
_KINDS = {str(kind): kind for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_OWN = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{16}\.rows|\.lock)|\.[0-9a-f]{32}-[0-9a-f]{16}\.rows\.\w{8}\.part")


class OutputCache:
    """A folder of outputs of frozen networks, one file per tensor, which processes and runs share.

    Every file carries its key, shape and digest. A file that was damaged or does not belong is made again. Where the
    folder cannot be written, one warning says so and the outputs are computed without it.

    Args:
        folder: The folder. It is made when the first file is written.

    Raises:
        InputError: `folder` is a file.

    Example:
        >>> import tempfile
        >>> cache, made = OutputCache(tempfile.mkdtemp()), []
        >>> def compute(names):
        ...     made.extend(names)
        ...     return [torch.zeros(4, 2) for _ in names]
        >>> [rows.shape for _ in range(2) for rows in cache.rows("teacher and data", ["logits"], compute)]
        [torch.Size([4, 2]), torch.Size([4, 2])]
        >>> made
        ['logits']
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"cache is {self.folder}, a file; choose a folder")
        self._warned = False

    def rows(self, source: str, names: Sequence[str], compute: Callable[[list[str]], Sequence[Tensor]]) -> list[Tensor]:
        """Tensors from the cache; those that it lacks are computed and kept.

        Of several processes that want outputs of one source, one computes and the others wait.

        Args:
            source: What the outputs depend on: network, data, and how they are computed.
            names: One name per tensor.
            compute: Called with the names that are missing; returns their tensors (N, ...), of floating point numbers.

        Returns:
            One tensor per name, on the CPU. A tensor of the cache is memory-mapped; writing to it changes no file.
        """
        found = {name: rows for name in names if (rows := self._read(source, name)) is not None}
        if len(found) == len(set(names)):
            return [found[name] for name in names]
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.folder / f"{_digest(source)}.lock"))
            except OSError as error:
                self._warn(error)
            else:  # another process may have made them meanwhile
                absent = [name for name in dict.fromkeys(names) if name not in found]
                found |= {name: rows for name in absent if (rows := self._read(source, name, warn=False)) is not None}
            missing = [name for name in dict.fromkeys(names) if name not in found]
            if missing:
                for name, rows in zip(missing, compute(missing), strict=True):
                    found[name] = self._keep(source, name, rows)
        return [found[name] for name in names]

    def clear(self) -> None:
        """Remove the files of the cache; other files in the folder stay.

        A run that has mapped a file keeps its content (on Windows, such a file stays).
        """
        for path in self.files():
            with suppress(OSError):
                path.unlink()

    def files(self) -> list[Path]:
        """The files of the cache.

        Raises:
            InputError: There is no such folder.
        """
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder}; give the folder of a cache")
        return sorted(path for path in self.folder.iterdir() if _OWN.fullmatch(path.name))

    def _path(self, source: str, name: str) -> Path:
        return self.folder / f"{_digest(source)}-{_digest(name)[:16]}.rows"

    def _read(self, source: str, name: str, *, warn: bool = True) -> Tensor | None:
        """The tensor, or None where there is no whole file of it."""
        path = self._path(source, name)
        if not path.exists():
            return None
        try:
            with path.open("rb") as file:
                head = json.loads(file.read(_HEAD))
            kind, shape = _KINDS[head["kind"]], [int(length) for length in head["shape"]]
            data = np.memmap(path, dtype=np.uint8, mode="c", offset=_HEAD)
            rows = torch.from_numpy(data).view(kind).reshape(shape)
            if _head(source, name, rows) == head:
                return rows
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            pass  # whatever the file holds, it is not these rows
        if warn:
            log.warning("%s is damaged or does not belong to the cache: it is made again", path)
        return None

    def _keep(self, source: str, name: str, rows: Tensor) -> Tensor:
        """Write a tensor and return it mapped from its file; the tensor itself where that fails."""
        path = self._path(source, name)
        try:
            with atomic_write(path, "wb") as file:
                file.write(json.dumps(_head(source, name, rows)).encode().ljust(_HEAD))
                for block in _blocks(rows):
                    file.write(block)
        except OSError as error:
            self._warn(error)
            return rows
        kept = np.memmap(path, dtype=np.uint8, mode="c", offset=_HEAD) if rows.numel() else None
        return rows if kept is None else torch.from_numpy(kept).view(rows.dtype).reshape(rows.shape)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "the cache %s cannot be written (%s): outputs are computed without it; free space or choose another "
                "folder",
                self.folder,
                error.strerror or error,
            )


def teacher_inputs_digest(dataset: Any, num_workers: int = 0) -> str:
    """A digest of all teacher inputs of a split, in order; it reads every item once.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target).
        num_workers: Number of processes that load data.
    """
    digest = hashlib.blake2b(digest_size=16)
    for batch in PairLoader(only_role(dataset, "teacher"), num_workers=num_workers):
        for tensor in tensors(batch.teacher_input):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _head(source: str, name: str, rows: Tensor) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for block in _blocks(rows):
        digest.update(block)
    key = _digest(json.dumps([source, name]))
    return {"key": key, "kind": str(rows.dtype), "shape": list(rows.shape), "digest": digest.hexdigest()}


def _blocks(rows: Tensor) -> Any:
    """The bytes of a tensor, a few megabytes at a time."""
    step = max(1, _BLOCK_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    for start in range(0, len(rows), step):
        yield _bytes(rows[start : start + step])


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
