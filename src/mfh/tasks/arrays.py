"""A task from arrays: paired inputs and targets, split by seed, with small networks that standardise them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from mfh.errors import InputError, close_names, shown
from mfh.networks.standardise import moments
from mfh.problems.problem import Problem
from mfh.tasks.encoding import PairedArrays, paired_arrays
from mfh.tasks.resplit import split_groups, split_rows, stratified_order
from mfh.tasks.small_networks import Default, Scale, default_for
from mfh.tasks.splits import SPLITS, Split
from mfh.tasks.targets import UNLABELLED
from mfh.tasks.task import Task
from mfh.training.checks import check_problem
from mfh.training.recipe import Recipe
from mfh.values import UNCHECKED, check_fields


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """How a task is made from arrays.

    Args:
        name: Name of the task.
        labels: Number of labelled training pairs, stratified by class; the other training pairs lose their labels and
            are kept as pairs without labels. "all" keeps all labels.
        unlabelled: Whether training uses the pairs without labels.
        val: Validation split: a share of the labelled pairs (or of the groups, where there are any), or a number of
            them.
        test: Test split, likewise.
        teacher_network: Function that makes a new teacher for raw inputs (default: by the shape of the inputs).
        student_network: Function that makes a new student, likewise.
        layer: Layer of the teacher to score and mask; needed with a `teacher_network`.
        recipe: How networks are trained (default: by the shape of the student's inputs).
        unit: What a group is, in the plural, for the report: "people", "recordings".
        facts: Further facts for the report.
    """

    name: str = "arrays"
    labels: Annotated[int | Literal["all"], UNCHECKED] = "all"
    unlabelled: bool = True
    val: Annotated[float, UNCHECKED] = 0.2
    test: Annotated[float, UNCHECKED] = 0.2
    teacher_network: Callable[[], nn.Module] | None = None
    student_network: Callable[[], nn.Module] | None = None
    layer: str | None = None
    recipe: Recipe | None = None
    unit: str = "groups"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Rows:
    """Rows of one split of the arrays: labelled pairs of each split, and the training pairs without labels."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    unlabelled: NDArray[np.int64]


def from_arrays(
    teacher: Any,
    student: Any,
    target: Any,
    groups: Any = None,
    split: Any = None,
    *,
    problem: Problem | None = None,
    seed: int = 0,
    **options: Any,
) -> Task:
    """The function behind `Task.from_arrays`, which documents it."""
    if problem is not None:
        check_problem(problem)
    pairs = paired_arrays(teacher, student, target, groups, split, problem)
    known = [item.name for item in fields(ArrayOptions)]
    for name in options:
        if name not in known:
            raise InputError(f"from_arrays has no argument {name!r}; {close_names(name, known)}")
    return arrays_task(pairs, ArrayOptions(**options), seed)


def arrays_task(pairs: PairedArrays, options: ArrayOptions, seed: int) -> Task:
    """A task of one seed from checked arrays.

    Args:
        pairs: The arrays.
        options: How to make the task.
        seed: Seed of the split and of the pairs that keep their labels.

    Raises:
        InputError: The pairs cannot be split so.
    """
    rows = split_pairs(pairs, options, seed)
    rows = rows if options.unlabelled else replace(rows, unlabelled=rows.unlabelled[:0])
    teacher = _default(pairs, "teacher", rows) if options.teacher_network is None else None
    student = _default(pairs, "student", rows) if options.student_network is None else None
    if pairs.problem.name == "dense prediction" and not (teacher is None and student is None):
        raise InputError(
            "target has a class for each place, for which there are no default networks; give teacher_network and "
            "student_network"
        )
    if teacher is None and not options.layer:
        raise InputError("layer is not given; teacher_network needs the name of the layer to score and mask")
    drawn = pairs.splits_are_drawn or options.labels != "all"
    return Task(
        name=options.name,
        teacher=options.teacher_network or teacher.network,  # type: ignore[union-attr,arg-type]
        student=options.student_network or student.network,  # type: ignore[union-attr,arg-type]
        layer=options.layer or teacher.layer,  # type: ignore[union-attr]
        student_layer=None if student is None else student.layer,
        train=_dataset(pairs, rows.train),
        val=_dataset(pairs, rows.val),
        test=_dataset(pairs, rows.test),
        unlabelled=_dataset(pairs, rows.unlabelled),
        problem=pairs.problem,
        recipe=options.recipe or default_for(pairs.student.ndim, "student").recipe,
        resplit=partial(arrays_task, pairs, options) if drawn else None,
        facts={**_facts(pairs, rows, options), **options.facts},
    )


def split_pairs(pairs: PairedArrays, options: ArrayOptions, seed: int) -> Rows:
    """Which pairs are in which split for a seed.

    Args:
        pairs: The arrays.
        options: Sizes of the splits, and how many training pairs keep their labels.
        seed: Seed of the draw.

    Raises:
        InputError: The pairs cannot be split so, or the seed is no whole number from 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed is {seed!r}; a whole number from 0 was expected")
    generator = np.random.default_rng([seed, len(pairs.target)])
    parts = _parts(pairs, options, generator)
    train = parts["train"]
    labelled, unlabelled = train[pairs.labelled[train]], train[~pairs.labelled[train]]
    if options.labels != "all":
        _check_budget(options.labels, len(labelled), pairs)
        order = stratified_order(pairs.strata[labelled], generator)
        unlabelled = np.concatenate([unlabelled, labelled[order[options.labels :]]])
        labelled = labelled[order[: options.labels]]
    held = {split: parts[split][pairs.complete[parts[split]]] for split in SPLITS[1:]}
    return Rows(np.sort(labelled), held["val"], held["test"], np.sort(unlabelled))


def _parts(
    pairs: PairedArrays, options: ArrayOptions, generator: np.random.Generator
) -> dict[Split, NDArray[np.int64]]:
    if pairs.split is not None:
        return {split: np.flatnonzero(pairs.split == split) for split in SPLITS}
    if pairs.groups is not None:
        number = len(np.unique(pairs.groups[pairs.complete]))
        sizes = [_size(getattr(options, name), number, name, "groups") for name in ("val", "test")]
        strata = np.where(pairs.complete, pairs.strata, UNLABELLED)
        return split_groups(pairs.groups, strata, sizes[0], sizes[1], generator)
    labelled = np.flatnonzero(pairs.complete)
    sizes = [_size(getattr(options, name), len(labelled), name, "labelled pairs") for name in ("val", "test")]
    parts = split_rows(pairs.strata[labelled], sizes[0], sizes[1], generator)
    found = {split: labelled[part] for split, part in parts.items()}
    found["train"] = np.concatenate([found["train"], np.flatnonzero(~pairs.complete)])
    return found


def _size(size: Any, total: int, name: str, of: str) -> int:
    """A number of pairs or groups: itself from 1 on, a share below."""
    if (
        isinstance(size, bool)
        or not isinstance(size, int | float | np.number)
        or not 0 < size < 2**63
        or size > max(1, int(size))
    ):
        raise InputError(f"{name} is {shown(size)}; choose a share of the {of} below 1, or a number of {of} from 1")
    return int(size) if size >= 1 else max(1, round(size * total))


def _check_budget(labels: Any, available: int, pairs: PairedArrays) -> None:
    if isinstance(labels, bool) or not isinstance(labels, int | np.integer) or labels < 1:
        raise InputError(f"labels is {shown(labels)}; choose 'all' or a number of labelled training pairs from 1")
    if labels > available:
        raise InputError(
            f"labels is {shown(labels)}; choose 1 to {available}, the labelled pairs of the training split"
        )
    num_classes = int(pairs.strata.max()) + 1
    if labels < num_classes:
        raise InputError(f"labels is {labels}, fewer than the {num_classes} classes; choose at least one for each")


def _default(pairs: PairedArrays, role: str, rows: Rows) -> Default:
    """The default network of a role, which standardises as the training pairs need it, labelled or not."""
    training, scale = np.concatenate([rows.train, rows.unlabelled]), _scale(pairs, rows.train)
    inputs: NDArray[np.float32] = getattr(pairs, role)
    default = default_for(inputs.ndim, role)
    mean, std = moments(torch.from_numpy(inputs[training]))
    return default._replace(network=partial(default.network, mean, std, pairs.num_outputs, scale))


def _scale(pairs: PairedArrays, labelled: NDArray[np.int64]) -> Scale | None:
    """Mean and standard deviation (K,) of the numbers that labelled training pairs have; None for other targets."""
    if pairs.problem.name != "regression":
        return None
    known = np.ma.masked_invalid(pairs.target[labelled].astype(np.float64))
    moments = (known.mean(0).filled(0), known.std(0).filled(1))
    mean, std = (torch.from_numpy(np.asarray(part)).float() for part in moments)
    return mean, torch.where(std > 0, std, 1.0)


def _dataset(pairs: PairedArrays, rows: NDArray[np.int64]) -> TensorDataset:
    """These pairs, with the group of each in the attribute `groups` if there are groups."""
    made = TensorDataset(*(torch.from_numpy(part[rows]) for part in (pairs.teacher, pairs.student, pairs.target)))
    if pairs.groups is not None:
        made.groups = pairs.groups[rows]  # type: ignore[attr-defined]
    return made


def _facts(pairs: PairedArrays, rows: Rows, options: ArrayOptions) -> dict[str, Any]:
    """What a report says of the data: a description, the names of classes, and how many groups each split has."""
    partly = int((~pairs.complete[rows.train]).sum())
    entries = "outputs" if pairs.problem.name == "regression" else "classes"
    some = f" ({partly} of them for some {entries} only)" if partly else ""
    teacher, student = (" x ".join(map(str, part.shape[1:])) for part in (pairs.teacher, pairs.student))
    outputs = "1 output" if pairs.num_outputs == 1 else f"{pairs.num_outputs} outputs"
    what = f"{len(pairs.classes)} classes" if pairs.classes else outputs
    facts: dict[str, Any] = {
        "linear_baseline": pairs.problem.name != "dense prediction",
        "description": (
            f"Pairs of a teacher's input ({teacher}) and a student's input ({student}), {pairs.problem.name} with "
            f"{what}. Training: {len(rows.train)} pairs with labels{some}, {len(rows.unlabelled)} without; validation: "
            f"{len(rows.val)}; test: {len(rows.test)}."
        ),
    }
    if pairs.classes is not None:
        facts["classes"] = list(pairs.classes)
    if pairs.groups is not None:
        training = np.concatenate([rows.train, rows.unlabelled])
        counts = {
            split: len(np.unique(pairs.groups[part]))
            for split, part in (("train", training), ("val", rows.val), ("test", rows.test))
        }
        facts["description"] += f" Split by {options.unit}: {', '.join(f'{n} {name}' for name, n in counts.items())}."
        facts["groups"] = {"unit": options.unit, **counts}
    return facts
