import numpy as np
import pytest
import torch
from torch import nn

from method_batches import TEACHER, WEIGHTS, arrays, batch, begin, context
from mfh import InputError
from mfh.methods.simkd import SimKD
from networks import seeded


def tail():
    return seeded(lambda: nn.Linear(6, 4), 5)


def given_with(**options):
    return context(teacher_tails={TEACHER: tail()}, **options)


def normalised(x, layer):
    scale, shift = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return (x - x.mean(0)) / np.sqrt(x.var(0) + layer.eps) * scale + shift


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_a_slow_computation(weights):
    method, given = SimKD(), given_with(weights=weights)
    modules = begin(method, given)
    seen = batch(given, modules)
    a = arrays(seen)
    first, norm, _, second, again, _, last = modules.projector
    x = np.maximum(normalised(a.fs @ first.weight.detach().numpy().T, norm), 0)
    x = np.maximum(normalised(x @ second.weight.detach().numpy().T, again), 0)
    x = x @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    assert x.shape == a.ft.shape
    by_channel = ((x - a.ft) ** 2).mean(0)
    expected = by_channel.mean() if weights is None else (by_channel * weights.numpy()).mean()
    assert method.loss(seen).item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_bottleneck_is_half_as_wide_as_the_teacher():
    modules = SimKD().begin(given_with())
    assert [tuple(p.shape) for p in modules.projector.parameters() if p.ndim > 1] == [(3, 5), (3, 3), (6, 3)]
    maps = SimKD(factor=3).begin(given_with(student=(5, 4, 4), teacher=(6, 4, 4)))
    assert [tuple(p.shape) for p in maps.projector.parameters() if p.ndim > 1] == [
        (2, 5, 1, 1),
        (2, 2, 3, 3),
        (6, 2, 1, 1),
    ]
    assert maps(torch.zeros(2, 5, 4, 4)).shape == (2, 6, 4, 4)


def test_a_batch_of_one_sample_can_be_trained_on():
    method, given = SimKD(), given_with()
    assert torch.isfinite(method.loss(batch(given, begin(method, given), count=1)))


def test_the_teachers_weights_are_not_the_projectors():
    modules = SimKD().begin(given_with())
    assert not any(p is q for p in modules.parameters() for q in modules.tail[0].parameters())
    assert not any("tail" in name for name in modules.state_dict())


def test_a_teacher_that_cannot_be_cut_is_refused():
    with pytest.raises(InputError, match="simkd uses the teacher's layers after 't', but the teacher cannot be cut"):
        SimKD().begin(context())


def test_other_positions_are_refused():
    with pytest.raises(InputError, match=r"simkd compares features position by position"):
        SimKD().begin(given_with(student=(5,), teacher=(6, 3)))


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="factor is 0; choose 1"):
        SimKD(factor=0)
