"""Rows of differences: a dot for each seed, the mean and its interval, and the numbers as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mfh.figures.style import INK, hover, is_narrow, new_figure, possible, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One row of the figure.

    Args:
        label: Name of the row.
        colour: Colour of its marks.
        seeds: Number of each seed -> its difference.
        mean: Mean difference.
        low: Lower end of the interval; NaN for a single seed.
        high: Upper end of the interval.
        text: Mean and interval as text.
    """

    label: str
    colour: str
    seeds: dict[int, float]
    mean: float
    low: float
    high: float
    text: str


def draw_intervals(rows: Sequence[Row], *, label: str, ends: tuple[float, float] | None) -> "Figure":
    """Differences and their intervals around zero, from top to bottom.

    On a phone, names and numbers stand above their row, so that the axes have the whole width.

    Args:
        rows: The rows, from the top.
        label: Label of the axis.
        ends: Smallest and largest possible difference; None without bounds.
    """
    jitter, narrow = np.random.default_rng(0), is_narrow()
    with style():
        figure, axes = new_figure(6.5, 0.9 + (0.56 if narrow else 0.44) * len(rows))
        axes.axvline(0, color=INK, linewidth=1)
        for place, row in enumerate(rows):
            heights: NDArray[np.float64] = (
                place + (0.22 if narrow else 0.27) + jitter.uniform(-0.06, 0.06, len(row.seeds))
            )
            for (seed, value), height in zip(row.seeds.items(), heights, strict=True):
                dot = axes.plot([value], [height], "o", color=row.colour, markersize=4, alpha=0.5, markeredgewidth=0)
                hover(dot, f"{row.label}, seed {seed}: {value:+.3g}".replace("-", "\u2212"))
            if not math.isnan(row.low):
                bar = axes.plot(
                    [row.low, row.high], [place, place], color=row.colour, linewidth=2.6, solid_capstyle="butt"
                )
                hover(bar, f"{row.label}: {row.text}")
            mean = axes.plot([row.mean], [place], "o", color=row.colour, markersize=7.5, markeredgecolor="white")
            hover(mean, f"{row.label}: {row.text}")
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
            if narrow:  # grid lines do not run through the letters
                where["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            if narrow:
                axes.annotate(row.label, (0, place - 0.33), **where, fontweight="bold")
                axes.annotate(row.text, (1, place - 0.33), **where, ha="right")
            else:
                axes.annotate(row.text, (1.02, place), **where)
        axes.set_yticks(range(len(rows)), [""] * len(rows) if narrow else [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7 if narrow else -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        if ends is not None:
            axes.set_xlim(*possible(axes.get_xlim(), *ends))
        axes.set_xlabel(fill(label, 45) if narrow else label)
    return figure
