"""Paired data: batches of (teacher input, student input, target), from any data set, on any device.

An input is a tensor or nested tuples, lists and dicts of tensors whose first dimension is the sample.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torch.utils.data._utils.collate import default_collate

from mfh.errors import InputError, in_a_line

Nested = Any  # a tensor, or nested tuples, lists and dicts of tensors


class ItemError(InputError, RuntimeError):
    """A data set's own code failed; the message names the item, and the cause is the original exception."""


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
        InputError: The batch does not have exactly three parts, their sample counts differ, or the target is no tensor.
    """
    if isinstance(item, Mapping):
        keys = ", ".join(repr(key) for key in item)
        raise InputError(
            f"an item is a {type(item).__name__} with the keys {keys}; (teacher_input, student_input, target) was "
            "expected: return such a tuple from __getitem__, or give the task a collate function"
        )
    if not isinstance(item, (tuple, list)) or len(item) != 3:
        length = f" of length {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise InputError(
            f"a batch of pairs is a {type(item).__name__}{length}; (teacher_input, student_input, target) was expected"
        )
    batch = PairedBatch(*item)
    if next(tensors(batch.target), None) is None:
        raise InputError(_no_target(batch.target))
    counts = [num_samples(part) for part in batch]
    if len(set(counts)) != 1:
        raise InputError(
            f"a batch has {counts[0]} teacher inputs, {counts[1]} student inputs and {counts[2]} targets; "
            "pairs need the same number of each"
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
        InputError: The items are no pairs, or do not fit into one batch.
        ItemError: The data set's or the collate function's own code raised an exception.
    """
    if type(dataset) is Collated:
        items = _items(dataset.dataset, indices)
        try:
            batch = dataset.collate(items)
        except InputError:
            raise
        except Exception as error:  # the function is the user's own code
            raise ItemError(
                f"the collate function cannot make a batch of items {_listed(indices)}: {in_a_line(error)}"
            ) from error
        return as_batch(batch)
    # Subclasses may change what an item is: only the plain classes take the short way.
    if type(dataset) is Subset:
        return fetch(dataset.dataset, [dataset.indices[index] for index in indices])
    if type(dataset) is TensorDataset:
        rows = torch.as_tensor(indices)
        return as_batch([tensor[rows] for tensor in dataset.tensors])
    if hasattr(dataset, "__getitems__"):
        try:
            items = dataset.__getitems__(list(indices))
        except InputError:
            raise
        except Exception as error:  # the data set is the user's own code
            raise ItemError(
                f"items {_listed(indices)} of a {type(dataset).__name__} cannot be read: {in_a_line(error)}"
            ) from error
    else:
        items = _items(dataset, indices)
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            as_batch(item)
    try:
        return as_batch(default_collate(items))  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"items {_listed(indices)} of a {type(dataset).__name__} do not fit into one batch ({reason}); give "
            "items of one shape, or the task a collate function"
        ) from None


def _items(dataset: Any, indices: Sequence[int]) -> list[Any]:
    items, index = [], -1
    try:
        for index in indices:
            items.append(dataset[index])
    except InputError:
        raise
    except Exception as error:  # the data set is the user's own code
        raise ItemError(f"item {index} of a {type(dataset).__name__} cannot be read: {in_a_line(error)}") from error
    return items


def _listed(indices: Sequence[int]) -> str:
    return f"{list(indices[:3])}" + (" ..." if len(indices) > 3 else "")


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
