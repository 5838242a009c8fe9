"""A task from one file of paired arrays: .npz, .parquet or .csv."""

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError, in_a_line
from mfh.problems.problem import Problem
from mfh.tasks.arrays import ArrayOptions, arrays_task
from mfh.tasks.encoding import numbers_of, paired_arrays
from mfh.tasks.resplit import names_of
from mfh.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

#: Arrays of a .npz file, and whether each must be there.
_ARRAYS = {"teacher": True, "student": True, "target": True, "group": False, "split": False}


#: What targets may be said to be.
_PROBLEMS = {
    "classification": Problem.classification,
    "multi-label": Problem.multi_label,
    "regression": Problem.regression,
}


def task(
    path: str | Path,
    seed: int = 0,
    *,
    labels: int | Literal["all"] = "all",
    val: float = 0.2,
    test: float = 0.2,
    problem: Literal["classification", "multi-label", "regression"] | None = None,
) -> Task:
    """Paired arrays in a file as a task, with the default networks of `Task.from_arrays`.

    A .npz file holds the arrays `teacher`, `student` and `target`, and may hold `group` and `split`. A .parquet or .csv
    table has the columns `teacher_*`, `student_*` and `target`, and may have `group` and `split`; its inputs are
    vectors. Rows whose target is -1 (classes), NaN or empty are pairs without a label.

    Args:
        path: The file.
        seed: Seed of the split.
        labels: Number of training pairs that keep their labels, or "all".
        val: Validation split: a share of the labelled pairs (of the groups, where there are groups), or a number.
        test: Test split, likewise.
        problem: What the targets mean (default: whole numbers and text are classes, floating point numbers are to be
            predicted, zeros and ones (N, K) are several labels).

    Raises:
        InputError: The file cannot be read, lacks an array or column, holds pickled content or text as input, or its
            arrays make no task.
    """
    path = Path(path)
    kind = None if problem is None else _PROBLEMS[problem]()
    arrays = _npz(path) if path.suffix == ".npz" else _columns(path)
    try:
        pairs = paired_arrays(
            arrays["teacher"], arrays["student"], arrays["target"], arrays.get("group"), arrays.get("split"), kind
        )
        return arrays_task(pairs, ArrayOptions(name=path.stem, labels=labels, val=val, test=test), seed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    expected = "a file saved by numpy.savez(path, teacher=..., student=..., target=...) was expected"
    try:
        with _existing(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path} holds a single array; {expected}")
            _check_names(path, list(file.files), "array", list(_ARRAYS))
            return {name: file[name] for name in file.files}
    except InputError:
        raise
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise InputError(
                f"{path} holds pickled Python objects, which are never loaded; save plain arrays of numbers or text "
                "(.astype(float), .astype(str))"
            ) from None
        raise InputError(f"{path} is not readable ({in_a_line(error)}); {expected}") from None
    except (OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise InputError(f"{path} is not readable ({in_a_line(error)}); {expected}") from None


def _columns(path: Path) -> dict[str, Any]:
    frame = _frame(path)
    if not len(frame):
        raise InputError(f"{path} has no rows; a table with one row for each pair was expected")
    names = list(map(str, frame.columns))
    frame.columns = names
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise InputError(f"{path} has the single column {names[0][:60]!r}; save the table with commas between columns")
    inputs = {role: [name for name in names if name.startswith(f"{role}_")] for role in ("teacher", "student")}
    held = [role for role in inputs if inputs[role]]
    rest = [name for name in names if not name.startswith(("teacher_", "student_"))]
    _check_names(path, [*held, *rest], "column", ["teacher_*", "student_*", *list(_ARRAYS)[2:]])
    return {
        **{role: numbers_of(frame[columns], str(path)) for role, columns in inputs.items()},
        **{name: frame[name].to_numpy(dtype=object) for name in rest if name != "target"},
        "target": _plain(frame["target"]),
    }


def _frame(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        if path.suffix == ".csv":
            # Nullable types keep whole numbers whole where some are missing, so that classes stay classes.
            return pd.read_csv(_existing(path), dtype_backend="numpy_nullable", encoding="utf-8-sig")
        return pd.read_parquet(_existing(path), dtype_backend="numpy_nullable")
    except ImportError:
        raise InputError(
            f"{path}: reading .parquet needs pyarrow; install mfh with its extra: pip install 'mfh[data]', or save the "
            "table as .csv"
        ) from None
    except InputError:
        raise
    except Exception as error:  # pandas and pyarrow raise errors of many types
        raise InputError(
            f"{path} is no readable {path.suffix} table ({in_a_line(error)}); a table with columns teacher_*, "
            "student_* and target was expected"
        ) from None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a .npz, .parquet or .csv file of paired arrays")
    return path


def _check_names(path: Path, names: list[str], kind: str, allowed: list[str]) -> None:
    required = [name for name, needed in _ARRAYS.items() if needed]
    missing = [name for name in required if name not in names]
    shown = dict(zip(_ARRAYS, allowed, strict=True))
    if missing:
        others = [name for name in names if name not in _ARRAYS]
        hint = f" (its others: {names_of(others)})" if others else ""
        raise InputError(f"{path} has no {kind} {shown[missing[0]]}{hint}; {', '.join(allowed[:3])} were expected")
    for name in names:
        if name not in _ARRAYS:
            way_out = "save it with index=False" if name == "Unnamed: 0" else "remove or rename it"
            raise InputError(f"{path} has the {kind} {name!r}, which is none of {', '.join(allowed)}; {way_out}")


def _plain(column: "pd.Series[Any]") -> NDArray[Any]:
    """The target without pandas' types: floating point numbers as such, all else as objects with gaps."""
    import pandas as pd

    if pd.api.types.is_float_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.to_numpy(dtype=object)
