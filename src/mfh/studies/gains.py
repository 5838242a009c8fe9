"""The figure of a study: what every arm gains over no-kd."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mfh.figures.intervals import Row, draw_intervals
from mfh.figures.style import arm_colour, is_narrow
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
    [none] = [variant for variant in summary.variants if variant.arm == "no-kd"]
    rows = []
    for variant in variants:
        gain = variant.gain
        if gain is not None:
            differences = summary.scale.sign * (variant.student - none.student).dropna()
            seeds = {int(str(seed)): float(value) for seed, value in differences.items()}
            colour, text = arm_colour(variant.arm), summary.difference(gain)
            rows.append(Row(variant.label, colour, seeds, gain.mean_difference, gain.low, gain.high, text))
    return draw_intervals(rows, label=gain_in_words(summary), ends=(-100, 100) if summary.scale.percent else None)


def split_in_words(summary: Summary) -> str:
    """Name of the split that a study was measured on."""
    return {"test": "test", "val": "validation"}[summary.split]


def gain_in_words(summary: Summary) -> str:
    """Label of an axis of gains over no-kd."""
    metric = f"{split_in_words(summary)} {summary.scale.words}"
    if is_narrow():
        return f"gain over no-kd{comma_unit(summary)}"
    if summary.scale.higher_is_better:
        return f"{metric} of the student minus no-kd{comma_unit(summary)}"
    return f"how much lower the {metric} of the student is than of no-kd{comma_unit(summary)}"


def comma_unit(summary: Summary) -> str:
    """Unit of differences after a comma; empty without a unit."""
    return f", {summary.scale.unit}" if summary.scale.unit else ""
