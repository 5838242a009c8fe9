"""Paired data: batches of (teacher input, student input, target), from any data set, on any device.

An input is a tensor, or nested tuples, lists and mappings of tensors, all with samples along dim 0.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torch.utils.data._utils.collate import default_collate

from mfh.errors import FOREIGN, InputError, in_a_line, shown

T = TypeVar("T")
#: A tensor, or nested tuples, lists and mappings of tensors.
Nested = Any


class ItemError(InputError, RuntimeError):
    """A data set's own code failed; the message names the item, and the cause is the original exception."""


class PairedBatch(NamedTuple):
    """One batch of pairs: row i of every part belongs to the same sample.

    Args:
        teacher_input: The teacher's input, samples along dim 0: a tensor, or nested tuples, lists and dicts of tensors.
        student_input: The student's input, likewise.
        target: (N, ...), the labels. In a batch of `AllPairs` it has fewer rows than the inputs: the first len(target)
            samples are labelled, the others are not.
    """

    teacher_input: Nested
    student_input: Nested
    target: Tensor


def map_tensors(function: Callable[[Tensor], Tensor], nested: Nested) -> Nested:
    """Apply `function` to every tensor of a nested input and keep its structure.

    Any mapping, for instance a Hugging Face `BatchEncoding`, becomes a plain dict with the same keys.

    Args:
        function: A function of one tensor.
        nested: A tensor, or nested tuples, lists and mappings. What is not a tensor in them stays as it is.

    Example:
        >>> map_tensors(lambda tensor: tensor + 1, {"x": torch.tensor([1, 2]), "name": "left"})
        {'x': tensor([2, 3]), 'name': 'left'}
    """
    if isinstance(nested, Tensor):
        return function(nested)
    if isinstance(nested, Mapping):
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
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from tensors(value)
    elif isinstance(nested, (tuple, list)):
        for value in nested:
            yield from tensors(value)


def num_samples(nested: Nested) -> int:
    """The number of samples in a nested input: the common size of dim 0 of its tensors.

    Raises:
        InputError: There is no tensor, or the sizes differ.
    """
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors(nested)}
    if len(sizes) != 1:
        raise InputError(
            f"an input of type {type(nested).__name__} has "
            + (
                f"tensors of {sorted(sizes)} samples; give all tensors the same number of samples along dim 0"
                if sizes
                else "no tensors; give at least one"
            )
        )
    return sizes.pop()


def to_device(nested: Nested, device: torch.device | str | None) -> Nested:
    """Move every tensor of a nested input to `device`; with None the input is returned as it is.

    What goes to a GPU goes from pinned memory: from other memory, the copy waits for all work on the GPU.
    """
    if device is None:
        return nested
    to_gpu = torch.device(device).type == "cuda"

    def moved(tensor: Tensor) -> Tensor:
        source = tensor.pin_memory() if to_gpu and tensor.device.type == "cpu" else tensor
        return source.to(device, non_blocking=True)

    return map_tensors(moved, nested)


def as_batch(item: Any, *, labelled: bool = True) -> PairedBatch:
    """Read a batch from a tuple or list of its parts.

    Args:
        item: (teacher_input, student_input, target).
        labelled: Whether there must be a target. Without one, (teacher_input, student_input) is a batch too.

    Raises:
        InputError: There are not as many parts, their numbers of samples differ, or the target is no tensor.
    """
    if isinstance(item, Mapping):
        keys = ", ".join(repr(key) for key in item)
        raise InputError(
            f"an item is a {type(item).__name__} with the keys {keys}; (teacher_input, student_input, target) was "
            "expected: return such a tuple from __getitem__, or give the task a collate function"
        )
    if not labelled and isinstance(item, (tuple, list)) and len(item) == 2:
        item = PairedBatch(item[0], item[1], torch.empty(0))
    if not isinstance(item, (tuple, list)) or len(item) != 3:
        length = f" of length {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise InputError(
            f"a batch of pairs is a {type(item).__name__}{length}; (teacher_input, student_input, target) was expected"
        )
    batch = PairedBatch(*item)
    if next(tensors(batch.target), None) is None:
        raise InputError(_no_target(batch.target))
    counts = [num_samples(part) for part in batch]
    fewer_labels = isinstance(item, PairedBatch) and counts[2] < counts[0]  # of all pairs, only some are labelled
    if len(set(counts[:2] if fewer_labels else counts)) != 1:
        raise InputError(
            f"a batch has {counts[0]} teacher inputs, {counts[1]} student inputs and {counts[2]} targets; "
            "give the same number of each"
        )
    return batch


