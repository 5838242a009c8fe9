"""Paired comparisons: what the seeds of a study show, and what they do not.

Two arms that run on the same seeds share data, splits and initial weights, so they are compared seed by seed. What
varies between seeds then cancels, and far fewer seeds are needed.

Seeds that split one data set anew are not independent: they share training and test samples. Whatever takes
`test_to_train` corrects for that after Nadeau and Bengio (2003), in one way: it moves differences away from their mean
by the factor sqrt(1 + n * test_to_train), and then treats them like those of independent seeds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mfh.errors import InputError
from mfh.tasks.splits import SPLITS, Seeds

if TYPE_CHECKING:
    from mfh.tasks.task import Task

#: What an interval covers: new draws of the data, or only new training runs on the same data.
Coverage = Literal["data draws", "training randomness only"]

_MOST_PAIRS = 10_000
# With fewer seeds there are too few sign flips: with 7 no p-value is below 1 / 64.
_FEWEST_FLIPPED = 8
_BLOCK = 2**20  # numbers in memory at a time


@dataclass(frozen=True)
class Repeats:
    """What differs between the seeds of a study, and so what its intervals cover.

    Args:
        seeds: "redrawn": every seed draws its own data. "resplit": every seed splits one data set anew. "fixed": all
            seeds share the same splits, and only training differs.
        num_train: Size of the training pool of a re-split data set: all pairs, labelled or not, or the number of groups
            where whole groups are split.
        num_val: Size of its validation split, in the same unit.
        num_test: Size of its test split, in the same unit.
        unit: What is split, in the plural: "pairs", "people".
        same_test: Whether all seeds share the test split, and split the rest anew (`Task.cross_validated`).

    Raises:
        InputError: The data are re-split, and a size is missing.
    """

    seeds: Seeds = "redrawn"
    num_train: int = 0
    num_val: int = 0
    num_test: int = 0
    unit: str = "pairs"
    same_test: bool = False

    def __post_init__(self) -> None:
        if self.seeds == "resplit" and not min(self.num_train, self.num_val, self.num_test) > 0:
            raise InputError(
                f"seeds re-split {self.num_train} training, {self.num_val} validation and {self.num_test} test "
                f"{self.unit}; the correction needs at least 1 of each"
            )

    @classmethod
    def of(cls, task: "Task", redrawn: bool) -> "Repeats":
        """What differs between the seeds of a task.

        Args:
            task: The task, as one seed makes it.
            redrawn: Whether it is made anew for every seed.

        Raises:
            InputError: The task's facts count groups, but not those of all splits.
        """
        # A task may also carry the function that splits it anew.
        resplit = getattr(task, "resplit", None)
        seeds: Seeds = "resplit" if resplit is not None else task.seeds
        same_test = bool(getattr(resplit, "same_test", False))
        if not redrawn or seeds != "resplit":
            return cls(seeds if redrawn else "fixed")
        groups: Any = task.facts.get("groups")
        if groups is None:
            pool = len(task.train) + len(getattr(task, "unlabelled", None) or ())
            return cls("resplit", pool, len(task.val), len(task.test), same_test=same_test)
        try:
            num_train, num_val, num_test = (int(groups[split]) for split in SPLITS)
            return cls("resplit", num_train, num_val, num_test, str(groups.get("unit", "groups")), same_test)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"facts['groups'] of task {task.name!r} is {groups!r}; groups in each split were expected: "
                "{'unit': 'people', 'train': 6, 'val': 2, 'test': 2}"
            ) from None

    def test_to_train(self, split: str = "test") -> float:
        """Size of the measured split over that of the training pool; 0 where seeds are independent, or share the split.

        The correction is for new data, which no interval covers where all seeds are measured on the same pairs.

        Args:
            split: "test" or "val".
        """
        if self.seeds != "resplit" or (self.same_test and split != "val"):
            return 0.0
        return (self.num_val if split == "val" else self.num_test) / self.num_train

    def p_values_in_words(self, num_seeds: int, split: str = "test") -> str:
        """How `corrected_p_values` corrects for the number of comparisons, as a sentence.

        Args:
            num_seeds: Number of seeds that all arms have.
            split: "test" or "val".
        """
        if num_seeds < 2:
            return "p-values are corrected for all arms together once two seeds have all arms."
        how = "p-values are corrected for all arms together (step-down max-t"
        if flips_signs(num_seeds, self.test_to_train(split)):
            return f"{how}, by flipping the signs of all differences of a seed)."
        few = "" if self.test_to_train(split) else f"; {num_seeds} seeds are too few to flip signs"
        return f"{how}, assuming normal differences as the intervals do{few})."

    @property
    def sentence(self) -> str:
        """Which of the cases it is, and what follows for the intervals."""
        if self.seeds == "redrawn":
            return "Every seed draws its own data, so the intervals cover new data as well."
        if self.seeds == "fixed":
            return "All seeds share one data set, so the intervals cover training randomness only."
        if self.same_test:
            return (
                "Every seed draws its validation pairs anew, and all seeds share the test split, so intervals on it "
                "cover training and the choice of validation pairs only. Those on the validation split are corrected "
                f"for pairs that seeds share after Nadeau and Bengio (2003), with {self.num_train} training and "
                f"{self.num_val} validation {self.unit}."
            )
        return (
            "Every seed splits one data set anew, so seeds share samples. Intervals and p-values are corrected for "
            f"that after Nadeau and Bengio (2003), with {self.num_train} training and {self.num_test} test {self.unit}."
        )

    @property
    def caveat(self) -> str:
        """The same as the end of a sentence; empty where every seed draws its own data."""
        if self.seeds == "redrawn":
            return ""
        if self.seeds == "fixed":
            return "all seeds share one data set, so the intervals cover training randomness only"
        if self.same_test:
            return (
                "all seeds share the test split, so intervals on it cover training and the choice of validation pairs "
                "only"
            )
        return (
            "every seed splits one data set anew, and the intervals are corrected for the samples that splits share "
            "(Nadeau and Bengio 2003)"
        )


@dataclass(frozen=True)
class Comparison:
    """What paired measurements show about treatment minus baseline, in the unit of the measurements.

    Args:
        mean_difference: Mean of treatment - baseline over pairs.
        low: Lower end of the t interval of the mean difference; NaN for one pair.
        high: Upper end of the t interval; NaN for one pair.
        bootstrap_low: Lower end of the bootstrap interval (BCa; see `paired_comparison`); NaN for one pair.
        bootstrap_high: Upper end of the bootstrap interval; NaN for one pair.
        p_value: Two-sided p-value of the hypothesis that the mean difference is zero. It belongs to the t interval: it
            is below 1 - confidence exactly where the interval excludes zero.
        test: How `p_value` was computed.
        standard_error: Standard error of the mean difference; NaN for one pair.
        num_pairs: Number of pairs n.
        confidence: Confidence level of both intervals, for instance 0.95.
        test_to_train: Test size over training size, where pairs come from re-splitting one data set; otherwise 0.
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
    test_to_train: float = 0.0

    @property
    def outcome(self) -> Literal["gains", "loses", "open"]:
        """Whether the t interval lies above zero ("gains"), below zero ("loses"), or neither ("open").

        A comparison without an interval is open. Equal differences give an interval without width, which may be luck:
        there the p-value decides.
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
        if self.num_pairs == 2 and self.outcome == "open":
            difference = _signed(self.mean_difference, digits)
            return f"no difference shown ({difference} {unit}; 2 {repeats}s are too few for an interval)"
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
    test_to_train: float = 0.0,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare two conditions measured on the same seeds.

    The t interval of the mean difference is the one to quote, and the p-value is that of its t-test. Both assume
    differences that are roughly normal. The bootstrap interval (bias-corrected and accelerated, Efron 1987) does not,
    and is a check on them: where the two disagree, look at the single seeds. Below about ten pairs the bootstrap
    interval is known to be too narrow. Equal differences have no spread to judge by: from 8 independent pairs on their
    p-value is 2^(1-n), the share of sign flips that do as well, and otherwise it is 1.

    With `test_to_train`, the variance of the mean difference is s^2 (1/n + test_to_train) instead of s^2 / n (Nadeau
    and Bengio 2003, the corrected resampled t-test). It does not vanish with more seeds: only more data help.

    Args:
        treatment: Measurements of one condition, (n,), one per seed, for instance accuracies in percent.
        baseline: Measurements of the other condition, (n,), for the same seeds in the same order.
        confidence: Confidence level of both intervals, between 0 and 1.
        test_to_train: Size of the test split over that of the training pool, where every seed splits one data set anew;
            0 where seeds are independent. See `Repeats`.
        resamples: Number of bootstrap samples; at least 100.
        seed: Random seed of the bootstrap samples.

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
    _check_resamples(resamples)
    _check_share(test_to_train)
    differences = _widened(treatment - baseline, test_to_train)
    mean, low, high, standard_error = _t_interval(differences, confidence)
    bootstrap_low, bootstrap_high = _bootstrap_interval(differences, confidence, resamples, seed)
    p_value, test = _t_test(differences, test_to_train)
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
        test_to_train=test_to_train,
    )


def mean_and_error(differences: ArrayLike, test_to_train: float = 0.0) -> tuple[float, float]:
    """Mean of paired differences and its standard error, which is 0 for one pair.

    Args:
        differences: (n,), one per seed.
        test_to_train: As in `paired_comparison`.

    Raises:
        InputError: There are no differences, one is not finite, or the share is negative.

    Example:
        >>> mean_and_error([1.0, 3.0]), mean_and_error([1.0, 3.0], test_to_train=1.5)
        ((2.0, 1.0), (2.0, 2.0))
    """
    differences = _measurements("differences", differences)
    _check_share(test_to_train)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, 0.0
    spread = float(_widened(differences, test_to_train).std(ddof=1))
    return mean, spread / math.sqrt(len(differences))


def mean_interval(
    values: ArrayLike, *, confidence: float = 0.95, test_to_train: float = 0.0
) -> tuple[float, float, float]:
    """Mean of one condition and its t interval.

    Args:
        values: Measurements, (n,), one per seed.
        confidence: Confidence level of the interval, between 0 and 1.
        test_to_train: As in `paired_comparison`.

    Returns:
        Mean, lower end and upper end; the ends are NaN for one value.

    Raises:
        InputError: There are no values, or one is not finite.

    Example:
        >>> [round(value, 2) for value in mean_interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48]
    """
    _check_confidence(confidence)
    _check_share(test_to_train)
    mean, low, high, _ = _t_interval(_widened(_measurements("values", values), test_to_train), confidence)
    return mean, low, high


def corrected_p_values(
    differences: ArrayLike, *, test_to_train: float = 0.0, resamples: int = 9999, seed: int = 0
) -> NDArray[np.float64]:
    """p-values of a family of paired comparisons, corrected for their number by the step-down max-t method.

    Rejecting every hypothesis whose corrected p-value is at most 0.05 keeps the chance of even one false rejection at
    5 % (Westfall and Young 1993, algorithm 2.8). The largest of the t statistics is compared with what the largest
    would be if no comparison differed, the second largest with the largest of the others, and so on. All comparisons of
    a seed are changed together, so comparisons that rise and fall together cost little.

    What the statistics would be comes from one of two changes of the seeds, of which neither needs an estimate of the
    correlations between comparisons:

    * independent seeds, 8 or more: the signs of all differences of a seed are flipped together, in all 2^(n-1) ways if
      these are at most `resamples`, otherwise at random. That assumes symmetric differences.
    * fewer seeds, or re-split data: the seeds are rotated at random (Langsrud 2005). That assumes normal differences,
      as the t interval does, and is not limited to 2^(1-n).

    A corrected p-value is never below that of the comparison's own t-test, so at most 0.05 always means that its 95 %
    interval excludes zero. A comparison of equal differences has the p-value of `paired_comparison`, corrected where
    signs are flipped; one seed gives 1.

    Args:
        differences: Treatment minus baseline, (n, m): a row for each seed, a column for each comparison of the family.
        test_to_train: As in `paired_comparison`.
        resamples: Number of random changes; at least 100.
        seed: Their random seed.

    Returns:
        Corrected p-values, (m,).

    Raises:
        InputError: There are no seeds, a value is not finite, or an option is out of range.

    Example:
        >>> one = np.array([2.1, 1.8, 2.2, 2.6, 1.9])
        >>> other = np.array([0.4, -0.2, 0.1, 0.3, 0.5])
        >>> corrected_p_values(np.stack([one, -one, other], axis=1)).round(2).tolist()
        [0.0, 0.0, 0.15]
    """
    values = _family(differences)
    _check_share(test_to_train)
    _check_resamples(resamples)
    num_seeds, num_compared = values.shape
    if num_seeds == 1 or not num_compared:
        return np.ones(num_compared)
    values = _widened(values, test_to_train)
    alone = np.array([_t_test(column, test_to_train)[0] for column in values.T])
    # A rotation or flip leaves a column's sum of squares as it is. So |t| rises with the cosine between the column and
    # the direction that is summed over, (1, ..., 1) / sqrt(n), and changing the seeds is changing that direction.
    largest = np.abs(values).max(0)
    columns = values / np.where(largest > 0, largest, 1)  # squares of tiny differences would underflow
    columns /= np.maximum(np.linalg.norm(columns, axis=0), 1)
    flipped = flips_signs(num_seeds, test_to_train)
    if not flipped:  # a column without spread tells a normal distribution nothing
        columns[:, [_all_equal(column) for column in values.T]] = 0
    observed = np.abs(columns.sum(0)) / math.sqrt(num_seeds)
    order = np.argsort(observed, kind="stable")  # the smallest first
    columns, thresholds = columns[:, order], observed[order] - 1e-9  # equal sums may differ in the last bits
    exact = flipped and 2 ** (num_seeds - 1) <= resamples
    total, at_least = (2 ** (num_seeds - 1), 0) if exact else (resamples + 1, 1)  # Phipson and Smyth 2010
    counts = np.full(num_compared, at_least)
    for directions in _directions(num_seeds, total - at_least, exact, flipped, seed, _BLOCK // num_compared):
        # The largest of a comparison and all that are less significant.
        rivals = np.maximum.accumulate(np.abs(directions @ columns), axis=1)
        counts += (rivals >= thresholds).sum(0)
    corrected = np.empty(num_compared)
    corrected[order] = np.maximum.accumulate((counts / total)[::-1])[::-1]
    result: NDArray[np.float64] = np.maximum(corrected, alone)
    return result


def flips_signs(num_seeds: int, test_to_train: float = 0.0) -> bool:
    """Whether `corrected_p_values` flips signs; otherwise it rotates seeds, assuming normal differences."""
    return num_seeds >= _FEWEST_FLIPPED and not test_to_train


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
    read the answer as "a few", "dozens" or "hundreds". Seeds that re-split one data set may never settle it.

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
    shared = comparison.test_to_train
    spread = comparison.standard_error / math.sqrt(1 / comparison.num_pairs + shared)
    if not spread > 0:  # one pair (NaN), or equal differences
        return None
    effect = abs(comparison.mean_difference) / spread
    if effect == 0 or _power(effect, _MOST_PAIRS, comparison.confidence, shared) < power:
        return None
    short, enough = 1, _MOST_PAIRS
    while enough - short > 1:
        middle = (short + enough) // 2
        if _power(effect, middle, comparison.confidence, shared) < power:
            short = middle
        else:
            enough = middle
    # A study may already be larger than the power asks for and still open, by bad luck: then at least one more pair.
    return max(enough - comparison.num_pairs, 1)


def _power(effect: float, num_pairs: int, confidence: float, test_to_train: float) -> float:
    """Power of a two-sided one-sample t-test of a standardised mean `effect` (noncentral t distribution)."""
    from scipy import stats

    freedom = num_pairs - 1
    critical = stats.t.ppf((1 + confidence) / 2, freedom)
    # The other tail (a significant result of the wrong sign) is negligible where power matters.
    return float(stats.nct.sf(critical, freedom, effect / math.sqrt(1 / num_pairs + test_to_train)))


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


def _check_resamples(resamples: int) -> None:
    if resamples < 100:
        raise InputError(f"resamples is {resamples}; choose at least 100, usually thousands")


def _check_share(test_to_train: float) -> None:
    if not 0 <= test_to_train < math.inf:
        raise InputError(
            f"test_to_train is {test_to_train}; give the test size over the training size, or 0 for independent seeds"
        )


def _family(differences: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(differences, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            "differences is no table of numbers; a row of equal length for each seed was expected"
        ) from None
    if array.ndim != 2 or not len(array):
        raise InputError(
            f"differences has shape {array.shape}; (seeds, comparisons) with at least one seed was expected"
        )
    if not np.isfinite(array).all():
        row, column = (int(place[0]) for place in np.nonzero(~np.isfinite(array)))
        raise InputError(
            f"differences is {array[row, column]} at seed {row} of comparison {column}; leave out seeds that lack a "
            "comparison, or comparisons that lack seeds"
        )
    return array


def _widened(differences: NDArray[np.float64], test_to_train: float) -> NDArray[np.float64]:
    """Differences (n, ...) with the spread that independent ones would have if they told as much about the mean."""
    if not test_to_train:
        return differences
    mean = differences.mean(0)
    widened: NDArray[np.float64] = mean + (differences - mean) * math.sqrt(1 + len(differences) * test_to_train)
    return widened


def _directions(
    num_seeds: int, number: int, exact: bool, flipped: bool, seed: int, block: int
) -> Iterator[NDArray[np.float64]]:
    """Unit vectors (block, n) to sum seeds along: all or random signs, or points of the sphere."""
    generator = np.random.default_rng(seed)
    for start in range(0, number, max(1, block)):
        count = min(max(1, block), number - start)
        if exact:  # the first sign is kept: flipping all changes no |t|
            bits = np.arange(start, start + count)[:, None] >> np.arange(-1, num_seeds - 1).clip(0) & 1
            bits[:, 0] = 0
            chosen = 1.0 - 2.0 * bits
        elif flipped:
            chosen = generator.choice([-1.0, 1.0], size=(count, num_seeds))
        else:
            chosen = generator.standard_normal((count, num_seeds))
        yield chosen / np.linalg.norm(chosen, axis=1, keepdims=True)


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


def _t_test(differences: NDArray[np.float64], test_to_train: float) -> tuple[float, str]:
    """Two-sided p-value of (widened) differences, and how it was computed."""
    from scipy import stats

    num_pairs = len(differences)
    if num_pairs == 1:
        return 1.0, "none: one pair"
    if _all_equal(differences):
        if differences.any() and flips_signs(num_pairs, test_to_train):
            return 2.0 ** (1 - num_pairs), "sign flips: all differences are equal"
        return 1.0, "none: all differences are equal"
    relative = differences / np.abs(differences).max()  # squares of tiny differences would underflow
    t = float(relative.mean()) / (float(relative.std(ddof=1)) / math.sqrt(num_pairs))
    test = "t-test, corrected for re-split data" if test_to_train else "t-test"
    return float(2 * stats.t.sf(abs(t), num_pairs - 1)), test


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
