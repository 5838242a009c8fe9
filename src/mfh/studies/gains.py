"""The figure of a study: what every arm gains over no-kd."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mfh.figures.style import INK, arm_colour, new_figure, style
from mfh.studies.summary import Summary, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_gains(summary: Summary, variants: Sequence[Variant]) -> "Figure":
    """Gain of every variant over no-kd: a dot per seed, the mean and its 95 % interval.

    Args:
        summary: Summary of a study with no-kd.
        variants: Variants to show, each with a gain.

    Returns:
        A matplotlib figure.
    """
    shown = list(variants)
    [none] = [variant for variant in summary.variants if variant.arm == "no-kd"]
    with style():
        figure, axes = new_figure(6.5, 0.9 + 0.44 * len(shown))
        jitter = np.random.default_rng(0)
        axes.axvline(0, color=INK, linewidth=1)
        for row, variant in enumerate(shown):
            gain, colour = variant.gain, arm_colour(variant.arm)
            if gain is None:
                continue
            differences = summary.scale.sign * (variant.student - none.student).dropna().to_numpy()
            places = row + 0.27 + jitter.uniform(-0.06, 0.06, len(differences))
            axes.plot(differences, places, "o", color=colour, markersize=4, alpha=0.5, markeredgewidth=0)
            if not math.isnan(gain.low):
                axes.plot([gain.low, gain.high], [row, row], color=colour, linewidth=2.6, solid_capstyle="butt")
            axes.plot([gain.mean_difference], [row], "o", color=colour, markersize=7.5, markeredgecolor="white")
            axes.annotate(
                summary.difference(gain),
                (1.02, row),
                xycoords=("axes fraction", "data"),
                va="center",
                annotation_clip=False,
            )
        axes.set_yticks(range(len(shown)), [variant.label for variant in shown])
        axes.set_ylim(len(shown) - 0.5, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        if summary.scale.percent:
            axes.set_xlim(*possible(axes.get_xlim(), -100, 100))
        axes.set_xlabel(gain_in_words(summary))
    return figure


def possible(limits: tuple[float, float], lowest: float, highest: float) -> tuple[float, float]:
    """Ends of an axis, cut to little more than the possible values: intervals of few seeds can be far wider.

    Args:
        limits: Ends of the axis.
        lowest: Smallest possible value.
        highest: Largest possible value.
    """
    room = 0.03 * (highest - lowest)
    return max(limits[0], lowest - room), min(limits[1], highest + room)


def split_in_words(summary: Summary) -> str:
    """Name of the split that a study was measured on."""
    return {"test": "test", "val": "validation"}[summary.split]


def gain_in_words(summary: Summary) -> str:
    """Label of an axis of gains over no-kd."""
    metric = f"{split_in_words(summary)} {summary.scale.words}"
    if summary.scale.higher_is_better:
        return f"{metric} of the student minus no-kd{comma_unit(summary)}"
    return f"how much lower the {metric} of the student is than of no-kd{comma_unit(summary)}"


def comma_unit(summary: Summary) -> str:
    """Unit of differences after a comma; empty without a unit."""
    return f", {summary.scale.unit}" if summary.scale.unit else ""
