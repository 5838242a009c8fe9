"""The experiments' results as tables: text, CSV, Markdown or LaTeX."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from mfh.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

TableFormat = Literal["text", "csv", "markdown", "latex"]

#: Columns of Table 2: heading, role, arm. The paper prints those of regular and general; the rest are controls.
_TABLE_2 = (
    ("regular teacher", "teacher", "regular"),
    ("random teacher", "teacher", "random"),
    ("true-general teacher", "teacher", "true-general"),
    ("Algorithm 1 teacher", "teacher", "algorithm-1"),
    ("No-KD", "student", "no-kd"),
    ("regular KD", "student", "regular"),
    ("random KD", "student", "random"),
    ("true-general KD", "student", "true-general"),
    ("Algorithm 1 KD", "student", "algorithm-1"),
)

_SWEEP = (
    ("teacher", "teacher", "regular"),
    ("No-KD", "student", "no-kd"),
    ("KD", "student", "regular"),
)


def summary(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Mean accuracy of every setting and arm over seeds.

    Args:
        frame: as `vary_gamma`, `vary_alpha` or `modify_gamma` return it, or several of them together.

    Returns:
        One row per setting, role and arm: experiment, alpha, beta, gamma, role, arm, mean, standard_deviation
        (sample), standard_error (NaN for one seed), num_seeds.
    """
    keys = ["experiment", "alpha", "beta", "gamma", "role", "arm"]
    grouped = frame.groupby(keys, sort=False)["accuracy"]
    return grouped.agg(mean="mean", standard_deviation="std", standard_error="sem", num_seeds="size").reset_index()


def gains(frame: "pd.DataFrame", *, baseline: str = "no-kd") -> "pd.DataFrame":
    """What each arm's student gains over a baseline, seed by seed.

    Args:
        frame: one experiment.
        baseline: the arm to subtract.

    Returns:
        One row per setting, arm (the baseline left out) and seed: alpha, beta, gamma, arm, seed, gain in points.
    """
    keys = ["alpha", "beta", "gamma", "seed"]
    students = frame[frame["role"] == "student"]
    wide = students.pivot_table(index=keys, columns="arm", values="accuracy", sort=False)
    difference = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
    return difference.melt(ignore_index=False, value_name="gain").reset_index()[
        ["alpha", "beta", "gamma", "arm", "seed", "gain"]
    ]


def table_2(frame: "pd.DataFrame", form: TableFormat = "text", *, digits: int = 2) -> str:
    """Table 2 of the paper from `modify_gamma`: accuracy by gamma and arm, mean over seeds +- standard error.

    Args:
        frame: as `modify_gamma` returns it.
        form: "text", "csv" (a column for every mean and one for its standard error), "markdown" or "latex"
            (booktabs).
        digits: after the decimal point.

    Raises:
        InputError: the frame is of another experiment, or `form` is unknown.
    """
    if set(frame["experiment"]) != {"modify-gamma"}:
        raise InputError(
            f"table_2 got results of {sorted(set(frame['experiment']))}; those of 'modify-gamma' were expected"
        )
    return format_table(*table_rows(frame, form=form, digits=digits), form)


def table_rows(
    frame: "pd.DataFrame", *, form: TableFormat = "text", digits: int = 2
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of one experiment's table: one row per setting, one column per teacher and student."""
    columns = _TABLE_2 if set(frame["experiment"]) == {"modify-gamma"} else _SWEEP
    means = summary(frame)
    plus_minus = {"latex": " $\\pm$ "}.get(form, " \u00b1 ")
    separate = form == "csv"
    headings = ["alpha", "beta", "gamma"]
    for heading, _, _ in columns:
        headings += [heading, f"{heading} standard error"] if separate else [heading]
    rows = []
    for (alpha, beta, gamma), part in means.groupby(["alpha", "beta", "gamma"], sort=False):
        cells = [f"{value:.2f}" for value in (alpha, beta, gamma)]
        for _, role, arm in columns:
            row = part[(part["role"] == role) & (part["arm"] == arm)].iloc[0]
            mean, error = float(row["mean"]), float(row["standard_error"])
            texts = [f"{mean:.{digits}f}", "" if math.isnan(error) else f"{error:.{digits}f}"]
            cells += texts if separate else [plus_minus.join(filter(None, texts))]
        rows.append(cells)
    return headings, rows


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], form: TableFormat) -> str:
    """A table of cells as text with aligned columns, CSV, Markdown or LaTeX (booktabs).

    Raises:
        InputError: `form` is unknown.
    """
    writers: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], str]] = {
        "text": _text,
        "csv": _csv,
        "markdown": _markdown,
        "latex": _latex,
    }
    if form not in writers:
        raise InputError(f"form is {form!r}; choose {', '.join(map(repr, writers))}")
    return writers[form](columns, rows)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]


def _text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = _widths(columns, rows)
    lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in (columns, *rows)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n"


def _csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = _widths(columns, rows)
    rule = ["-" * (w - 1) + ":" for w in widths]
    return "".join(
        "| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) + " |\n"
        for row in (columns, rule, *rows)
    )


def _latex(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = [" & ".join(row) + r" \\" for row in rows]
    head = " & ".join(columns).replace("%", r"\%") + r" \\"
    lines = [rf"\begin{{tabular}}{{{'r' * len(columns)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
