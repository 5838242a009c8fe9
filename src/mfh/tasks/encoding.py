"""Paired arrays as a user has them, checked and encoded: inputs as float32, targets as class indices or numbers."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mfh.errors import InputError
from mfh.problems.problem import Problem
from mfh.tasks.resplit import names_of
from mfh.tasks.small_networks import default_for
from mfh.tasks.splits import SPLITS

#: A class index that stands for "no label".
UNLABELLED = -1


@dataclass(frozen=True)
class PairedArrays:
    """Checked and encoded arrays of N pairs.

    Args:
        teacher: The teacher's inputs, (N, ...) float32.
        student: The student's inputs, (N, ...) float32.
        target: Targets: class indices (N,) int64, or numbers (N, K) float32. Rows without a label hold any value;
            single entries without one, in rows of several labels, hold NaN.
        labelled: Whether each pair has a label, (N,), for some of its classes at least.
        problem: What the targets mean.
        num_outputs: Number K of outputs of the networks.
        classes: Names of the classes, in order; None for regression and unnamed labels.
        groups: Index of each pair's group, (N,), for instance its person; None where pairs are independent.
        split: Name of each pair's split, (N,); None where splits are drawn.
    """

    teacher: NDArray[np.float32]
    student: NDArray[np.float32]
    target: NDArray[Any]
    labelled: NDArray[np.bool_]
    problem: Problem
    num_outputs: int
    classes: tuple[str, ...] | None = None
    groups: NDArray[np.int64] | None = None
    split: NDArray[np.str_] | None = None

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Whether each pair has all labels, (N,). Only such pairs can be measured, in the splits val and test."""
        return self.labelled if self.target.ndim == 1 else self.labelled & ~np.isnan(self.target).any(1)

    @property
    def strata(self) -> NDArray[np.int64]:
        """What splits are stratified by, (N,): the class, or 0 for targets that are no class; -1 without a label."""
        classes = self.target if self.target.ndim == 1 else np.zeros(len(self.target), dtype=np.int64)
        return np.where(self.labelled, classes, UNLABELLED).astype(np.int64)

    @property
    def splits_are_drawn(self) -> bool:
        """Whether another seed gives other splits."""
        return self.split is None


def paired_arrays(teacher: Any, student: Any, target: Any, groups: Any = None, split: Any = None) -> PairedArrays:
    """Check and encode arrays as `Task.from_arrays` takes them.

    Raises:
        InputError: They are no arrays of paired samples.
    """
    pairs = PairedArrays(_inputs(teacher, "teacher"), _inputs(student, "student"), **_targets(_array(target)))
    lengths = {name: len(getattr(pairs, name)) for name in ("teacher", "student", "target")}
    codes, names = None, None
    if groups is not None:
        codes = _codes(_array(groups), "groups")
        lengths["groups"] = len(codes)
    if split is not None:
        names = _array(split).astype(str)
        if names.ndim != 1:
            raise InputError(f"split has shape {names.shape}; one name for each pair (N,) was expected")
        lengths["split"] = len(names)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the arrays have different lengths: {listed}; give one row for each pair in all of them")
    pairs = replace(pairs, groups=codes, split=names)
    if names is not None:
        _check_named_splits(pairs, names)
    elif pairs.classes is not None and pairs.target.ndim == 1:
        counts = np.bincount(pairs.target[pairs.labelled], minlength=len(pairs.classes))
        if counts.min() < len(SPLITS):
            few = int(counts.argmin())
            number = "1 labelled pair" if counts[few] == 1 else f"{counts[few]} labelled pairs"
            raise InputError(
                f"class {pairs.classes[few]!r} has {number}; at least 3 are needed, one for each split: leave the "
                "class out, or join it with another"
            )
    return pairs


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"an array cannot be made of a {type(value).__name__}: {error}") from None


def _inputs(value: Any, role: str) -> NDArray[np.float32]:
    array = _array(value)
    if array.dtype.kind not in "fiub":
        what = {"O": "Python objects", "U": "text", "S": "text", "T": "text"}.get(array.dtype.kind, str(array.dtype))
        raise InputError(f"{role} holds {what}; an array of numbers was expected")
    default_for(array.ndim, f"{role}, of shape {array.shape},")
    if not array.size:
        raise InputError(f"{role} has shape {array.shape}, which is empty; give at least one pair and one feature")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    if bad.any():
        raise InputError(
            f"{role} holds numbers that are missing or not finite in {int(bad.sum())} of {len(bad)} rows, first in row "
            f"{int(bad.argmax())}; leave these pairs out, or fill the gaps"
        )
    return array


