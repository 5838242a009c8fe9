import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from mfh.errors import InputError
from mfh.studies.stats import (
    Comparison,
    Repeats,
    corrected_p_values,
    holm,
    mean_interval,
    paired_comparison,
    pairs_needed,
)


def draw(num_pairs, effect=0.5, seed=0):
    generator = np.random.default_rng(seed)
    baseline = generator.normal(70, 3, num_pairs)
    return baseline + generator.normal(effect, 1, num_pairs), baseline


@pytest.mark.parametrize("num_pairs", [2, 3, 5, 12, 30])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_t_interval_is_scipys(num_pairs, confidence):
    treatment, baseline = draw(num_pairs)
    comparison = paired_comparison(treatment, baseline, confidence=confidence)
    expected = reference.ttest_rel(treatment, baseline)
    interval = expected.confidence_interval(confidence)
    assert comparison.mean_difference == pytest.approx(np.mean(treatment - baseline))
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))
    assert comparison.mean_difference / comparison.standard_error == pytest.approx(expected.statistic)
    assert mean_interval(treatment - baseline, confidence=confidence) == pytest.approx(
        (comparison.mean_difference, comparison.low, comparison.high)
    )


@pytest.mark.parametrize("num_pairs", [2, 5, 10])
def test_p_value_is_scipys_and_agrees_with_the_interval(num_pairs):
    for effect in np.linspace(-3, 3, 13):
        treatment, baseline = draw(num_pairs, effect)
        comparison = paired_comparison(treatment, baseline, resamples=100)
        assert comparison.test == "t-test"
        assert comparison.p_value == pytest.approx(reference.ttest_rel(treatment, baseline).pvalue)
        assert (comparison.p_value < 0.05) == (comparison.low > 0 or comparison.high < 0)


def slow_p_values(differences, changes, share=0.0):
    """Step-down max-t by its definition: t of every changed table, largest t of what is not rejected yet.

    Args:
        differences: (seeds, comparisons).
        changes: Matrices (seeds, seeds) that would leave the table's distribution as it is under the null hypothesis.
        share: Test size over training size.
    """
    num_seeds = len(differences)
    # The covariance of re-split seeds is (1 - r) I + r 1 1', r = share / (1 + share). Undone, seeds are independent.
    covariance = (np.eye(num_seeds) + share) / (1 + share)
    undone = np.linalg.inv(np.linalg.cholesky(covariance)) if share else np.eye(num_seeds)
    towards = undone @ np.ones(num_seeds)
    towards /= np.linalg.norm(towards)

    def statistics(table):
        along = towards @ table
        rest = table - np.outer(towards, along)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(along) / np.sqrt(np.square(rest).sum(0) / (num_seeds - 1))

    table = undone @ differences
    observed = statistics(table)
    changed = [statistics(change @ table) for change in changes]
    corrected, remaining, largest = np.ones(len(observed)), list(np.argsort(-observed)), 0.0
    while remaining:
        number = remaining[0]
        beyond = [max(one[remaining]) >= observed[number] * (1 - 1e-9) for one in changed]
        largest = max(largest, float(np.mean(beyond)))
        corrected[number] = largest
        remaining.pop(0)
    return corrected


def family(num_seeds, effects=(0.0, 0.6, 1.2, 1.2), seed=0):
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(num_seeds, 1)) + generator.normal(size=(num_seeds, len(effects)))
    return mixed + np.array(effects)


@pytest.mark.parametrize("num_seeds", [8, 10])
def test_sign_flips_are_those_of_a_slow_loop(num_seeds):
    differences = family(num_seeds)
    flips = [np.diag(signs) for signs in itertools.product([-1, 1], repeat=num_seeds)]
    slow = slow_p_values(differences, flips)
    alone = reference.ttest_1samp(differences, 0).pvalue
    assert len(np.unique(slow)) >= 3
    assert corrected_p_values(differences) == pytest.approx(np.maximum(slow, alone))
    # Order and sign of the comparisons, and their units, do not matter.
    order = [2, 0, 3, 1]
    assert corrected_p_values(-5 * differences[:, order]) == pytest.approx(np.maximum(slow, alone)[order])


@pytest.mark.parametrize("resamples", [1000, 20_000])
def test_many_flips_are_sampled(resamples):
    differences = family(15, effects=(0.0, 0.4, 0.8))
    exact = corrected_p_values(differences, resamples=2**14)
    sampled = corrected_p_values(differences, resamples=resamples, seed=3)
    assert sampled == pytest.approx(exact, abs=3 * 0.5 / math.sqrt(resamples))
    assert (sampled == corrected_p_values(differences, resamples=resamples, seed=3)).all()
    if resamples < 2**14:
        assert (sampled != exact).any()
    else:
        assert (sampled == exact).all()


