import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfh.errors import InputError
from mfh.gaussian import input_saliency


def case(num_samples=6, dim=3, classes=2, seed=0):
    generator = np.random.default_rng(seed)
    weight, bias = generator.standard_normal((classes, dim)), generator.standard_normal(classes)
    # Correlated, shifted inputs: nothing is centred for us.
    inputs = generator.standard_normal((num_samples, dim)) @ generator.standard_normal((dim, dim)) + 1.5
    return weight, bias, inputs, generator.standard_normal((num_samples, classes))


def rise(weight, bias, inputs, student_logits, channel, order):
    permuted = inputs.copy()
    permuted[:, channel] = inputs[list(order), channel]
    distance = ((permuted @ weight.T + bias - student_logits) ** 2).mean()
    return distance - ((inputs @ weight.T + bias - student_logits) ** 2).mean()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 4))
def test_exact_is_the_mean_over_all_permutations(seed, classes):
    arguments = case(num_samples=5, classes=classes, seed=seed)
    slow = [
        np.mean([rise(*arguments, channel, order) for order in itertools.permutations(range(5))])
        for channel in range(3)
    ]
    assert np.abs(slow).max() > 1e-3
    np.testing.assert_allclose(input_saliency(*arguments), slow, rtol=0, atol=1e-9 * np.abs(slow).max())


def test_sampled_permutations_are_those_of_the_generator():
    arguments = case(num_samples=11)
    generator = np.random.default_rng(4)
    slow = np.zeros(3)
    for _ in range(3):
        orders = generator.permuted(np.tile(np.arange(11)[:, None], (1, 3)), axis=0)
        slow += [rise(*arguments, channel, orders[:, channel]) / 3 for channel in range(3)]
    np.testing.assert_allclose(input_saliency(*arguments, permutations=3, seed=4), slow, atol=1e-12)


def test_sampled_comes_close_to_exact():
    arguments = case(num_samples=50)
    exact = input_saliency(*arguments)
    few, many = (np.abs(input_saliency(*arguments, permutations=m) - exact).max() for m in (5, 5000))
    assert many < few
    assert many < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("permutations", [0, -1, 2.5, "all", True])
def test_bad_permutations(permutations):
    with pytest.raises(InputError, match="or 'exact'"):
        input_saliency(*case(), permutations=permutations)


def test_bad_shapes():
    weight, bias, inputs, student_logits = case()
    with pytest.raises(InputError, match="do not fit"):
        input_saliency(weight, bias, inputs, student_logits[:-1])
