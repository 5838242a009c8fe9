import cmath
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from method_batches import WEIGHTS, arrays, batch, begin, context
from mfh import InputError, Problem
from mfh.methods.fd_cmkd import FDCMKD, bands_of


def bands(x):
    """Both halves of the spectrum of a vector, by the sums of the Fourier transform themselves."""
    count = len(x)
    spectrum = [sum(x[c] * cmath.exp(-2j * math.pi * k * c / count) for c in range(count)) for k in range(count)]
    half = (count // 2 + 1 + 1) // 2
    frequency = [min(k, count - k) for k in range(count)]
    found = []
    for kept in ([f < half for f in frequency], [f >= half for f in frequency]):
        values = [z if keep else 0 for z, keep in zip(spectrum, kept, strict=True)]
        found.append(
            np.array(
                [
                    sum(values[k] * cmath.exp(2j * math.pi * k * c / count) for k in range(count)).real / count
                    for c in range(count)
                ]
            )
        )
    return found


def standardised(x):
    x = x - x.mean()
    return x / np.linalg.norm(x)


def softened(x):
    return np.array([math.copysign(math.log1p(abs(value)), value) for value in x])


def slow(method, modules, a, labelled, weights):
    if not isinstance(modules.projector, torch.nn.Identity):
        weight, bias = (p.detach().numpy() for p in modules.projector.parameters())
        fs = a.fs @ weight.T + bias
    else:
        fs = a.fs
    width = a.ft.shape[1]
    focus = np.ones(width) if weights is None else weights.numpy()
    heads = [[p.detach().numpy() for p in layer.parameters()] for layer in modules.classifiers]
    low = high = labels = 0.0
    for student, teacher, y, known in zip(fs, a.ft, a.y, labelled.tolist(), strict=True):
        ours, theirs = bands(student), bands(teacher)
        low += (focus * (standardised(ours[0]) - standardised(theirs[0])) ** 2).sum() / width / len(fs)
        step = softened(standardised(ours[1])) - softened(standardised(theirs[1]))
        high += (focus * step**2).sum() / width / len(fs)
        for parts in (ours, theirs) if known else ():
            for (weight, bias), x in zip(heads, parts, strict=True):
                labels -= log_softmax(weight @ x + bias)[y] / labelled.sum().item()
    return method.low * low + method.high * high + method.labels * labels


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("width", [5, 6])
@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (3.0, 0.0, 0.5), (0.0, 2.0, 0.0)])
def test_equals_a_slow_computation(width, factors, weights):
    method, given = (
        FDCMKD(low=factors[0], high=factors[1], labels=factors[2]),
        context(student=(width,), weights=weights),
    )
    modules = begin(method, given)
    labelled = torch.tensor([True, True, False, True, False, False, True])
    seen = batch(given, modules, labelled=labelled)
    expected = slow(method, modules, arrays(seen), labelled, weights)
    assert expected > 0.01
    assert method.loss(seen).item() == pytest.approx(expected, rel=1e-9)


def test_an_odd_width_is_divided_too():
    method, given = FDCMKD(), context(teacher=(7,))
    modules = begin(method, given)
    seen = batch(given, modules)
    expected = slow(method, modules, arrays(seen), seen.labelled, None)
    assert method.loss(seen).item() == pytest.approx(expected, rel=1e-9)


def test_the_bands_add_up_to_the_vector():
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    low, high = bands_of(x)
    assert torch.allclose(low + high, x, atol=1e-5)
    assert int((torch.fft.rfft(low).abs() > 1e-3).sum(1).max()) == 129  # of 257, as in a reimplementation


def test_without_labels_the_distances_are_left():
    method, given = FDCMKD(), context()
    modules = begin(method, given)
    none = batch(given, modules, labelled=torch.zeros(7, dtype=torch.bool))
    loss = method.loss(none)
    assert loss.item() == pytest.approx(FDCMKD(labels=0).loss(none).item())
    loss.backward()
    assert all(p.grad is not None for p in modules.parameters())  # several processes expect that


@pytest.mark.parametrize("problem", [Problem.multi_label(), Problem.regression()])
def test_other_labels_have_their_own_loss(problem):
    method, given = FDCMKD(low=0, high=0), context(problem=problem)
    modules = begin(method, given)
    target = torch.randint(2, (7, 4), generator=torch.Generator().manual_seed(0)).double()
    seen = batch(given, modules, target=target)
    expected = 0.0
    for features in (modules.projector(seen.student_feature), seen.teacher_feature):
        for head, band in zip(modules.classifiers, bands_of(features), strict=True):
            expected += problem.label_loss(head(band), target).item()
    assert method.loss(seen).item() == pytest.approx(expected)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="fd-cmkd cannot do dense prediction"):
        FDCMKD().begin(context(problem=Problem.dense(), positions=(2,)))
    with pytest.raises(InputError, match="at least 4 channels, got 3"):
        FDCMKD().begin(context(teacher=(3,)))
