"""Check a task before hours are spent on it: items, splits, networks, logits, targets and layers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from mfh.data.embeddings import alone
from mfh.data.epochs import PairLoader
from mfh.data.pairs import ItemError, PairedBatch, fetch, groups_of, map_tensors, tensors, with_split
from mfh.errors import FOREIGN, InputError, in_a_line
from mfh.networks.calling import call
from mfh.networks.layers import as_logits, find_layer
from mfh.networks.modes import device_of, evaluating
from mfh.tasks.splits import SPLITS
from mfh.tasks.task import Task
from mfh.training.checks import check_finite_inputs, unreadable

log = logging.getLogger("mfh")

# Whole data sets in memory are compared up to this size; hashing takes about a second per gigabyte.
_COMPARED_BYTES = 2**28


#: Shape of the logits of one sample.
Shape = tuple[int, ...]


def check_task(task: Task, layers: Iterable[str] = (), origin: str = "", whole: Iterable[str] = ()) -> None:
    """Read the first and the last item of every split, run both networks on them, and check their outputs.

    Args:
        task: The task to check.
        layers: Names of layers that the teacher must have.
        origin: File that the task comes from, for messages.
        whole: Splits of which all inputs and targets are checked, unless their inputs have more than 256 MiB.

    Raises:
        InputError: Something does not fit; one line names the file, the split and the field.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            batches: dict[str, PairedBatch] = {split: _first_and_last(getattr(task, split), split) for split in SPLITS}
            networks = made_networks(task)
            if "teacher" in networks:
                for layer in layers:
                    find_layer(networks["teacher"], layer)
            _check_logits(task, networks, batches)
            for split in SPLITS[1:]:
                _check_alike(batches["train"], batches[split], split)
            _check_further(task, networks, batches["train"])
            shapes = logits_shapes(task, networks, "train", batches["train"])
            for name in whole:
                _check_whole(task, name, batches[name], shapes)
    except InputError as error:
        raise InputError(f"{origin}: {error}" if origin else str(error)) from None
    _warn_of_leaks(task, origin)


def _warn_of_leaks(task: Task, origin: str) -> None:
    """Say which items, and which groups, are in two splits, as far as that is known without reading all data."""
    further = [name for name in ("unlabelled", "teacher_train") if getattr(task, name) is not None]
    places = [("train", "val"), ("train", "test"), ("val", "test")]
    for earlier, later in [*places, *((name, split) for name in further for split in SPLITS[1:])]:
        ours, theirs = getattr(task, earlier), getattr(task, later)
        parts = 1 if earlier == "teacher_train" else 2 if earlier == "unlabelled" else 3  # what both have
        start = f"{origin}: " if origin else ""
        shared = num_shared(ours, theirs, parts)
        if shared:
            log.warning(
                "%s%d of the %d items of %s are in %s too: scores on %s are too good; keep each item in one split only",
                *(start, shared, len(theirs), later, earlier, later),
            )
        groups = shared_groups(ours, theirs)
        if groups:
            log.warning(
                "%s%d groups are in both %s and %s, the first is %r: scores on %s are too good; keep each person or "
                "recording in one split only",
                *(start, len(groups), earlier, later, groups[0], later),
            )


def _check_further(task: Task, networks: dict[str, nn.Module], train: PairedBatch) -> None:
    """Check unlabelled pairs, and what the teacher learns from instead of the training split."""
    known = {r: net for r, net in networks.items() if not any(parameter.is_meta for parameter in net.parameters())}
    if task.unlabelled is not None:
        batch = _first_and_last(task.pairs, "unlabelled", len(task.train))
        _check_alike(train, batch, "unlabelled")
        for role, network in known.items():
            _run(network, role, "unlabelled", batch)
    if task.teacher_train is not None:
        batch = _first_and_last(alone(task.teacher_train), "teacher_train")
        if "teacher" in known:
            logits = _run(known["teacher"], "teacher", "teacher_train", batch)
            task.problem.check(logits, batch.target, "teacher_train split", training=True)


