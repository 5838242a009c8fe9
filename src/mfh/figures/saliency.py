"""The saliency figure: how the scores of channels are distributed, and how well they tell the channels apart."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mfh.figures.style import FAINT, INK, PALETTE, hover, legend, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Number of equal parts of the axis of scores.
_BINS = 40


def draw_saliency(
    scores: ArrayLike, *, score: str = "distance", ratio: float | None = None, truth: NDArray[np.bool_] | None = None
) -> "Figure":
    """A histogram of the channels' scores; where the truth is known, also the ROC curve of the scores.

    Args:
        scores: Saliency of each channel, (C,). Larger is more modality-general. Probe scores are shown clipped to
            [0, 1], other scores min-max normalised.
        score: Name of the score: "distance", "agreement" or "probe".
        ratio: Fraction of channels that a "general" mask removes. Their scores are shaded. None shades nothing.
        truth: Whether each channel is modality-general, (C,), which sets its colour. None if that is not known.
    """
    values = np.asarray(scores, dtype=np.float64)
    span = np.ptp(values)
    shown = np.clip(values, 0, 1) if score == "probe" else (values - values.min()) / (span or 1.0)
    both_kinds = truth is not None and 0 < np.sum(truth) < len(truth)
    with style():
        if truth is not None and both_kinds:
            figure, (left, right) = new_figure(6.5, 3.1, columns=2, width_ratios=[1.6, 1])
            _draw_roc(right, values, np.asarray(truth, dtype=bool))
        else:
            figure, left = new_figure(6.5, 2.8)
        kinds = [("channels", PALETTE["regular"], np.ones(len(values), dtype=bool))]
        if truth is not None:
            known = np.asarray(truth, dtype=bool)
            kinds = [
                ("truly general", PALETTE["general"], known),
                ("truly specific", PALETTE["specific"], ~known),
            ]
        edges = np.linspace(0, 1, _BINS + 1)
        below = np.zeros(_BINS)
        for label, colour, chosen in kinds:
            counts, _ = np.histogram(shown[chosen], edges)
            bars = left.bar(edges[:-1], counts, 1 / _BINS, below, align="edge", color=colour, label=label, linewidth=0)
            for bar, count, start in zip(bars, counts, edges[:-1], strict=True):
                hover(bar, f"{count} {label}, score {start:.3g} to {start + 1 / _BINS:.3g}")
            below += counts
        left.set_xlim(-0.02, 1.02)
        left.set_ylim(0, 1.15 * max(below.max(), 1))
        left.set_xlabel("held-out R\u00b2 of the channel" if score == "probe" else "saliency, min-max normalised")
        left.set_ylabel("number of channels")
        num_removed = int((ratio or 0) * len(values) + 1e-9)
        if num_removed:
            _shade(left, float(np.sort(shown)[num_removed - 1 : num_removed + 1].mean()))
        if truth is not None:
            legend(figure, *left.get_legend_handles_labels())
    return figure


def _shade(axes: "Axes", cut: float) -> None:
    """Shade the scores below the cut, and name both sides."""
    axes.axvspan(-0.02, cut, color=FAINT, alpha=0.3, zorder=0, linewidth=0)
    axes.axvline(cut, color=INK, linewidth=1)
    for text, side in (("removed", "right"), ("kept", "left")):
        # At an end of the axis, only one side has room for its name.
        if (cut if side == "right" else 1 - cut) > 0.15:
            offset = (-4 if side == "right" else 4, 0)
            place = (cut, axes.get_ylim()[1] * 0.96)
            axes.annotate(text, place, offset, textcoords="offset points", ha=side, va="center")


def _draw_roc(axes: "Axes", scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> None:
    from sklearn.metrics import auc, roc_curve

    false, true, _ = roc_curve(truth, scores)
    area = auc(false, true)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    hover(axes.plot(false, true, color=INK, linewidth=1.6), f"AUROC {area:.3f}")
    axes.set(title=f"AUROC {area:.3f}", xlabel="specific channels kept", ylabel="general channels kept")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
