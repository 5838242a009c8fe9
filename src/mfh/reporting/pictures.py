"""Figures of a study's report."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mfh.figures.saliency import draw_saliency
from mfh.figures.style import FAINT, INK, arm_colour, hover, is_narrow, legend, new_figure, possible, style
from mfh.figures.venn import circle_areas, draw_venn
from mfh.reporting.page import Picture
from mfh.studies.criteria import Shares
from mfh.studies.gains import comma_unit, draw_gains, split_in_words
from mfh.studies.grid import Cell
from mfh.studies.summary import Summary, Variant, label_of, representatives
from mfh.venn import ModalityVenn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mfh.saliency.scores import ChannelSaliency


def gains_picture(summary: Summary) -> Picture | None:
    """Gain of every arm over no-kd, with a dot per seed, the mean and its 95 % interval. None without no-kd.

    Args:
        summary: Summary of the study.
    """
    variants = [variant for variant in summary.variants if variant.gain is not None]
    if not variants:
        return None
    shown = representatives(summary, variants)
    left_out = len(variants) - len(shown)
    listed = "; ".join(
        f"{variant.label} {summary.difference(variant.gain)}" for variant in shown if variant.gain is not None
    )
    return Picture(
        partial(draw_gains, summary, shown),
        "gains",
        "Gain over no-kd. Small dots are single seeds, large dots are means, bars are 95 % intervals."
        + (f" Of {left_out + len(shown)} variants, those best on validation are shown." if left_out else ""),
        f"Dots and intervals of the gain over no-kd{_in_unit(summary)}: {listed}.",
    )


def teachers_picture(summary: Summary) -> Picture | None:
    """The teacher's metric against its student's. None with fewer than two teachers.

    Args:
        summary: Summary of the study.
    """
    with_teacher = [variant for variant in summary.variants if len(variant.teacher)]
    shown = representatives(summary, with_teacher)
    if len(shown) < 2:
        return None
    listed = "; ".join(
        f"{variant.label}: teacher {summary.number(variant.teacher)}, student {summary.number(variant.student)}"
        for variant in shown
    )
    return Picture(
        partial(_draw_teachers, summary, shown),
        "teacher-and-student",
        f"Teacher against student {summary.scale.words}. If the better teacher always made the better student, the "
        "points would rise from left to right. The dashed line is the student without a teacher. Bars are 95 % "
        "intervals of the paired difference to it.",
        f"Scatter of teacher {summary.scale.words} against student {summary.scale.words}. {listed}.",
    )


def _draw_teachers(summary: Summary, shown: Sequence[Variant]) -> "Figure":
    teachers = np.array([variant.teacher.mean() for variant in shown])
    students = np.array([variant.student.mean() for variant in shown])
    none = summary.chosen("no-kd")
    height = max(3.9, 0.6 + 0.25 * len(shown))  # room for all labels
    with style():
        figure, axes = new_figure(6.5, height)
        if none is not None:
            axes.axhline(none.student.mean(), color=arm_colour("no-kd"), linestyle=(0, (4, 3)), linewidth=1.2)
        for variant, teacher, student in zip(shown, teachers, students, strict=True):
            colour = arm_colour(variant.arm)
            gain = variant.gain
            if gain is not None and not math.isnan(gain.low):
                ends = [student + summary.scale.sign * (end - gain.mean_difference) for end in (gain.low, gain.high)]
                axes.plot([teacher, teacher], ends, color=colour, linewidth=1.4, alpha=0.6)
            dot = axes.plot([teacher], [student], "o", color=colour, markersize=8, markeredgecolor="white")
            numbers = f"teacher {summary.number(variant.teacher)}, student {summary.number(variant.student)}"
            hover(dot, f"{variant.label}: {numbers}")
        unit = ", %" if summary.scale.percent else ""
        metric = summary.scale.words if is_narrow() else f"{split_in_words(summary)} {summary.scale.words}"
        axes.set_xlabel(f"{metric} of the teacher, as masked{unit}")
        axes.set_ylabel(f"{metric} of the student{unit}")
        axes.locator_params(steps=[1, 2, 5, 10])
        axes.grid()
        if summary.scale.percent:
            axes.set_ylim(*possible(axes.get_ylim(), 0, 100))
        labels: list[tuple[str, float | None, float]] = [
            (variant.label, teacher, student)
            for variant, teacher, student in zip(shown, teachers, students, strict=True)
        ]
        if none is not None:
            labels.append(("no-kd" if is_narrow() else "no-kd (no teacher)", None, none.student.mean()))
        _labels_at_the_right(axes, labels, 0.065 * 3.9 / height)
    return figure


def _labels_at_the_right(axes: Any, labels: Sequence[tuple[str, float | None, float]], least: float) -> None:
    """Label the points in a column beside the axes, with a thin line to each. Labels that would overlap move apart.

    Args:
        axes: The axes.
        labels: Text of each label, and the place of its point across (None for a line) and up.
        least: Smallest distance of two labels, as a share of the height.
    """
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    axes.set_xlim(*axes.get_xlim())
    apart = least * (top - bottom)
    ordered = sorted(labels, key=lambda label: label[2])
    places: list[float] = []
    for _, _, height in ordered:
        places.append(max(height, places[-1] + apart) if places else height)
    # Labels that were pushed out at the top move down again.
    for index in range(len(places) - 1, -1, -1):
        ceiling = top if index == len(places) - 1 else places[index + 1] - apart
        places[index] = min(places[index], ceiling)
    for (text, across, height), place in zip(ordered, places, strict=True):
        axes.annotate(
            text,
            xy=(1.0, height) if across is None else (across, height),
            xycoords=("axes fraction", "data") if across is None else "data",
            xytext=(1.04, place),
            textcoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": FAINT,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def sweep_picture(summary: Summary) -> Picture | None:
    """Gain over no-kd against the fraction removed. None with fewer than three ratios.

    Args:
        summary: Summary of the study.
    """
    lines: dict[Cell, list[Variant]] = {}
    for variant in summary.variants:
        if variant.ratio is not None and variant.gain is not None:
            lines.setdefault(replace(variant.cell, ratio=None), []).append(variant)
    lines = {key: variants for key, variants in lines.items() if len(variants) >= 3}
    if not lines:
        return None
    listed = "; ".join(
        f"{label_of(line, lines)} "
        + ", ".join(
            f"{v.gain.mean_difference:+.{summary.digits}f} at {v.ratio:g}" for v in variants if v.gain is not None
        )
        for line, variants in lines.items()
    )
    return Picture(
        partial(_draw_sweep, summary, lines),
        "ratio-sweep",
        "Gain over no-kd as more channels are removed, with 95 % intervals. Dashed lines are arms without a ratio.",
        f"Lines of the gain over no-kd{_in_unit(summary)} against the ratio: {listed}.",
    )


def _draw_sweep(summary: Summary, lines: dict[Cell, list[Variant]]) -> "Figure":
    flat = [v for v in summary.variants if v.arm in ("regular", "aligned", "soft") and v.gain is not None]
    with style():
        figure, axes = new_figure(6.5, 3.6)
        axes.axhline(0, color=INK, linewidth=1)
        for place, (line, variants) in enumerate(lines.items()):
            means, lows, highs = np.array(
                [(v.gain.mean_difference, v.gain.low, v.gain.high) for v in variants if v.gain is not None]
            ).T
            ratios = [variant.ratio for variant in variants]
            colour, label = arm_colour(line.arm), label_of(line, lines)
            axes.plot(ratios, means, marker="o", color=colour, label=label, linestyle=_DASHES[place // 3 % 4])
            for variant, mean in zip(variants, means, strict=True):
                mark = axes.plot([variant.ratio], [mean], "o", color=colour)
                hover(mark, f"{label} at {variant.ratio:g}: {summary.difference(variant.gain)}")
            axes.fill_between(ratios, lows, highs, color=colour, alpha=0.12, linewidth=0)
        for variant in flat:
            gain = variant.gain.mean_difference if variant.gain is not None else 0.0
            axes.axhline(gain, color=arm_colour(variant.arm), linestyle=(0, (5, 2)), label=variant.label)
        axes.set_xlabel(
            "fraction of channels removed" if is_narrow() else "ratio: fraction of the teacher's channels removed"
        )
        axes.set_ylabel(f"gain over no-kd{comma_unit(summary)}")
        axes.grid(axis="y")
        legend(figure)
    return figure


_DASHES: list[Any] = ["solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5))]


def saliency_picture(
    saliency: "ChannelSaliency", *, ratio: float | None, truth: NDArray[np.bool_] | None, name: str, seed: int = 0
) -> Picture:
    """How the scores of the channels are distributed; where the truth is known, how well they tell them apart.

    Args:
        saliency: Saliency by one score.
        ratio: Fraction that the "general" mask removes. None if no mask with a ratio was made from this score.
        truth: Whether each channel is modality-general, (C,). None if that is not known.
        name: Name of the picture's files.
        seed: Seed of the study that the saliency belongs to.
    """
    num_channels = len(saliency.scores)
    caption = f"Score {saliency.score} at layer {saliency.layer}, seed {seed}. High scores are modality-general."
    if saliency.score == "probe":
        caption += " The soft mask gives a channel more weight, the larger its R\u00b2."
    if truth is not None:
        caption += " The curve shows, for every cut, the fractions of both kinds that are kept."
    alt = f"Histogram of the saliency of {num_channels} channels by score {saliency.score}."
    if ratio is not None:
        kept = saliency.mask("general", ratio).weights > 0
        caption += f" The general mask at ratio {ratio:g} removes the shaded part."
        alt += f" {int(kept.sum())} channels are kept"
        alt += (
            f", {int((kept & truth).sum())} of {int(truth.sum())} truly general ones among them."
            if truth is not None
            else "."
        )
    draw = partial(draw_saliency, saliency.scores, score=saliency.score, ratio=ratio, truth=truth)
    return Picture(draw, name, caption, alt)


def venn_picture(venn: ModalityVenn) -> Picture:
    """The modality Venn diagram of known counts.

    Args:
        venn: Counts of the decisive features.
    """
    counts = f"{venn.general} general, {venn.teacher_only} teacher-only and {venn.student_only} student-only"
    measures = f"alpha = {venn.alpha:.2g}, beta = {venn.beta:.2g}, gamma = {venn.gamma:.2g}"
    return Picture(
        partial(draw_venn, venn.general, venn.teacher_only, venn.student_only, words=str),
        "venn",
        f"What decides the label: {counts} features, so {measures}. Areas are to scale.",
        f"Venn diagram of two circles: {counts} decisive features; {measures}.",
    )


def estimated_venn_picture(shares: Shares, samples: int) -> Picture | None:
    """The modality Venn diagram of estimated shares. None if a share is undefined, or gamma may be anything.

    Args:
        shares: The estimated shares.
        samples: Number of pairs behind the estimate.
    """
    values = {name: getattr(shares, name).value for name in ("alpha", "beta", "gamma")}
    if None in values.values() or (shares.gamma.low, shares.gamma.high) == (0.0, 1.0):
        return None
    gamma = values["gamma"]
    teacher, student = circle_areas(**values)
    # An area below half a percent rounds to 0 and is too small to draw.
    areas = [area if area >= 0.005 else 0.0 for area in (gamma, teacher - gamma, student - gamma)]
    general, teacher_only, student_only = (area / sum(areas) for area in areas)

    def percent(part: float) -> str:
        # If nothing is shared, the fractions do not say how large the two parts are.
        return f"{100 * part:.0f} %" if gamma else ""

    measures = []
    for name, value in values.items():
        measure = getattr(shares, name)
        measures.append(f"{name} = {value:.2f} ({measure.low:.2f} to {measure.high:.2f})")
    parts = f"{percent(general)} general, {percent(teacher_only)} teacher-only, {percent(student_only)} student-only"
    return Picture(
        partial(draw_venn, general, teacher_only, student_only, words=percent, title="estimated"),
        "venn-estimated",
        f"What decides the label, estimated from {samples} validation pairs: {', '.join(measures)}; 95 % intervals. "
        "Areas are to scale with the estimate.",
        f"Venn diagram of two circles, estimated: {parts if gamma else 'nothing is shared'}; {', '.join(measures)}.",
    )


def _in_unit(summary: Summary) -> str:
    return f" in {summary.scale.unit}" if summary.scale.unit else ""