def _no_target(target: Any) -> str:
    """What is wrong with a target that holds no tensor."""
    example = target[0] if isinstance(target, (tuple, list)) and target else target
    if isinstance(example, str):
        return (
            f"the target is text ({example[:40]!r}); class indices (whole numbers) were expected: number the classes "
            "0, 1, 2, ..."
        )
    return f"the target is of type {type(example).__name__}; class indices or another tensor was expected"


def check_rereadable(pairs: Iterable[Any]) -> None:
    """Refuse data that can be read only once.

    Raises:
        InputError: `pairs` is an iterator (a generator, `iter(loader)`), or a data set and not its batches, or it
            cannot be iterated over.
    """
    if isinstance(pairs, Dataset):
        raise InputError(
            f"pairs is a data set ({type(pairs).__name__}), but batches were expected; "
            "wrap it: torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(pairs, Iterator):
        raise InputError(
            f"pairs is a {type(pairs).__name__}, which can be read only once; give a DataLoader or a list of batches"
        )
    if not isinstance(pairs, Iterable):
        raise InputError(f"pairs is a {type(pairs).__name__}; a DataLoader or a list of batches was expected")


class Collated:
    """A data set together with the function that makes a batch of its items.

    Pass it wherever the package takes a data set, if PyTorch's default collate function cannot make the batches.

    Args:
        dataset: A map-style data set. Its items may be anything that `collate` understands.
        collate: A function from a list of items to the batch (teacher_input, student_input, target).
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


_UNKNOWN = object()


class AllPairs:
    """Labelled pairs and then unlabelled pairs, as one data set.

    Its batches hold the labelled pairs first, and their target has one row for each of these only.

    Args:
        labelled: A map-style data set of (teacher_input, student_input, target).
        unlabelled: A map-style data set of (teacher_input, student_input); a third part of an item is not read.
    """

    def __init__(self, labelled: Any, unlabelled: Any) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self._filler: Any = _UNKNOWN  # stands in the place of a target where a batch has no labelled pair

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> Any:
        """An item; the target of an unlabelled pair is that of a labelled one, which only fills its place."""
        (item,) = self.items([index])
        return item

    def items(self, indices: Sequence[int]) -> list[Any]:
        """The items at `indices`, each of three parts."""
        count = len(self.labelled)
        found = _items(self.labelled, [index for index in indices if index < count])
        others: list[Any] = []
        for split, group in groupby(
            (index for index in indices if index >= count), lambda index: place_of(self, "train", index)[0]
        ):
            with named_split(split):
                others += _items(self.unlabelled, [index - count for index in group])
        filler = self._target_of(found) if others else None
        collate = _collate_of(self.labelled)
        for item in others:
            pair = isinstance(item, (tuple, list)) and len(item) in (2, 3)
            if pair and (len(item) == 2 or collate is None):
                found.append((item[0], item[1], filler))
            elif collate is not None:
                found.append(item)
            else:
                length = f" of length {len(item)}" if isinstance(item, (tuple, list)) else ""
                raise InputError(
                    f"an unlabelled item is a {type(item).__name__}{length}; (teacher_input, student_input) was "
                    "expected"
                )
        return found

    def _target_of(self, labelled: list[Any]) -> Any:
        """A target that fits into the batch of these labelled items, so that it makes no target there longer."""
        if not labelled and self._filler is not _UNKNOWN:
            return self._filler
        first = labelled[0] if labelled else _items(self.labelled, [0])[0]
        filler = first[2] if isinstance(first, (tuple, list)) and len(first) == 3 else None
        if not labelled:
            self._filler = filler
        return filler

    def only(self, role: str) -> "AllPairs":
        """The same pairs for one network alone, if both parts can be read so."""
        both = self.labelled, self.unlabelled
        return AllPairs(*(only_role(part, role) for part in both)) if all(map(_has_roles, both)) else self


def fetch(dataset: Any, indices: Sequence[int]) -> PairedBatch:
    """The samples at `indices` as one batch; tensor data sets are indexed at once, others item by item.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target), or `AllPairs`.
        indices: The samples' positions in the data set; of `AllPairs`, those of labelled pairs first.

    Raises:
        InputError: An item is not a pair, or the items do not fit into one batch.
        ItemError: The data set's or the collate function's own code raised an exception.
    """
    # Subclasses may change what an item is, so only the plain classes take the short way.
    if type(dataset) is Subset:
        return fetch(dataset.dataset, [dataset.indices[index] for index in indices])
    if type(dataset) is TensorDataset:
        rows = torch.as_tensor(indices)
        return as_batch([tensor[rows] for tensor in dataset.tensors])
    if type(dataset) is AllPairs:
        count = len(dataset.labelled)
        labelled = sum(index < count for index in indices)
        known = _rows(dataset.labelled, [index for index in indices if index < count])
        others = _rows(dataset.unlabelled, [index - count for index in indices if index >= count])
        inputs = None if known is None or others is None else _joined([known[:2], others[:2]])
        if inputs is not None and known is not None and len(known) == 3:
            return as_batch(PairedBatch(inputs[0], inputs[1], known[2]))
        batch = _collated(dataset.labelled, dataset.items(indices), indices)
        return batch._replace(target=batch.target[:labelled])
    return _collated(dataset, _items(dataset, indices), indices)


def _rows(dataset: Any, indices: Sequence[int]) -> list[Tensor] | None:
    """The samples at `indices` of tensor data sets and their parts, cut without a detour over items; else None."""
    if type(dataset) is Subset:
        return _rows(dataset.dataset, [dataset.indices[index] for index in indices])
    if type(dataset) is TensorDataset:
        rows = torch.as_tensor(indices, dtype=torch.long)
        return [tensor[rows] for tensor in dataset.tensors]
    if type(dataset) is ConcatDataset:
        starts = [0, *dataset.cumulative_sizes]
        places = [bisect_right(starts, index) - 1 for index in indices]
        found = []
        for place, part in enumerate(dataset.datasets):
            cut = _rows(part, [index - starts[p] for p, index in zip(places, indices, strict=True) if p == place])
            if cut is None:
                return None
            found.append(cut[:2])
        joined = _joined(found)
        back = torch.as_tensor(places, dtype=torch.long).argsort(stable=True).argsort()  # to the order of indices
        return None if joined is None else [tensor[back] for tensor in joined]
    return None


def _joined(parts: Sequence[list[Tensor]]) -> list[Tensor] | None:
    """Both inputs of all parts; None where they do not fit together, which is told where items are collated."""
    kinds = {tuple((tensor.dtype, tensor.shape[1:]) for tensor in part) for part in parts}
    if len(kinds) > 1 or len(parts[0]) != 2:
        return None
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def _collated(dataset: Any, items: list[Any], indices: Sequence[int]) -> PairedBatch:
    """Items as one batch, by the data set's collate function or PyTorch's."""
    collate = _collate_of(dataset)
    if collate is not None:
        try:
            batch = collate(items)
        except InputError:
            raise
        except FOREIGN as error:  # the function is the user's own code
            raise ItemError(
                f"the collate function cannot make a batch of items {_listed(indices)}: {in_a_line(error)}"
            ) from error
        return as_batch(batch)
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            as_batch(item)
    try:
        return as_batch(default_collate(items))  # type: ignore[no-untyped-call]
    except InputError:
        raise
    except FOREIGN as error:  # types of the user's own take part
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"items {_listed(indices)} of a {type(dataset).__name__} do not fit into one batch ({reason}); give "
            "items of one shape, or the task a collate function"
        ) from None


def _collate_of(dataset: Any) -> Callable[[list[Any]], Any] | None:
    while type(dataset) is Subset:
        dataset = dataset.dataset
    if type(dataset) is ConcatDataset:  # a function that all parts share makes the batches of the whole
        first, *others = map(_collate_of, dataset.datasets)
        return first if all(other == first for other in others) else None
    return dataset.collate if type(dataset) is Collated else None


def _items(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Items as the data set holds them, not yet collated."""
    if type(dataset) is Subset:
        return _items(dataset.dataset, [dataset.indices[index] for index in indices])
    if type(dataset) is Collated:
        return _items(dataset.dataset, indices)
    if type(dataset) is ConcatDataset:
        starts = [0, *dataset.cumulative_sizes]
        places = [bisect_right(starts, index) - 1 for index in indices]
        return [
            _items(dataset.datasets[place], [index - starts[place]])[0]
            for place, index in zip(places, indices, strict=True)
        ]
    if hasattr(dataset, "__getitems__"):
        try:
            return list(dataset.__getitems__(list(indices)))
        except InputError:
            raise
        except FOREIGN as error:  # the data set is the user's own code
            raise ItemError(
                f"items {_listed(indices)} of a {type(dataset).__name__} cannot be read: {in_a_line(error)}"
            ) from error
    items, index = [], -1
    try:
        for index in indices:
            items.append(dataset[index])
    except InputError:
        raise
    except FOREIGN as error:  # the data set is the user's own code
        raise ItemError(f"item {index} of a {type(dataset).__name__} cannot be read: {in_a_line(error)}") from error
    return items


