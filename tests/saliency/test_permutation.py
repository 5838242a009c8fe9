import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from mfh.saliency import permutation
from mfh.saliency.permutation import _Moments, _permuted_sums
from mfh.saliency.reader import Reader
from networks import batches, flat, randn, seeded


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 4), st.floats(0, 1e5))
def test_moments_merge_to_those_of_all(sizes, positions, offset):
    count = sum(sizes)
    y, z = randn(count, 3, seed=1) + offset, randn(count, 4, positions, seed=2) + offset
    residual, matrix = randn(count, 3, seed=3), randn(3, 4, positions, seed=4).double()
    merged = None
    for rows in torch.arange(count).split(sizes):
        part = _Moments.of(y[rows], z[rows], residual[rows], matrix)
        merged = part if merged is None else merged.merge(part, matrix)
    y, z = y.double(), z.double()
    dy, dz = y - y.mean(0), z - z.mean(0)
    assert merged.count == count
    torch.testing.assert_close(merged.mean_z, z.mean(0))
    torch.testing.assert_close(merged.products, torch.einsum("nk,ncp->kcp", dy, dz), atol=1e-6, rtol=1e-7)
    contribution = torch.einsum("ncp,kcp->nck", dz, matrix)
    torch.testing.assert_close(merged.power, contribution.square().sum((0, 2)), atol=1e-6, rtol=1e-7)
    torch.testing.assert_close(merged.squared_error, residual.double().square().sum())


@pytest.mark.parametrize("chunk", [1, 50, 2**19])
@pytest.mark.parametrize("layer", ["0", "1"])
def test_channels_may_be_permuted_in_groups_of_any_size(monkeypatch, chunk, layer):
    teacher = seeded(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    )
    pairs = batches((flat(11, 0), randn(11, 3), torch.zeros(11)), 11)
    with torch.no_grad():
        reader = Reader(teacher.eval(), nn.Identity(), pairs, layer, 1)
        (read,) = reader
        donors = read.activation.flip(0)
        expected = _permuted_sums(reader, read, donors, "mse")
        monkeypatch.setattr(permutation, "_CHUNK_ELEMENTS_CPU", chunk)
        found = _permuted_sums(reader, read, donors, "mse")
    assert (reader.split.head is not None) == (layer == "1")
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("head", [True, False])
def test_changes_of_the_first_linear_layer_are_the_tail(head):
    teacher = seeded(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 3))
    )
    pairs = batches((randn(11, 2, 6, 6), randn(11, 3), torch.zeros(11)), 11)
    with torch.no_grad():
        reader = Reader(teacher.eval(), nn.Identity(), pairs, "0", 1)
        (read,) = reader
        assert reader.split.head is not None
        if not head:
            reader.split.head = None
        sums = _permuted_sums(reader, read, read.activation.flip(0), "l1")
        for c in range(4):
            z = read.activation.clone()
            z[:, c] = z.flip(0)[:, c]
            truth = (teacher[1:](z) - read.student_logits).abs().mean(1).sum()
            assert float(sums[c]) == pytest.approx(float(truth), rel=1e-5)
