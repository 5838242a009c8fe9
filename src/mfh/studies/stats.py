"""Paired comparisons: what the seeds of a study show, and what they do not.

Two arms that run on the same seeds share data, splits and initial weights, so they are compared seed by seed. What
varies between seeds then cancels, and far fewer seeds are needed.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mfh.errors import InputError

#: What an interval covers: new draws of the data, or only new training runs on the same data.
Coverage = Literal["data draws", "training randomness only"]

_EXACT_PAIRS = 20
_MOST_PAIRS = 10_000


@dataclass(frozen=True)
class Comparison:
    """What paired measurements show about treatment minus baseline, in the unit of the measurements.

    Args:
        mean_difference: Mean of treatment - baseline over pairs.
        low: Lower end of the t interval of the mean difference; NaN for one pair.
        high: Upper end of the t interval; NaN for one pair.
        bootstrap_low: Lower end of the bootstrap interval (BCa; see `paired_comparison`); NaN for one pair.
        bootstrap_high: Upper end of the bootstrap interval; NaN for one pair.
        p_value: Two-sided p-value of the hypothesis that differences are symmetric about zero.
        test: How `p_value` was computed.
        standard_error: Standard error of the mean difference; NaN for one pair.
        num_pairs: Number of pairs n.
        confidence: Confidence level of both intervals, for instance 0.95.
    """

    mean_difference: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    p_value: float
    test: str
    standard_error: float
    num_pairs: int
    confidence: float = 0.95

    @property
    def outcome(self) -> Literal["gains", "loses", "open"]:
        """Whether the t interval lies above zero ("gains"), below zero ("loses"), or neither ("open").

        A comparison without an interval is open. Equal differences at few seeds give an interval without width, which
        is luck: there the p-value decides.
        """
        if self.standard_error == 0 and self.p_value > 1 - self.confidence:
            return "open"
        if self.low > 0:
            return "gains"
        if self.high < 0:
            return "loses"
        return "open"

    def describe(
        self, unit: str = "points", covers: Coverage = "data draws", *, repeats: str = "seed", digits: int = 1
    ) -> str:
        """The comparison in words that claim no more than the t interval shows.

        Args:
            unit: Unit of the measurements, in the plural.
            covers: What differs between the pairs; the words mention "training randomness only".
            repeats: Word for one pair, in the singular.
            digits: Digits after the decimal point; more are shown where an end of the interval would round to zero.

        Example:
            >>> paired_comparison([72.1, 70.9, 73.0], [70.0, 69.1, 70.8]).describe()
            'gains 2.0 points (95 % interval 1.5 to 2.6, 3 seeds)'
            >>> paired_comparison([70.1], [70.0]).describe()
            'differs by +0.1 points in the one seed run; one seed shows nothing'
        """
        if self.num_pairs == 1:
            difference = _signed(self.mean_difference, digits)
            return f"differs by {difference} {unit} in the one {repeats} run; one {repeats} shows nothing"
        # More digits until it shows on which side of zero an end lies.
        while digits < 4 and any(end and _is_zero(end, digits) for end in (self.low, self.high)):
            digits += 1
        flip = -1 if self.outcome == "loses" else 1
        low, high = sorted((flip * self.low, flip * self.high))
        interval = f"{100 * self.confidence:g} % interval {_plain(low, digits)} to {_plain(high, digits)}"
        pairs = f"{self.num_pairs} {repeats}s"
        caveat = "" if covers == "data draws" else f"; the interval covers {covers}"
        if self.outcome == "open":
            difference = _signed(self.mean_difference, digits)
            return f"no difference shown ({difference} {unit}, {interval}, {pairs}{caveat})"
        return f"{self.outcome} {abs(self.mean_difference):.{digits}f} {unit} ({interval}, {pairs}{caveat})"


def paired_comparison(
    treatment: ArrayLike,
    baseline: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare two conditions measured on the same seeds.

    The t interval of the mean difference is the one to quote. It assumes differences that are roughly normal.
    The bootstrap interval (bias-corrected and accelerated, Efron 1987) does not, and is a check on it: where the two
    disagree, look at the single seeds. Below about ten pairs the bootstrap interval is known to be too narrow.
    The p-value comes from flipping the signs of the differences, which are arbitrary if the conditions do not differ:
    all 2^n ways up to 20 pairs (exact), random ones beyond. With n pairs it cannot fall below 2^(1-n), so five seeds
    never reach 0.05.

    Args:
        treatment: Measurements of one condition, (n,), one per seed, for instance accuracies in percent.
        baseline: Measurements of the other condition, (n,), for the same seeds in the same order.
        confidence: Confidence level of both intervals, between 0 and 1.
        resamples: Number of bootstrap samples, and of random sign flips beyond 20 pairs; at least 100.
        seed: Random seed of bootstrap samples and sign flips.

    Raises:
        InputError: Lengths differ, there are no pairs, a value is not finite, or an option is out of range.

    Example:
        >>> comparison = paired_comparison([72.1, 70.9, 73.0], [70.0, 69.1, 70.8])
        >>> round(comparison.mean_difference, 2), comparison.outcome
        (2.03, 'gains')
    """
    treatment, baseline = _measurements("treatment", treatment), _measurements("baseline", baseline)
    if len(treatment) != len(baseline):
        raise InputError(
            f"treatment has {len(treatment)} measurements and baseline {len(baseline)}; "
            "give one of each for every seed, in the same order"
        )
    _check_confidence(confidence)
    if resamples < 100:
        raise InputError(f"resamples is {resamples}; choose at least 100, usually thousands")

    differences = treatment - baseline
    mean, low, high, standard_error = _t_interval(differences, confidence)
    bootstrap_low, bootstrap_high = _bootstrap_interval(differences, confidence, resamples, seed)
    p_value, test = _sign_flip_test(differences, resamples, seed)
    return Comparison(
        mean_difference=mean,
        low=low,
        high=high,
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
        p_value=p_value,
        test=test,
        standard_error=standard_error,
        num_pairs=len(differences),
        confidence=confidence,
    )


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of one condition and its t interval.

    Args:
        values: Measurements, (n,), one per seed.
        confidence: Confidence level of the interval, between 0 and 1.

    Returns:
        Mean, lower end and upper end; the ends are NaN for one value.

    Raises:
        InputError: There are no values, or one is not finite.

    Example:
        >>> [round(value, 2) for value in mean_interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    _check_confidence(confidence)
    mean, low, high, _ = _t_interval(_measurements("values", values), confidence)
    return mean, low, high


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values corrected for their number by Holm's step-down method (1979).

    Rejecting every hypothesis whose corrected p-value is at most 0.05 keeps the chance of even one false rejection at
    5 %, whatever the dependence between the tests. The method is never weaker than Bonferroni's.

    Args:
        p_values: Uncorrected p-values, (m,), in [0, 1].

    Returns:
        Corrected p-values, (m,), in the same order.

    Raises:
        InputError: A value lies outside [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"p_values is {values.tolist()}; a list of numbers from 0 to 1 was expected")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def pairs_needed(comparison: Comparison, power: float = 0.8) -> int | None:
    """Number of further seeds that would settle an open comparison.

    This is the number of further pairs after which a two-sided paired t-test at level 1 - confidence would find the
    difference with probability `power`, if the true effect and spread are the observed ones. Both are estimates, so
    read the answer as "a few", "dozens" or "hundreds".

    Args:
        comparison: What `paired_comparison` returned.
        power: Probability of settling the comparison, between 0 and 1.

    Returns:
        Number of further pairs; 0 if the comparison is settled (its t interval excludes zero); None if no reasonable
        number would do (a difference of about zero, more than 10000 pairs) or the spread is unknown.

    Raises:
        InputError: `power` is out of range.
    """
    if not 0 < power < 1:
        raise InputError(f"power is {power}; choose a number between 0 and 1, for instance 0.8")
    if comparison.outcome != "open":
        return 0
    spread = comparison.standard_error * math.sqrt(comparison.num_pairs)
    if not spread > 0:  # one pair (NaN), or equal differences
        return None
    effect = abs(comparison.mean_difference) / spread
    if effect == 0 or _power(effect, _MOST_PAIRS, comparison.confidence) < power:
        return None
    short, enough = 1, _MOST_PAIRS
    while enough - short > 1:
        middle = (short + enough) // 2
        if _power(effect, middle, comparison.confidence) < power:
            short = middle
        else:
            enough = middle
    # A study may already be larger than the power asks for and still open, by bad luck: then at least one more pair.
    return max(enough - comparison.num_pairs, 1)


def _power(effect: float, num_pairs: int, confidence: float) -> float:
    """Power of a two-sided one-sample t-test of a standardised mean `effect` (noncentral t distribution)."""
    from scipy import stats

    freedom = num_pairs - 1
    critical = stats.t.ppf((1 + confidence) / 2, freedom)
    # The other tail (a significant result of the wrong sign) is negligible where power matters.
    return float(stats.nct.sf(critical, freedom, effect * math.sqrt(num_pairs)))


def _measurements(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {values!r}; a list of numbers was expected") from None
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}; a flat list of numbers, one per seed, was expected")
    if not len(array):
        raise InputError(f"{name} is empty; at least one measurement is needed")
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(
            f"{name} is {array[place]} at place {place}; leave seeds without a finite number out of both lists"
        )
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; choose a number between 0 and 1, for instance 0.95")


def _t_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float, float, float]:
    """Mean, lower end, upper end and standard error; all but the mean are NaN for one value."""
    from scipy import stats

    mean = float(values.mean())
    if len(values) == 1:
        return mean, math.nan, math.nan, math.nan
    # The spread of equal numbers is zero, not their rounding error.
    spread = 0.0 if _all_equal(values) else float(values.std(ddof=1))
    standard_error = spread / math.sqrt(len(values))
    half_width = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * standard_error
    return mean, mean - half_width, mean + half_width, standard_error