@pytest.mark.parametrize(("num_seeds", "share"), [(3, 0.0), (5, 0.0), (4, 0.6), (10, 0.6)])
def test_rotations_are_those_of_a_slow_loop(num_seeds, share):
    differences = family(num_seeds, effects=(0.0, 1.0, 2.0), seed=1)
    rotations = reference.ortho_group.rvs(num_seeds, size=4000, random_state=np.random.default_rng(0))
    slow = slow_p_values(differences, rotations, share)
    alone = [paired_comparison(one, 0 * one, test_to_train=share, resamples=100).p_value for one in differences.T]
    found = corrected_p_values(differences, test_to_train=share)
    assert slow.min() < 0.3 < slow.max()
    assert found == pytest.approx(np.maximum(slow, alone), abs=0.03)


def test_few_seeds_are_not_limited_by_their_number():
    """Holm's correction of sign flips could not go below 7 / 16 with five seeds."""
    clear = np.array([[2.0], [2.1], [1.9], [2.2], [2.0]]) + 0.1 * family(5, effects=[0.0] * 7)
    assert (corrected_p_values(clear) < 0.01).all()
    assert (corrected_p_values(clear[:2]) > 0.02).any()


@pytest.mark.parametrize(("num_seeds", "share"), [(2, 0.0), (5, 0.0), (10, 0.0), (2, 0.5), (10, 0.5)])
def test_identical_comparisons_cost_nothing(num_seeds, share):
    [one] = family(num_seeds, effects=[0.8]).T
    alone = corrected_p_values(one[:, None], test_to_train=share)
    several = corrected_p_values(np.stack([one, -one, 3 * one], axis=1), test_to_train=share)
    assert several == pytest.approx(np.repeat(alone, 3), abs=1e-12)
    if num_seeds < 8 or share:  # a single comparison is the t-test
        t_test = paired_comparison(one, 0 * one, test_to_train=share).p_value
        assert alone == pytest.approx([t_test], abs=0.02)


@given(st.integers(2, 12), st.integers(1, 4), st.sampled_from([0.0, 0.4]), st.integers(0, 50))
def test_corrected_p_values_agree_with_intervals(num_seeds, num_compared, share, seed):
    differences = family(num_seeds, np.linspace(0, 2, num_compared), seed)
    corrected = corrected_p_values(differences, test_to_train=share, resamples=200)
    comparisons = [paired_comparison(one, 0 * one, test_to_train=share, resamples=100) for one in differences.T]
    for p_value, comparison in zip(corrected, comparisons, strict=True):
        assert comparison.p_value <= p_value + 1e-12 <= 1 + 1e-12  # equal but for rounding
        assert p_value > 0.05 or comparison.outcome in ("gains", "loses")


@pytest.mark.parametrize("num_pairs", [2, 5, 10, 30])
@pytest.mark.parametrize("share", [0.1, 500 / 600])
def test_re_split_interval_is_that_of_nadeau_and_bengio(num_pairs, share):
    treatment, baseline = draw(num_pairs, effect=0.8)
    comparison = paired_comparison(treatment, baseline, test_to_train=share)
    differences = treatment - baseline
    error = math.sqrt((1 / num_pairs + share) * np.var(differences, ddof=1))
    half = reference.t.ppf(0.975, num_pairs - 1) * error
    assert comparison.mean_difference == pytest.approx(differences.mean())
    assert comparison.standard_error == pytest.approx(error)
    assert (comparison.low, comparison.high) == pytest.approx((differences.mean() - half, differences.mean() + half))
    expected = 2 * reference.t.sf(abs(differences.mean() / error), num_pairs - 1)
    assert comparison.p_value == pytest.approx(expected)
    assert "re-split" in comparison.test
    wider = comparison.bootstrap_high - comparison.bootstrap_low
    plain = paired_comparison(treatment, baseline)
    factor = math.sqrt(1 + num_pairs * share)
    assert wider == pytest.approx(factor * (plain.bootstrap_high - plain.bootstrap_low), rel=0.03)
    assert mean_interval(differences, test_to_train=share)[1] == pytest.approx(comparison.low)
    # 600 training and 500 test samples, ten seeds: about three times wider.
    if (num_pairs, share) == (10, 500 / 600):
        assert factor == pytest.approx(3.06, abs=0.01)


