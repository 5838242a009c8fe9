"""Cross-validation for a task with fixed splits: every seed draws its validation pairs anew."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from mfh.data.epochs import all_targets, generators_kept
from mfh.data.pairs import groups_of, in_split
from mfh.errors import InputError
from mfh.tasks.resplit import stratified_order

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
    pool: ConcatDataset[Any] = ConcatDataset([task.train, task.val])
    rows = _validation_rows(task, np.random.default_rng([seed, len(pool)]))
    rest = np.setdiff1d(np.arange(len(pool)), rows)
    made = copy.copy(task)
    changes = {
        "train": in_split(Subset(pool, rest.tolist()), "train"),
        "val": in_split(Subset(pool, rows.tolist()), "val"),
        "resplit": _Anew(task),
    }
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


def _validation_rows(task: "Task", generator: np.random.Generator) -> NDArray[np.int64]:
    """As many pairs, or groups, as the validation split has, from training and validation pairs together.

    Pairs that lack some of their labels stay in training.
    """
    with generators_kept():
        targets = [all_targets(task.train), all_targets(task.val)]
    known = [task.problem.known(target).reshape(len(target), -1).all(1).numpy() for target in targets]
    single = targets[0].ndim == 1 and not targets[0].is_floating_point()
    classes = np.concatenate([target.numpy() if single else np.zeros(len(target), int) for target in targets])
    complete = np.flatnonzero(np.concatenate(known))
    groups, held = groups_of(task.train), groups_of(task.val)
    if groups is None or held is None:
        return np.sort(complete[stratified_order(classes[complete], generator)[: len(targets[1])]])
    both, number = np.concatenate([groups, held]), len(np.unique(held))
    for _ in range(_TRIES):
        chosen = np.isin(both, generator.permutation(np.unique(both))[:number])
        found = np.intersect1d(np.flatnonzero(chosen), complete)
        if len(found) and len(np.unique(classes[~chosen])) == len(np.unique(classes)):
            return found
    raise InputError(
        f"no {number} of the {len(np.unique(both))} groups of task {task.name!r} leave every class in training; keep "
        "the splits fixed"
    )
