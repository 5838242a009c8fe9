"""Targets as a user has them, checked and encoded: class indices, several labels, numbers, a class for each place."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.problems.problem import Problem
from mfh.tasks.resplit import names_of
from mfh.tasks.splits import SPLITS

log = logging.getLogger("mfh")

#: A class index that stands for "no label".
UNLABELLED = -1

#: Numbers that often stand for a missing one, and texts that missing labels become where they are made to text.
_MARKS = (-1, -99, -100, -999, -9999)
_TEXTS_OF_GAPS = ("nan", "NaN", "<NA>", "NaT", "-1")


def encoded_targets(array: NDArray[Any], problem: Problem | None) -> dict[str, Any]:
    """The fields of `mfh.tasks.encoding.PairedArrays` that follow from the targets.

    Args:
        array: The targets, (N, ...).
        problem: What they mean; None, or one of the user's own, where their type decides.

    Raises:
        InputError: They are no such targets, may mean two things, or hold a mark that looks like a missing label.
    """
    kind = problem.name if problem is not None and problem.name in _ENCODERS else None
    if array.ndim == 2 and array.shape[1] == 1 and kind != "multi-label classification":
        array = array[:, 0]
    if not array.ndim or not array.size or (array.ndim > 2 and kind != "dense prediction"):
        raise InputError(
            f"target has shape {array.shape}; one class, number or text for each pair (N,), or several (N, K), was "
            "expected"
        )
    array, gaps = _without_gaps(array)
    if problem is not None and problem.missing is not None and array.dtype.kind in "iuf":
        gaps = gaps | (array == problem.missing)
    if kind == "regression":  # where -1 is a number like others
        if array.dtype.kind in "iub":
            array = array.astype(np.float64)
    elif array.dtype.kind in ("i" if kind is None else "if") and _marks_gaps(problem):
        gaps = gaps | (array == UNLABELLED)
    if gaps.all():
        raise InputError("target has no label at all; at least two classes, or numbers, were expected")
    made = _ENCODERS.get(kind, _inferred)(array, gaps, problem)
    if problem is not None:
        missing = made["problem"].missing
        made["problem"] = replace(problem, missing=problem.missing if missing is None else missing)
    return made


def _marks_gaps(problem: Problem | None) -> bool:
    """Whether -1 stands for a missing label, not for a place that does not count."""
    return problem is None or problem.ignore_index != UNLABELLED


def _inferred(array: NDArray[Any], gaps: NDArray[np.bool_], problem: Problem | None) -> dict[str, Any]:
    """Targets of a kind that their type decides."""
    present = array[~gaps]
    if array.ndim == 2 and array.dtype.kind in "fiub" and np.isin(present, (0, 1)).all():
        if not gaps.any() and array.shape[1] > 2 and (array.sum(1) == 1).all():
            log.warning(
                "target has exactly one 1 in each row and is read as %d labels of which any number may be true; for "
                "one class for each pair give target.argmax(1)", array.shape[1],
            )  # fmt: skip
        return _labels(array, gaps, None)
    if array.dtype.kind == "f":
        if problem is None:
            _refuse_doubtful(array, gaps)
        return _numbers(array, gaps, None)
    return _classes(array, gaps, None)


def _refuse_doubtful(array: NDArray[Any], gaps: NDArray[np.bool_]) -> None:
    """Refuse floating point numbers that may be classes, or hold a mark that nobody has announced."""
    present = array[~gaps]
    values, counts = np.unique(present[np.isfinite(present)], return_counts=True)
    if array.ndim == 1 and len(values) > 1 and (values == np.round(values)).all() and counts.min() >= len(SPLITS):
        raise InputError(
            f"target holds the whole numbers {names_of(values)} as floating point, which may be classes or numbers to "
            "predict; give problem=mfh.Problem.classification() or mfh.Problem.regression() (for a file: --set "
            "problem=classification or problem=regression)"
        )
    negative = values[values < 0]
    if len(negative) == 1 and negative[0] in _MARKS and counts[0] < len(present) / 2:
        place = tuple(np.argwhere(array == negative[0])[0])
        raise InputError(
            f"target holds {negative[0]:g} in row {place[0]} and no other negative number; replace it by NaN where it "
            "stands for a missing number, or give problem=mfh.Problem.regression() (for a file: --set "
            "problem=regression) if it is one"
        )


def _without_gaps(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Targets of a plain type, and which entries are missing: NaN, None or an empty text."""
    if array.dtype.kind == "O":
        return _from_objects(array)
    if array.dtype.kind == "U":
        gaps = np.char.str_len(array) == 0
        unclear = np.isin(array, _TEXTS_OF_GAPS)
        if unclear.any():
            row = int(np.argwhere(unclear)[0][0])
            raise InputError(
                f"target is the text {str(array[unclear][0])!r} in row {row}, which looks like a missing label; leave "
                "the text empty (or None) for a pair without a label, or rename the class"
            )
    elif array.dtype.kind == "f":
        gaps = np.isnan(array)
    elif array.dtype.kind in "iub":
        gaps = np.zeros(array.shape, dtype=bool)
    else:
        raise InputError(f"target is of type {array.dtype}; classes, numbers or text were expected")
    return array, gaps


