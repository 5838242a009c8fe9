import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import kendalltau

from method_batches import WEIGHTS, arrays, batch, begin, context, leaf
from mfh import InputError, Problem
from mfh.methods.c2kd import C2KD, kendall
from mfh.methods.checks import forget_warnings


def proxy(modules, x):
    first, norm, _, last = modules
    x = x @ first.weight.detach().numpy().T
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + norm.eps)
    x = np.where(x > 0, x, 0.1 * x)
    return x @ last.weight.detach().numpy().T + last.bias.detach().numpy()


def divergence(teacher, student):
    return rel_entr(softmax(teacher), softmax(student)).sum()


@pytest.mark.parametrize("agreement", [0.0, 0.4, -1.0, 1.0])
def test_equals_a_slow_computation(agreement):
    method, given = C2KD(agreement=agreement), context(student=(5, 2, 3), teacher=(6, 4))
    modules = begin(method, given)
    seen = batch(given, modules, count=9)
    a = arrays(seen)
    qs, qt = proxy(modules["student"], a.fs.mean((2, 3))), proxy(modules["teacher"], a.ft.mean(2))
    taus = [kendalltau(s, t)[0] for s, t in zip(qs, qt, strict=True)]
    counted = sum(tau > agreement for tau in taus)
    if agreement == 0:
        assert 0 < counted < 9
    total = 0.0
    for zs, zt, s, t, y, tau in zip(a.zs, a.zt, qs, qt, a.y, taus, strict=True):
        total += divergence(zs, s) + divergence(s, zs) + divergence(zt, t) + divergence(t, zt)
        if tau > agreement:
            total += divergence(np.delete(s, y), np.delete(t, y)) + divergence(np.delete(t, y), np.delete(s, y))
        total -= log_softmax(zt)[y]
    assert method.loss(seen).item() == pytest.approx(total / 9, rel=1e-9)


def test_kendall_equals_scipys():
    first, second = leaf(20, 7, seed=1).detach(), leaf(20, 7, seed=2).detach()
    first[:5, :3] = 0.5  # ties
    second[3:8, 2:6] = -1.0
    expected = [kendalltau(a, b)[0] for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    np.testing.assert_allclose(kendall(first, second).numpy(), expected, rtol=1e-12)
    assert float(kendall(torch.ones(1, 4), torch.arange(4.0)[None])) == 0


def test_what_stands_first_in_a_divergence_is_detached():
    """The gradients are those of a loss that is written out with detached tensors."""
    method, given = C2KD(), context()
    modules = begin(method, given)
    seen = batch(given, modules)
    method.loss(seen).backward()
    found = [
        t.grad.clone() for t in (seen.student_logits, seen.teacher_logits, seen.student_feature, seen.teacher_feature)
    ]
    again = batch(given, modules)
    qs, qt = (modules[role](f) for role, f in (("student", again.student_feature), ("teacher", again.teacher_feature)))
    agree = torch.tensor(
        [kendalltau(s, t)[0] > 0 for s, t in zip(qs.detach().numpy(), qt.detach().numpy(), strict=True)]
    )

    def kl(student, teacher, rows=None):
        each = F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="none").sum(1)
        return (each if rows is None else each * rows).mean()

    others = torch.stack([torch.tensor([c for c in range(4) if c != y]) for y in again.target.tolist()])
    ours, theirs = qs.gather(1, others), qt.gather(1, others)
    loss = kl(again.student_logits, qs) + kl(qs, again.student_logits) + kl(ours, theirs, agree)
    loss = loss + kl(again.teacher_logits, qt) + kl(qt, again.teacher_logits) + kl(theirs, ours, agree)
    (loss + F.cross_entropy(again.teacher_logits, again.target)).backward()
    for grad, of in zip(
        found,
        (again.student_logits, again.teacher_logits, again.student_feature, again.teacher_feature),
        strict=True,
    ):
        assert grad.abs().max() > 1e-6
        assert torch.allclose(grad, of.grad)


def test_two_classes_have_no_others(caplog):
    forget_warnings()
    with caplog.at_level(logging.WARNING, "mfh"):
        begin(C2KD(), context(classes=2))
    assert "no knowledge crosses" in caplog.text


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="c2kd cannot do dense prediction, only classification"):
        C2KD().begin(context(problem=Problem.dense(), positions=(2,)))
    with pytest.raises(InputError, match="takes no focus"):
        C2KD().begin(context(weights=WEIGHTS))
    with pytest.raises(InputError, match="only its outputs are known; give the teacher's network"):
        C2KD().begin(replace(context(), teacher=None))
    with pytest.raises(InputError, match="agreement is 2; choose -1 to 1"):
        C2KD(agreement=2)
