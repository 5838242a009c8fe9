"""Paired data: batches of (teacher input, student input, target), from any data set, on any device.

An input is a tensor or nested tuples, lists and dicts of tensors whose first dimension is the sample.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset
from torch.utils.data._utils.collate import default_collate

from mfh.distributed import gather
from mfh.errors import InputError

Nested = Any  # a tensor, or nested tuples, lists and dicts of tensors


class PairedBatch(NamedTuple):
    """One batch of aligned samples.

    Args:
        teacher_input: what the teacher reads, samples along dim 0.
        student_input: what the student reads, samples along dim 0.
        target: (N, ...) labels.
    """

    teacher_input: Nested
    student_input: Nested
    target: Tensor


class Splits(Protocol):
    """A map-style data set of (teacher_input, student_input, target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def map_tensors(function: Callable[[Tensor], Tensor], nested: Nested) -> Nested:
    """Apply `function` to every tensor of a nested input, keeping its structure."""
    if isinstance(nested, Tensor):
        return function(nested)
    if isinstance(nested, dict):
        return {key: map_tensors(function, value) for key, value in nested.items()}
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*(map_tensors(function, value) for value in nested))
    if isinstance(nested, (tuple, list)):
        return type(nested)(map_tensors(function, value) for value in nested)
    return nested


def tensors(nested: Nested) -> Iterator[Tensor]:
    """All tensors of a nested input, in order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from tensors(value)
    elif isinstance(nested, (tuple, list)):
        for value in nested:
            yield from tensors(value)


def num_samples(nested: Nested) -> int:
    """Samples in a nested input: the common size of dim 0.

    Raises:
        InputError: there is no tensor, or sizes differ.
    """
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors(nested)}
    if len(sizes) != 1:
        raise InputError(
            f"an input of type {type(nested).__name__} has "
            + (f"tensors of {sorted(sizes)} samples; all need the same" if sizes else "no tensors; give at least one")
        )
    return sizes.pop()


def to_device(nested: Nested, device: torch.device | str | None) -> Nested:
    """Move every tensor to `device`; None leaves all where it is."""
    if device is None:
        return nested
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), nested)


def as_batch(item: Any) -> PairedBatch:
    """Read a batch in any of the accepted forms.

    Raises:
        InputError: it does not have exactly three parts, or their sample counts differ.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 3:
        length = f" of length {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise InputError(
            f"a batch of pairs is a {type(item).__name__}{length}; (teacher_input, student_input, target) was expected"
        )
    batch = PairedBatch(*item)
    counts = [num_samples(part) for part in batch]
    if len(set(counts)) != 1:
        raise InputError(
            f"a batch has {counts[0]} teacher inputs, {counts[1]} student inputs and {counts[2]} targets; "
            "pairs need the same number of each"
        )
    return batch


