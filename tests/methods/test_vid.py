import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from method_batches import WEIGHTS, arrays, batch, begin, context
from mfh import InputError
from mfh.methods.vid import VID


def relu(x):
    return np.maximum(x, 0)


def variances(modules):
    return np.log1p(np.exp(modules.scale.detach().numpy())) + 1e-5


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_a_slow_computation(weights):
    method, given = VID(), context(weights=weights)
    modules = begin(method, given)
    with torch.no_grad():
        modules.scale.add_(torch.linspace(-2, 1, 6))
    seen = batch(given, modules)
    a = arrays(seen)
    first, second, third = (modules.mean[layer].weight.detach().numpy() for layer in (0, 2, 4))
    total = 0.0
    for student, teacher in zip(a.fs, a.ft, strict=True):
        means = third @ relu(second @ relu(first @ student))
        for c, (mean, value, variance) in enumerate(zip(means, teacher, variances(modules), strict=True)):
            term = ((mean - value) ** 2 / variance + math.log(variance)) / 2
            total += term * (1 if weights is None else float(weights[c]))
    assert method.loss(seen).item() == pytest.approx(total / a.ft.size, rel=1e-10)


def test_is_the_likelihood_of_a_gaussian():
    method, given = VID(), context()
    modules = begin(method, given)
    seen = batch(given, modules)
    normal = Normal(modules(seen.student_feature), torch.from_numpy(variances(modules)).sqrt())
    expected = -(normal.log_prob(seen.teacher_feature) + math.log(2 * math.pi) / 2).mean()
    assert method.loss(seen).item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_variance_begins_as_asked():
    assert variances(begin(VID(variance=5), context())) == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("positions", [(3,), (2, 3), (2, 2, 2)])
def test_maps_are_compared_position_by_position(positions):
    method, given = VID(), context(student=(5, *positions), teacher=(6, *positions), weights=WEIGHTS)
    modules = begin(method, given)
    seen = batch(given, modules)
    rows = context(weights=WEIGHTS)
    flat = begin(method, rows)
    with torch.no_grad():
        flat.scale.copy_(modules.scale)
        for layer in (0, 2, 4):
            flat.mean[layer].weight.copy_(modules.mean[layer].weight.flatten(1))
    alone = batch(rows, flat, count=7 * math.prod(positions))
    for features, of in ((alone.student_feature, seen.student_feature), (alone.teacher_feature, seen.teacher_feature)):
        features.data = of.detach().movedim(1, -1).reshape(features.shape)
    assert method.loss(seen).item() == pytest.approx(method.loss(alone).item(), rel=1e-10)


def test_a_channel_that_cannot_be_predicted_gets_a_large_variance():
    """Five channels follow the student, five are noise of variance 4: the trained variances say so."""
    method, given = VID(), context(teacher=(10,))
    modules = begin(method, given)
    seen = batch(given, modules, count=400)
    noise = 2 * seen.teacher_feature.detach()[:, 5:]
    seen.teacher_feature.data = torch.cat([seen.student_feature.detach(), noise], 1)
    optimizer = torch.optim.Adam(modules.parameters(), 0.03)
    for _ in range(300):
        optimizer.zero_grad()
        method.loss(seen).backward()
        optimizer.step()
    found = variances(modules)
    assert found[:5].max() < 0.5
    assert found[5:].min() > 2


def test_other_positions_are_refused():
    with pytest.raises(InputError, match=r"positions \(4, 4\) and the teacher's \(2, 2\); name layers"):
        VID().begin(context(student=(5, 4, 4), teacher=(6, 2, 2)))
