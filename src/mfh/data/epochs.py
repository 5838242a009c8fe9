"""The batches of an epoch: their order, how they are read, and how much each counts."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset, TensorDataset

from mfh.data.pairs import (
    AllPairs,
    Collated,
    Nested,
    PairedBatch,
    as_batch,
    fetch,
    named_split,
    only_role,
    place_of,
    tensors,
    to_device,
)
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


def drawn(num_samples: int, needed: int, generator: torch.Generator, classes: Tensor | None = None) -> Tensor:
    """(needed,), positions of samples in random order, as they follow from one shuffle after another.

    Args:
        num_samples: Number of samples to draw from.
        needed: Number of positions.
        generator: The source of randomness.
        classes: (num_samples,), the class of each sample. All classes then come equally often, but for one sample more
            of some, and a class's own samples are shuffled one time after another. None treats all samples alike.

    Example:
        >>> rare = torch.tensor([0, 0, 0, 0, 1])
        >>> rare[drawn(5, 8, torch.Generator().manual_seed(0), rare)].bincount()
        tensor([4, 4])
    """
    if classes is None:
        shuffles = [
            torch.randperm(num_samples, generator=generator)
            for _ in range(-(-needed // num_samples) if num_samples else 0)
        ]
        return torch.cat(shuffles)[:needed] if shuffles else torch.empty(0, dtype=torch.long)
    members = [(classes == value).nonzero().flatten() for value in sorted(set(classes.tolist()))]
    first = torch.randperm(len(members), generator=generator).tolist()  # those that have one sample more
    sizes = [needed // len(members) + (turn < needed % len(members)) for turn in first]
    chosen = [rows[drawn(len(rows), size, generator)] for rows, size in zip(members, sizes, strict=True)]
    return torch.cat(chosen)[torch.randperm(needed, generator=generator)]


class EpochShuffle(Sampler[int]):
    """A shuffle that is a function of `epoch_seed` alone, so an interrupted run resumes with the same order.

    Args:
        num_samples: Number of samples in the data set.
        seed: Seed of the shuffles.
        classes: (num_samples,), the class of each sample, where classes come equally often; see `drawn`.
    """

    def __init__(self, num_samples: int, seed: int, classes: Tensor | None = None) -> None:
        self.num_samples, self.seed, self.epoch, self.classes = num_samples, seed, 0, classes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is to come."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def order(self) -> Tensor:
        """The epoch's order as a tensor of indices."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return drawn(self.num_samples, self.num_samples, generator, self.classes)

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
        classes: (num_samples,), the class of each sample, where classes come equally often; see `drawn`. An epoch has
            as many samples as without.
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
        classes: Tensor | None = None,
    ) -> None:
        self.sampler = EpochShuffle(num_samples, seed, classes)
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
        return self.cut(self.stream())

    def stream(self) -> Tensor:
        """The epoch's samples as they were shuffled, of which `cut` makes batches."""
        return self.sampler.order()

    def cut(self, stream: Tensor) -> list[Tensor]:
        """The batches of a stream; where its samples go is the same in all epochs."""
        places = [self._range(index) for index in range(len(self))]
        return [stream[start:stop] if stop > start else self._stand_in(stream, start) for start, stop in places]

    def _stand_in(self, order: Tensor, start: int) -> Tensor:
        """Samples that do not count, for a process that has none left: as many as a network needs."""
        return order[max(0, start - self._least) : max(start, self._least)]

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.rows())

    def count(self, index: int) -> int:
        """Samples in a batch that count: all, or none of the one that stands in where a process has none left."""
        start, stop = self._range(index)
        return stop - start

    def weights(self, index: int) -> tuple[float, float]:
        """Factors of a batch's mean label loss and of its mean loss over all pairs, 1 unless a step has uneven parts.

        Gradients are averaged over processes and accumulated batches; with them that is the mean over samples.
        """
        _, size = self._step(index // self.accumulate)
        weight = self.count(index) * self._parts / size
        return weight, weight

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


class MixedBatches(EpochBatches):
    """Batches of `AllPairs`, each with labelled pairs first and then unlabelled ones.

    An epoch has as many steps as it takes to see every pair once, whatever the shares, and all of them are equally
    large but for rounding. By default labelled and unlabelled pairs are dealt out evenly, so that an epoch is one pass
    over all pairs. With `labelled_share` every step has that share of labelled pairs. They then come around several
    times, and unlabelled pairs may not all have their turn in an epoch; each epoch shuffles both anew.

    Args:
        labelled: Number of labelled pairs, at least 1.
        unlabelled: Number of unlabelled pairs. They decide the number of steps even where `labelled_share` is 1 and
            none of them is in a batch.
        batch_size: Number of samples in a batch; by rounding a batch may have one more.
        seed: Seed of the shuffles.
        labelled_share: Share of labelled pairs in each batch, above 0 and at most 1; None is their share of all pairs.
        accumulate: Number of batches of one process per step.
        processes: Number of processes that share the epoch.
        rank: Number of this process among them.
        least: Smallest wanted batch. Steps that would have smaller ones are dealt into fewer batches.
        classes: (labelled,), the class of each labelled pair, where classes come equally often; see `drawn`.
    """

    def __init__(
        self,
        labelled: int,
        unlabelled: int,
        batch_size: int,
        seed: int,
        *,
        labelled_share: float | None = None,
        accumulate: int = 1,
        processes: int = 1,
        rank: int = 0,
        least: int = 1,
        classes: Tensor | None = None,
    ) -> None:
        how = {"accumulate": accumulate, "processes": processes, "rank": rank}
        super().__init__(labelled + unlabelled, batch_size, seed, classes=classes, **how)
        self._least = least if least <= batch_size else 1
        self.num_labelled, self.num_unlabelled = labelled, unlabelled
        self._each: tuple[int, int] | None = None  # labelled and unlabelled pairs of every step
        if labelled_share is not None:
            size = self._step_size
            only_labelled = labelled_share == 1 or not unlabelled
            with_label = size if only_labelled else min(max(round(labelled_share * size), 1), size - 1)
            self._each = with_label, size - with_label

    def rows(self) -> list[Tensor]:
        """The epoch's batches as tensors of indices, those of labelled pairs first."""
        return self.cut(self.stream())

    def stream(self) -> Tensor:
        """The epoch's samples as they were shuffled: labelled ones, then unlabelled ones."""
        generator = torch.Generator().manual_seed(epoch_seed(self.sampler.seed, self.sampler.epoch))
        known = drawn(self.num_labelled, self._needed(0), generator, self.sampler.classes)
        unknown = drawn(self.num_unlabelled, self._needed(1), generator) + self.num_labelled
        return torch.cat([known, unknown])

    def cut(self, stream: Tensor) -> list[Tensor]:
        """The batches of a stream; where its samples go is the same in all epochs."""
        known, unknown = stream[: self._needed(0)], stream[self._needed(0) :]
        found = []
        for index in range(len(self)):
            (a, b), (c, d) = self._place(index, 0), self._place(index, 1)
            rows = torch.cat([known[a:b], unknown[c:d]])
            # Where this process has none left, pairs stand in that do not count.
            found.append(rows if len(rows) else stream[: self._least])
        return found

    def count(self, index: int) -> int:
        """Samples in a batch that count."""
        return self.labelled(index) + self._size(index, 1)

    def labelled(self, index: int) -> int:
        """Labelled samples in a batch that count."""
        return self._size(index, 0)

    def weights(self, index: int) -> tuple[float, float]:
        """Factors of a batch's mean label loss and of its mean loss over all pairs."""
        step = index // self.accumulate
        sizes = [stop - start for start, stop in (self._of_step(step, kind) for kind in (0, 1))]
        label = self.labelled(index) * self._parts / sizes[0] if sizes[0] else 0.0
        return label, self.count(index) * self._parts / sum(sizes)

    def _needed(self, kind: int) -> int:
        """How many labelled (0) or unlabelled (1) pairs an epoch needs."""
        return self._of_step(self._steps - 1, kind)[1]

    def _of_step(self, step: int, kind: int) -> tuple[int, int]:
        """Where the labelled (0) or unlabelled (1) pairs of a step lie in their stream."""
        if self._each is not None:
            return step * self._each[kind], (step + 1) * self._each[kind]
        pairs = self.num_unlabelled if kind else self.num_labelled
        return pairs * step // self._steps, pairs * (step + 1) // self._steps

    def _place(self, index: int, kind: int) -> tuple[int, int]:
        """Where the labelled (0) or unlabelled (1) pairs of a batch lie in their stream."""
        step, turn = divmod(index, self.accumulate)
        first, stop = self._of_step(step, kind)
        place, size, parts = turn * self.processes + self.rank, stop - first, self._dealt(step)
        return first + size * min(place, parts) // parts, first + size * min(place + 1, parts) // parts

    def _dealt(self, step: int) -> int:
        """Into how many batches a step is dealt: as many as there are, unless some would be too small."""
        if self._least == 1:
            return self._parts
        sizes = [stop - first for first, stop in (self._of_step(step, kind) for kind in (0, 1))]
        parts = self._parts
        while parts > 1 and sum(size // parts for size in sizes) < self._least:
            parts -= 1
        return parts

    def _size(self, index: int, kind: int) -> int:
        start, stop = self._place(index, kind)
        return stop - start


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
        with named_split(split) if split else nullcontext():
            self.loader = indexed_loader(dataset, batch_size or reading_batch(dataset), num_workers=num_workers)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[PairedBatch]:
        with named_split(self.split) if self.split else nullcontext():
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
        self._name, _ = place_of(dataset, split, 0)
        self.index_device = index_device or device
        self.num_workers = num_workers
        self._loader: DataLoader[tuple[PairedBatch, Tensor]] | None = None
        #: All samples of a tensor data set, as far as they are needed; None where items are read one by one.
        self.held: PairedBatch | None = None
        with named_split(self._name):
            needed = _whole(dataset, (*fields, "target"))
            if needed is not None:
                size = sum(tensor.nbytes for tensor in needed)
                if device.type == "cpu" or size <= _HELD_BYTES:
                    self.held = needed
                    self._held = [tensor.to(device) for tensor in needed]
                    if batches is not None:  # samples may come around several times in an epoch
                        drawn = size * sum(map(batches.count, range(len(batches)))) // len(dataset)
                        self._shuffled = drawn <= (_SHUFFLED_BYTES if device.type == "cpu" else _HELD_BYTES)
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
        assert self.held is not None
        labelled = len(self.held.target)
        labels = (places, sizes)
        if labelled < len(self.dataset):  # the first samples of a batch
            labels = places[order < labelled], [int((row < labelled).sum()) for row in rows]
        chosen = [(places, sizes), (places, sizes), labels]
        if self._shuffled:
            moved = [
                _split(tensor.index_select(0, found) if len(tensor) else tensor, cut, len(rows))
                for tensor, (found, cut) in zip(self._held, chosen, strict=True)
            ]
            yield from zip(map(PairedBatch, *moved), indices, strict=True)
            return
        parts = zip(*(torch.split(found, cut) for found, cut in chosen), strict=True)
        for found, number in zip(parts, indices, strict=True):
            cut = [t.index_select(0, row) if len(t) else t for t, row in zip(self._held, found, strict=True)]
            yield PairedBatch(*cut), number

    def _read(self) -> Iterator[tuple[PairedBatch, Tensor]]:
        with named_split(self._name):
            for batch, rows in self._source():
                indices = rows + self.first if self.first else rows
                if self.look is not None and (self._fresh or self.device.type != "cpu"):
                    self.look(batch, indices, self._fresh)
                yield to_device(batch, self.device), to_device(indices, self.index_device)
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


def _whole(dataset: Any, needed: Sequence[str], labelled: bool = True) -> PairedBatch | None:
    """All samples of a data set of tensors at once; None for any other data set, or for a large part of one.

    Args:
        dataset: The data set, which may be `AllPairs`.
        needed: Parts that are needed; the others are left empty.
        labelled: Whether there must be targets, or they are left empty.
    """
    if type(dataset) is TensorDataset:
        if labelled:
            as_batch([tensor[:1] for tensor in dataset.tensors])
        parts = dataset.tensors if labelled else (*dataset.tensors[:2], torch.empty(0))
        named = zip(PairedBatch._fields, parts, strict=True)
        return PairedBatch(*(tensor if name in needed else tensor[:0] for name, tensor in named))
    if type(dataset) is Subset:
        whole = _whole(dataset.dataset, needed, labelled)
        if whole is None or sum(t[:1].nbytes for t in whole) * len(dataset) > _HELD_BYTES:
            return None
        rows = torch.as_tensor(list(dataset.indices), dtype=torch.long)
        return PairedBatch(*(tensor[rows] if len(tensor) else tensor for tensor in whole))
    if type(dataset) is AllPairs:
        known, more = _whole(dataset.labelled, needed), _whole(dataset.unlabelled, needed, labelled=False)
        together = _joined([known, more])
        return None if together is None or known is None else together._replace(target=known.target)
    if type(dataset) is ConcatDataset and not labelled:
        return _joined([_whole(part, needed, labelled) for part in dataset.datasets])
    return None


def _joined(parts: Sequence[PairedBatch | None]) -> PairedBatch | None:
    """The inputs of all parts at once; None where one is unknown, or a copy would be large."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or sum(tensor.nbytes for part in known for tensor in part[:2]) > _HELD_BYTES:
        return None
    teacher_inputs, student_inputs = ([part[field] for part in known] for field in (0, 1))
    return PairedBatch(torch.cat(teacher_inputs), torch.cat(student_inputs), torch.empty(0))


def all_targets(dataset: Any) -> Tensor:
    """(N, ...), the targets of all samples in data-set order; see `target_batches`.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target), whose targets have one shape.

    Raises:
        InputError: An item cannot be read.
    """
    found = target_batches(dataset)
    return found[0] if len(found) == 1 else torch.cat(found)


def target_batches(dataset: Any) -> list[Tensor]:
    """The targets of all samples in data-set order, in batches whose targets may be padded to different lengths.

    Tensors are taken as they are, and so are numbers in an attribute `targets`, as the data sets of torchvision have
    it, unless a `target_transform` changes them. Otherwise every item is read once; global generators are left as they
    were.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target).

    Raises:
        InputError: An item cannot be read.
    """
    known = known_targets(dataset)
    if known is not None:
        return [known]
    with generators_kept():
        return [batch.target for batch in PairLoader(only_role(dataset, "student"))]


def known_targets(dataset: Any) -> Tensor | None:
    """(N, ...), the targets that a data set holds apart from its items; None where items must be read."""
    if type(dataset) is Subset:
        whole = known_targets(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(list(dataset.indices), dtype=torch.long)]
    if type(dataset) is TensorDataset:
        return dataset.tensors[2] if len(dataset.tensors) == 3 else None
    targets = getattr(dataset, "targets", None)
    listed = isinstance(targets, (Tensor, np.ndarray, list, tuple)) and len(targets) == len(dataset)
    if not listed or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # text, or rows of different lengths
        return None


@contextmanager
def generators_kept(device: torch.device | None = None) -> Iterator[None]:
    """Leave the global generators of torch, NumPy and random as they were.

    Args:
        device: GPU whose generator is meant, beside the CPU's.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def reads_the_same(dataset: Any, probes: int = 32) -> bool:
    """Whether teacher inputs of the training split are equal when read twice; False means augmented data.

    It is tried on a few items.

    Under torch.distributed all processes give the same answer.
    """
    if type(dataset) is Subset:
        return reads_the_same(dataset.dataset, probes)
    if _in_memory(dataset):
        return True
    positions = sorted({int(position) for position in torch.linspace(0, len(dataset) - 1, probes)})
    with named_split("train"):
        same = all(_reads_the_same(dataset, position) for position in positions)
    return all(gather(same))


def _in_memory(dataset: Any) -> bool:
    """Whether all inputs are tensors that never change."""
    if type(dataset) is AllPairs:
        return _in_memory(dataset.labelled) and _in_memory(dataset.unlabelled)
    if type(dataset) is ConcatDataset:
        return all(map(_in_memory, dataset.datasets))
    return _in_memory(dataset.dataset) if type(dataset) is Subset else type(dataset) is TensorDataset


def _reads_the_same(dataset: Any, position: int) -> bool:
    first, second = (list(tensors(_teacher_input(dataset, position))) for _ in range(2))
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _teacher_input(dataset: Any, index: int) -> Nested:
    if type(dataset) in (AllPairs, Collated):
        return fetch(dataset, [index]).teacher_input
    with foreign(f"item {index} of a {type(dataset).__name__} cannot be read"):
        return dataset[index][0]


def _identity(batch: Any) -> Any:
    return batch