def test_more_seeds_of_the_same_data_do_not_settle_everything():
    measured = [1, -1, 2, 0, 1, -2, 1, 0.5, -0.5, 0.3], [0] * 10
    comparison, slightly, shared = (paired_comparison(*measured, test_to_train=share) for share in (0, 0.001, 0.8))
    assert comparison.outcome == shared.outcome == "open"
    assert pairs_needed(comparison) > 0
    assert pairs_needed(shared) is None
    assert pairs_needed(slightly) > pairs_needed(comparison)


def test_re_split_seeds_of_equal_arms_find_nothing_too_often():
    """A finite data set favours an arm by chance, and all seeds see the same chance."""
    generator = np.random.default_rng(0)
    num_train, num_test, num_seeds = 60, 40, 10
    share = num_test / num_train
    plain, corrected, first, anything = [], [], [], []
    for _ in range(300):
        # Four arms that answer at random, in a way that depends on the pair: all are right equally often on new pairs.
        right = generator.random((5, num_train + num_test)) < 0.7
        splits = [generator.permutation(num_train + num_test)[:num_test] for _ in range(num_seeds)]
        measured = np.array([right[:, rows].mean(1) for rows in splits])
        differences = measured[:, 1:] - measured[:, :1]
        for found, correction in ((plain, 0.0), (corrected, share)):
            _, low, high = mean_interval(differences[:, 0], test_to_train=correction)
            found.append(low > 0 or high < 0)
        first.append(corrected_p_values(differences, resamples=200).min() <= 0.05)
        anything.append(corrected_p_values(differences, test_to_train=share, resamples=200).min() <= 0.05)
    assert np.mean(plain) > 0.3
    assert np.mean(first) > 0.5
    assert np.mean(corrected) < 0.09  # two standard errors above 0.05 are 0.075
    assert np.mean(anything) < 0.09


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_family_wise_error_of_redrawn_data(num_seeds):
    """Correlated, skewed differences without an effect, and a first one with an effect, which step-down leaves out."""
    generator = np.random.default_rng(num_seeds)
    wrong, found = [], []
    for _ in range(300):
        differences = generator.exponential(size=(num_seeds, 1)) - generator.exponential(size=(num_seeds, 4))
        differences[:, 0] += 3
        rejected = corrected_p_values(differences, resamples=300) <= 0.05
        wrong.append(rejected[1:].any())
        found.append(rejected[0])
    assert np.mean(wrong) < 0.09
    assert np.mean(found) > {3: 0.05, 5: 0.4, 10: 0.95}[num_seeds]


def test_equal_differences_in_a_family():
    ten = np.stack([np.zeros(10), np.ones(10), family(10, [0.0])[:, 0]], axis=1)
    nothing, equal, other = corrected_p_values(ten)
    assert nothing == 1
    assert 2 / 2**10 <= equal <= 0.01
    assert other == corrected_p_values(ten[:, [0, 2]])[1]
    # Too few to flip, or re-split: no spread says nothing, and does not stand in the way of the others.
    for few, share in ((ten[:5], 0.0), (ten, 0.5)):
        nothing, equal, other = corrected_p_values(few, test_to_train=share)
        assert (nothing, equal) == (1, 1)
        assert other == pytest.approx(corrected_p_values(few[:, 2:], test_to_train=share)[0], abs=0.02)
        assert paired_comparison(few[:, 1], few[:, 0], test_to_train=share).outcome == "open"
    assert corrected_p_values(1e-200 * family(9, [1.0, 0.0])) == pytest.approx(
        corrected_p_values(family(9, [1.0, 0.0]))
    )
    assert corrected_p_values([[1.0, 2.0]]).tolist() == [1, 1]
    assert corrected_p_values(np.ones((4, 0))).tolist() == []


def task_of(seeds, **facts):
    return SimpleNamespace(
        name="t", seeds=seeds, facts=facts, train=range(100), unlabelled=range(500), val=range(60), test=range(300)
    )


