"""Read every item of a task once, and list what is wrong with it and what is odd."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from mfh.data.embeddings import alone
from mfh.data.epochs import delivered, epoch_seed
from mfh.data.pairs import Collated, ItemError, PairedBatch, fetch, map_tensors, tensors
from mfh.errors import FOREIGN, InputError, in_a_line
from mfh.progress import Show, bars
from mfh.tasks.checks import Shape, described, expected_logits, logits_shapes, made_networks, shared_groups
from mfh.tasks.finding import TaskArguments, find_task
from mfh.tasks.splits import SPLITS
from mfh.tasks.task import Task
from mfh.training.checks import not_finite
from mfh.training.loop import seed_generators, seeded
from mfh.values import Bounds, RandomSeed, checked

if TYPE_CHECKING:
    import pandas as pd

_INPUTS = ("teacher_input", "student_input")
# Items that a reading process reads at a time, and targets that are checked at a time.
_READ, _CHECKED = 64, 256
_Workers = Annotated[int, Bounds(0, 256)]
# Classes that a sentence names.
_NAMED = 5

#: From the split and the index of an item of a task to those that the user gave it.
_Places = Callable[[str, int], tuple[str, int]]


@dataclass(frozen=True)
class Findings:
    """What was found in the items of a task.

    Args:
        items: Number of items in each split.
        bad: Reason for each bad item, by split and index as the user gave them, in the order of the splits.
        odd: Sentences about what is odd, but not wrong.
        classes: Number of items (pixels, in dense prediction) of each class, by split with labels; empty without
            classes.
    """

    items: dict[str, int]
    bad: dict[tuple[str, int], str]
    odd: list[str] = field(default_factory=list)
    classes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def table(self) -> "pd.DataFrame":
        """The bad items: columns split, index and reason. `attrs` holds "items", "odd" and "classes"."""
        import pandas as pd

        rows = [(split, index, reason) for (split, index), reason in self.bad.items()]
        frame = pd.DataFrame(rows, columns=["split", "index", "reason"]).astype({"index": "int64"})
        frame.attrs = {"items": self.items, "odd": self.odd, "classes": self.classes}
        return frame


class _Item(NamedTuple):
    """What is kept of an item: little, because reading processes send it."""

    reason: str | None
    #: What each part is, with the shape of a sample, and with the number of dimensions only.
    kinds: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    target: NDArray[Any] | None = None
    digest: bytes = b""
    constant: tuple[str, ...] = ()


def check(
    task: "str | Path | Task | Callable[..., Task]",
    *,
    seed: int = 0,
    arguments: TaskArguments | None = None,
    num_workers: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Read every item of every split once, and list all that are bad.

    An item is bad if it cannot be read, if its inputs are not finite, if its shapes and types are not those of the
    other items of its split, or if its target does not fit the logits that the networks return. A bad item never stops
    the check. No network is trained; each is run on one item, to learn the shape of its logits.

    What is odd without being wrong is in the table's `attrs["odd"]`, in sentences: classes that a split lacks, inputs
    whose numbers are all equal, and items that are in two splits.

    Args:
        task: A task as `mfh.study` accepts it.
        seed: Random seed that the task's function gets. It also seeds what the items draw at random, item by item, so
            that the result does not depend on `num_workers`.
        arguments: Optional arguments for the task's function (default: none).
        num_workers: Number of reading processes; 0 reads in this one (default: as the task's recipe says).
        progress: Whether to show a progress bar.

    Returns:
        One row for each bad item: split, index (position in the split) and reason. Its `attrs` also hold the number of
        items of each split ("items") and of each class ("classes").

    Raises:
        InputError: There is no such task, it cannot make its networks, a reading process died, or an option is out of
            range.

    Example:
        >>> from mfh.tasks.digits import task
        >>> check(task(num_train=20, num_val=10, num_test=10))
        Empty DataFrame
        Columns: [split, index, reason]
        Index: []
    """
    made = find_task(task, arguments).make(checked("seed", seed, RandomSeed))
    return find(made, seed=seed, num_workers=num_workers, progress=progress).table


