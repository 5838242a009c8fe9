from itertools import product

import numpy as np
import pytest
import torch

from method_batches import WEIGHTS, arrays, batch, context
from mfh.methods.rkd import RKD


def huber(x):
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def distances(features):
    count = len(features)
    found = [np.sqrt(((features[i] - features[j]) ** 2).sum()) for i in range(count) for j in range(i + 1, count)]
    return np.array(found) / np.mean(found)


def angles(features):
    def direction(i, j):
        step = features[i] - features[j]
        return step / max(np.linalg.norm(step), 1e-12)

    return [direction(i, j) @ direction(k, j) for j, i, k in product(range(len(features)), repeat=3)]


def slow(fs, ft, distance, angle):
    far = np.mean([huber(s - t) for s, t in zip(distances(fs), distances(ft), strict=True)])
    turned = np.mean([huber(s - t) for s, t in zip(angles(fs), angles(ft), strict=True)])
    return distance * far + angle * turned


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_equals_a_slow_computation(distance, angle, weights):
    seen = batch(context(weights=weights), None)
    a = arrays(seen)
    ft = a.ft if weights is None else a.ft * np.sqrt(weights.numpy())
    expected = slow(a.fs, ft, distance, angle)
    assert expected > 0.001
    assert RKD(distance=distance, angle=angle).loss(seen).item() == pytest.approx(expected, rel=1e-9)


def test_maps_are_pooled():
    seen = batch(context(student=(5, 2, 3), teacher=(6, 4)), None)
    a = arrays(seen)
    expected = slow(a.fs.mean((2, 3)), a.ft.mean(2), 25, 50)
    assert RKD().loss(seen).item() == pytest.approx(expected, rel=1e-9)


def test_scale_and_rotation_of_the_teacher_do_not_count():
    seen = batch(context(), None)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())
    turned = batch(context(), None)
    turned.teacher_feature.data = 3 * seen.teacher_feature.detach() @ turn
    assert RKD().loss(turned).item() == pytest.approx(RKD().loss(seen).item(), rel=1e-9)


@pytest.mark.parametrize("count", [1, 2])
def test_small_batches_have_fewer_relations(count):
    seen = batch(context(), None, count=count)
    loss = RKD().loss(seen)
    loss.backward()
    assert loss.item() == 0  # the only distance of two samples is 1, relative to itself
    assert torch.isfinite(seen.student_feature.grad).all()
