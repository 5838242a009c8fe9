"""Paired arrays as a user has them, checked and encoded: inputs as float32, targets as class indices or numbers."""

import logging
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mfh.errors import InputError, in_a_line
from mfh.problems.problem import Problem
from mfh.tasks.small_networks import default_for
from mfh.tasks.splits import SPLITS
from mfh.tasks.targets import UNLABELLED, encoded_targets, is_gap, warn_of_precision

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("mfh")


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
        groups: Each pair's group, (N,), for instance its person; None where pairs are independent.
        split: Name of each pair's split, (N,); None where splits are drawn.
    """

    teacher: NDArray[np.float32]
    student: NDArray[np.float32]
    target: NDArray[Any]
    labelled: NDArray[np.bool_]
    problem: Problem
    num_outputs: int
    classes: tuple[str, ...] | None = None
    groups: NDArray[Any] | None = None
    split: NDArray[np.str_] | None = None

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Whether each pair has all labels, (N,). Only such pairs can be measured, in the splits val and test."""
        if self.target.ndim == 1 or self.problem.missing is None:
            return self.labelled
        gaps = np.isnan(self.target) if self.target.dtype.kind == "f" else self.target == self.problem.missing
        return np.asarray(self.labelled & ~gaps.reshape(len(gaps), -1).any(1))

    @property
    def strata(self) -> NDArray[np.int64]:
        """What splits are stratified by, (N,): the class, or 0 for targets that are no class; -1 without a label."""
        classes = self.target if self.target.ndim == 1 else np.zeros(len(self.target), dtype=np.int64)
        return np.where(self.labelled, classes, UNLABELLED).astype(np.int64)

    @property
    def splits_are_drawn(self) -> bool:
        """Whether another seed gives other splits."""
        return self.split is None


def paired_arrays(
    teacher: Any, student: Any, target: Any, groups: Any = None, split: Any = None, problem: Problem | None = None
) -> PairedArrays:
    """Check and encode arrays as `Task.from_arrays` takes them.

    Raises:
        InputError: They are no arrays of paired samples.
    """
    teacher, student = _inputs(teacher, "teacher"), _inputs(student, "student")
    pairs = PairedArrays(teacher, student, **encoded_targets(_array(target, "target"), problem))
    lengths = {name: len(getattr(pairs, name)) for name in ("teacher", "student", "target")}
    members, names = None, None
    if groups is not None:
        members = _groups(_array(groups, "groups"))
        lengths["groups"] = len(members)
    if split is not None:
        names = _array(split, "split").astype(str)
        if names.ndim != 1:
            raise InputError(f"split has shape {names.shape}; one name for each pair (N,) was expected")
        lengths["split"] = len(names)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the arrays have different lengths: {listed}; give one row for each pair in all of them")
    pairs = replace(pairs, groups=members, split=names)
    if names is not None:
        _check_named_splits(pairs, names)
    elif pairs.classes is not None and pairs.target.ndim == 1:
        _check_class_sizes(pairs, pairs.classes)
    return pairs


def _check_class_sizes(pairs: PairedArrays, classes: tuple[str, ...]) -> None:
    counts = np.bincount(pairs.target[pairs.labelled], minlength=len(classes))
    if counts.min() >= len(SPLITS):
        return
    few = int(counts.argmin())
    number = "1 labelled pair" if counts[few] == 1 else f"{counts[few]} labelled pairs"
    numbers = 3 * len(classes) > counts.sum() and all(name.lstrip("-").isdigit() for name in classes)
    raise InputError(
        f"class {classes[few]!r} has {number}; at least 3 are needed, one for each split: leave the class out, or join "
        f"it with another{'; if the target is a number to predict, give it as floating point' if numbers else ''}"
    )


def _array(value: Any, name: str) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return _of_tensor(value, name)
    if np.ma.isMaskedArray(value):
        if value.mask.any():
            array = np.asarray(value.data).astype(object)
            array[np.ma.getmaskarray(value)] = None
            return array
        value = value.data
    try:
        array = np.asarray(value)
        if array.dtype.kind == "T":  # text of any length, which NumPy 2 has
            return array.astype(object)
        return array.astype(str) if array.dtype.kind == "S" else array
    except UnicodeDecodeError:
        raise InputError(
            f"{name} holds bytes that are not ASCII; give text: numpy.char.decode({name}, 'utf-8')"
        ) from None
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths, objects of other libraries
        raise InputError(f"{name}: an array cannot be made of a {type(value).__name__}: {in_a_line(error)}") from None