def _all_equal(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


def _sign_flip_test(differences: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, str]:
    observed = abs(float(differences.sum()))
    # Sums that are equal in exact arithmetic may differ in the last bits.
    threshold = observed - 1e-9 * float(np.abs(differences).sum())
    if len(differences) <= _EXACT_PAIRS:
        # Double the list of sums with each difference. Flipping all signs only negates a sum: the first sign is kept.
        sums = differences[:1]
        for difference in differences[1:]:
            sums = np.concatenate([sums + difference, sums - difference])
        return float((np.abs(sums) >= threshold).mean()), "sign flips, all (exact)"
    generator = np.random.default_rng(seed)
    at_least = 1  # the observed signs count as one draw, so that p is never zero (Phipson and Smyth 2010)
    for start in range(0, resamples, 1000):
        signs = generator.choice([-1.0, 1.0], size=(min(1000, resamples - start), len(differences)))
        at_least += int((np.abs(signs @ differences) >= threshold).sum())
    return at_least / (resamples + 1), f"sign flips, {resamples} at random"


def _bootstrap_interval(
    differences: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    from scipy import stats

    if len(differences) == 1:
        return math.nan, math.nan
    if _all_equal(differences):  # BCa is undefined without spread
        return float(differences.mean()), float(differences.mean())
    scale = float(np.abs(differences).max())  # powers of tiny differences would underflow
    interval = stats.bootstrap(
        (differences / scale,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="BCa",
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return scale * float(interval.low), scale * float(interval.high)


def _is_zero(value: float, digits: int) -> bool:
    return float(f"{value:.{digits}f}") == 0


def _plain(value: float, digits: int) -> str:
    """A number with fixed digits, a proper minus sign, and no negative zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", "\u2212")


def _signed(value: float, digits: int) -> str:
    text = _plain(value, digits)
    return text if text.startswith("\u2212") or float(text) == 0 else f"+{text}"
