"""On a GPU, reading a number waits for the device: how often it is done must not grow with the batches."""

import functools
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import mfh
from mfh.training.fitting import distill, pretrain

WAITS = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__")


@pytest.fixture
def waits(monkeypatch):
    """Counts the calls that wait for the device, of tensors of floating point numbers."""
    counted: Counter[str] = Counter()

    def watch(name, function):
        def watched(tensor, *arguments, **options):
            if tensor.is_floating_point() or tensor.dtype == torch.bool:
                counted[name] += 1
            return function(tensor, *arguments, **options)

        return watched

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, watch(name, getattr(torch.Tensor, name)))
    return counted


def _pairs(rows, classes=3):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(rows, 4, generator=generator),
        torch.randn(rows, 5, generator=generator),
        torch.arange(rows) % classes,
    )


def _pretrain(rows):
    pretrain(nn.Linear(5, 3), _pairs(rows), _pairs(rows), role="student", recipe=_recipe(), device="cpu")


def _distill(rows):
    logits = torch.randn(rows, 3)
    distill(None, nn.Linear(5, 3), _pairs(rows), _pairs(rows), teacher_logits=logits, recipe=_recipe(), device="cpu")


def _saliency(distance, permutations):
    def run(rows):
        pairs = mfh.PairLoader(_pairs(rows), batch_size=8)
        teacher = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        mfh.channel_saliency(
            teacher, nn.Linear(5, 3), pairs, layer="1", distance=distance, permutations=permutations, device="cpu"
        )

    return run


def _recipe():
    # Adam counts its steps in tensors on the CPU, which it reads as numbers; that waits for nothing.
    return mfh.Recipe(epochs=1, batch_size=8, optimizer=functools.partial(torch.optim.SGD, lr=0.1))


@pytest.mark.parametrize(
    "run",
    [_pretrain, _distill, _saliency("mse", "exact"), _saliency("mse", 2)],
    ids=["pretrain", "distill", "exact saliency", "sampled saliency"],
)
def test_reads_of_numbers_do_not_grow_with_batches(run, waits):
    run(64)  # what is done once in a process
    waits.clear()
    run(64)
    few = Counter(waits)
    waits.clear()
    run(1280)
    assert few
    assert waits == few
