from collections import deque

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from method_batches import TEACHER, WEIGHTS, arrays, batch, begin, context
from mfh import Problem
from mfh.methods.queue import Queue
from networks import randn


def unit(x):
    return x / np.linalg.norm(x)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("known", [False, True])
def test_four_batches_equal_a_slow_computation(weights, known):
    features = randn(12, 6, seed=9).double()
    more = {"teacher_features": {TEACHER: features}} if known else {}
    method, given = Queue(size=10, teacher_temperature=0.3, student_temperature=0.2), context(weights=weights, **more)
    modules = begin(method, given)
    focus = np.ones(6) if weights is None else np.sqrt(weights.numpy())
    queue = deque(maxlen=10)
    if known:
        assert int(modules.filled) == 10
        queue.extend(modules.queue.numpy().copy())
        possible = np.array([unit(row * focus) for row in features.numpy()])
        assert all(min(np.abs(possible - row).max(1)) < 1e-6 for row in queue)
    weight, bias = (p.detach().numpy() for p in modules.projector.parameters())
    for number in range(4):
        seen = batch(given, modules, count=4, seed=number)
        a = arrays(seen)
        teacher = [unit(row * focus) for row in a.ft]
        keys = np.array([*queue, *teacher])
        expected = 0.0
        for x, v in zip(a.fs, teacher, strict=True):
            u = unit(weight @ x + bias)
            expected -= softmax(keys @ v / 0.3) @ log_softmax(keys @ u / 0.2) / 4
        loss = method.loss(seen)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert torch.isfinite(seen.student_feature.grad).all()
        queue.extend(teacher)
    np.testing.assert_allclose(modules.queue.numpy(), np.array(queue), rtol=1e-6)


def test_the_queue_is_no_longer_than_there_are_pairs():
    assert Queue().begin(context(pairs=12)).queue.shape == (12, 6)
    assert Queue(size=5).begin(context(pairs=12)).queue.shape == (5, 6)


def test_a_batch_longer_than_the_queue_leaves_its_last_rows():
    method, given = Queue(size=3), context()
    modules = begin(method, given)
    seen = batch(given, modules)
    method.loss(seen)
    expected = torch.nn.functional.normalize(seen.teacher_feature.detach(), dim=1)[-3:]
    assert torch.allclose(modules.queue, expected)


def test_the_queue_travels_with_the_modules():
    method, given = Queue(size=5), context()
    modules = begin(method, given)
    method.loss(batch(given, modules))
    again = begin(method, given)
    again.load_state_dict(modules.state_dict())
    seen = batch(given, modules, seed=1)
    other = batch(given, again, seed=1)
    assert method.loss(seen).item() == method.loss(other).item()


@pytest.mark.parametrize("problem", [Problem.multi_label(), Problem.regression(), Problem.dense()])
def test_it_does_every_problem(problem):
    method, given = Queue(), context(problem=problem)
    assert torch.isfinite(method.loss(batch(given, begin(method, given))))