def _listed(indices: Sequence[int]) -> str:
    return f"{list(indices[:3])}" + (" ..." if len(indices) > 3 else "")


def only_role(dataset: Any, role: str) -> Any:
    """The same samples for one network alone, without reading the other network's input where the data set can do so.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target). If it has a method `only(role)`, that
            method returns a data set of the same samples in which the other network's input may be empty, (0,). Data
            sets that stand in one batch must all have the method, or it is not called.
        role: "teacher" or "student".
    """
    if type(dataset) is Subset:
        part = Subset(only_role(dataset.dataset, role), dataset.indices)
        return in_split(part, getattr(dataset, _SPLIT)) if hasattr(dataset, _SPLIT) else part
    if not _has_roles(dataset):
        return dataset
    if type(dataset) is ConcatDataset:
        return ConcatDataset([only_role(part, role) for part in dataset.datasets])
    return dataset.only(role)


def _has_roles(dataset: Any) -> bool:
    """Whether all parts of a data set can be read for one network alone."""
    if type(dataset) is Subset:
        return _has_roles(dataset.dataset)
    return all(map(_has_roles, dataset.datasets)) if type(dataset) is ConcatDataset else hasattr(dataset, "only")


def groups_of(dataset: Any) -> NDArray[Any] | None:
    """(N,) the group of each sample (its person, its recording), where the data set says it.

    Args:
        dataset: A data set, whose attribute `groups` names the group of each sample; a part of such a data set, or one
            with a collate function.

    Returns:
        The groups; None where there are none.
    """
    groups = getattr(dataset, "groups", None)
    if groups is not None:
        try:
            found = np.asarray(groups)
        except ValueError:  # rows of different lengths
            found = np.empty((0, 0))
        if found.shape != (len(dataset),):
            raise InputError(
                f"groups of a {type(dataset).__name__} is {shown(groups)}; a sequence with the group of each of its "
                f"{len(dataset)} samples was expected"
            )
        return found
    if type(dataset) is Collated:
        return groups_of(dataset.dataset)
    if type(dataset) is Subset:
        groups = groups_of(dataset.dataset)
        return None if groups is None else groups[np.asarray(list(dataset.indices), dtype=int)]
    if type(dataset) is ConcatDataset:
        parts = [groups for part in dataset.datasets if (groups := groups_of(part)) is not None]
        return np.concatenate(parts) if len(parts) == len(dataset.datasets) else None
    return None


