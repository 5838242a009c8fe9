"""The batches of an epoch: their order, how they are read, and how much each counts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset

from mfh.data.pairs import Collated, Nested, PairedBatch, as_batch, fetch, map_tensors, tensors, to_device
from mfh.errors import InputError, foreign, in_a_line
from mfh.parallel.distributed import gather

T = TypeVar("T")


def reading_batch(dataset: Any) -> int:
    """Samples to read at a time where the number decides nothing: 256, fewer where they are large."""
    if not len(dataset):
        return _MOST_SAMPLES
    bytes_each = sum(tensor.nbytes for part in fetch(dataset, [0])[:2] for tensor in tensors(part))
    return max(1, min(_MOST_SAMPLES, _MOST_BYTES // max(1, bytes_each)))


_MOST_SAMPLES = 256
_MOST_BYTES = 2**26
# Tensors up to this size are kept on the GPU that trains on them, and shuffled as a whole once per epoch.
_HELD_BYTES = 2**28
_SHUFFLED_BYTES = 2**26


class IndexedPairs(Dataset[tuple[PairedBatch, Tensor]]):
    """A data set whose batches come with the samples' indices, so that cached outputs can be looked up.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target).
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[PairedBatch, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> tuple[PairedBatch, Tensor]:
        """The whole batch at once: the loader's collate function has nothing left to do."""
        return fetch(self.dataset, indices), torch.as_tensor(indices)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """The seed of everything random in one epoch of one run and process, in [0, 2^63)."""
    return (seed * 1_000_003 + epoch + rank * 500_009) % 2**63


class EpochShuffle(Sampler[int]):
    """A shuffle that is a function of `epoch_seed` alone, so an interrupted run resumes with the same order.

    Args:
        num_samples: Number of samples in the data set.
        seed: Seed of the shuffles.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is to come."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def order(self) -> Tensor:
        """The epoch's order as a tensor of indices."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return torch.randperm(self.num_samples, generator=generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class EpochBatches(Sampler[list[int]]):
    """The batches of one process, where several may share the steps of an epoch.

    The shuffled samples are cut into steps of `batch_size * accumulate * processes` samples, and a step into as many
    batches: the first for each process, then the second for each, and so on. So two processes, and one that
    accumulates two batches, see the same batches in the same steps. What is left for the last step is dealt out
    evenly. Every sample counts once and equally within its step: `weight` is what makes it so.

    Args:
        num_samples: Number of samples in the data set.
        batch_size: Number of samples in a batch.
        seed: Seed of the shuffles.
        accumulate: Number of batches of one process per step.
        processes: Number of processes that share the epoch.
        rank: Number of this process among them.
        least: Smallest wanted batch. If the last step would have smaller ones, its samples join the step before,
            whose batches are then a little larger than `batch_size`; the samples of an only step are dealt into fewer
            batches. Batch normalisation needs 2.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        *,
        accumulate: int = 1,
        processes: int = 1,
        rank: int = 0,
        least: int = 1,
    ) -> None:
        self.sampler = EpochShuffle(num_samples, seed)
        self.batch_size, self.accumulate, self.processes, self.rank = batch_size, accumulate, processes, rank
        self._parts = accumulate * processes
        self._step_size = batch_size * self._parts
        self._steps = -(-num_samples // self._step_size)
        rest = num_samples - (self._steps - 1) * self._step_size
        self._least = least if least <= batch_size else 1
        if self._least > 1 and self._steps > 1 and rest < least * self._parts:
            self._steps -= 1

    def __len__(self) -> int:
        return self._steps * self.accumulate

    def rows(self) -> list[Tensor]:
        """The epoch's batches as tensors of indices."""
        order = self.sampler.order()
        places = [self._range(index) for index in range(len(self))]
        return [order[start:stop] if stop > start else self._stand_in(order, start) for start, stop in places]

    def _stand_in(self, order: Tensor, start: int) -> Tensor:
        """Samples that do not count, for a process that has none left: as many as a network needs."""
        return order[max(0, start - self._least) : max(start, self._least)]

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.rows())

    def count(self, index: int) -> int:
        """Samples in a batch that count: all, or none of the one that stands in where a process has none left."""
        start, stop = self._range(index)
        return stop - start

    def weight(self, index: int) -> float:
        """Factor of a batch's mean loss, 1 unless the step has uneven parts.

        Gradients are averaged over processes and accumulated batches; with it that is the mean over samples.
        """
        _, size = self._step(index // self.accumulate)
        return self.count(index) * self._parts / size

    def _step(self, step: int) -> tuple[int, int]:
        """Position of a step's first sample in the epoch's order, and the number of its samples."""
        first = step * self._step_size
        return first, (len(self.sampler) - first if step == self._steps - 1 else self._step_size)

    def _range(self, index: int) -> tuple[int, int]:
        """Positions of a batch's samples in the epoch's order."""
        step, turn = divmod(index, self.accumulate)
        first, size = self._step(step)
        place, parts = turn * self.processes + self.rank, self._parts
        if self._least > 1 and size < self._least * parts:
            parts = max(1, size // self._least)
            place = min(place, parts)  # behind the last part there is nothing
            return first + size * place // parts, first + size * min(place + 1, parts) // parts
        return first + size * place // parts, first + size * (place + 1) // parts


def indexed_loader(
    dataset: Any, batch_size: int = 1, *, batches: EpochBatches | None = None, num_workers: int = 0, pin: bool = False
) -> DataLoader[tuple[PairedBatch, Tensor]]:
    """A loader of (PairedBatch, indices), in data-set order or in the given batches; `pin` suits copies to a GPU."""
    how: dict[str, Any] = {"batch_size": batch_size} if batches is None else {"batch_sampler": batches}
    seed = 0 if batches is None else epoch_seed(batches.sampler.seed, 0, batches.rank)
    return DataLoader(
        IndexedPairs(dataset),
        **how,
        num_workers=num_workers,
        collate_fn=_identity,
        generator=torch.Generator().manual_seed(seed),  # else every pass draws from the global one
        persistent_workers=num_workers > 0,
        pin_memory=pin,
    )


class PairLoader:
    """Batches of a data set in its own order; can be read any number of times.

    Under torch.distributed give each process its own, disjoint part of the data.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target).
        batch_size: Number of samples in a batch; the last may be smaller. Default: 256, fewer where samples are large.
        num_workers: Number of reading processes; 0 reads in this one.
        split: Name of the split, for messages.
    """

    def __init__(self, dataset: Any, batch_size: int | None = None, num_workers: int = 0, split: str = "") -> None:
        self.split = split
        with _named(split) if split else nullcontext():
            self.loader = indexed_loader(dataset, batch_size or reading_batch(dataset), num_workers=num_workers)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[PairedBatch]:
        with _named(self.split) if self.split else nullcontext():
            for batch, _ in delivered(self.loader):
                yield batch


class Reading:
    """Reads one split again and again: (PairedBatch, indices), on the device of the networks.

    Tensor data sets are cut without a detour over items and collation, and small ones stay on a GPU that trains on
    them. Everything else is read batch by batch, in this process or in others, and copied from pinned memory.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target).
        split: Name of the split, for messages.
        device: Device that the batches are moved to.
        batches: Shuffled batches of an epoch; None reads in data-set order.
        least: Smallest batch in data-set order; a batch has as many samples as `reading_batch` says, or so many.
        fields: Inputs that are needed ("teacher_input", "student_input"); of tensor data sets the other is left empty.
        index_device: Device that the indices are moved to; default: `device`.
        num_workers: Number of reading processes; 0 reads in this one.
        look: Function that is called as look(batch, indices, fresh) with every batch before it is moved, unless all
            samples are `held`. `fresh` says whether it is the first pass over the data. On a CPU, later passes are not
            looked at.
        first: Position of the data set's first sample in the split, where it is a part of it; indices count from there.
    """

    def __init__(
        self,
        dataset: Any,
        split: str,
        device: torch.device,
        *,
        batches: EpochBatches | None = None,
        least: int = 1,
        fields: Iterable[str] = ("teacher_input", "student_input"),
        index_device: torch.device | None = None,
        num_workers: int = 0,
        look: Callable[[PairedBatch, Tensor, bool], None] | None = None,
        first: int = 0,
    ) -> None:
        self.dataset, self.split, self.device, self.batches, self.look = dataset, split, device, batches, look
        self.first, self._fresh = first, True
        self.index_device = index_device or device
        self.num_workers = num_workers
        self._loader: DataLoader[tuple[PairedBatch, Tensor]] | None = None
        #: All samples of a tensor data set, as far as they are needed; None where items are read one by one.
        self.held: PairedBatch | None = None
        with _named(split):
            whole = _whole(dataset)
            if whole is not None:
                needed = [t if name in (*fields, "target") else t[:0] for name, t in whole._asdict().items()]
                size = sum(tensor.nbytes for tensor in needed)
                if device.type == "cpu" or size <= _HELD_BYTES:
                    self.held = PairedBatch(*needed)
                    self._held = [tensor.to(device) for tensor in needed]
                    self._shuffled = size <= _SHUFFLED_BYTES or device.type != "cpu"
            if batches is None:
                self.batch_size = max(least, reading_batch(dataset))
        if batches is None and self.held is not None:
            positions = torch.arange(first, first + len(self.held.target), device=self.index_device)
            indices = torch.split(positions, self.batch_size)
            cut = [_split(tensor, self.batch_size, len(indices)) for tensor in self._held]
            self._in_order = list(zip(map(PairedBatch, *cut), indices, strict=True))

    def __iter__(self) -> Iterator[tuple[PairedBatch, Tensor]]:
        if self.held is None:
            return self._read()
        return iter(self._in_order) if self.batches is None else self._cut(self.batches.rows())

    def _cut(self, rows: list[Tensor]) -> Iterator[tuple[PairedBatch, Tensor]]:
        """Shuffled batches of tensors: those of a small data set are cut from one shuffled copy."""
        sizes = [len(row) for row in rows]
        order = torch.cat(rows)
        places = order.to(self.device)
        indices = torch.split(places if self.index_device == self.device else order, sizes)
        if self._shuffled:
            moved = [
                _split(tensor.index_select(0, places) if len(tensor) else tensor, sizes, len(rows))
                for tensor in self._held
            ]
            yield from zip(map(PairedBatch, *moved), indices, strict=True)
            return
        for chosen, found in zip(torch.split(places, sizes), indices, strict=True):
            parts = [tensor.index_select(0, chosen) if len(tensor) else tensor for tensor in self._held]
            yield PairedBatch(*parts), found

    def _read(self) -> Iterator[tuple[PairedBatch, Tensor]]:
        with _named(self.split):
            for batch, rows in self._source():
                indices = rows + self.first if self.first else rows
                if self.look is not None and (self._fresh or self.device.type != "cpu"):
                    self.look(batch, indices, self._fresh)
                if self.device.type == "cpu":
                    yield to_device(batch, self.device), indices
                else:
                    pinned = map_tensors(_pinned, batch) if self.device.type == "cuda" else batch
                    yield to_device(pinned, self.device), indices.to(self.index_device, non_blocking=True)
        self._fresh = False

    def _source(self) -> Iterator[tuple[PairedBatch, Tensor]]:
        if self.num_workers:
            if self._loader is None:
                how: dict[str, Any] = {"batches": self.batches} if self.batches else {"batch_size": self.batch_size}
                pin = self.device.type == "cuda"
                self._loader = indexed_loader(self.dataset, num_workers=self.num_workers, pin=pin, **how)
            yield from delivered(self._loader)
            return
        if self.batches is None:
            order = list(torch.split(torch.arange(len(self.dataset)), self.batch_size))
        else:
            order = self.batches.rows()
        for rows in order:
            yield fetch(self.dataset, rows.tolist()), rows


def delivered(loader: Iterable[T]) -> Iterator[T]:
    """What a loader gives.

    Raises:
        InputError: One of its reading processes has ended.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # what it raised itself
            raise
        raise InputError(
            f"a process that reads data has ended ({in_a_line(error)}); it ran out of memory, or was killed: choose "
            "fewer num_workers"
        ) from error


def _split(tensor: Tensor, sizes: int | list[int], batches: int) -> Sequence[Tensor]:
    """A tensor cut into batches; one without samples, which nobody needs, is the same in each."""
    return torch.split(tensor, sizes) if len(tensor) else [tensor] * batches


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def _whole(dataset: Any) -> PairedBatch | None:
    """All samples of a data set of tensors at once; None for any other data set, or for a large part of one."""
    if type(dataset) is TensorDataset:
        as_batch([tensor[:1] for tensor in dataset.tensors])
        return PairedBatch(*dataset.tensors)
    if type(dataset) is Subset:
        whole = _whole(dataset.dataset)
        if whole is None or sum(t[:1].nbytes for t in whole) * len(dataset) > _HELD_BYTES:
            return None
        rows = torch.as_tensor(list(dataset.indices), dtype=torch.long)
        return PairedBatch(*(tensor[rows] for tensor in whole))
    return None


@contextmanager
def _named(split: str) -> Iterator[None]:
    """Name the split in errors of its items."""
    try:
        yield
    except InputError as error:
        said = str(error)
        if said.startswith(f"{split} split"):  # what `look` finds names it already
            raise
        if "\nOriginal Traceback" in said:  # of a reading process: the last line is the error as it was raised
            said = said.rstrip().rsplit("\n", 1)[-1].partition(": ")[2]
        raise type(error)(f"{split} split: {said}") from (error.__cause__ or error)


def reads_the_same(dataset: Any, probes: int = 32) -> bool:
    """Whether teacher inputs of the training split are equal when read twice; False means augmented data.

    It is tried on a few items.

    Under torch.distributed all processes give the same answer.
    """
    if type(dataset) is Subset:
        return reads_the_same(dataset.dataset, probes)
    if type(dataset) is TensorDataset:
        return True
    positions = sorted({int(position) for position in torch.linspace(0, len(dataset) - 1, probes)})
    with _named("train"):
        same = all(_reads_the_same(dataset, position) for position in positions)
    return all(gather(same))


def _reads_the_same(dataset: Any, position: int) -> bool:
    first, second = (list(tensors(_teacher_input(dataset, position))) for _ in range(2))
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _teacher_input(dataset: Any, index: int) -> Nested:
    if type(dataset) is Collated:
        return fetch(dataset, [index]).teacher_input
    with foreign(f"item {index} of a {type(dataset).__name__} cannot be read"):
        return dataset[index][0]


def _identity(batch: Any) -> Any:
    return batch