def test_three_cases_are_told_apart():
    people = {"unit": "people", "train": 6, "val": 2, "test": 2}
    redrawn, fixed = Repeats.of(task_of("redrawn"), True), Repeats.of(task_of("resplit"), False)
    resplit, grouped = Repeats.of(task_of("resplit"), True), Repeats.of(task_of("resplit", groups=people), True)
    assert Repeats.of(task_of("fixed"), True) == Repeats.of(task_of("redrawn"), False) == fixed == Repeats("fixed")
    assert redrawn == Repeats()
    # Unlabelled pairs belong to the pool.
    assert (resplit.test_to_train(), resplit.test_to_train("val")) == (300 / 600, 60 / 600)
    assert grouped.test_to_train() == 2 / 6
    assert redrawn.test_to_train() == fixed.test_to_train() == 0
    assert "draws its own data" in redrawn.sentence
    assert "training randomness only" in fixed.sentence
    assert "600 training and 300 test pairs" in resplit.sentence
    assert "6 training and 2 test people" in grouped.sentence
    assert redrawn.caveat == ""
    assert len({fixed.caveat, resplit.caveat, ""}) == 3
    assert "flipping" in redrawn.p_values_in_words(8)
    assert "7 seeds are too few to flip" in redrawn.p_values_in_words(7)
    assert "normal differences" in resplit.p_values_in_words(20)
    for bad in ({"train": 6}, 6, {"train": 6, "val": "a", "test": 2}, {"train": 6, "val": 0, "test": 2}):
        with pytest.raises(InputError) as error:
            Repeats.of(task_of("resplit", groups=bad), True)
        assert "\n" not in str(error.value)


def test_seeds_that_share_the_test_split_say_nothing_of_new_data():
    shared = Repeats("resplit", 600, 60, 300, same_test=True)
    assert (shared.test_to_train(), shared.test_to_train("val")) == (0, 60 / 600)
    assert "all seeds share the test split" in shared.caveat
    assert "cover training and the choice of validation pairs only" in shared.sentence
    assert "600 training and 60 validation pairs" in shared.sentence
    assert "new data as well" not in shared.sentence
    assert "flipping" in shared.p_values_in_words(8)
    assert "normal differences as the intervals do)" in shared.p_values_in_words(8, "val")
    assert Repeats("resplit", 600, 60, 300).test_to_train() == 0.5


def test_bootstrap_is_bca_and_seeded():
    treatment, baseline = draw(15)
    comparison = paired_comparison(treatment, baseline, resamples=2000, seed=3)
    expected = reference.bootstrap(
        (treatment - baseline,), np.mean, n_resamples=2000, batch=1000, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (comparison.bootstrap_low, comparison.bootstrap_high) == pytest.approx((expected.low, expected.high))
    assert comparison == paired_comparison(treatment, baseline, resamples=2000, seed=3)
    assert comparison != paired_comparison(treatment, baseline, resamples=2000, seed=4)


def test_intervals_of_a_null_study_cover_zero():
    generator = np.random.default_rng(0)
    studies = [paired_comparison(generator.normal(size=10), np.zeros(10), resamples=200) for _ in range(1500)]
    covered = np.mean([study.low <= 0 <= study.high for study in studies])
    bootstrap_covered = np.mean([study.bootstrap_low <= 0 <= study.bootstrap_high for study in studies])
    rejected = np.mean([study.p_value <= 0.05 for study in studies])
    assert rejected == pytest.approx(1 - covered)
    # Three standard errors of a share of 0.95 over 1500 studies are 0.017.
    assert covered == pytest.approx(0.95, abs=0.017)
    assert rejected == pytest.approx(0.05, abs=0.017)
    assert 0.86 < bootstrap_covered < 0.95  # too narrow at ten pairs, as its description says


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(-10, 10))
def test_swapping_arms_and_shifting_both(differences, shift):
    zeros = np.zeros(len(differences))
    one = paired_comparison(differences, zeros, resamples=100)
    other = paired_comparison(zeros + shift, np.array(differences) + shift, resamples=100)
    assert one.mean_difference == pytest.approx(-other.mean_difference, abs=1e-9)
    assert one.low == pytest.approx(-other.high, abs=1e-6)
    assert one.low <= one.mean_difference <= one.high
    assert 0 < one.p_value <= 1


def comparison_of(mean, low, high, num_pairs=20, standard_error=0.5, p_value=0.01):
    return Comparison(mean, low, high, low, high, p_value, "", standard_error, num_pairs)