def _of_tensor(tensor: Tensor, name: str) -> NDArray[Any]:
    try:
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16, nor floating point numbers of 8 bits.
        return tensor.float().numpy() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor.numpy()
    except (TypeError, RuntimeError):  # sparse, quantised, without data
        kind = f"{str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')}"
        raise InputError(
            f"{name} is a tensor ({kind}) that makes no array; a dense tensor of numbers was expected: call "
            ".to_dense() or .dequantize() first"
        ) from None


def numbers_of(columns: "pd.DataFrame", name: str) -> NDArray[np.float64]:
    """Columns of a table as one array (N, F); gaps become NaN.

    Args:
        columns: The columns.
        name: Name of the table, for messages.

    Raises:
        InputError: A column holds something else than numbers.
    """
    import pandas as pd

    columns = columns.infer_objects()
    for label, column in columns.items():
        if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_complex_dtype(column.dtype):
            present = column.dropna()
            example = repr(present.iloc[0]) if len(present) else "nothing"
            raise InputError(
                f"{name}: column {label!r} holds {example[:40]}; inputs must be numbers: encode or remove the column"
            )
    return columns.to_numpy(dtype=np.float64, na_value=np.nan)


def _inputs(value: Any, role: str) -> NDArray[np.float32]:
    is_frame = type(value).__name__ == "DataFrame" and type(value).__module__.partition(".")[0] == "pandas"
    array = numbers_of(value, role) if is_frame else _array(value, role)
    if array.dtype.kind == "O" and array.ndim and all(isinstance(item, Real | None) for item in array.flat):
        array = array.astype(np.float64)
    if array.dtype.kind not in "fiub":
        what = {"O": "Python objects", "U": "text", "S": "text", "T": "text"}.get(array.dtype.kind, str(array.dtype))
        what = f"is a {type(value).__name__}" if array.dtype.kind == "O" and not array.ndim else f"holds {what}"
        raise InputError(f"{role} {what}; an array of numbers was expected")
    default_for(array.ndim, f"{role}, of shape {array.shape},")
    if not array.size:
        raise InputError(f"{role} has shape {array.shape}, which is empty; give at least one pair and one feature")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.asarray(np.isfinite(single.reshape(len(single), -1)).all(1))
    if bad.any():
        raise InputError(
            f"{role} holds numbers that are missing or not finite in {int(bad.sum())} of {len(bad)} rows, first in row "
            f"{int(bad.argmax())}; leave these pairs out, or fill the gaps"
        )
    _warn_of_inputs(array, role)
    return single


def _warn_of_inputs(array: NDArray[Any], role: str) -> None:
    """Say what is probably a mistake: dimensions in another order, and features that single precision cannot tell."""
    channels, *rest = array.shape[1:]
    if len(rest) == 2 and channels > 4 >= rest[1] and rest[0] > 4:
        log.warning(
            "%s has shape %s and is read as images of %d channels, %d x %d; if the channels come last, give "
            "numpy.moveaxis(%s, -1, 1)", role, array.shape, channels, *rest, role,
        )  # fmt: skip
    if len(rest) == 1 and channels > 2 * rest[0]:
        log.warning(
            "%s has shape %s and is read as series of %d channels and %d time steps; if the time comes first, give "
            "numpy.swapaxes(%s, 1, 2)", role, array.shape, channels, rest[0], role,
        )  # fmt: skip
    warn_of_precision(array, role, "feature")


def _groups(array: NDArray[Any]) -> NDArray[np.str_]:
    """The group of each row as text; groups may be numbers or text."""
    if array.ndim != 1:
        raise InputError(f"groups has shape {array.shape}; one group for each pair (N,) was expected")
    gaps = np.array([is_gap(value) or value == "" for value in array.tolist()], dtype=bool)
    if gaps.any():
        raise InputError(f"groups is missing in row {int(gaps.argmax())}; give a group for each pair")
    return array.astype(str)


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
            what = "some of its labels only" if pairs.labelled[row] else "no label"
            raise InputError(
                f"row {row} of the {split} split has {what}; only training pairs may lack labels: give it all labels, "
                "or the split 'train'"
            )
        unknown = np.setdiff1d(pairs.strata[chosen & pairs.labelled], pairs.strata[names == "train"])
        if len(unknown):
            name = pairs.classes[unknown[0]] if pairs.classes else unknown[0]
            raise InputError(f"class {name!r} is in the {split} split and not in training; give it training pairs")