def _from_objects(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Targets from an array of objects, as pandas makes them for text and for whole numbers with gaps."""
    missing = np.array([is_gap(value) for value in array.flat], dtype=bool).reshape(array.shape)
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


def _rows(gaps: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether all entries of a row are missing, (N,)."""
    return np.asarray(gaps.reshape(len(gaps), -1).all(1))


def _labels(array: NDArray[Any], gaps: NDArray[np.bool_], _: Problem | None) -> dict[str, Any]:
    """Any number of classes for each pair."""
    wrong = ~(gaps | np.isin(array, (0, 1))) if array.dtype.kind in "fiub" else np.ones(array.shape, dtype=bool)
    if array.ndim != 2 or wrong.any():
        raise InputError(
            f"target {_found(array, wrong)}; 0 and 1 for each class (N, K) were expected, and -1 or NaN for a label "
            "that is not known"
        )
    missing = _rows(gaps)
    target = np.where(gaps, np.nan, array).astype(np.float32)
    target[missing] = 0
    problem = Problem.multi_label(missing=float("nan") if (gaps.any(1) & ~missing).any() else None)
    return {"target": target, "labelled": ~missing, "problem": problem, "num_outputs": array.shape[1]}


def _numbers(array: NDArray[Any], gaps: NDArray[np.bool_], _: Problem | None) -> dict[str, Any]:
    """Numbers to predict."""
    if array.dtype.kind != "f":
        raise InputError("target holds text; numbers to predict (N,) or (N, K) were expected")
    missing, columns = _rows(gaps), np.where(gaps, np.nan, array).reshape(len(array), -1)
    with np.errstate(over="ignore"):
        target = columns.astype(np.float32)
    bad = np.isinf(target).any(1)
    if bad.any():
        raise InputError(
            f"target holds numbers that are not finite in {int(bad.sum())} rows, first in row {int(bad.argmax())}; "
            "give finite numbers of single precision, and NaN for a number that is not known"
        )
    warn_of_precision(columns, "target", "column")
    target[missing] = 0
    partly = bool(np.isnan(target).any())
    return {
        "target": target,
        "labelled": ~missing,
        "problem": Problem.regression(missing=float("nan") if partly else None),
        "num_outputs": target.shape[1],
    }


def _dense(array: NDArray[Any], gaps: NDArray[np.bool_], problem: Problem | None) -> dict[str, Any]:
    """A class for each pixel or time step."""
    assert problem is not None
    known = array[~gaps & (array != problem.ignore_index)]
    whole = known.dtype.kind in "iub" or (known.dtype.kind == "f" and _are_whole(known).all())
    if array.ndim < 2 or not whole or not known.size or known.min() < 0:
        raise InputError(
            f"target, of shape {array.shape} and type {array.dtype}, holds no class for each place; class indices from "
            f"0 of shape (N, ...) were expected, {UNLABELLED} for a place without a label and {problem.ignore_index} "
            "for one that does not count"
        )
    mark = UNLABELLED if problem.missing is None or np.isnan(problem.missing) else int(problem.missing)
    if mark == problem.ignore_index and gaps.any():
        raise InputError(f"target marks missing labels by {mark}, which is also its ignore_index; choose another mark")
    target = np.where(gaps, mark, array).astype(np.int64)
    some = gaps.reshape(len(gaps), -1).any(1)
    missing = some & _rows(gaps | (target == problem.ignore_index))
    partly = bool((some & ~missing).any())
    return {
        "target": target,
        "labelled": ~missing,
        "problem": replace(problem, missing=mark if partly else None),
        "num_outputs": int(known.max()) + 1,
    }


def _classes(array: NDArray[Any], missing: NDArray[np.bool_], _: Problem | None) -> dict[str, Any]:
    """One class for each pair."""
    if array.ndim != 1:
        what = "text" if array.dtype.kind == "U" else "whole numbers other than 0 and 1"
        raise InputError(
            f"target has shape {array.shape} and holds {what}; one class for each pair (N,), "
            "or 0 and 1 for each class (N, K), was expected"
        )
    if array.dtype.kind == "f":
        broken = ~(missing | _are_whole(array))
        if broken.any():
            row = int(broken.argmax())
            raise InputError(f"target holds {array[row]:g} in row {row}; classes are whole numbers from 0, or text")
        array = np.where(missing, UNLABELLED, array).astype(np.int64)
    if array.dtype.kind == "i" and (array[~missing] < 0).any():
        row = int((~missing & (array < 0)).argmax())
        raise InputError(
            f"target holds {array[row]} in row {row}; classes from 0 were expected, and -1 for a pair without a label"
        )
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


_ENCODERS: dict[str | None, Callable[[NDArray[Any], NDArray[np.bool_], Problem | None], dict[str, Any]]] = {
    "classification": _classes,
    "multi-label classification": _labels,
    "regression": _numbers,
    "dense prediction": _dense,
}


def _are_whole(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Which floating point numbers are whole and finite."""
    whole: NDArray[np.bool_] = np.isfinite(array) & (array == np.round(array))
    return whole


def _found(array: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    """What a target is, or the first wrong entry of it."""
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        return f"has shape {array.shape}" if array.dtype.kind in "fiub" else "holds text"
    place = tuple(np.argwhere(wrong)[0])
    return f"holds {array[place]} in row {place[0]}"


def is_gap(value: Any) -> bool:
    """Whether a value is None, NaN or pandas' NA."""
    # pandas' NA is not equal to itself, nor a number.
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def warn_of_precision(array: NDArray[Any], name: str, what: str) -> None:
    """Say which of the columns (N, C, ...) become the same number in single precision."""
    if array.itemsize <= 4 or array.dtype.kind not in "fiu":
        return
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    low, high = (bound(array, axis=axes).astype(np.float64) for bound in (np.fmin.reduce, np.fmax.reduce))
    step = np.spacing(np.maximum(abs(low), abs(high)).astype(np.float32))
    lost = (high > low) & (high - low < 8 * step)
    if lost.any():
        first = int(lost.argmax())
        log.warning(
            "%s: %s %d lies between %.12g and %.12g, which single precision can hardly tell apart; subtract its mean "
            "first", name, what, first, low[first], high[first],
        )  # fmt: skip
