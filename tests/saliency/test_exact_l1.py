import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from torch import nn

from mfh import channel_saliency
from mfh.saliency import exact_l1, permutation
from mfh.saliency.exact_l1 import compiled_channel_sums, mean_absolute_sums
from networks import batches, randn, seeded

values = st.floats(-100, 100, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays("float64", (2, 9), elements=st.one_of(values, st.integers(-2, 2).map(float))),
    hnp.arrays("float64", (2, 5), elements=st.one_of(values, st.integers(-2, 2).map(float))),
)
def test_mean_absolute_sums(a, b):
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    slow = (a[:, :, None] + b[:, None, :]).abs().mean(2)
    torch.testing.assert_close(mean_absolute_sums(a, b), slow, atol=1e-9, rtol=1e-9)


def test_mean_absolute_sums_of_ties():
    a = torch.tensor([1.0, 1.0, -1.0, 0.0])
    b = torch.tensor([-1.0, -1.0, 1.0, 0.0])
    slow = (a[:, None] + b).abs().mean(1)
    assert torch.equal(mean_absolute_sums(a, b), slow)


few = st.integers(-2, 2).map(float)
wide = st.sampled_from([0.0, 1e-310, -1e-30, 1e-3, -1.0, 3.0, 1e6])


def slow_sums(mine, everyone, residual, weights):
    mine, everyone = mine.double(), everyone.double()
    moved = residual[:, None, None, :] + (everyone[None] - mine[:, None])[..., None] * weights.T
    return moved.abs().mean(1).sum((0, 2))  # (N, M, C, K) before


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays("float64", (7, 9), elements=st.one_of(values, few)),
    hnp.arrays("float64", (5, 9), elements=st.one_of(values, few)),
    hnp.arrays("float64", (7, 3), elements=st.one_of(values, few)),
    hnp.arrays("float64", (3, 9), elements=st.one_of(values, few, wide)),
)
def test_compiled_sums(mine, everyone, residual, weights):
    """Nine channels are more than a group of them; samples tie, and weights vanish or nearly do."""
    given = [torch.from_numpy(array) for array in (mine, everyone, residual, weights)]
    torch.testing.assert_close(compiled_channel_sums(*given), slow_sums(*given), atol=1e-8, rtol=1e-11)


@pytest.mark.parametrize("kind", ["normal", "ReLU", "far values", "one value", "two values", "offset"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_compiled_sums_whatever_the_distribution(kind, dtype):
    z = randn(3000, 2, seed=1).double()
    z = {
        "normal": z,
        "ReLU": z.relu(),
        "far values": (4 * z).exp(),
        "one value": torch.full_like(z, 0.7),
        "two values": (z > 1).double(),
        "offset": z + 1000,
    }[kind].to(dtype)
    residual, weights = randn(3000, 3, seed=2).double(), randn(3, 2, seed=3).double()
    found = compiled_channel_sums(z[:50], z, residual[:50], weights)
    torch.testing.assert_close(found, slow_sums(z[:50], z, residual[:50], weights), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("kind", ["spread", "crowded"])
def test_compiled_sums_of_more_samples_than_are_worked_on_at_once(kind):
    """Of crowded activations, many share a step of the table; some samples lie beyond all donors."""
    own, donors = randn(5000, 2, seed=1).double(), randn(40, 2, seed=2).double()
    assert len(own) > exact_l1._BLOCK
    assert (own.abs() > donors.abs().amax()).any()
    if kind == "crowded":
        donors[:30] *= 1e-6
    residual, weights = randn(5000, 3, seed=3).double(), randn(3, 2, seed=4).double()
    found = compiled_channel_sums(own, donors, residual, weights)
    torch.testing.assert_close(found, slow_sums(own, donors, residual, weights), rtol=1e-11, atol=1e-8)


def test_threads_change_nothing():
    given = [randn(50, 40, seed=1), randn(60, 40, seed=2), randn(50, 3, seed=3).double(), randn(3, 40, seed=4).double()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = compiled_channel_sums(*given)
        torch.set_num_threads(3)
        assert torch.equal(compiled_channel_sums(*given), one)
    finally:
        torch.set_num_threads(before)


def test_progress_counts_groups_of_channels():
    seen = []
    given = randn(5, 20), randn(5, 20), randn(5, 2).double(), randn(2, 20).double()
    compiled_channel_sums(*given, lambda loop: seen.append(len(loop)) or loop)
    assert seen == [3]


@pytest.mark.parametrize("numba", ["there", "missing", "without a folder to write to"])
def test_compiled_or_not_the_score_is_the_same(monkeypatch, numba):
    teacher = seeded(lambda: nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4)))
    student = seeded(lambda: nn.Linear(3, 4), 1)
    pairs = batches((randn(33, 5, seed=1), randn(33, 3, seed=2), torch.zeros(33)), 8)
    called = []

    def sums(*given):
        called.append(compiled_channel_sums(*given))
        return called[-1]

    monkeypatch.setattr(permutation, "compiled_channel_sums", sums)
    plain = channel_saliency(teacher, student, pairs, layer="1", distance="l1")
    assert not called  # too small to load the compiled code for
    monkeypatch.setattr(permutation, "_COMPILED_FROM", 33 * 12 * 4)
    exact_l1._compiled.cache_clear()
    try:
        if numba == "missing":
            monkeypatch.setitem(sys.modules, "numba", None)
        elif numba != "there":
            monkeypatch.setattr("numba.njit", refuse)
        compiled = channel_saliency(teacher, student, pairs, layer="1", distance="l1")
    finally:
        exact_l1._compiled.cache_clear()
    assert [value is None for value in called] == [numba != "there"]
    assert plain.scores.std() > 1e-3
    np.testing.assert_allclose(compiled.scores, plain.scores, rtol=1e-12, atol=1e-12)


def refuse(**_options):
    raise RuntimeError("cannot cache function: no locator available")


def test_several_positions_per_channel_are_summed_in_torch(monkeypatch):
    monkeypatch.setattr(permutation, "_COMPILED_FROM", 0)
    monkeypatch.setattr(permutation, "compiled_channel_sums", None)
    teacher = seeded(lambda: nn.Sequential(nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)))
    pairs = batches((randn(9, 1, 6), randn(9, 2), torch.zeros(9)), 4)
    saliency = channel_saliency(teacher, nn.Identity(), pairs, layer="0", distance="l1")
    assert saliency.permutations == "exact"
    assert saliency.scores.std() > 0