def _first_and_last(dataset: Any, split: str, first: int = 0) -> PairedBatch:
    """The first and the last item of a split, which begins at position `first` of a data set."""
    places = sorted({first, len(dataset) - 1})
    indices = [place - first for place in places]
    try:
        return fetch(dataset, places)
    except ItemError as error:
        reason = in_a_line(error.__cause__ or error)
        raise InputError(f"{split} split: item {indices[0]} or {indices[-1]} cannot be read: {reason}") from error
    except InputError as error:
        raise InputError(with_split(str(error), split)) from None
    except FOREIGN as error:  # the data set is the user's own code
        raise InputError(
            f"{split} split: item {indices[0]} or {indices[-1]} cannot be read: {in_a_line(error)}"
        ) from error


def _check_alike(train: PairedBatch, other: PairedBatch, split: str) -> None:
    for field, ours, theirs in zip(PairedBatch._fields, train, other, strict=True):
        kinds = described(ours), described(theirs)
        if kinds[0] != kinds[1]:
            raise InputError(
                f"{field} is {kinds[0]} in the train split and {kinds[1]} in the {split} split; the splits of a task "
                "need items of the same kind"
            )


def described(nested: Any, shapes: bool = False) -> str:
    """Structure and types of a part of a batch, for messages and to compare it with others.

    Args:
        nested: The part.
        shapes: Whether the shape of one sample belongs to it; otherwise only the number of dimensions, because lengths
            may differ.
    """
    if isinstance(nested, Tensor):
        name = str(nested.dtype).removeprefix("torch.")
        return f"{name} of shape {tuple(nested.shape[1:])}" if shapes else f"{name} with {nested.ndim} dimensions"
    if isinstance(nested, Mapping):
        return "{" + ", ".join(f"{key}: {described(value, shapes)}" for key, value in nested.items()) + "}"
    if isinstance(nested, (tuple, list)):
        return "(" + ", ".join(described(value, shapes) for value in nested) + ")"
    return type(nested).__name__


def made_networks(task: Task) -> dict[str, nn.Module]:
    """A new student, and a new teacher if the task has one.

    Raises:
        InputError: A function fails, or returns something else.
    """
    return {role: _made(task, role) for role in ("student", "teacher") if getattr(task, role) is not None}


def logits_shapes(task: Task, networks: Mapping[str, nn.Module], split: str, batch: PairedBatch) -> list[Shape]:
    """Shapes of the logits of one sample: the student's, and the teacher's if it has another one.

    Args:
        task: The task.
        networks: Its networks, by role.
        split: Name of the batch's split, for messages.
        batch: A batch to run the networks on.

    Raises:
        InputError: A network cannot read the batch.
    """
    shapes = [
        tuple(_run(network, role, split, batch).shape[1:])
        for role, network in networks.items()
        if not any(parameter.is_meta for parameter in network.parameters())
    ]
    if isinstance(task.teacher_logits, Tensor):
        shapes.append(tuple(task.teacher_logits.shape[1:]))
    return list(dict.fromkeys(shapes))


def expected_logits(shape: Shape, target: Tensor) -> Tensor:
    """Logits without content that fit a target, as far as their shape is known.

    Args:
        shape: Shape of the logits of one sample. Beyond the first, its lengths may differ between samples.
        target: (N, ...), targets of N samples.
    """
    inner = target.shape[1:] if target.ndim == len(shape) else target.shape[2:]
    return torch.empty((len(target), *(shape if len(shape) == 1 else (shape[0], *inner))), device="meta")


def _check_whole(task: Task, split: str, batch: PairedBatch, shapes: Sequence[Shape]) -> None:
    """Check all inputs and targets of a split, if it is cheap to read."""
    dataset, fields = getattr(task, split), ("teacher_input", "student_input")
    each = sum(tensor.nbytes for name in fields for tensor in tensors(getattr(batch, name))) / len(batch.target)
    if each * len(dataset) > _COMPARED_BYTES:
        return
    done = 0
    for read in PairLoader(dataset, split=split):
        indices = range(done, done + len(read.target))
        done += len(read.target)
        check_finite_inputs(read, fields, split, indices)
        for shape in shapes:
            logits = expected_logits(shape, read.target)
            task.problem.check(logits, read.target, f"{split} split", indices, training=split == "train")


def _made(task: Task, role: str) -> nn.Module:
    factory = getattr(task, role)
    try:
        network = factory()
    except InputError:
        raise
    except FOREIGN as error:  # the factory is the user's own code
        raise InputError(f"{role}() cannot make a network: {in_a_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{role}() returned a {type(network).__name__}; a torch.nn.Module was expected")
    return network