def find(task: Task, *, seed: int = 0, num_workers: int | None = None, progress: bool = False) -> Findings:
    """What `check` finds in a task that was made already.

    Args:
        task: The task.
        seed: Random seed of what the items draw.
        num_workers: Number of reading processes (default: as the task's recipe says).
        progress: Whether to show a progress bar.

    Raises:
        InputError: The task cannot make its networks, a reading process died, or an option is out of range.
    """
    checked("seed", seed, RandomSeed)
    workers = task.recipe.num_workers if num_workers is None else checked("num_workers", num_workers, _Workers)
    splits: dict[str, Any] = {name: getattr(task, name) for name in SPLITS}
    if task.unlabelled is not None:
        splits["unlabelled"] = Subset(task.pairs, range(len(task.train), len(task.pairs)))
    if task.teacher_train is not None:
        splits["teacher_train"] = alone(task.teacher_train)
    with seeded(seed, torch.device("cpu")), bars(progress, lines=True) as show:
        networks = made_networks(task)
        read = {name: list(_read(dataset, name, seed, workers, show)) for name, dataset in splits.items()}
        shapes, failed = _logits_shapes(task, networks, splits, read)
    bad: dict[tuple[str, int], list[str]] = {}
    for name, items in read.items():
        faults = {index: [item.reason] for index, item in enumerate(items) if item.reason is not None}
        training = name in ("train", "teacher_train")
        for index, reason in [*_odd_ones(items), *_bad_targets(task, items, shapes, training)]:
            faults.setdefault(index, []).append(reason)
        bad |= {(name, index): faults[index] for index in sorted(faults)}
    for place, reason in [*_bad_outputs(task), *_unlike_train(read), *failed]:
        bad.setdefault(place, []).append(reason)
    classes = _classes(task, read, bad, shapes)
    given = _given_places(task)
    odd = [
        *_missing_classes(task, classes),
        *_constant(read, given),
        *_in_two_splits(read, given),
        *_shared_groups(task),
    ]
    reasons = {given(*place): "; ".join(bad[place]) for place in bad}
    names = list(splits)
    order = sorted(reasons, key=lambda place: (names.index(place[0]), place[1]))
    return Findings(
        {name: len(items) for name, items in read.items()}, {place: reasons[place] for place in order}, odd, classes
    )


def _given_places(task: Task) -> _Places:
    """Where the user gave an item. Pairs without a label left `train`, where the task was made."""
    train, rest = task.train, task.unlabelled
    if type(rest) is ConcatDataset:
        rest = rest.datasets[0]
    parted = type(train) is Subset and type(rest) is Subset and train.dataset is rest.dataset
    if not parted or task.problem.missing is None or len(train) + len(rest) != len(train.dataset):
        return lambda split, index: (split, index)

    def given(split: str, index: int) -> tuple[str, int]:
        if split == "train" or (split == "unlabelled" and index < len(rest)):
            return "train", int((train if split == "train" else rest).indices[index])
        return split, index - len(rest) if split == "unlabelled" else index

    return given


# --- reading ----------------------------------------------------------------------------------------------------------


