from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from mfh import PairedBatch, PairLoader, channel_saliency
from mfh.data.epochs import EpochBatches, EpochShuffle, epoch_seed, indexed_loader, reads_the_same
from mfh.data.pairs import as_batch, check_rereadable, fetch, map_tensors, num_samples, tensors, to_device
from mfh.errors import InputError
from networks import randn, seeded

Point = namedtuple("Point", "x y")


class Items(Dataset):
    """Nested inputs, item by item."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        value = torch.tensor([float(index)])
        return {"a": value, "b": (value + 1, value + 2)}, value * 2, index % 3


class Noisy(Items):
    """Augments what the teacher reads, every now and then."""

    def __init__(self, chance=0.5, part=0):
        self.chance, self.part = chance, part

    def __len__(self):
        return 50

    def __getitem__(self, index):
        item = [torch.ones(3), torch.ones(2), 0]
        if torch.rand(()) < self.chance:
            item[self.part] = item[self.part] + torch.rand(())
        return tuple(item)


class Doubled(TensorDataset):
    """A tensor data set whose items are not its tensors' rows."""

    def __getitem__(self, index):
        a, b, y = super().__getitem__(index)
        return a * 2, b, y


def test_nested_inputs():
    nested = {"a": torch.ones(3), "b": [torch.ones(3, 2), (torch.ones(3), Point(torch.ones(3), "name"))]}
    doubled = map_tensors(lambda tensor: tensor * 2, nested)
    assert [float(tensor.max()) for tensor in tensors(doubled)] == [2] * 4
    assert type(doubled["b"][1][1]) is Point
    assert doubled["b"][1][1].y == "name"
    assert num_samples(nested) == 3
    assert to_device(nested, None) is nested
    assert next(tensors(to_device(nested, "meta"))).device.type == "meta"
    with pytest.raises(InputError, match=r"tensors of \[2, 3\] samples"):
        num_samples([torch.ones(3), torch.ones(2)])
    with pytest.raises(InputError, match="no tensors"):
        num_samples({"a": "text"})
    with pytest.raises(InputError, match=r"\[0, 2\] samples"):
        num_samples((torch.tensor(1.0), torch.ones(2)))


@pytest.mark.parametrize("kind", [dict, UserDict, OrderedDict, MappingProxyType])
def test_every_mapping_is_read_by_its_keys(kind):
    """Hugging Face's BatchEncoding is a UserDict."""
    encoded = kind({"ids": torch.ones(3, 2), "mask": kind({"inner": torch.ones(3)}), "text": "three words"})
    assert [len(tensor) for tensor in tensors(encoded)] == [3, 3]
    assert num_samples((encoded, torch.ones(3))) == 3
    moved = to_device(encoded, "meta")
    assert type(moved) is type(moved["mask"]) is dict
    assert list(moved) == ["ids", "mask", "text"]
    assert moved["ids"].device.type == moved["mask"]["inner"].device.type == "meta"
    assert moved["text"] == "three words"
    assert as_batch((encoded, encoded, torch.zeros(3))).teacher_input is encoded


