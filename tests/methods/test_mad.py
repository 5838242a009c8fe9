import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import entropy

from method_batches import WEIGHTS, arrays, batch, begin, context, similarities
from mfh import InputError, Problem
from mfh.methods.mad import MAD


def slow(fs, ft, uncertainties):
    weights = uncertainties / uncertainties.sum()
    difference = (similarities(fs) - similarities(ft)) ** 2
    return sum(w * row.sum() for w, row in zip(weights, difference, strict=True))


def test_equals_a_slow_computation():
    method, given = MAD(), context(weights=WEIGHTS)
    seen = batch(given, begin(method, given))
    a = arrays(seen)
    expected = slow(a.fs, a.ft * np.sqrt(WEIGHTS.numpy()), np.array([entropy(softmax(z)) for z in a.zt]))
    assert expected > 0.01
    assert method.loss(seen).item() == pytest.approx(expected, rel=1e-9)


def test_dense_prediction_has_the_mean_entropy_of_its_positions():
    method, given = MAD(), context(problem=Problem.dense(), positions=(2, 3))
    seen = batch(given, begin(method, given))
    a = arrays(seen)
    uncertain = np.array([[entropy(softmax(z)) for z in sample.reshape(4, -1).T] for sample in a.zt]).mean(1)
    assert method.loss(seen).item() == pytest.approx(slow(a.fs, a.ft, uncertain), rel=1e-9)


def test_several_labels_have_the_sum_of_their_entropies():
    method, given = MAD(), context(problem=Problem.multi_label())
    seen = batch(given, begin(method, given), target=torch.zeros(7, 4))
    a = arrays(seen)
    uncertain = np.array([sum(entropy([p, 1 - p]) for p in expit(z)) for z in a.zt])
    assert method.loss(seen).item() == pytest.approx(slow(a.fs, a.ft, uncertain), rel=1e-9)


def test_a_teacher_that_is_sure_of_all_weighs_all_alike():
    method, given = MAD(), context()
    seen = batch(given, begin(method, given))
    seen.teacher_logits.data *= 1e4
    a = arrays(seen)
    assert method.loss(seen).item() == pytest.approx(slow(a.fs, a.ft, np.ones(7)), rel=1e-6)


def test_numbers_are_refused():
    with pytest.raises(InputError, match="mad cannot do regression"):
        MAD().begin(context(problem=Problem.regression()))