def _targets(array: NDArray[Any]) -> dict[str, Any]:
    """The fields of `PairedArrays` that follow from the targets."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or not len(array):
        raise InputError(
            f"target has shape {array.shape}; one class, number or text for each pair (N,), or several (N, K), was "
            "expected"
        )
    array, missing = _without_gaps(array)
    if not missing.all() and array.ndim == 2 and _is_multi_label(array[~missing]):
        unknown = _nan(array) | (array.astype(np.float64) < 0)
        partly = bool((unknown.any(1) & ~missing).any())
        target = np.where(unknown, np.nan, array).astype(np.float32)
        target[missing] = 0
        problem = Problem.multi_label(missing=float("nan") if partly else None)
        return {"target": target, "labelled": ~missing, "problem": problem, "num_outputs": array.shape[1]}
    if missing.all():
        raise InputError("target has no label at all; at least two classes, or numbers, were expected")
    if array.dtype.kind == "f":
        return _numbers(array, missing)
    if array.ndim == 2:
        raise InputError(
            f"target has shape {array.shape} and holds whole numbers other than 0 and 1; one class for each pair (N,), "
            "or 0 and 1 for each class (N, K), was expected"
        )
    return _classes(array, missing)


def _without_gaps(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Targets of a plain type, and which rows have none: -1, NaN, None or an empty text."""
    if array.dtype.kind == "O":
        return _from_objects(array)
    if array.dtype.kind in "ST":
        array = array.astype(str)
    if array.dtype.kind == "U":
        gaps = np.char.str_len(array) == 0
    elif array.dtype.kind == "f":
        gaps = np.isnan(array)
    elif array.dtype.kind == "i":
        gaps = array == UNLABELLED
        wrong = array < UNLABELLED
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            raise InputError(
                f"target holds {array[place]} in row {place[0]}; classes from 0 were expected, and -1 for a pair "
                "without a label"
            )
    elif array.dtype.kind in "ub":
        gaps = np.zeros(array.shape, dtype=bool)
    else:
        raise InputError(f"target is of type {array.dtype}; classes, numbers or text were expected")
    return array, gaps if gaps.ndim == 1 else gaps.all(1)


def _from_objects(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Targets from an array of objects, as pandas makes them for text and for whole numbers with gaps."""
    if array.ndim != 1:
        raise InputError("target holds Python objects; an array of numbers, or one text for each pair, was expected")
    missing = np.array([_is_gap(value) for value in array], dtype=bool)
    present = array[~missing]
    for kinds, dtype, gap in (
        ((str,), str, ""),
        ((bool, np.bool_), np.int64, UNLABELLED),
        ((int, np.integer), np.int64, UNLABELLED),
        ((int, float, np.number), np.float64, np.nan),
    ):
        if all(isinstance(value, kinds) for value in present):
            filled = array.copy()
            filled[missing] = gap
            try:
                plain, gaps = _without_gaps(filled.astype(dtype))
            except OverflowError:
                raise InputError("target holds a number of more than 64 bits; choose classes 0, 1, 2, ...") from None
            return plain, gaps | missing
    kinds_found = sorted({type(value).__name__ for value in present})
    raise InputError(
        f"target holds Python objects of the types {', '.join(kinds_found)}; only text, only whole numbers or only "
        "numbers were expected"
    )


def _is_gap(value: Any) -> bool:
    # pandas' NA is not equal to itself, nor a number.
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def _is_multi_label(array: NDArray[Any]) -> bool:
    known = (0, 1, UNLABELLED) if array.dtype.kind == "i" else (0, 1)
    return array.dtype.kind in "fiub" and bool((np.isin(array, known) | _nan(array)).all())


def _nan(array: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, dtype=bool)


def _numbers(array: NDArray[Any], missing: NDArray[np.bool_]) -> dict[str, Any]:
    target = array.reshape(len(array), -1).astype(np.float32)
    bad = ~np.isfinite(target).all(1) & ~missing
    if bad.any():
        raise InputError(
            f"target holds numbers that are missing or not finite in {int(bad.sum())} rows, first in row "
            f"{int(bad.argmax())}; give all numbers of a pair or none"
        )
    return {
        "target": target,
        "labelled": ~missing,
        "problem": Problem.regression(),
        "num_outputs": target.shape[1],
    }


def _classes(array: NDArray[Any], missing: NDArray[np.bool_]) -> dict[str, Any]:
    names, found = np.unique(array[~missing], return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"target holds the class {names_of(names)} only; at least two classes were expected (-1 stands for a pair "
            "without a label)"
        )
    target = np.full(len(array), UNLABELLED, dtype=np.int64)
    target[~missing] = found
    return {
        "target": target,
        "labelled": ~missing,
        "problem": Problem.classification(),
        "num_outputs": len(names),
        "classes": tuple(map(str, names)),
    }


def _codes(array: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Index of each row's group; groups may be numbers or text."""
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}; one group for each pair (N,) was expected")
    gaps = np.array([_is_gap(value) or value == "" for value in array.tolist()], dtype=bool)
    if gaps.any():
        raise InputError(f"{name} is missing in row {int(gaps.argmax())}; give a group for each pair")
    return np.unique(array.astype(str), return_inverse=True)[1].astype(np.int64)


def _check_named_splits(pairs: PairedArrays, names: NDArray[np.str_]) -> None:
    wrong = ~np.isin(names, SPLITS)
    if wrong.any():
        raise InputError(f"split is {str(names[wrong][0])!r} in row {int(wrong.argmax())}; choose train, val or test")
    for split in SPLITS:
        chosen = names == split
        if not pairs.labelled[chosen].any():
            raise InputError(f"the {split} split has no labelled pair; give some pairs with labels the split {split!r}")
        gaps = chosen & ~pairs.complete
        if split != "train" and gaps.any():
            row = int(gaps.argmax())
            what = "labels for some classes only" if pairs.labelled[row] else "no label"
            raise InputError(
                f"row {row} of the {split} split has {what}; only training pairs may lack labels: give it all labels, "
                "or the split 'train'"
            )
        unknown = np.setdiff1d(pairs.strata[chosen & pairs.labelled], pairs.strata[names == "train"])
        if len(unknown):
            name = pairs.classes[unknown[0]] if pairs.classes else unknown[0]
            raise InputError(f"class {name!r} is in the {split} split and not in training; give it training pairs")
