"""Students against the number of labels: the section on label budgets."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mfh.figures.style import arm_colour, hover, legend, new_figure, style
from mfh.reporting.page import Picture, Section, Table
from mfh.studies.findings import labels_by_fraction
from mfh.studies.grid import CONTROLS
from mfh.studies.stats import mean_interval
from mfh.studies.summary import Summary, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mfh.studies.folder import Run

#: A curve: one variant of an arm at every budget that it was measured at, with its number of labels.
_Curve = list[tuple[int, Variant]]


def budgets_section(run: "Run") -> Section:
    """How students depend on the number of labels; empty for a study of one label budget.

    Args:
        run: Run folder of a study.
    """
    section = Section("How many labels")
    budgets = labels_by_fraction(run)
    if len(budgets) < 2:
        return section
    summaries = {count: run.summary_at(fraction) for fraction, count in budgets.items()}
    largest = summaries[max(summaries)]
    curves = _curves(summaries)
    section.blocks.extend([_picture(curves, largest), _table(summaries, budgets)])
    equal = labels_that_equal(curves, summaries)
    if equal:
        section.blocks.append(" ".join(equal))
    return section


def _curves(summaries: dict[int, Summary]) -> dict[str, _Curve]:
    """Every arm by its label, at the variant that is best on validation with the most labels."""
    largest = summaries[max(summaries)]
    curves: dict[str, _Curve] = {}
    for arm in dict.fromkeys(variant.arm for variant in largest.variants):
        chosen = largest.chosen(arm)
        if chosen is None:
            continue
        found = [
            (count, variant)
            for count, summary in summaries.items()
            for variant in summary.variants
            if variant.cell == chosen.cell
        ]
        curves[arm] = found
    return curves


def _mean_and_ends(variant: Variant, summary: Summary) -> tuple[float, float, float]:
    """Mean of a variant and the ends of its interval, as shown."""
    mean, low, high = mean_interval(variant.student.to_numpy(), test_to_train=summary.test_to_train)
    return (mean, *summary.scale.within(mean, low, high))


def _draw(curves: dict[str, _Curve], summary: Summary) -> "Figure":
    with style():
        figure, axes = new_figure(6.5, max(3.8, 0.5 + 0.2 * len(curves)))  # room for the legend
        for arm, curve in curves.items():
            counts = [count for count, _ in curve]
            means, lows, highs = np.array([_mean_and_ends(variant, summary) for _, variant in curve]).T
            dashed = {"linestyle": (0, (1.5, 1.5) if arm in CONTROLS else (4, 2))}
            dashed = dashed if arm in CONTROLS or arm == "no-kd" else {}
            axes.plot(counts, means, color=arm_colour(arm), linewidth=1.6, **dashed)
            axes.plot([], [], marker="o", markersize=4, color=arm_colour(arm), label=arm, linewidth=1.6, **dashed)
            for count, variant in curve:
                mark = axes.plot([count], [variant.student.mean()], "o", markersize=5, color=arm_colour(arm))
                hover(mark, f"{arm} with {count:,} labels: {summary.number(variant.student)}")
            if np.isfinite(lows).all():
                axes.fill_between(counts, lows, highs, color=arm_colour(arm), alpha=0.10, linewidth=0)
        axes.set_xscale("log")
        ticks = sorted({count for curve in curves.values() for count, _ in curve})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("number of labelled training pairs")
        unit = ", %" if summary.scale.percent else ""
        axes.set_ylabel(f"{summary.split} {summary.scale.words} of the student{unit}")
        axes.grid()
        legend(figure)
    return figure


def _picture(curves: dict[str, _Curve], summary: Summary) -> Picture:
    listed = "; ".join(
        f"{arm}: " + ", ".join(f"{summary.number(variant.student)} at {count}" for count, variant in curve)
        for arm, curve in curves.items()
    )
    return Picture(
        partial(_draw, curves, summary),
        "label-budgets",
        f"Student {summary.scale.words} by number of labels, means over {summary.seeds_in_words} with 95 % intervals. "
        "All other training pairs have no label. Dashed lines are no-kd and the controls.",
        f"Lines of student {summary.scale.words} against the number of labelled pairs. {listed}.",
    )


def _table(summaries: dict[int, Summary], budgets: dict[float, int]) -> Table:
    """Gains over no-kd: a row for each variant, a column for each budget."""
    labels = list(dict.fromkeys(variant.label for summary in summaries.values() for variant in summary.variants))
    known = {
        (count, variant.label): (summary, variant)
        for count, summary in summaries.items()
        for variant in summary.variants
    }

    def cell(count: int, label: str) -> str:
        if (count, label) not in known:
            return ""
        summary, variant = known[count, label]
        return summary.number(variant.student) if variant.gain is None else summary.difference(variant.gain)

    largest = summaries[max(summaries)]
    unit = f", in {largest.scale.unit}" if largest.scale.unit else ""
    columns = ["Arm", *(f"{count:,} labels ({100 * fraction:g} %)" for fraction, count in budgets.items())]
    return Table(
        columns,
        [[label, *(cell(count, label) for count in summaries)] for label in labels],
        f"Gain over no-kd at every label budget{unit}, paired by seed, with 95 % intervals; for no-kd itself the "
        f"{largest.split} {largest.scale.words}.",
    )


def labels_that_equal(curves: dict[str, _Curve], summaries: dict[int, Summary]) -> list[str]:
    """Sentences that say how many labels without a teacher equal how many with one.

    Only gains that are shown count, over no-kd and over the best control. Between two budgets the metric of no-kd is
    taken to be linear in the logarithm of the number of labels.

    Args:
        curves: Arm -> number of labels and variant, for all budgets.
        summaries: Summary at every number of labels.
    """
    summary = summaries[max(summaries)]
    best = summary.chosen()
    if best is None or best.arm not in curves or "no-kd" not in curves:
        return []
    plain = [(count, float(variant.student.mean())) for count, variant in curves["no-kd"]]
    sentences = []
    for count, variant in curves[best.arm]:
        over = summaries[count].over_control(variant)
        if not variant.gains or (over is not None and over.outcome != "gains"):
            continue
        needed = _labels_needed(plain, float(variant.student.mean()), summary.scale.sign)
        as_many = f"more than {plain[-1][0]:,}" if needed is None else f"about {needed:,}"
        if needed is None or needed > count:
            sentences.append(f"{best.label} with {count:,} labels is as good as no-kd with {as_many}.")
    return sentences


def _labels_needed(curve: Sequence[tuple[int, float]], wanted: float, sign: int) -> int | None:
    """Number of labels at which a curve reaches a value; None if it does not."""
    for (fewer, low), (more, high) in pairwise(curve):
        if sign * low <= sign * wanted <= sign * high and low != high:
            part = (wanted - low) / (high - low)
            number = math.exp(math.log(fewer) + part * (math.log(more) - math.log(fewer)))
            return int(round(number, -max(0, len(str(int(number))) - 2)))
    return None
