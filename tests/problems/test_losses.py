import copy

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from mfh import KDLoss
from mfh.errors import InputError
from mfh.problems.losses import (
    alignment_loss,
    hint_loss,
    kl_divergence,
    relational_angle_loss,
    relational_distance_loss,
)
from networks import randn

TARGET = torch.tensor([0, 2, 1, 1, 0, 2])


def logits():
    return randn(6, 3, seed=1) * 2, randn(6, 3, seed=2) * 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_kl_is_its_definition(temperature, reduction):
    student, teacher = logits()
    p, q = softmax(teacher.numpy() / temperature, 1), softmax(student.numpy() / temperature, 1)
    expected = rel_entr(p, q).sum(1).mean() * temperature**2 / (3 if reduction == "mean" else 1)
    assert expected > 0.01
    found = kl_divergence(student, teacher, temperature=temperature, reduction=reduction)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 20), st.floats(-50, 50))
def test_kl_properties(seed, temperature, shift):
    student, teacher = randn(4, 5, seed=seed).double(), randn(4, 5, seed=seed + 1).double()
    value = kl_divergence(student, teacher, temperature=temperature)
    assert value > 0
    shifted = kl_divergence(student + shift, teacher - shift, temperature=temperature)
    assert float(shifted) == pytest.approx(float(value), rel=1e-6, abs=1e-9)
    assert float(kl_divergence(teacher, teacher, temperature=temperature)) == pytest.approx(0, abs=1e-9)


def test_gradients_keep_their_size_at_any_temperature():
    student, teacher = logits()
    sizes = []
    for temperature in (1.0, 10.0, 100.0):
        free = student.clone().requires_grad_()
        kl_divergence(free, teacher, temperature=temperature).backward()
        sizes.append(float(free.grad.norm()))
    assert 0.3 < sizes[1] / sizes[0] < 3
    assert sizes[2] == pytest.approx(sizes[1], rel=0.3)


@pytest.mark.parametrize("label_weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("teacher_weight", [0.0, 2.0])
def test_kd_loss_is_the_weighted_sum(label_weight, teacher_weight):
    if not label_weight + teacher_weight:
        return
    student, teacher = logits()
    loss = KDLoss(temperature=2.0, label_weight=label_weight, teacher_weight=teacher_weight)
    labels = -log_softmax(student.numpy(), 1)[range(6), TARGET].mean()
    expected = label_weight * labels + teacher_weight * float(kl_divergence(student, teacher, temperature=2.0))
    assert float(loss(student, teacher, TARGET)) == pytest.approx(expected, rel=1e-5)


def test_label_loss_can_be_replaced():
    student, teacher = logits()
    loss = KDLoss(teacher_weight=0, label_loss=lambda s, y: s.sum() * 0 + 7)
    assert float(loss(student, teacher, TARGET)) == 7


def test_bad_losses():
    for options, match in [
        ({"temperature": 0}, "temperature is 0; it must be positive"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"label_weight": -1}, "label_weight is -1"),
        ({"label_weight": 0, "teacher_weight": 0}, "one of them positive"),
        ({"reduction": "sum"}, "choose 'batchmean' or 'mean'"),
    ]:
        with pytest.raises(InputError, match=match):
            KDLoss(**options)
    student, teacher = logits()
    for other in (teacher[:, :2], teacher[:, :1], teacher[:3]):
        with pytest.raises(InputError, match="both must have the same classes"):
            KDLoss()(student, other, TARGET)
        with pytest.raises(InputError, match="both must have the same classes"):
            alignment_loss(other, student, TARGET)


def test_alignment():
    student, teacher = logits()
    expected = F.cross_entropy(teacher, TARGET) + F.cross_entropy(student, TARGET) + (teacher - student).square().mean()
    assert float(alignment_loss(teacher, student, TARGET)) == pytest.approx(float(expected), rel=1e-6)


def test_hint():
    student, teacher = randn(4, 5).requires_grad_(), randn(4, 3, 2, seed=1).requires_grad_()
    projector = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (3, 2)))
    loss = hint_loss(student, teacher, projector)
    assert float(loss.detach()) == pytest.approx(
        float((projector(student) - teacher).square().mean().detach()), rel=1e-6
    )
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert projector[0].weight.grad.abs().sum() > 0
    assert teacher.grad is None
    with pytest.raises(InputError, match=r"shape \(4, 3\); the teacher's features have \(4, 3, 2\)"):
        hint_loss(student, teacher, nn.Linear(5, 3))


def slow_distances(features):
    flat = features.flatten(1).double().numpy()
    pairs = [np.linalg.norm(flat[i] - flat[j]) for i in range(len(flat)) for j in range(i + 1, len(flat))]
    return np.array(pairs) / np.mean(pairs)


def slow_cosines(features):
    flat = features.flatten(1).double().numpy()
    count = len(flat)
    cosines = np.zeros((count, count, count))
    for j in range(count):  # the angle's corner
        for i in range(count):
            for k in range(count):
                if i != j and k != j:
                    a, b = flat[i] - flat[j], flat[k] - flat[j]
                    cosines[j, i, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return cosines


def huber(difference):
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5).mean()


@pytest.mark.parametrize(
    ("loss", "slow"), [(relational_distance_loss, slow_distances), (relational_angle_loss, slow_cosines)]
)
def test_relational(loss, slow):
    student, teacher = randn(5, 4, seed=1).requires_grad_(), randn(5, 2, 3, seed=2).requires_grad_()
    value = loss(student, teacher)
    assert float(value.detach()) == pytest.approx(huber(slow(student.detach()) - slow(teacher.detach())), rel=1e-4)
    assert value > 0.01
    value.backward()
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None
    # Scale, position and rotation of a feature space do not matter.
    rotation = torch.linalg.qr(randn(4, 4, seed=3)).Q
    moved = student.detach() @ rotation * 7 + 3
    assert float(loss(moved, student)) == pytest.approx(0, abs=1e-6)
    # Two samples that coincide must not spoil the gradient.
    same = copy.deepcopy(student.detach())
    same[1] = same[0]
    same.requires_grad_()
    loss(same, teacher).backward()
    assert torch.isfinite(same.grad).all()


def test_relational_needs_a_batch():
    with pytest.raises(InputError, match="no pairwise distances; give at least 2"):
        relational_distance_loss(randn(1, 3), randn(1, 3))
    with pytest.raises(InputError, match="no angles; give at least 3"):
        relational_angle_loss(randn(2, 3), randn(2, 3))
