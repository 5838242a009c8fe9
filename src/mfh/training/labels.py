"""Which pairs have labels: training data in two parts, labelled and unlabelled pairs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from mfh.data.epochs import generators_kept, target_batches
from mfh.data.pairs import AllPairs, fetch, in_split, tensors
from mfh.errors import InputError
from mfh.problems.losses import DistillationLoss, KDLoss
from mfh.problems.problem import Problem


class Separated(NamedTuple):
    """Training data by whether there are labels.

    Args:
        labelled: Pairs with a label, a map-style data set of (teacher_input, student_input, target).
        unlabelled: Pairs without, a map-style data set; None if there are none.
        order: (N,) where each of these pairs was, labelled ones first; None where nothing was moved.
    """

    labelled: Any
    unlabelled: Any
    order: Tensor | None = None

    @property
    def pairs(self) -> Any:
        """All of them as one data set, labelled ones first."""
        return self.labelled if self.unlabelled is None else AllPairs(self.labelled, self.unlabelled)


def separated(train: Any, unlabelled: Any, problem: Problem) -> Separated:
    """Part training data by whether there are labels.

    Args:
        train: A map-style data set of (teacher_input, student_input, target), in which targets may be the problem's
            `missing`. Their targets are then read once; see `target_batches`.
        unlabelled: A map-style data set of (teacher_input, student_input); None if there is none.
        problem: What targets mean.

    Raises:
        InputError: No pair has a label, or unlabelled pairs differ in kind from labelled ones.
    """
    if unlabelled is not None and not len(unlabelled):
        unlabelled = None
    order = None
    if problem.missing is not None:
        without = torch.cat([problem.without_label(targets) for targets in target_batches(train)])
        if without.all():
            raise InputError(f"no pair of the train split has a label: all targets are {problem.missing:g}")
        if without.any():
            known, unknown = (~without).nonzero().flatten(), without.nonzero().flatten()
            more = 0 if unlabelled is None else len(unlabelled)
            order = torch.cat([known, unknown, torch.arange(len(train), len(train) + more)])
            rest = in_split(Subset(train, unknown.tolist()), "train")
            unlabelled = rest if unlabelled is None else ConcatDataset([rest, unlabelled])
            train = in_split(Subset(train, known.tolist()), "train")
    if unlabelled is not None:
        with generators_kept():
            _check_alike(AllPairs(train, unlabelled))
    return Separated(train, unlabelled, order)


def check_terms(loss: DistillationLoss | None) -> None:
    """Refuse a distillation loss that cannot be used without labels.

    Raises:
        InputError: It is a function of its own of all three.
    """
    if not (loss is None or isinstance(loss, KDLoss)):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise InputError(
            f"loss {name} needs the labels of all pairs, and there are unlabelled pairs; give "
            "mfh.KDLoss(label_loss=..., divergence=...), or leave the unlabelled pairs out"
        )


def _check_alike(pairs: AllPairs) -> None:
    """Refuse unlabelled pairs that do not look like the labelled ones."""
    first, other = fetch(pairs, [0]), fetch(pairs, [len(pairs.labelled)])
    for name, ours, theirs in (
        ("teacher_input", first.teacher_input, other.teacher_input),
        ("student_input", first.student_input, other.student_input),
    ):
        for a, b in zip(tensors(ours), tensors(theirs), strict=False):
            if a.dtype != b.dtype or a.ndim != b.ndim:
                raise InputError(
                    f"{name} is {_kind(b)} in an unlabelled pair and {_kind(a)} in a labelled one; give both the same "
                    "kind"
                )
    # Together they must make a batch; data sets without a collate function need equal shapes for that.
    shapes = [[tensor.shape[1:] for tensor in tensors(batch[:2])] for batch in (first, other)]
    if len(shapes[0]) != len(shapes[1]):
        raise InputError(
            f"an unlabelled pair has {len(shapes[1])} tensors and a labelled one {len(shapes[0])}; give both the same"
        )
    try:
        fetch(pairs, [0, len(pairs.labelled)])
    except InputError:
        raise InputError(
            f"unlabelled pairs have inputs of shapes {_listed(shapes[1])} and labelled ones {_listed(shapes[0])}; "
            "give both the same shapes, or the task a collate function"
        ) from None


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} with {tensor.ndim - 1} dimensions"


def _listed(shapes: list[torch.Size]) -> str:
    return " and ".join(str(tuple(shape)) for shape in shapes)
