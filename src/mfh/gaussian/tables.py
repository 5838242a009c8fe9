"""The experiments' results as tables: text, CSV, Markdown or LaTeX."""

import math
from typing import TYPE_CHECKING, Literal, get_args

from mfh.errors import InputError
from mfh.files import markdown_table

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

#: Columns of the sweeps' table, likewise.
_SWEEP = (
    ("teacher", "teacher", "regular"),
    ("No-KD", "student", "no-kd"),
    ("KD", "student", "regular"),
)

#: What tells one setting of an experiment from another.
_SETTING = ["alpha", "beta", "gamma"]


def summary(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Mean accuracy over seeds, for every setting and arm.

    Args:
        frame: Results of `vary_gamma`, `vary_alpha` or `modify_gamma`, or several of them together.

    Returns:
        One row per setting, role and arm: experiment, alpha, beta, gamma, role, arm, mean, standard_deviation
        (of the sample), standard_error (NaN for one seed), num_seeds.
    """
    grouped = frame.groupby(["experiment", *_SETTING, "role", "arm"], sort=False)["accuracy"]
    return grouped.agg(mean="mean", standard_deviation="std", standard_error="sem", num_seeds="size").reset_index()


def gains(frame: "pd.DataFrame", *, baseline: str = "no-kd") -> "pd.DataFrame":
    """Gain of each arm's student over a baseline, seed by seed.

    Args:
        frame: Results of one experiment.
        baseline: Arm to subtract.

    Returns:
        One row per setting, arm (without the baseline) and seed: alpha, beta, gamma, arm, seed, gain in points.
    """
    students = frame[frame["role"] == "student"]
    wide = students.pivot_table(index=[*_SETTING, "seed"], columns="arm", values="accuracy", sort=False)
    difference = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
    return difference.melt(ignore_index=False, value_name="gain").reset_index()[[*_SETTING, "arm", "seed", "gain"]]


def table_2(frame: "pd.DataFrame", form: TableFormat = "text", *, digits: int = 2) -> str:
    """Table 2 of the paper: accuracy by gamma and arm, as mean over seeds ± standard error.

    Args:
        frame: Results of `modify_gamma`.
        form: "text", "csv", "markdown" or "latex" (booktabs). "csv" has a column for every mean and another for its
            standard error.
        digits: Digits after the decimal point.

    Raises:
        InputError: The frame is of another experiment, or `form` is unknown.
    """
    if form not in get_args(TableFormat):
        raise InputError(f"form is {form!r}; choose {', '.join(map(repr, get_args(TableFormat)))}")
    if set(frame["experiment"]) != {"modify-gamma"}:
        raise InputError(
            f"table_2 got results of {sorted(set(frame['experiment']))}; those of 'modify-gamma' were expected"
        )
    if form == "csv":
        return table_of(frame, digits=digits, plus_minus=None).to_csv(index=False, lineterminator="\n")
    if form == "latex":
        table = table_of(frame, digits=digits, plus_minus=" $\\pm$ ")
        return table.to_latex(index=False, column_format="r" * len(table.columns))
    table = table_of(frame, digits=digits)
    if form == "markdown":
        return markdown_table(list(table.columns), table.to_numpy().tolist())
    widths = [max(len(str(name)), *table[name].str.len()) + 1 for name in table]  # two spaces between columns
    heading, *lines = table.to_string(index=False, col_space=widths).splitlines()
    return "\n".join([heading, "-" * len(heading), *lines]) + "\n"


def table_of(frame: "pd.DataFrame", *, digits: int = 2, plus_minus: str | None = " ± ") -> "pd.DataFrame":
    """One experiment's table as text: one row per setting, one column per teacher and student.

    Args:
        frame: Results of one experiment.
        digits: Digits after the decimal point.
        plus_minus: What stands between a mean and its standard error. None gives the errors columns of their own.
    """
    import pandas as pd

    columns = _TABLE_2 if set(frame["experiment"]) == {"modify-gamma"} else _SWEEP
    rows = []
    for setting, part in summary(frame).groupby(_SETTING, sort=False):
        row = {name: f"{value:.2f}" for name, value in zip(_SETTING, setting, strict=True)}
        by_arm = part.set_index(["role", "arm"])
        for heading, role, arm in columns:
            numbers = by_arm.loc[(role, arm), ["mean", "standard_error"]].to_numpy(dtype=float)
            mean, error = ("" if math.isnan(number) else f"{number:.{digits}f}" for number in numbers)
            if plus_minus is None:
                row |= {heading: mean, f"{heading} standard error": error}
            else:
                row[heading] = f"{mean}{plus_minus}{error}" if error else mean
        rows.append(row)
    return pd.DataFrame(rows)
