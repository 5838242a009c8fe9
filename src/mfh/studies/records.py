"""Small tables kept beside a study's results: how each network's training went, and what students take classes for.

Both are plain CSV in the folder of a seed: `histories/NETWORK.csv` and `counts/CELL-SPLIT.csv`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.files import read_table, write_table

#: With more classes than this only right and wrong are told apart: a matrix of thousands of cells shows nothing.
MOST_CLASSES = 50

_COUNTS = ("target", "predicted", "count")
_WAY_OUT = "remove it to have a report without it"


def write_history(folder: Path, name: str, history: Sequence[Mapping[str, float]]) -> None:
    """Keep what was logged of a network's training, one row per epoch.

    Args:
        folder: of a seed.
        name: of the network.
        history: one mapping per epoch; all with the same names.
    """
    write_table(folder / "histories" / f"{name}.csv", list(history[0]) if history else ["epoch"], history)


def read_history(folder: Path, name: str) -> dict[str, NDArray[np.float64]] | None:
    """What `write_history` kept: column -> one value per epoch; None if it kept nothing.

    Raises:
        InputError: the file is no such table.
    """
    path = folder / "histories" / f"{name}.csv"
    rows = _rows(path, None)
    if not rows:
        return None
    try:
        return {column: np.array([float(row[column]) for row in rows]) for column in rows[0]}
    except ValueError:
        raise InputError(f"{path} is not a table of numbers; {_WAY_OUT}") from None


def write_counts(folder: Path, name: str, counts: NDArray[np.int64]) -> None:
    """Keep how often samples of each class were taken for each class.

    Only what occurs is written, and every class once. With more than `MOST_CLASSES` classes, all wrong answers of a
    class count together.

    Args:
        folder: of a seed.
        name: of the student, and the split it was measured on.
        counts: (K, K), true class by predicted class.
    """
    right = np.diag(counts)
    rows: list[tuple[int, int | str, int]] = []
    for true, predicted in enumerate(counts):
        rows.append((true, true, int(right[true])))
        if len(counts) > MOST_CLASSES:
            rows.append((true, "", int(predicted.sum() - right[true])))
        else:
            rows += [(true, int(k), int(predicted[k])) for k in np.flatnonzero(predicted) if k != true]
    write_table(folder / "counts" / f"{name}.csv", _COUNTS, (dict(zip(_COUNTS, row, strict=True)) for row in rows))


def read_counts(folder: Path, name: str) -> NDArray[np.int64] | None:
    """What `write_counts` kept; None if it kept nothing.

    Returns:
        (K, K) true class by predicted class; with more than `MOST_CLASSES` classes (K, 2), right and wrong.

    Raises:
        InputError: the file is no such table.
    """
    path = folder / "counts" / f"{name}.csv"
    rows = _rows(path, _COUNTS)
    if not rows:
        return None
    try:
        num_classes = 1 + max(int(row["target"]) for row in rows)
        whole = num_classes <= MOST_CLASSES
        counts = np.zeros((num_classes, num_classes if whole else 2), dtype=np.int64)
        for row in rows:
            true, predicted = int(row["target"]), row["predicted"]
            counts[true, int(predicted) if whole else int(predicted == "")] = int(row["count"])
    except (IndexError, ValueError):
        raise InputError(f"{path} is not a table of counts; {_WAY_OUT}") from None
    return counts


def recalls(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fraction of each class's samples that were answered right; NaN for a class without samples.

    Args:
        counts: as `read_counts` returns them.

    Example:
        >>> recalls(np.array([[3, 1], [0, 2]]))
        array([0.75, 1.  ])
    """
    right = np.diag(counts) if counts.shape[0] == counts.shape[1] else counts[:, 0]
    samples = counts.sum(1)
    fractions: NDArray[np.float64] = np.full(len(counts), np.nan)
    np.divide(right, samples, out=fractions, where=samples > 0)
    return fractions


def _rows(path: Path, columns: Sequence[str] | None) -> list[dict[str, str]]:
    return read_table(path, columns, _WAY_OUT) if path.exists() else []