class _Inspected(Dataset[_Item]):
    """The items of a split, each read and looked at in the process that reads it; none raises an exception."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Item:
        seed_generators(epoch_seed(self.seed, index), torch.device("cpu"))
        try:
            return _looked_at(fetch(self.dataset, [index]), whole=type(self.dataset) is not Collated)
        except ItemError as error:
            return _Item(f"cannot be read: {in_a_line(error.__cause__ or error)}")
        except InputError as error:
            return _Item(str(error))
        except FOREIGN as error:  # the data set is the user's own code
            return _Item(f"cannot be read: {in_a_line(error)}")


def _looked_at(batch: PairedBatch, whole: bool) -> _Item:
    """What there is to know of an item that can be read. `whole`: lengths matter, as no function makes them equal."""
    reasons, constant, digest = [], [], hashlib.blake2b(digest_size=16)
    batch = PairedBatch(*(map_tensors(_dense, part) for part in batch))
    for name in _INPUTS:
        part = getattr(batch, name)
        fault = not_finite(part)
        if fault is not None:
            reasons.append(f"{name} holds {fault[1]}; finite numbers were expected")
        found = list(tensors(part))
        if sum(map(torch.numel, found)) > 1 and all(bool((tensor == tensor.flatten()[:1]).all()) for tensor in found):
            constant.append(name)
        for tensor in found:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    target = None
    if isinstance(batch.target, Tensor):  # NumPy knows no bfloat16
        held = batch.target.detach().cpu()
        target = (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    kinds = tuple(described(part, shapes=whole) for part in batch)
    loose = tuple(described(part) for part in batch)
    return _Item("; ".join(reasons) or None, kinds, loose, target, digest.digest(), tuple(constant))


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _read(dataset: Any, split: str, seed: int, workers: int, show: Show) -> Iterator[_Item]:
    loader: DataLoader[_Item] = DataLoader(
        _Inspected(dataset, seed),
        batch_size=_READ,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(seed),
    )
    count, done, name = len(dataset), 0, f"items of {split}"
    show(name, 0, count)
    for items in delivered(loader):
        done += len(items)
        show(name, done, count)
        yield from items


def _as_it_is(items: list[_Item]) -> list[_Item]:
    return items


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _logits_shapes(
    task: Task, networks: Mapping[str, Any], splits: Mapping[str, Any], read: Mapping[str, Sequence[_Item]]
) -> tuple[list[Shape], list[tuple[tuple[str, int], str]]]:
    """Shapes of the logits of a sample, and what stops a network: both from the first good item of the first split."""
    for split, items in read.items():
        if split == "teacher_train":  # no item for the student
            continue
        usual = _usual(item.kinds for item in items)
        for index, item in enumerate(items):
            if item.reason is None and item.kinds == usual:
                try:
                    return logits_shapes(task, networks, split, fetch(splits[split], [index])), []
                except InputError as error:
                    return [], [((split, index), str(error))]
    return [], []


def _usual(kinds: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The most frequent kinds of parts among items that can be read; the earliest of several."""
    counts = Counter(filter(None, kinds))
    return max(counts, key=counts.__getitem__) if counts else ()


def _odd_ones(items: Sequence[_Item]) -> Iterator[tuple[int, str]]:
    """Items whose shapes and types are not those of the others."""
    usual = _usual(item.kinds for item in items)
    count = sum(item.kinds == usual for item in items)
    for index, item in enumerate(items):
        for name, kind, others in zip(PairedBatch._fields, item.kinds, usual, strict=False):
            if kind != others:
                yield index, f"{name} is {kind}; {count} of {len(items)} items of the split have {others}"


def _unlike_train(read: Mapping[str, Sequence[_Item]]) -> Iterator[tuple[tuple[str, int], str]]:
    """Splits of another kind than the training split, each named once, at its first such item."""
    train = _usual(item.loose for item in read["train"])
    for split, items in read.items():
        usual = _usual(item.loose for item in items)
        for name, ours, theirs in zip(PairedBatch._fields, train, usual, strict=False):
            if ours != theirs and (split, name) != ("teacher_train", "student_input"):
                index = next(index for index, item in enumerate(items) if item.loose == usual)
                yield (split, index), f"{name} of the whole split is {theirs}; in the train split it is {ours}"


def _bad_targets(
    task: Task, items: Sequence[_Item], shapes: Sequence[Shape], training: bool
) -> Iterator[tuple[int, str]]:
    """Items whose targets do not fit the logits."""
    known = [(index, item.target) for index, item in enumerate(items) if item.target is not None]
    for start in range(0, len(known), _CHECKED):
        block = known[start : start + _CHECKED]
        alike = len({(target.shape, target.dtype) for _, target in block}) == 1
        if alike and _target_fault(task, np.concatenate([target for _, target in block]), shapes, training) is None:
            continue
        for index, target in block:
            reason = _target_fault(task, target, shapes, training)
            if reason is not None:
                yield index, reason


def _target_fault(task: Task, target: NDArray[Any], shapes: Sequence[Shape], training: bool) -> str | None:
    values = torch.from_numpy(target)
    for shape in shapes:
        fault = task.problem.target_fault(expected_logits(shape, values), values, training=training)
        if fault is not None:
            return fault[0]
    return None


