import logging

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from method_batches import arrays, batch, begin, context
from mfh import InputError, Problem
from mfh.methods.checks import forget_warnings
from mfh.methods.dkd import DKD


def slow(zs, zt, y, alpha, beta, temperature):
    total = 0.0
    for student, teacher, label in zip(zs, zt, y, strict=True):
        p, q = softmax(student / temperature), softmax(teacher / temperature)
        binary = [np.array([v[label], 1 - v[label]]) for v in (p, q)]
        others = [softmax(np.delete(z, label) / temperature) for z in (student, teacher)]
        total += alpha * rel_entr(binary[1], binary[0]).sum() + beta * rel_entr(others[1], others[0]).sum()
    return temperature**2 * total / len(y)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0), (0.0, 1.0, 3.0)])
def test_equals_a_slow_computation(alpha, beta, temperature):
    method, given = DKD(alpha=alpha, beta=beta, temperature=temperature), context()
    seen = batch(given, begin(method, given))
    a = arrays(seen)
    expected = slow(a.zs, a.zt, a.y, alpha, beta, temperature)
    assert expected > 0.1
    assert method.loss(seen).item() == pytest.approx(expected, rel=1e-10)


def test_with_weights_of_the_teacher_it_is_ordinary_distillation():
    """KL = KL of the true class + (1 - p_y) KL of the others (Zhao et al. 2022): with one sample, choose beta so."""
    given = context()
    seen = batch(given, None, count=1)
    a = arrays(seen)
    p = softmax(a.zt[0])
    method = DKD(beta=float(1 - p[a.y[0]]), temperature=1)
    assert method.loss(seen).item() == pytest.approx(rel_entr(p, softmax(a.zs[0])).sum(), rel=1e-10)


def test_dense_prediction_counts_positions_with_a_class():
    problem = Problem.dense(ignore_index=1, missing=-1)
    given = context(problem=problem, positions=(2, 3))
    target = torch.randint(4, (7, 2, 3), generator=torch.Generator().manual_seed(0))
    target[0, 0] = -1
    method = DKD()
    seen = batch(given, begin(method, given), target=target)
    a = arrays(seen)
    known = (a.y >= 0) & (a.y != 1)
    assert 0 < known.sum() < known.size
    zs, zt = (np.moveaxis(z, 1, -1)[known] for z in (a.zs, a.zt))
    assert method.loss(seen).item() == pytest.approx(slow(zs, zt, a.y[known], 1, 8, 4), rel=1e-10)
    nothing = batch(given, begin(method, given), target=torch.full((7, 2, 3), -1))
    assert method.loss(nothing).item() == 0


def test_it_is_finite_where_the_student_is_sure():
    given = context()
    seen = batch(given, None)
    seen.student_logits.data *= 1e4
    loss = DKD(temperature=1).loss(seen)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(seen.student_logits.grad).all()


def test_the_weight_rises_over_the_warm_up():
    given = context()
    full = DKD().loss(batch(given, None, epoch=30)).item()
    found = [DKD(warm_up=20).loss(batch(given, None, epoch=epoch)).item() / full for epoch in (0, 9, 19, 30)]
    assert found == pytest.approx([0.05, 0.5, 1, 1])


def test_two_classes_have_no_others(caplog):
    forget_warnings()
    given = context(classes=2)
    with caplog.at_level(logging.WARNING, "mfh"):
        begin(DKD(), given)
        begin(DKD(), given)
    assert [record.message for record in caplog.records] == [
        "dkd: with two classes the term of the other classes vanishes; only the true class is distilled"
    ]
    assert DKD(alpha=0).loss(batch(given, None)).item() == 0
    assert DKD().loss(batch(given, None)).item() > 0


@pytest.mark.parametrize("problem", [Problem.multi_label(), Problem.regression()])
def test_other_problems_are_refused(problem):
    with pytest.raises(InputError, match=r"dkd cannot do [\w -]+, only classification and dense prediction"):
        DKD().begin(context(problem=problem))


def test_bad_options_are_refused():
    with pytest.raises(InputError, match=r"temperature is 0; choose 0\.001 to 1000000"):
        DKD(temperature=0)
    with pytest.raises(InputError, match="alpha is -1"):
        DKD(alpha=-1)