# Of a data set that the package has made: the split whose samples it holds.
_SPLIT = "_mfh_split"


def in_split(dataset: T, split: str) -> T:
    """Note that a data set, which nobody else has, holds samples of a split of this name; see `place_of`."""
    setattr(dataset, _SPLIT, split)
    return dataset


def with_split(message: str, split: str) -> str:
    """A message that begins with the name of a split, which it may do already."""
    return message if re.match(r"\w+ split[,:]", message) else f"{split} split: {message}"


@contextmanager
def named_split(split: str) -> Iterator[None]:
    """Name the split in errors of its items, if they do not name one."""
    try:
        yield
    except InputError as error:
        said = str(error)
        if "\nOriginal Traceback" in said:  # of a reading process: the last line is the error as it was raised
            said = said.rstrip().rsplit("\n", 1)[-1].partition(": ")[2]
        if said == str(error) == with_split(said, split):
            raise
        raise type(error)(with_split(said, split)) from (error.__cause__ or error)


def place_of(dataset: Any, split: str, index: int) -> tuple[str, int]:
    """Where a user finds a sample, for messages: its split, and its position there before pairs were put in order.

    Args:
        dataset: The data set, as it is read.
        split: Name of its split, where it has no other.
        index: Position in the data set.
    """
    if type(dataset) is AllPairs:
        parts, names = [dataset.labelled, dataset.unlabelled], [split, "unlabelled"]
    elif type(dataset) is ConcatDataset and hasattr(dataset.datasets[0], _SPLIT):  # joined by the package
        parts, names = dataset.datasets, [split, split]
    else:
        split = getattr(dataset, _SPLIT, split)
        if type(dataset) is Subset and hasattr(dataset, _SPLIT):
            return place_of(dataset.dataset, split, int(dataset.indices[index]))
        return split, index
    count = len(parts[0])
    return place_of(parts[index >= count], names[index >= count], index - count if index >= count else index)
