"""Tensors with one row per sample, collected batch by batch: in memory, or in a memory-mapped file when large."""

import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

IN_MEMORY_BYTES = 2 * 2**30


class Rows:
    """Collects tensors along dim 0.

    Args:
        in_memory_bytes: How many bytes are kept in memory (default: 2 GiB). Beyond that, all rows move to a temporary
            file.
    """

    def __init__(self, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._limit = in_memory_bytes
        self._parts: list[Tensor] = []
        self._bytes = 0
        self._file: BinaryIO | None = None
        self._count = 0

    def append(self, rows: Tensor) -> None:
        """Add rows. All rows must have the same type and the same shape."""
        # A copy: a loader may reuse its memory, and a view would keep the whole tensor that it is a part of.
        self._parts.append(rows.detach().clone())
        self._count += len(rows)
        self._bytes += rows.numel() * rows.element_size()
        if self._bytes > self._limit:
            self._spill()

    def finish(self) -> Tensor:
        """All rows in order. They are on the CPU if they went to a file, otherwise on the device they came from."""
        if self._file is None:
            return torch.cat(self._parts)
        example, path = self._example, Path(self._file.name)
        self._spill()
        self._file.close()
        whole = torch.from_file(
            str(path), size=self._count * example[:1].numel(), dtype=example.dtype, shared=False
        ).reshape(self._count, *example.shape[1:])
        self._remove()  # the mapping keeps the data as long as the tensor lives
        return whole

    def _spill(self) -> None:
        if self._file is None:
            self._file = cast(BinaryIO, tempfile.NamedTemporaryFile(prefix="mfh-rows-", delete=False))  # noqa: SIM115
            self._remove = weakref.finalize(self, Path(self._file.name).unlink, missing_ok=True)
            self._example = self._parts[0][:1].cpu()
        for part in self._parts:
            self._file.write(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._parts = []


def mean_rows(rows: Tensor) -> Tensor:
    """The mean over dim 0, in float64 on the CPU, a block at a time: the rows may be larger than memory."""
    total = torch.zeros(rows.shape[1:], dtype=torch.float64)
    for start in range(0, len(rows), 4096):
        total += rows[start : start + 4096].cpu().double().sum(0)
    return total / len(rows)
