"""The saliency figure: scores by channel, and sorted scores with the part that a mask removes."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from mfh.figures.style import INK, PALETTE, new_figure, style


def draw_saliency(
    scores: ArrayLike, *, score: str = "distance", ratio: float | None = None, truth: NDArray[np.bool_] | None = None
) -> "Figure":
    """Saliency by channel on the left; on the right sorted, with the part that a mask removes.

    Args:
        scores: Saliency of each channel, (C,). Larger is more modality-general. Probe scores are shown clipped to
            [0, 1], other scores min-max normalised.
        score: Name of the score: "distance", "agreement" or "probe".
        ratio: Fraction of channels that a "general" mask removes. This part is shaded. None shades nothing.
        truth: Whether each channel is modality-general, (C,), which sets its colour. None if that is not known.
    """
    values = np.asarray(scores, dtype=np.float64)
    num_channels = len(values)
    rank = np.empty(num_channels, dtype=np.intp)
    rank[np.argsort(-values, kind="stable")] = np.arange(num_channels)
    span = np.ptp(values)
    heights = np.clip(values, 0, 1) if score == "probe" else (values - values.min()) / (span or 1.0)
    kinds = [("", PALETTE["regular"], "o", np.ones(num_channels, dtype=bool))]
    if truth is not None:
        kinds = [
            ("truly general", PALETTE["general"], "o", np.asarray(truth)),
            ("truly specific", PALETTE["specific"], "D", ~np.asarray(truth)),
        ]
    size = float(np.clip(90 / math.sqrt(num_channels), 2, 6))
    with style():
        figure, (left, right) = new_figure(6.5, 3.1, columns=2, sharey=True)
        heavy = num_channels > 400  # thousands of vector marks would make a slow page, so they become pixels
        for label, colour, marker, chosen in kinds:
            left.plot(
                np.flatnonzero(chosen),
                heights[chosen],
                marker,
                color=colour,
                markersize=size if marker == "o" else 0.8 * size,
                markeredgewidth=0,
                alpha=0.7,
                label=label,
                rasterized=heavy,
            )
            right.vlines(
                rank[chosen],
                0,
                heights[chosen],
                color=colour,
                linewidth=max(185 / num_channels, 0.36),
                rasterized=heavy,
            )
        for axes in (left, right):
            axes.set_xlim(-0.03 * num_channels, 1.03 * num_channels)
            axes.set_ylim(-0.05, 1.14)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        left.set(title="By channel", xlabel="channel")
        left.set_ylabel("R\u00b2, the soft mask's weight" if score == "probe" else "saliency, min-max normalised")
        right.set(title="Sorted", xlabel="rank, most general first")
        num_removed = int((ratio or 0) * num_channels + 1e-9)
        if num_removed:
            cut = num_channels - num_removed - 0.5
            right.axvspan(cut, 1.03 * num_channels, color="#e9ecf0", zorder=0, linewidth=0)
            right.axvline(cut, color=INK, linewidth=1)
            for text, side in (("kept", "right"), ("removed", "left")):
                offset = (-4 if side == "right" else 4, 0)
                right.annotate(text, (cut, 1.09), offset, textcoords="offset points", ha=side, va="center")
        if truth is not None:
            handles, names = left.get_legend_handles_labels()
            legend = figure.legend(handles, names, loc="outside lower center", ncols=2)
            for handle in legend.legend_handles:
                if handle is not None:
                    handle.set(markersize=6, alpha=1)
    return figure
