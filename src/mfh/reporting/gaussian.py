"""Figures and report sections of the Gaussian experiments."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mfh.errors import InputError
from mfh.figures.style import (
    FAINT,
    ROLE_COLOURS,
    arm_colour,
    figure_size,
    hover,
    is_narrow,
    new_figure,
    possible,
    style,
)
from mfh.figures.venn import circle_areas, draw_venn
from mfh.gaussian.crossing import sign_change
from mfh.gaussian.tables import gains, summary, table_of
from mfh.reporting.page import Picture, Section, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ARM_NAMES = {
    "no-kd": "No-KD",
    "regular": "regular KD",
    "random": "random",
    "true-general": "true general",
    "algorithm-1": "Algorithm 1",
}
_AXES = {"vary-gamma": ("gamma", "\u03b3"), "vary-alpha": ("alpha", "\u03b1"), "modify-gamma": ("gamma", "\u03b3")}


def sweep_figure(frame: "pd.DataFrame", *, confidence: float = 0.95) -> "Figure":
    """Figure 2 or 3 of the paper: accuracies along gamma or alpha, under the modality Venn diagrams.

    The left plot shows mean accuracies of the teacher, the student alone and the distilled student. The right plot
    shows the gain from distillation, paired by seed. Bands are t intervals of the mean over seeds.

    Args:
        frame: Results of `vary_gamma` or `vary_alpha`.
        confidence: Confidence level of the bands.

    Raises:
        InputError: The frame is of another experiment.
    """
    name = _only_experiment(frame)
    if name not in ("vary-gamma", "vary-alpha"):
        raise InputError(f"sweep_figure got results of {name!r}; those of vary-gamma or vary-alpha were expected")
    from matplotlib.figure import Figure

    column, symbol = _AXES[name]
    means = summary(frame).sort_values(column)
    settings = means[["alpha", "beta", "gamma"]].drop_duplicates()
    with style():
        narrow, count = is_narrow(), len(settings)
        figure = Figure(figsize=figure_size(7.2, 7.6 if narrow else 4.6, columns=2), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.0, 2.6])
        diagrams, plots = parts
        rows = 2 if narrow and count > 3 else 1
        places = np.ravel(diagrams.subplots(rows, -(-count // rows), sharex=True, sharey=True))
        for spare in places[count:]:
            spare.set_axis_off()
        for number, (axes, (_, setting)) in enumerate(zip(places[:count], settings.iterrows(), strict=True)):
            gamma = setting["gamma"]
            teacher, student = circle_areas(setting["alpha"], setting["beta"], gamma)
            title = f"{symbol} = {setting[column]:.2f}".rstrip("0").rstrip(".")
            draw_venn(gamma, teacher - gamma, student - gamma, title=title, axes=axes, names=number == 0)
        left, right = plots.subplots(2, 1) if narrow else plots.subplots(1, 2, width_ratios=[1.5, 1])

        for role, arm, label, colour, marker in (
            ("teacher", "regular", "teacher", ROLE_COLOURS["teacher"], "s"),
            ("student", "no-kd", "student, No-KD", arm_colour("no-kd"), "o"),
            ("student", "regular", "student, KD", ROLE_COLOURS["student"], "^"),
        ):
            part = means[(means["role"] == role) & (means["arm"] == arm)]
            half_width = _half_width(part["standard_error"], part["num_seeds"], confidence)
            _band(left, part[column], part["mean"], half_width, colour, label, marker)
        left.set_ylim(*possible(left.get_ylim(), 0, 100))
        left.set(xlabel=symbol, ylabel="test accuracy (%)", title="Accuracy")
        left.legend(loc="best")

        part = _gain_rows(frame, column).query("arm == 'regular'")
        right.axhline(0, color=FAINT, linewidth=1.2)
        half_width = _half_width(part["standard_error"], part["num_seeds"], confidence)
        _band(right, part[column], part["mean"], half_width, ROLE_COLOURS["student"], None, "^")
        right.set(xlabel=symbol, ylabel="points over No-KD", title="Gain from the teacher")
        return figure


def modification_figure(frame: "pd.DataFrame", *, confidence: float = 0.95) -> "Figure":
    """Table 2 as a figure: teachers on the left, the gain of their students over No-KD on the right.

    Args:
        frame: Results of `modify_gamma`.
        confidence: Confidence level of the t intervals.

    Raises:
        InputError: The frame is of another experiment.
    """
    if (name := _only_experiment(frame)) != "modify-gamma":
        raise InputError(f"modification_figure got results of {name!r}; those of 'modify-gamma' were expected")
    means = summary(frame).sort_values("gamma")
    gain = _gain_rows(frame, "gamma")
    arms = {"regular": "s", "random": "v", "true-general": "D", "algorithm-1": "o"}
    places = {gamma: place for place, gamma in enumerate(sorted(means["gamma"].unique()))}
    with style():
        figure, (left, right) = new_figure(7.2, 3.3, columns=2)
        for index, (arm, marker) in enumerate(arms.items()):
            shift = 0.13 * (index - 1.5)
            for axes, rows in (
                (left, means[(means["role"] == "teacher") & (means["arm"] == arm)]),
                (right, gain[gain["arm"] == arm]),
            ):
                axes.errorbar(
                    [places[gamma] + shift for gamma in rows["gamma"]],
                    rows["mean"],
                    yerr=_half_width(rows["standard_error"], rows["num_seeds"], confidence),
                    fmt=marker,
                    color=arm_colour(arm),
                    label=_ARM_NAMES[arm].removesuffix(" KD"),
                    markerfacecolor="white" if arm == "true-general" else None,
                )
        right.axhline(0, color=FAINT, linewidth=1.2, zorder=0)
        for axes in (left, right):
            axes.set_xticks(list(places.values()), [f"{gamma:.2f}" for gamma in places])
            axes.set_xlabel("\u03b3 of the data")
        left.set_ylim(*possible(left.get_ylim(), 0, 100))
        left.set(ylabel="test accuracy (%)", title="Teachers")
        right.set(ylabel="points over No-KD", title="Gain of their students")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2 if is_narrow() else 4)
        return figure


def gaussian_sections(frames: Mapping[str, "pd.DataFrame"]) -> list[Section]:
    """Report sections, one for each experiment.

    Args:
        frames: Results by experiment: "vary-gamma", "vary-alpha", "modify-gamma" or some of them.
    """
    return [_section(name, frame) for name, frame in frames.items()]


def gaussian_verdict(frames: Mapping[str, "pd.DataFrame"]) -> list[str]:
    """The findings of the experiments, a sentence each.

    Args:
        frames: Results by experiment, see `gaussian_sections`.
    """
    sentences = []
    if "vary-gamma" in frames and frames["vary-gamma"]["gamma"].nunique() > 1:
        sentences.append(sign_change(frames["vary-gamma"]).describe())
    if "vary-alpha" in frames:
        sentences.append(_alpha_sentence(frames["vary-alpha"]))
    if "modify-gamma" in frames:
        sentences.append(_modification_sentence(frames["modify-gamma"]))
    return sentences or ["One setting was run; several show how the gain depends on what the modalities share."]


def gaussian_tables(frame: "pd.DataFrame") -> list[Table]:
    """One experiment as tables that fit 80 columns of text: a row for each setting; teachers and students apart.

    Args:
        frame: Results of one experiment.
    """
    table, column = table_of(frame), _AXES[_only_experiment(frame)][0]
    roles = ("teacher", "KD") if _only_experiment(frame) == "modify-gamma" else ("",)
    tables = []
    for role in roles:
        names = [name for name in map(str, table) if name.endswith(role) or (role == "KD" and name == "No-KD")]
        names = [name for name in names if name not in ("alpha", "beta", "gamma")]
        heading = {"teacher": "Teachers: test accuracy", "KD": "Students: test accuracy", "": "Test accuracy"}[role]
        caption = f"{heading} in percent, mean \u00b1 standard error over {frame['seed'].nunique()} seeds."
        columns = [column, *(name.removesuffix(f" {role}") for name in names)]
        tables.append(Table(columns, table[[column, *names]].to_numpy().tolist(), caption))
    return tables


def _section(name: str, frame: "pd.DataFrame") -> Section:
    num_seeds = frame["seed"].nunique()
    if name == "modify-gamma":
        return Section(
            "Modify gamma (Table 2)",
            [
                "Each modified teacher keeps only as many inputs as are general: random ones, the true general ones, "
                "or those that Algorithm 1 ranks highest. " + _modification_sentence(frame),
                Picture(
                    partial(modification_figure, frame),
                    "modify-gamma",
                    "Left: accuracy of the teachers. Right: gain of their students over students without a teacher. "
                    f"Bars are 95 % intervals over {num_seeds} seeds.",
                    "Teacher accuracies and student gains by gamma for four ways to choose the teacher's inputs. "
                    "The table below lists the numbers.",
                ),
                *gaussian_tables(frame),
                *_found_blocks(frame),
            ],
        )
    column, symbol = _AXES[name]
    if name == "vary-gamma":
        changes = sign_change(frame).describe() if frame["gamma"].nunique() > 1 else ""
        text = (
            "Both modalities carry equally many decisive inputs, and from setting to setting they share more of them. "
            f"The teacher's mean accuracy stays the same. {changes}".rstrip()
        )
    else:
        text = (
            "The teacher carries all decisive inputs of the student, and from setting to setting more that the student "
            "lacks. " + _alpha_sentence(frame)
        )
    return Section(
        f"Vary {column} (Figure {2 if name == 'vary-gamma' else 3})",
        [
            text.strip(),
            Picture(
                partial(sweep_figure, frame),
                name,
                "Above: decisive inputs of the teacher (blue, left) and of the student (orange, right). Areas are to "
                f"scale. Below: means over {num_seeds} seeds with 95 % bands.",
                f"Venn diagrams and curves of accuracy and gain along {symbol}. The table below lists the numbers.",
            ),
            *gaussian_tables(frame),
        ],
    )


def _found_blocks(frame: "pd.DataFrame") -> list[Table]:
    import pandas as pd

    found = pd.DataFrame(frame.attrs.get("general_found", []))
    if found.empty:
        return []
    grouped = found.groupby(["alpha", "gamma", "general"], sort=False)["found"].agg(["mean", "min"]).reset_index()
    rows = [
        [f"{row['gamma']:.2f}", f"{row['general']:.0f}", f"{row['mean']:.2f}", f"{row['min']:.0f}"]
        for _, row in grouped.iterrows()
    ]
    columns = ["gamma", "general inputs", "found (mean)", "found (minimum)"]
    return [Table(columns, rows, "Number of general inputs that Algorithm 1 kept, over all seeds.")]


def _alpha_sentence(frame: "pd.DataFrame") -> str:
    teachers = summary(frame).query("role == 'teacher'").sort_values("alpha")["mean"].tolist()
    rows = _gain_rows(frame, "alpha").query("arm == 'regular'").sort_values("alpha")
    gained = rows["mean"].tolist()
    return (
        f"As alpha rises from {rows['alpha'].min():.2f} to {rows['alpha'].max():.2f}, the teacher's accuracy changes "
        f"from {teachers[0]:.1f} to {teachers[-1]:.1f} % and its student's gain from {gained[0]:+.2f} to "
        f"{gained[-1]:+.2f} points."
    )


def _modification_sentence(frame: "pd.DataFrame") -> str:
    gain = gains(frame).groupby(["arm", "seed"])["gain"].mean()
    parts = []
    for arm in ("algorithm-1", "regular", "random"):
        values = gain.loc[arm]
        error = f" \u00b1 {values.sem():.2f}" if len(values) > 1 else ""
        parts.append(f"{_ARM_NAMES[arm].removesuffix(' KD')} {values.mean():+.2f}{error}")
    listed = ", ".join(parts).replace(" -", " \u2212")
    return f"Mean gain over No-KD in points (standard error), all settings: {listed}."


def _gain_rows(frame: "pd.DataFrame", column: str) -> "pd.DataFrame":
    grouped = gains(frame).groupby([column, "arm"])["gain"]
    return grouped.agg(mean="mean", standard_error="sem", num_seeds="size").reset_index()


def _only_experiment(frame: "pd.DataFrame") -> str:
    names = sorted(set(frame["experiment"]))
    if len(names) != 1:
        raise InputError(f"the frame holds the experiments {names}; exactly one was expected")
    return str(names[0])


def _half_width(standard_error: Any, num_seeds: Any, confidence: float) -> Any:
    """Half width of the t interval. It is unknown for a single seed, and then 0."""
    from scipy import stats

    quantile = stats.t.ppf((1 + confidence) / 2, np.maximum(np.asarray(num_seeds) - 1, 1))
    return np.nan_to_num(np.asarray(standard_error, dtype=float) * quantile)


def _band(axes: "Axes", x: Any, mean: Any, half_width: Any, colour: str, label: str | None, marker: str) -> None:
    x, mean = np.asarray(x, dtype=float), np.asarray(mean, dtype=float)
    axes.fill_between(x, mean - half_width, mean + half_width, color=colour, alpha=0.22, linewidth=0)
    axes.plot(x, mean, color=colour, marker=marker, label=label)
    for place, value in zip(x, mean, strict=True):
        hover(axes.plot([place], [value], marker, color=colour), f"{label or 'gain'} at {place:.2f}: {value:.2f}")
