"""The choice among the arms of a study by validation: the one rule behind `result.best` and `--select`.

Seeds that re-split one data set validate on other pairs each time. Their mean is that of repeated random sub-sampling
(Monte Carlo cross-validation), and its standard error is corrected for the pairs that splits share (Nadeau and Bengio
2003). Seeds that draw their own data are independent. Where one validation split decides, because there is one seed or
because all seeds share their splits, the spread over seeds says nothing of other validation pairs, and their number
counts instead. `research/choice` holds what the rule gains and loses.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfh.problems.scale import Scale
from mfh.studies.grid import CONTROLS, PLAIN_CONTROLS, Cell
from mfh.studies.stats import Repeats, mean_and_error

if TYPE_CHECKING:
    import pandas as pd

NO_KD = Cell("no-kd")


@dataclass(frozen=True)
class Choice:
    """The variant with the best mean on the validation split, against the best control.

    Args:
        best: The variant.
        control: The best of no-kd and the other controls without a teacher's knowledge.
        gain: Mean gain of `best` over `control` on the validation split as shown (fractions in points), positive where
            `best` is better.
        error: Its standard error; infinite where it is not known.
        candidates: Number of variants to choose from.
    """

    best: Cell
    control: Cell
    gain: float
    error: float
    candidates: int

    @property
    def helps(self) -> bool:
        """Whether the gain is credible: it exceeds its standard error."""
        return exceeds(self.gain, self.error)


def choose(
    values: "Mapping[Cell, pd.Series[float]]",
    scale: Scale,
    repeats: Repeats,
    num_val: int,
    best: Cell | None = None,
) -> Choice | None:
    """Choose among the variants of a study.

    Args:
        values: The students' metric on the validation split as shown (fractions in percent) by seed, for each variant;
            no-kd is one of them.
        scale: How the metric reads.
        repeats: What differs between seeds.
        num_val: Number of validation pairs of a seed.
        best: The variant that was chosen before (default: the one with the best mean).

    Returns:
        The choice; None where there is nothing but no-kd and controls.
    """
    candidates = [cell for cell in values if cell.arm not in ("no-kd", *CONTROLS)]
    if not candidates:
        return None

    def rank(cell: Cell) -> float:
        return scale.sign * float(values[cell].mean())

    best = max(candidates, key=rank) if best is None else best
    control = max((cell for cell in values if cell.arm in ("no-kd", *PLAIN_CONTROLS)), key=rank)
    seeds = values[best].index.intersection(values[control].index)
    ours, theirs = values[best].loc[seeds], values[control].loc[seeds]
    gain, error = mean_and_error((scale.sign * (ours - theirs)).tolist(), repeats.test_to_train("val"))
    if len(seeds) == 1 and not (scale.percent and num_val):
        error = math.inf
    elif (len(seeds) == 1 or repeats.seeds == "fixed") and scale.percent and num_val:
        error = math.hypot(error, _sampling_error(float(ours.mean()), float(theirs.mean()), num_val))
    return Choice(best, control, gain, error, len(candidates))


def _sampling_error(ours: float, theirs: float, num_val: int) -> float:
    """Standard error of the difference between two percentages on one validation split, in points.

    It is that of two independent proportions. Students of one task are often wrong on the same pairs, so the true one
    is smaller: in the studies of `research/choice` the differences of single seeds spread .65 to .88 times as much.
    """
    shares = (min(max(value / 100, 0.0), 1.0) for value in (ours, theirs))
    return 100 * math.sqrt(sum(share * (1 - share) for share in shares) / num_val)


def exceeds(gain: float, error: float) -> bool:
    """Whether a mean gain exceeds its standard error. Two seeds of which one gains nothing are a tie, not a gain.

    Example:
        >>> exceeds(*mean_and_error([0.0, 0.025])), exceeds(*mean_and_error([0.02, 0.025]))
        (False, True)
    """
    return gain > error * (1 + 1e-9)
