import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from mfh.errors import InputError
from mfh.studies.stats import Comparison, holm, mean_interval, paired_comparison, pairs_needed


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
def test_exact_test_is_scipys_permutation_test(num_pairs):
    treatment, baseline = draw(num_pairs, effect=0.8)
    comparison = paired_comparison(treatment, baseline)
    expected = reference.permutation_test(
        (treatment, baseline), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert "exact" in comparison.test
    assert comparison.p_value == pytest.approx(expected.pvalue)


def test_exact_test_with_ties_and_zeros():
    treatment = np.array([0.1, 0.1, 0.3, 0.0, 0.2, -0.1]) + 0.7
    comparison = paired_comparison(treatment, np.full(6, 0.7))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    sums = np.array([1, 1, 3, 0, 2, -1]) @ signs
    assert comparison.p_value == np.mean(np.abs(sums) >= 6)


def test_twenty_pairs_are_exact_and_more_are_sampled():
    assert "exact" in paired_comparison(*draw(20)).test
    treatment, baseline = draw(21, effect=0.4)
    sampled = paired_comparison(treatment, baseline, resamples=20_000)
    assert sampled.test == "sign flips, 20000 at random"
    # For normal differences the two tests agree closely.
    assert sampled.p_value == pytest.approx(reference.ttest_rel(treatment, baseline).pvalue, abs=0.02)
    assert sampled == paired_comparison(treatment, baseline, resamples=20_000)
    assert paired_comparison(np.arange(1, 41), np.zeros(40)).p_value == 1 / 10_000


def test_smallest_p_of_five_pairs():
    assert paired_comparison([1, 2, 3, 4, 5], [0] * 5).p_value == 2 / 2**5


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
        lambda: holm([0.5, 1.5]),
        lambda: holm([math.nan]),
        lambda: pairs_needed(comparison_of(0, -1, 1), power=1),
    ],
)
def test_bad_options(call):
    with pytest.raises(InputError):
        call()