def _bad_outputs(task: Task) -> Iterator[tuple[tuple[str, int], str]]:
    """Rows of a given teacher's outputs that are not finite. Those of unlabelled pairs are the last ones."""
    logits, labelled = task.teacher_logits, len(task.train)
    if isinstance(logits, Tensor):
        for start in range(0, len(logits), _CHECKED):
            well = torch.isfinite(logits[start : start + _CHECKED]).flatten(1).all(1)
            for row in (start + int(wrong) for wrong in (~well).nonzero()):
                place = ("train", row) if row < labelled else ("unlabelled", row - labelled)
                yield place, "teacher_logits are NaN or infinite"


# --- what is odd ------------------------------------------------------------------------------------------------------


def _classes(
    task: Task, read: Mapping[str, Sequence[_Item]], bad: Collection[tuple[str, int]], shapes: Sequence[Shape]
) -> dict[str, list[int]]:
    """How often each class occurs among the good items of each labelled split; empty without classes."""
    if not shapes:
        return {}
    width, counts = shapes[0][0], {}
    for split, items in read.items():
        if split == "unlabelled":
            continue
        total = np.zeros(width, dtype=np.int64)
        for index, item in enumerate(items):
            if item.target is None or (split, index) in bad:
                continue
            if task.problem.categorical:
                values = item.target[(item.target >= 0) & (item.target < width)]  # others are ignored pixels
                total += np.bincount(values.ravel(), minlength=width)
            elif task.problem.name == "multi-label classification":
                total += (item.target.reshape(-1, width) == 1).sum(0)  # some entries may be missing
            else:
                return {}
        counts[split] = total.tolist()
    return counts


def _missing_classes(task: Task, classes: Mapping[str, Sequence[int]]) -> Iterator[str]:
    names = task.class_names
    for split, counts in classes.items():
        missing = [number for number, count in enumerate(counts) if not count]
        if missing:
            named = ", ".join(
                f"{number} ({names[number]})" if number < len(names) else str(number) for number in missing[:_NAMED]
            )
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            plural = len(missing) > 1
            yield (
                f"{split} has no item of class{'es' * plural} {named}{more}, of {len(counts)} that the networks return"
            )


def _constant(read: Mapping[str, Sequence[_Item]], given: _Places) -> Iterator[str]:
    for split, items in read.items():
        for name in _INPUTS:
            found = [index for index, item in enumerate(items) if name in item.constant]
            if found:
                where, first = given(split, found[0])
                yield (
                    f"{len(found)} of the {len(items)} items of {split} have a constant {name} (all its numbers are "
                    f"equal), first item {first}{f' of {where}' if where != split else ''}"
                )


def _in_two_splits(read: Mapping[str, Sequence[_Item]], given: _Places) -> Iterator[str]:
    """Leaks: items whose inputs, the teacher's and the student's, are in an earlier split too.

    Unlabelled pairs are trained with, so it is the other split that is known. Those of `train` are known anyway.
    """
    known = {
        split: {item.digest: index for index, item in reversed(list(enumerate(items))) if item.digest}
        for split, items in read.items()
    }
    for earlier, later in _pairs(list(read)):
        found = [(index, item) for index, item in enumerate(read[later]) if item.digest in known[earlier]]
        if found and (earlier, later) != ("train", "unlabelled"):
            index, item = found[0]
            ours, theirs = given(later, index), given(earlier, known[earlier][item.digest])
            yield (
                f"{len(found)} of the {len(read[later])} items of {later} are in {earlier} too, with equal inputs "
                f"(first: {ours[0]} {ours[1]} is {theirs[0]} {theirs[1]}): scores on "
                f"{earlier if later == 'unlabelled' else later} are too good"
            )


def _shared_groups(task: Task) -> Iterator[str]:
    """Groups (speakers, patients, rooms) that are in two splits, where the task says which group an item belongs to."""
    for earlier, later in _pairs(SPLITS):
        shared = shared_groups(getattr(task, earlier), getattr(task, later))
        if shared:
            named = ", ".join(map(str, shared[:_NAMED])) + (", ..." if len(shared) > _NAMED else "")
            yield (
                f"{len(shared)} group{'s are' if len(shared) > 1 else ' is'} in {earlier} and in {later} ({named}): "
                f"scores on {later} are too good"
            )


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((earlier, later) for place, earlier in enumerate(names) for later in names[place + 1 :])