class ByName(nn.Module):
    """Reads two tensors by their names."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        assert type(inputs) is dict
        return self.out(self.embed(inputs["ids"]) * inputs["mask"])


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_networks_get_mappings_as_dicts(kind):
    x, mask = randn(20, 2), randn(20, 1, seed=1).sigmoid()
    items = [(kind({"ids": a, "mask": m}), a, 0) for a, m in zip(x, mask, strict=True)]
    fetched = fetch(items, [4, 2])
    assert torch.equal(fetched.teacher_input["ids"], x[[4, 2]])
    student, pairs = seeded(lambda: nn.Linear(2, 3), 1), PairLoader(items, batch_size=8)
    saliency, same = (
        channel_saliency(seeded(ByName), student, pairs, layer="embed", permutations=2)
        for pairs in (pairs, PairLoader([(dict(first), *rest) for first, *rest in items], batch_size=8))
    )
    assert np.ptp(saliency.scores) > 0
    np.testing.assert_array_equal(saliency.scores, same.scores)


def test_batches():
    batch = as_batch([torch.ones(3), {"x": torch.ones(3, 2)}, torch.zeros(3)])
    assert isinstance(batch, PairedBatch)
    for wrong, match in [
        (torch.ones(3), "is a Tensor; "),
        ((torch.ones(3), torch.ones(3)), "tuple of length 2"),
        ({"teacher": 1, "student": 2, "target": 3}, "is a dict"),
        ((torch.ones(3), torch.ones(2), torch.ones(3)), "3 teacher inputs, 2 student inputs and 3 targets"),
    ]:
        with pytest.raises(InputError, match=match):
            as_batch(wrong)


def test_what_can_be_read_again():
    data = TensorDataset(torch.ones(4), torch.ones(4), torch.ones(4))
    for fine in (DataLoader(data), [], [(1, 2, 3)], PairLoader(data)):
        check_rereadable(fine)
    for wrong in (data, iter([]), zip([], [], strict=True), (x for x in ()), 3, Items()):
        with pytest.raises(InputError, match=r"wrap it|read only once|was expected"):
            check_rereadable(wrong)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=10))
def test_fetch(indices):
    nested = fetch(Items(), indices)
    assert nested.teacher_input["b"][1][:, 0].tolist() == [i + 2.0 for i in indices]
    assert nested.target.tolist() == [i % 3 for i in indices]
    plain = TensorDataset(torch.arange(10), torch.arange(10) * 2, torch.arange(10) * 3)
    assert fetch(plain, indices).student_input.tolist() == [2 * i for i in indices]
    reversed_ = Subset(Subset(plain, range(10)), list(range(9, -1, -1)))
    assert fetch(reversed_, indices).teacher_input.tolist() == [9 - i for i in indices]
    own = Doubled(*plain.tensors)
    assert fetch(own, indices).teacher_input.tolist() == [2 * i for i in indices]
    assert fetch(Subset(own, range(10)), indices).teacher_input.tolist() == [2 * i for i in indices]


def test_items_that_are_not_pairs():
    with pytest.raises(InputError, match="tuple of length 1"):
        fetch([(torch.ones(2),)], [0])
    with pytest.raises(InputError, match="is a Tensor"):
        fetch(torch.ones(3, 2), [0])


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_in_order(workers):
    loader = PairLoader(Items(), batch_size=4, num_workers=workers)
    assert len(loader) == 3
    state = torch.get_rng_state()
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.target) for batch in batches] == [4, 4, 2]
        assert torch.cat([batch.target for batch in batches]).tolist() == [i % 3 for i in range(10)]
    assert torch.equal(state, torch.get_rng_state())
    del loader


def test_indices_come_with_the_batch():
    loader = indexed_loader(Items(), batches=EpochBatches(10, 4, seed=1))
    seen = []
    for batch, indices in loader:
        assert batch.student_input[:, 0].tolist() == [2.0 * i for i in indices]
        seen += indices.tolist()
    assert sorted(seen) == list(range(10))
    assert seen != list(range(10))


def test_shuffles_are_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochShuffle(50, seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert len({order(seed, epoch) for seed in (-1, 0, 1) for epoch in range(4)}) == 12
    torch.manual_seed(7)
    assert order(1, 2) == order(1, 2)
    assert len(EpochShuffle(50, 0)) == 50
    assert 0 <= epoch_seed(-5, 3) < 2**63


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_batches_of_several_processes(num_samples, batch_size, accumulate, processes, epoch):
    def epoch_of(accumulate, processes, rank):
        batches = EpochBatches(num_samples, batch_size, 5, accumulate=accumulate, processes=processes, rank=rank)
        batches.sampler.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches)
        return [(batch[: batches.count(i)], batches.weights(i)[1], len(batch)) for i, batch in enumerate(found)]

    shuffle, parts = EpochShuffle(num_samples, 5), accumulate * processes
    shuffle.set_epoch(epoch)
    steps = torch.tensor(list(shuffle)).split(batch_size * parts)
    ours = [epoch_of(accumulate, processes, rank) for rank in range(processes)]
    for number, step in enumerate(steps):
        turns = range(number * accumulate, (number + 1) * accumulate)
        batches = [ours[rank][turn] for turn in turns for rank in range(processes)]
        assert [index for batch, _, _ in batches for index in batch] == step.tolist()
        assert all(0 < size <= batch_size for _, _, size in batches)  # none is empty, whatever it counts
        for batch, weight, _ in batches:  # averaged over batches, every sample has the weight 1 / len(step)
            assert weight / parts == pytest.approx(len(batch) / len(step))
        if len(step) == batch_size * parts:
            assert {weight for _, weight, _ in batches} == {1}
    assert len(ours[0]) == len(steps) * accumulate
    alone = epoch_of(parts, 1, 0)
    assert alone == [ours[rank][turn] for turn in range(len(ours[0])) for rank in range(processes)]


def test_augmented_data_is_noticed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not any(reads_the_same(Noisy()) for _ in range(20))
        assert not reads_the_same(Subset(Noisy(), range(40)))
        assert reads_the_same(Noisy(part=1))  # what the student reads does not matter to the teacher
    assert reads_the_same(Items())
    assert reads_the_same(TensorDataset(*[randn(4)] * 3))
    assert not reads_the_same(NoisyTensors(*[randn(40, 2)] * 3))


class NoisyTensors(TensorDataset):
    """Augmentation in a subclass of a class that never augments."""

    def __getitem__(self, index):
        a, b, y = super().__getitem__(index)
        return a + np.random.default_rng().random(), b, y