def _check_logits(task: Task, networks: dict[str, nn.Module], batches: dict[str, PairedBatch]) -> None:
    widths: dict[str, tuple[int, ...]] = {}
    for role, network in networks.items():
        if any(parameter.is_meta for parameter in network.parameters()):
            continue  # the weights come from a checkpoint
        logits = _run(network, role, "train", batches["train"])
        widths[role] = tuple(logits.shape[1:])
        for split, batch in batches.items():
            if split != "train":  # in dense prediction, the size of logits may differ between splits
                logits = (
                    _run(network, role, split, batch) if logits.ndim > 2 else logits[:1].expand(len(batch.target), -1)
                )
            task.problem.check(logits, batch.target, f"{split} split", training=split == "train")
    if task.teacher_logits is not None:
        assert isinstance(task.teacher_logits, Tensor)
        widths["teacher"] = tuple(task.teacher_logits.shape[1:])
    if len(widths) == 2 and widths["teacher"] != widths["student"]:
        what = "teacher_logits holds" if task.teacher_logits is not None else "the teacher returns"
        raise InputError(
            f"{what} logits of shape (N, {', '.join(map(str, widths['teacher']))}) and the student returns (N, "
            f"{', '.join(map(str, widths['student']))}); both must have the same classes"
        )


def _run(network: nn.Module, role: str, split: str, batch: PairedBatch) -> Tensor:
    home = device_of(network)
    inputs = map_tensors(lambda tensor: tensor.to(home), getattr(batch, f"{role}_input"))
    try:
        with evaluating(network):
            return as_logits(call(network, inputs)).cpu()
    except InputError as error:
        raise InputError(f"{role}: {error}") from None
    except FOREIGN as error:  # the network is the user's own code
        raise unreadable(error, network, inputs, role, split) from error


def num_shared(earlier: Any, later: Any, parts: int = 3) -> int:
    """Number of items of `later` that are in `earlier` too, as far as that is known without reading all data.

    Subsets of one data set are compared by index, and tensors in memory by value. Other data sets are not compared,
    which counts as 0.

    Args:
        earlier: A data set, or several in a ConcatDataset.
        later: Another one.
        parts: How many parts of an item are compared: 1 for the teacher's input, 2 for both inputs, 3 for all.
    """
    if type(earlier) is ConcatDataset:
        return sum(num_shared(one, later, parts) for one in earlier.datasets)
    (first, ours), (second, theirs) = _unwrapped(earlier), _unwrapped(later)
    if first is second:
        return len(set(theirs) & set(ours))
    if type(first) is not TensorDataset or type(second) is not TensorDataset:
        return 0
    if sum(tensor.nbytes for dataset in (first, second) for tensor in dataset.tensors) > _COMPARED_BYTES:
        return 0
    known = set(_hashes(first, ours, parts))
    return sum(row in known for row in _hashes(second, theirs, parts))


def shared_groups(earlier: Any, later: Any) -> list[Any]:
    """Groups that are in both data sets, as far as they say which groups they hold.

    Args:
        earlier: A data set. Its attribute `groups` has the group of every item, (N,), for instance the person.
        later: Another one. A data set without `groups` shares none.
    """
    ours, theirs = groups_of(earlier), groups_of(later)
    return [] if ours is None or theirs is None else sorted(set(ours.tolist()) & set(theirs.tolist()), key=str)


def _unwrapped(dataset: Any) -> tuple[Any, range | list[int]]:
    """The data set below all subsets, and the indices of its items that the subsets choose."""
    chosen: range | list[int] = range(len(dataset))
    while type(dataset) is Subset:
        chosen = [int(dataset.indices[index]) for index in chosen]
        dataset = dataset.dataset
    return dataset, chosen


def _hashes(dataset: TensorDataset, indices: range | list[int], parts: int) -> list[int]:
    rows = torch.as_tensor(list(indices), dtype=torch.long)
    found = [
        tensor[rows].reshape(len(rows), -1).contiguous().view(torch.uint8).numpy() for tensor in dataset.tensors[:parts]
    ]
    return [hash(b"".join(part[i].tobytes() for part in found)) for i in range(len(rows))]