def check_rereadable(pairs: Iterable[Any]) -> None:
    """Refuse data that can be read only once.

    Raises:
        InputError: `pairs` is an iterator (a generator, `iter(loader)`), a data set instead of batches, or
            not iterable.
    """
    if isinstance(pairs, Dataset):
        raise InputError(
            f"pairs is a data set ({type(pairs).__name__}), batches were expected; "
            "wrap it: torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(pairs, Iterator):
        raise InputError(
            f"pairs is a {type(pairs).__name__}, which can be read only once; give a DataLoader or a list of batches"
        )
    if not isinstance(pairs, Iterable):
        raise InputError(f"pairs is a {type(pairs).__name__}; a DataLoader or a list of batches was expected")


class Collated:
    """A data set that brings its own way to make a batch of items, wherever the package reads it.

    Args:
        dataset: map-style; its items may be anything that `collate` understands.
        collate: list of items -> (teacher_input, student_input, target) of the batch.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def fetch(dataset: Any, indices: Sequence[int]) -> PairedBatch:
    """The samples at `indices` as one batch; tensor data sets are indexed at once, others item by item.

    Raises:
        InputError: the items are no pairs, or do not fit into one batch.
    """
    if type(dataset) is Collated:
        return as_batch(dataset.collate([dataset.dataset[index] for index in indices]))
    # Subclasses may change what an item is: only the plain classes take the short way.
    if type(dataset) is Subset:
        return fetch(dataset.dataset, [dataset.indices[index] for index in indices])
    if type(dataset) is TensorDataset:
        rows = torch.as_tensor(indices)
        return as_batch([tensor[rows] for tensor in dataset.tensors])
    if hasattr(dataset, "__getitems__"):
        items = dataset.__getitems__(list(indices))
    else:
        items = [dataset[index] for index in indices]
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            as_batch(item)
    try:
        return as_batch(default_collate(items))  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"items {list(indices[:3])} ... of a {type(dataset).__name__} do not fit into one batch ({reason}); give "
            "items of one shape, or the task a collate function"
        ) from None


def one_modality(dataset: Any, modality: str) -> Any:
    """The data set with nothing but what one network reads, where it knows a cheaper way to give only that.

    Args:
        dataset: may have a method `only(modality)`, which returns a data set of the same samples whose other input may
            be empty, (0,).
        modality: "teacher" or "student".
    """
    if type(dataset) is Subset:
        return Subset(one_modality(dataset.dataset, modality), dataset.indices)
    return dataset.only(modality) if hasattr(dataset, "only") else dataset


def reading_batch(dataset: Any) -> int:
    """Samples to read at a time where the number decides nothing: 256, fewer where they are large."""
    if not len(dataset):
        return _MOST_SAMPLES
    bytes_each = sum(tensor.nbytes for part in dataset[0][:2] for tensor in tensors(part))
    return max(1, min(_MOST_SAMPLES, _MOST_BYTES // max(1, bytes_each)))


_MOST_SAMPLES = 256
_MOST_BYTES = 2**26


class IndexedPairs(Dataset[tuple[PairedBatch, Tensor]]):
    """A data set whose batches come with the samples' indices, so that cached outputs can be looked up.

    Args:
        dataset: a map-style data set of (teacher_input, student_input, target).
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
        num_samples: size of the data set.
        seed: of the shuffles.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is to come."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.num_samples, generator=generator).tolist())


class EpochBatches(Sampler[list[int]]):
    """The batches of one process, where several may share the steps of an epoch.

    The shuffled samples are cut into steps of `batch_size * accumulate * processes` samples, and a step into as many
    batches: the first for each process, then the second for each, and so on. So two processes, and one that
    accumulates two batches, see the same batches in the same steps. What is left for the last step is dealt out
    evenly. Every sample counts once and equally within its step: `weight` is what makes it so.

    Args:
        num_samples: size of the data set.
        batch_size: samples in a batch.
        seed: of the shuffles.
        accumulate: batches of one process per step.
        processes: how many share the epoch.
        rank: which of them this is.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, *, accumulate: int = 1, processes: int = 1, rank: int = 0
    ) -> None:
        self.sampler = EpochShuffle(num_samples, seed)  # by this name Lightning finds it, to set the epoch
        self.batch_size, self.accumulate, self.processes, self.rank = batch_size, accumulate, processes, rank
        self._parts = accumulate * processes
        self._step_size = batch_size * self._parts

    def __len__(self) -> int:
        return -(-len(self.sampler) // self._step_size) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for index in range(len(self)):
            start, stop = self._range(index)
            yield order[start:stop] or [order[start - 1]]

    def count(self, index: int) -> int:
        """Samples in a batch that count: all, or none of the one that stands in where a process has none left."""
        start, stop = self._range(index)
        return stop - start

    def weight(self, index: int) -> float:
        """Factor of a batch's mean loss, 1 unless the step is a last, smaller one with uneven parts.

        Gradients are averaged over processes and accumulated batches; with it that is the mean over samples.
        """
        first = index // self.accumulate * self._step_size
        return self.count(index) * self._parts / min(self._step_size, len(self.sampler) - first)

    def _range(self, index: int) -> tuple[int, int]:
        """Positions of a batch's samples in the epoch's order."""
        step, turn = divmod(index, self.accumulate)
        first = step * self._step_size
        size = min(self._step_size, len(self.sampler) - first)
        place = turn * self.processes + self.rank
        return first + size * place // self._parts, first + size * (place + 1) // self._parts


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
        dataset: a map-style data set of (teacher_input, student_input, target).
        batch_size: samples in a batch; the last may be smaller. Default: 256, fewer where samples are large.
        num_workers: reading processes; 0 reads in this one.
    """

    def __init__(self, dataset: Any, batch_size: int | None = None, num_workers: int = 0) -> None:
        self.loader = indexed_loader(dataset, batch_size or reading_batch(dataset), num_workers=num_workers)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[PairedBatch]:
        for batch, _ in self.loader:
            yield batch


def reads_the_same(dataset: Any, probes: int = 32) -> bool:
    """Whether teacher inputs are equal when read twice, tried on a few items; False means augmented data.

    Under torch.distributed all processes give the same answer.
    """
    if type(dataset) is Subset:
        return reads_the_same(dataset.dataset, probes)
    if type(dataset) is TensorDataset:
        return True
    positions = sorted({int(position) for position in torch.linspace(0, len(dataset) - 1, probes)})
    return all(gather(all(_reads_the_same(dataset, position) for position in positions)))


def _reads_the_same(dataset: Any, position: int) -> bool:
    first, second = (list(tensors(_teacher_input(dataset, position))) for _ in range(2))
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _teacher_input(dataset: Any, index: int) -> Nested:
    return fetch(dataset, [index]).teacher_input if type(dataset) is Collated else dataset[index][0]


def _identity(batch: Any) -> Any:
    return batch