def test_wording_follows_the_interval():
    assert comparison_of(2.1, 1.2, 3.0).describe() == "gains 2.1 points (95 % interval 1.2 to 3.0, 20 seeds)"
    assert comparison_of(-2.1, -3.0, -1.2).describe() == "loses 2.1 points (95 % interval 1.2 to 3.0, 20 seeds)"
    assert (
        comparison_of(0.3, -0.5, 1.1).describe("percent", "training randomness only")
        == "no difference shown (+0.3 percent, 95 % interval \u22120.5 to 1.1, 20 seeds; "
        "the interval covers training randomness only)"
    )
    # Which side of zero an end lies on is always seen.
    assert "0.02 to 0.70" in comparison_of(0.36, 0.02, 0.7).describe()
    assert "\u22120.02 to 0.70" in comparison_of(0.34, -0.02, 0.7).describe()
    assert "0.0 points" in paired_comparison([1, 1], [1, 1]).describe()


def test_one_pair_shows_nothing():
    comparison = paired_comparison([72.0], [70.0])
    assert math.isnan(comparison.low)
    assert math.isnan(comparison.bootstrap_high)
    assert math.isnan(comparison.standard_error)
    assert comparison.p_value == 1
    assert comparison.outcome == "open"
    assert comparison.describe() == "differs by +2.0 points in the one seed run; one seed shows nothing"
    assert pairs_needed(comparison) is None


def test_equal_differences():
    nothing = paired_comparison([70.3, 71.2, 0.1], [70.3, 71.2, 0.1])
    assert (nothing.low, nothing.high, nothing.p_value, nothing.outcome) == (0, 0, 1, "open")
    # Two seeds that happen to agree are no proof; ten are.
    assert paired_comparison([1.3, 2.3], [0.3, 1.3]).outcome == "open"
    assert paired_comparison(np.arange(10) + 1.0, np.arange(10)).outcome == "gains"


@pytest.mark.parametrize(("effect", "total"), [(0.5, 34), (0.8, 15), (0.3, 90)])
def test_pairs_needed_is_the_textbook_sample_size(effect, total):
    # Totals of a two-sided one-sample t-test at 0.05 with power 0.8, as G*Power tabulates them.
    comparison = comparison_of(effect, -1, 1, num_pairs=5, standard_error=1 / math.sqrt(5), p_value=0.4)
    assert pairs_needed(comparison) == total - 5


def test_pairs_needed_at_the_edges():
    assert pairs_needed(comparison_of(2.1, 1.2, 3.0)) == 0
    assert pairs_needed(comparison_of(0.0, -1, 1)) is None
    assert pairs_needed(comparison_of(1e-6, -1, 1)) is None
    few, many = comparison_of(0.4, -0.6, 1.4), comparison_of(0.4, -0.6, 1.4)
    assert pairs_needed(few, power=0.5) < pairs_needed(many, power=0.95)


def test_holm_by_hand_and_against_its_definition():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1, 1]
    assert holm([]).tolist() == []
    values = np.random.default_rng(0).uniform(0, 0.2, 7)
    for value, corrected in zip(values, holm(values), strict=True):
        slow = max(min(1, other * (values >= other).sum()) for other in values[values <= value])
        assert corrected == pytest.approx(slow)


@pytest.mark.parametrize(
    ("treatment", "baseline", "words"),
    [
        ([1, 2], [1], ["2 measurements", "baseline 1"]),
        ([], [], ["empty"]),
        ([1, math.nan], [1, 2], ["nan", "place 1"]),
        ([1, 2], [math.inf, 2], ["baseline", "inf"]),
        ([[1, 2]], [[1, 2]], ["shape (1, 2)"]),
        (["a"], [1], ["list of numbers"]),
    ],
)
def test_bad_measurements(treatment, baseline, words):
    with pytest.raises(InputError) as error:
        paired_comparison(treatment, baseline)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_comparison([1, 2], [1, 2], confidence=95),
        lambda: paired_comparison([1, 2], [1, 2], resamples=10),
        lambda: mean_interval([]),
        lambda: corrected_p_values([1.0, 2.0]),
        lambda: corrected_p_values(np.ones((0, 2))),
        lambda: corrected_p_values([[1.0], [math.nan]]),
        lambda: corrected_p_values([[1.0], [2.0, 3.0]]),
        lambda: corrected_p_values([[1.0], [2.0]], resamples=10),
        lambda: corrected_p_values([[1.0], [2.0]], test_to_train=-0.1),
        lambda: paired_comparison([1, 2], [1, 3], test_to_train=math.nan),
        lambda: mean_interval([1, 2], test_to_train=math.inf),
        lambda: Repeats("resplit", 10, 0, 5),
        lambda: holm([0.5, 1.5]),
        lambda: holm([math.nan]),
        lambda: pairs_needed(comparison_of(0, -1, 1), power=1),
    ],
)
def test_bad_options(call):
    with pytest.raises(InputError):
        call()
