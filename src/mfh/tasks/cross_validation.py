"""Cross-validation for a task with fixed splits: every seed draws its validation pairs anew."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from mfh.data.epochs import all_targets, generators_kept
from mfh.data.pairs import groups_of, in_split
from mfh.errors import InputError
from mfh.tasks.resplit import stratified_order, within_classes

if TYPE_CHECKING:
    from mfh.tasks.task import Task

# How often groups are drawn again until training has every class.
_TRIES = 1000


def cross_validated(task: "Task") -> "Task":
    """The function behind `Task.cross_validated`, which documents it."""
    if task.resplit is not None:
        raise InputError(f"task {task.name!r} has resplit= already; every seed has validation pairs of its own")
    for name in ("teacher_logits", "teacher_checkpoint"):
        if getattr(task, name) is not None:
            raise InputError(
                f"task {task.name!r} has {name}=, and that teacher knows the training pairs, which cannot be used for "
                "validation then; keep the splits fixed"
            )
    return _split_anew(task, 0)


@dataclass(frozen=True, eq=False)
class _Anew:
    """The function from a seed to the task with the validation pairs of that seed."""

    task: "Task"
    #: That all seeds share the test split, which `mfh.studies.stats.Repeats` asks.
    same_test: ClassVar[bool] = True

    def __call__(self, seed: int) -> "Task":
        return _split_anew(self.task, seed)


def _split_anew(task: "Task", seed: int) -> "Task":
    """The task with the validation pairs of a seed."""
    # Messages name a pair by its place in the splits that the user made.
    splits = (("train", task.train), ("val", task.val))
    pool: ConcatDataset[Any] = ConcatDataset([in_split(Subset(part, range(len(part))), name) for name, part in splits])
    drawn = _drawn(task, np.random.default_rng([seed, len(pool)]))
    made = copy.copy(task)
    changes = {
        "train": in_split(Subset(pool, drawn.train.tolist()), "train"),
        "val": in_split(Subset(pool, drawn.val.tolist()), "val"),
        "unlabelled": _without_groups(task.unlabelled, drawn.groups),
        "resplit": _Anew(task),
    }
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


def _without_groups(unlabelled: Any, held: NDArray[Any] | None) -> Any:
    """Unlabelled pairs of other groups than those held out; None where there are none."""
    groups = None if unlabelled is None or held is None else groups_of(unlabelled)
    if groups is None or held is None:
        return unlabelled
    kept = np.flatnonzero(~np.isin(groups, held))
    return in_split(Subset(unlabelled, kept.tolist()), "unlabelled") if len(kept) else None


class _Drawn(NamedTuple):
    """Rows of training and validation pairs together, and the groups that validation has."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    groups: NDArray[Any] | None


def _drawn(task: "Task", generator: np.random.Generator) -> _Drawn:
    """As many pairs, or groups, as the validation split has, from training and validation pairs together.

    Pairs that lack some of their labels never validate. They stay in training, unless their group validates.
    """
    with generators_kept():
        targets = [all_targets(task.train), all_targets(task.val)]
    known = [task.problem.known(target).reshape(len(target), -1).all(1).numpy() for target in targets]
    single = targets[0].ndim == 1 and not targets[0].is_floating_point()
    classes = np.concatenate([target.numpy() if single else np.zeros(len(target), int) for target in targets])
    complete = np.flatnonzero(np.concatenate(known))
    groups, held = groups_of(task.train), groups_of(task.val)
    if groups is None or held is None:
        order = stratified_order(classes[complete], generator)
        before, size = within_classes(classes[complete], order)
        # One pair of each class stays in training.
        val = np.sort(complete[order[before < size - 1][: len(targets[1])]])
        if not len(val):
            raise InputError(
                f"every class of task {task.name!r} has one pair in training and validation together, which training "
                "needs; keep the splits fixed"
            )
        return _Drawn(np.setdiff1d(np.arange(len(classes)), val), val, None)
    both, number = np.concatenate([groups, held]), len(np.unique(held))
    for _ in range(_TRIES):
        members = generator.permutation(np.unique(both))[:number]
        chosen = np.isin(both, members)
        found = np.intersect1d(np.flatnonzero(chosen), complete)
        if len(found) and len(np.unique(classes[~chosen])) == len(np.unique(classes)):
            return _Drawn(np.flatnonzero(~chosen), found, members)
    raise InputError(
        f"no {number} of the {len(np.unique(both))} groups of task {task.name!r} leave every class in training; keep "
        "the splits fixed"
    )
