import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from method_batches import arrays, batch, begin, context
from mfh import InputError, Problem
from mfh.methods.attainable import Attainable
from mfh.methods.checks import forget_warnings
from mfh.saliency.probe import PENALTIES
from networks import randn

PAIRS = 40


def slow_ridge(x, y, new):
    """The penalty of each output by generalised cross-validation, with hat matrices written out."""
    middle, level = x.mean(0), y.mean(0)
    x, new, y = x - middle, new - middle, y - level
    count = len(x)
    scale = np.linalg.eigvalsh(x.T @ x).mean()
    found = []
    for column in y.T:
        best = None
        for penalty in PENALTIES.numpy() * scale:
            inverse = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
            hat = x @ inverse @ x.T
            score = ((column - hat @ column) ** 2).sum() / (count - 1 - np.trace(hat)) ** 2
            if best is None or score < best[0]:
                best = score, new @ inverse @ x.T @ column
        found.append(best[1])
    return np.array(found).T + level


def world():
    x, mixed, noise = randn(PAIRS, 5, seed=1).double(), randn(5, 4, seed=2).double(), randn(PAIRS, 4, seed=3).double()
    return x, x @ mixed + noise


def shown(given, modules, rows, x, z, epoch):
    seen = batch(given, modules, count=len(rows), index=torch.tensor(rows), epoch=epoch)
    seen.student_feature.data, seen.teacher_logits.data = x[rows], z[rows]
    return seen


def warmed_up(method, given, rows=range(PAIRS)):
    modules, (x, z) = begin(method, given), world()
    rows = list(rows)
    for start in range(0, len(rows), 8):
        method.loss(shown(given, modules, rows[start : start + 8], x, z, 0))
    return modules, x, z


def test_targets_equal_a_slow_cross_fit():
    method, given = Attainable(temperature=2.0, warm_up=1), context(pairs=PAIRS)
    modules, x, z = warmed_up(method, given)
    rows = [3, 0, 17, 39, 20]
    seen = shown(given, modules, rows, x, z, 1)
    loss = method.loss(seen).item()
    expected = np.zeros((PAIRS, 4))
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(given.seed))
    for held_out in order.tensor_split(5):
        fitting = np.setdiff1d(np.arange(PAIRS), held_out.numpy())
        expected[held_out] = slow_ridge(x.numpy()[fitting], z.numpy()[fitting], x.numpy()[held_out])
    np.testing.assert_allclose(modules.logits.numpy(), expected, rtol=1e-6, atol=1e-8)
    assert np.abs(expected - z.numpy()).mean() > 0.3  # the noise is gone
    a = arrays(seen)
    slow = np.mean(
        [4 * rel_entr(softmax(t / 2), softmax(s / 2)).sum() for s, t in zip(a.zs, expected[rows], strict=True)]
    )
    assert loss == pytest.approx(slow, rel=1e-6)


def test_the_targets_are_nearer_to_what_the_student_can_see():
    method, given = Attainable(warm_up=1), context(pairs=PAIRS)
    modules, x, z = warmed_up(method, given)
    method.loss(shown(given, modules, [0, 1], x, z, 1))
    truth = x @ randn(5, 4, seed=2).double()
    assert (modules.logits - truth).square().mean() < 0.5 * (z - truth).square().mean()


def test_during_the_warm_up_the_teacher_itself_teaches():
    method, given = Attainable(warm_up=2), context(pairs=PAIRS)
    modules, (x, z) = begin(method, given), world()
    for epoch in (0, 1):
        seen = shown(given, modules, list(range(10)), x, z, epoch)
        a = arrays(seen)
        slow = np.mean([rel_entr(softmax(t), softmax(s)).sum() for s, t in zip(a.zs, a.zt, strict=True)])
        assert method.loss(seen).item() == pytest.approx(slow, rel=1e-9)
        assert int(modules.seen.sum()) == (10 if epoch == 1 else 0)


def test_pairs_that_did_not_pass_keep_the_teacher():
    method, given = Attainable(warm_up=1), context(pairs=PAIRS)
    modules, _, z = warmed_up(method, given, range(30))
    targets = modules.of(torch.tensor([29, 30, 31]), z[29:32])
    assert not torch.allclose(targets[0], z[29], atol=1e-3)
    assert targets[1:].equal(z[30:32])


def test_too_few_pairs_that_passed_leave_all_as_they_are():
    method, given = Attainable(warm_up=1), context(pairs=PAIRS)
    modules, _, z = warmed_up(method, given, range(8))
    assert modules.of(torch.arange(PAIRS), z).equal(z)


def test_too_few_epochs_are_said(caplog):
    forget_warnings()
    with caplog.at_level("WARNING", "mfh"):
        Attainable().begin(context(pairs=PAIRS))
        Attainable().begin(context(pairs=PAIRS, epochs=6))
        assert not caplog.records
        Attainable().begin(context(pairs=PAIRS, epochs=5))
        Attainable(warm_up=6).begin(context(pairs=PAIRS, epochs=6))
    first, second = (record.message for record in caplog.records)
    assert "after 5 epochs of warm-up, and epochs is 5, so this is kd; choose at least 6 epochs" in first
    assert "after 6 epochs of warm-up, and epochs is 6, so this is kd; choose at least 7 epochs" in second


def test_a_resumed_training_keeps_its_targets():
    method, given = Attainable(warm_up=1), context(pairs=PAIRS)
    modules, x, z = warmed_up(method, given)
    method.loss(shown(given, modules, [0], x, z, 1))
    again = begin(method, given)
    again.load_state_dict(modules.state_dict())
    assert again.of(torch.arange(PAIRS), z).equal(modules.logits)


@pytest.mark.parametrize("problem", [Problem.multi_label(), Problem.regression()])
def test_other_problems_have_their_own_divergence(problem):
    method, given = Attainable(warm_up=1), context(problem=problem, pairs=PAIRS)
    modules, x, z = warmed_up(method, given)
    seen = shown(given, modules, [0, 1, 2], x, z, 1)
    loss = method.loss(seen)
    expected = problem.divergence(seen.student_logits, modules.logits[:3], temperature=1, reduction="batchmean")
    assert loss.item() == pytest.approx(expected.item())


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="attainable cannot do dense prediction"):
        Attainable().begin(context(problem=Problem.dense(), positions=(2,), pairs=PAIRS))
    with pytest.raises(InputError, match="needs at least 10, got 9"):
        Attainable(warm_up=1).begin(context(pairs=9))
