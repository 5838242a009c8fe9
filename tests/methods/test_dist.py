import logging

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import pearsonr
from torchmetrics.functional import pearson_corrcoef

from method_batches import arrays, batch, begin, context, leaf
from mfh import InputError, Problem
from mfh.methods.checks import forget_warnings
from mfh.methods.dist import DIST, correlation


def slow(ps, pt, beta, gamma, temperature=1.0):
    inter = np.mean([pearsonr(s, t)[0] for s, t in zip(ps, pt, strict=True)])
    intra = np.mean([pearsonr(s, t)[0] for s, t in zip(ps.T, pt.T, strict=True)])
    return temperature**2 * (beta * (1 - inter) + gamma * (1 - intra))


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 1.0, 1.0), (2.0, 0.0, 1.0), (0.5, 2.0, 4.0)])
def test_equals_a_slow_computation(beta, gamma, temperature):
    method, given = DIST(beta=beta, gamma=gamma, temperature=temperature), context()
    seen = batch(given, begin(method, given))
    a = arrays(seen)
    expected = slow(softmax(a.zs / temperature, 1), softmax(a.zt / temperature, 1), beta, gamma, temperature)
    assert expected > 0.1
    assert method.loss(seen).item() == pytest.approx(expected, rel=1e-6)


def test_every_position_of_dense_prediction_is_a_sample():
    method, given = DIST(), context(problem=Problem.dense(), positions=(2, 3))
    seen = batch(given, begin(method, given))
    a = arrays(seen)
    ps, pt = (softmax(np.moveaxis(z, 1, -1).reshape(-1, 4), 1) for z in (a.zs, a.zt))
    assert method.loss(seen).item() == pytest.approx(slow(ps, pt, 1, 1), rel=1e-6)


def test_several_labels_have_a_sigmoid_each():
    method, given = DIST(), context(problem=Problem.multi_label())
    seen = batch(given, begin(method, given), target=torch.zeros(7, 4))
    a = arrays(seen)
    assert method.loss(seen).item() == pytest.approx(slow(expit(a.zs), expit(a.zt), 1, 1), rel=1e-6)


def test_correlation_agrees_with_torchmetrics():
    first, second = leaf(5, 9, seed=1).detach(), leaf(5, 9, seed=2).detach()
    assert torch.allclose(correlation(first, second), pearson_corrcoef(first.T, second.T).double(), atol=1e-6)
    assert float(correlation(torch.ones(1, 4), torch.arange(4.0)[None])) == 0


def test_two_classes_have_no_relation_between_classes(caplog):
    forget_warnings()
    given, method = context(classes=2), DIST()
    with caplog.at_level(logging.WARNING, "mfh"):
        seen = batch(given, begin(method, given))
    assert "inter-class term vanishes" in caplog.text
    a = arrays(seen)
    expected = slow(softmax(a.zs, 1), softmax(a.zt, 1), 0, 1)
    assert method.loss(seen).item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_of_one_has_no_relation_between_samples():
    given, method = context(), DIST()
    seen = batch(given, begin(method, given), count=1)
    loss = method.loss(seen)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(seen.student_logits.grad).all()


def test_numbers_are_refused():
    with pytest.raises(InputError, match="dist cannot do regression"):
        DIST().begin(context(problem=Problem.regression()))
