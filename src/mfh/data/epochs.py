"""The batches of an epoch: their order, their loaders, and how much each counts."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset

from mfh.data.pairs import Collated, Nested, PairedBatch, fetch, tensors
from mfh.parallel.distributed import gather


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
        return iter(self.order().tolist())

    def order(self) -> Tensor:
        """(num_samples,) The epoch's order as a tensor."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return torch.randperm(self.num_samples, generator=generator)


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
        self.sampler = EpochShuffle(num_samples, seed)
        self.batch_size, self.accumulate, self.processes, self.rank = batch_size, accumulate, processes, rank
        self._parts = accumulate * processes
        self._step_size = batch_size * self._parts

    def __len__(self) -> int:
        return -(-len(self.sampler) // self._step_size) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.rows())

    def rows(self) -> Iterator[Tensor]:
        """The batches as tensors of positions: a list of them costs a small network as much as a layer."""
        order = self.sampler.order()
        for index in range(len(self)):
            start, stop = self._range(index)
            yield order[start:stop] if start < stop else order[start - 1].reshape(1)

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
