"""Class by class: which classes students predict, and which classes gain from distillation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mfh.figures.intervals import Row, draw_intervals
from mfh.figures.style import ROLE_COLOURS, arm_colour, hover, is_narrow, new_figure, style
from mfh.reporting.page import Picture, Section
from mfh.studies.folder import SeedFolder
from mfh.studies.stats import Comparison, paired_comparison
from mfh.studies.summary import Summary, Variant, interval_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SQUARES, _MOST_ROWS, _LONGEST = 20, 16, 22


@dataclass(frozen=True)
class _Gain:
    name: str
    differences: dict[int, float]  # by seed, in points
    comparison: Comparison
    before: float


def classes_section(folders: Sequence[SeedFolder], summary: Summary, facts: Mapping[str, Any]) -> Section:
    """Confusion matrices of no-kd and of the arm best on validation, and gains by class.

    Args:
        folders: Folders of the seeds.
        summary: Summary of the study.
        facts: Facts of the task. "classes" names the classes in order.

    Returns:
        The section, empty if the run folder holds no counts of predictions.
    """
    section = Section("Class by class")
    none, best = summary.chosen("no-kd"), summary.chosen()
    if none is None or best is None:
        return section
    found = [[folder.read_counts(cell, summary.split) for cell in (none.cell, best.cell)] for folder in folders]
    pairs = [(before, after) for before, after in found if before is not None and after is not None]
    shapes = {counts.shape for pair in pairs for counts in pair}
    if not pairs or len(pairs) < len(folders) or len(shapes) > 1:
        return section  # classes of some of the seeds would stand beside means over all
    num_classes, num_columns = pairs[0][0].shape
    names = _names(facts, num_classes)
    if num_columns == num_classes <= _MOST_SQUARES:
        section.blocks.append(_matrices_picture(pairs, best, names, summary))
    gains = _gains(pairs, names, summary.test_to_train, [folder.seed for folder in folders])
    if gains:
        section.blocks.append(_gains_picture(gains, best, summary))
    return section


def _names(facts: Mapping[str, Any], num_classes: int) -> list[str]:
    given = facts.get("classes")
    if not isinstance(given, list | tuple) or len(given) != num_classes:
        return [f"class {number}" for number in range(num_classes)]
    return [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\u2026" for text in map(str, given)]


def _matrices_picture(
    pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], best: Variant, names: list[str], summary: Summary
) -> Picture:
    # Counts are summed over seeds first, so that every sample has the same weight.
    before, after = (counts / np.maximum(counts.sum(1, keepdims=True), 1) for counts in np.sum(pairs, axis=0))
    diagonal = "; ".join(
        f"{name} {100 * alone:.0f} and {100 * taught:.0f}"
        for name, alone, taught in zip(names, np.diag(before), np.diag(after), strict=True)
    )
    split = "test" if summary.split == "test" else "validation"
    return Picture(
        partial(_draw_matrices, {"no-kd": before, best.label: after}, names),
        "confusion",
        f"Confusion matrices of the student without a teacher and of {best.label}: predicted classes in percent of the "
        f"true class's {split} samples, over all seeds. Both have the same scale: the darker, the more.",
        f"Two confusion matrices, no-kd and {best.label}. Correct predictions in percent, in this order: {diagonal}.",
    )


def _draw_matrices(shares: Mapping[str, NDArray[np.float64]], names: list[str]) -> "Figure":
    from matplotlib.patches import Rectangle

    num_classes = len(names)
    with style():
        figure, both = new_figure(6.5, 2.2 + 0.19 * min(num_classes, 12), columns=2, sharey=True)
        figure.set_layout_engine("compressed")  # the constrained layout cuts the titles above square axes
        size = 8.5 if num_classes <= 6 else 7 if num_classes <= 8 else 6
        for place, (axes, (title, share)) in enumerate(zip(both, shares.items(), strict=True)):
            for true, predicted in np.ndindex(share.shape):
                value = float(share[true, predicted])
                # No cell is so dark that ink on it could not be read, on a light page or a dark one.
                colour = (ROLE_COLOURS["teacher"], 0.6 * value)
                cell = Rectangle((predicted - 0.5, true - 0.5), 1, 1, facecolor=colour, linewidth=0)
                hover(cell, f"{title}: {names[true]}, predicted {names[predicted]}: {100 * value:.1f} %")
                axes.add_patch(cell)
                if num_classes <= 10:
                    axes.text(predicted, true, f"{100 * value:.0f}", ha="center", va="center", fontsize=size)
            axes.set(xlim=(-0.5, num_classes - 0.5), ylim=(num_classes - 0.5, -0.5), aspect="equal", title=title)
            axes.set_xticks(range(num_classes), names, rotation=0 if num_classes < 4 else 90)
            axes.set_yticks(range(num_classes), names)
            axes.tick_params(length=0, labelsize=9 if num_classes <= 10 else 7)
            axes.set_xlabel("predicted class")
            if not place or is_narrow():
                axes.set_ylabel("true class")
    return figure


def _gains(
    pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    names: list[str],
    test_to_train: float,
    seeds: list[int],
) -> list[_Gain]:
    before, after = (100 * np.array([recalls(pair[side]) for pair in pairs]) for side in (0, 1))
    gains = []
    for number, name in enumerate(names):
        known = ~np.isnan(before[:, number] + after[:, number])
        if known.any():
            alone, taught = before[known, number], after[known, number]
            comparison = paired_comparison(taught, alone, test_to_train=test_to_train)
            differences = dict(zip(np.array(seeds)[known].tolist(), (taught - alone).tolist(), strict=True))
            gains.append(_Gain(name, differences, comparison, float(alone.mean())))
    return gains


def _gains_picture(gains: list[_Gain], best: Variant, summary: Summary) -> Picture:
    shown, note = gains, ""
    if len(gains) > _MOST_ROWS:
        ordered = sorted(gains, key=lambda gain: -gain.comparison.mean_difference)
        shown = [*ordered[: _MOST_ROWS // 2], *ordered[-_MOST_ROWS // 2 :]]
        note = f" Of {len(gains)} classes, those that gain most and least are shown. Extremes of many look too large."
    split = "test" if summary.split == "test" else "validation"
    rows = [
        Row(
            f"{gain.name} ({gain.before:.0f} %)",
            arm_colour(best.arm),
            gain.differences,
            gain.comparison.mean_difference,
            gain.comparison.low,
            gain.comparison.high,
            _in_words(gain.comparison),
        )
        for gain in shown
    ]
    label = f"correct {split} predictions, {best.label} minus no-kd, points"
    listed = "; ".join(f"{gain.name} {_in_words(gain.comparison)}" for gain in shown)
    return Picture(
        partial(draw_intervals, rows, label=label, ends=(-100, 100)),
        "classes",
        f"Gain of {best.label} over no-kd in the share of correct predictions, by true class. Small dots are single "
        "seeds. Bars are 95 % intervals, not corrected for the number of classes. In brackets: the share of correct "
        f"predictions of no-kd.{note}",
        f"Dots and intervals of the gain of {best.label} over no-kd by class, in points: {listed}.",
    )


def _in_words(comparison: Comparison) -> str:
    return interval_in_words(comparison.mean_difference, comparison.low, comparison.high, sign="+")


def recalls(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fraction of each class's samples that were predicted correctly. NaN for a class without samples.

    Args:
        counts: Counts as `SeedFolder.read_counts` returns them.

    Example:
        >>> recalls(np.array([[3, 1], [0, 2]]))
        array([0.75, 1.  ])
    """
    right = np.diag(counts) if counts.shape[0] == counts.shape[1] else counts[:, 0]
    samples = counts.sum(1)
    fractions: NDArray[np.float64] = np.full(len(counts), np.nan)
    np.divide(right, samples, out=fractions, where=samples > 0)
    return fractions
