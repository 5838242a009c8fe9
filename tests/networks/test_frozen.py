import copy
import logging
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mfh import ChannelMask, ChannelSaliency, channel_saliency, mask_channels
from mfh.errors import InputError
from mfh.networks import Frozen, frozen
from mfh.networks.cut import Whole
from mfh.networks.modes import evaluating, fingerprint, placed
from mfh.saliency.masks import check_fingerprint, masked_logits
from networks import CASES, Branching, batches, conv, flat, image, randn, run, seeded


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def counts(monkeypatch):
    """How often networks are hashed and cut."""
    found = Counter()

    def counted(name):
        function = getattr(frozen, name)

        def call(*args):
            found[name] += 1
            return function(*args)

        monkeypatch.setattr(frozen, name, call)

    counted("fingerprint")
    counted("split")
    return found


def splits(case, sizes=(40, 17, 9)):
    """Training, validation and test pairs; the sizes of their last batches differ."""
    return [batches((case.inputs(size, size), randn(size, 4, seed=size), torch.zeros(size)), 16) for size in sizes]


def everything(teacher, student, case, pairs):
    """What a seed of a study computes from one pair of networks."""
    options = {"layer": case.layer, "channel_dim": case.channel_dim}
    saliencies = [
        channel_saliency(teacher, student, pairs[0], **options, permutations=2),
        channel_saliency(teacher, student, pairs[0], **options, score="probe"),
    ]
    saliencies.append(ChannelSaliency.from_scores(saliencies[0].scores, teacher, pairs[0], **options))
    masks = [saliencies[0].mask("general", 0.5), None, saliencies[1].mask("soft"), saliencies[2].mask("random", 0.5)]
    logits = [masked_logits(teacher, masks, split) for split in pairs]
    focused = mask_channels(teacher, masks[0])
    check_fingerprint(teacher, saliencies[1].fingerprint, "saliency")
    return saliencies, [tensor for split in logits for tensor in split], focused


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_hashed_once_and_cut_once(name, counts):
    case = CASES[name]
    teacher, student = seeded(case.make), seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 1)
    pairs = splits(case)
    saliencies, logits, focused = everything(teacher, student, case, pairs)
    assert counts["fingerprint"] > 2
    assert counts["split"] == 4
    counts.clear()
    known = everything(Frozen(teacher), Frozen(student), case, pairs)
    assert counts == {"fingerprint": 2, "split": 1}
    for ours, theirs in zip(known[0], saliencies, strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(ours.means, theirs.means)
        assert ours.baseline == theirs.baseline or np.isnan([ours.baseline, theirs.baseline]).all()
        assert (ours.fingerprint, ours.student_fingerprint) == (theirs.fingerprint, theirs.student_fingerprint)
    assert len(logits) == 12
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(known[1], logits, strict=True))
    assert fingerprint(known[2]) == fingerprint(focused)
    assert teacher.training
    assert focused.training


def test_every_layer_has_its_own_cut(counts):
    teacher, inputs = Frozen(seeded(conv)), image(8, 0)
    with evaluating(teacher.network):
        for _ in range(2):
            for layer in ("2", "4"):
                split = teacher.split(layer, inputs)
                assert split.layer == layer
                assert close(split(inputs).activation, run(teacher.network, layer, inputs)[0][0])
    assert counts == {"split": 2}


@pytest.mark.parametrize("name", CASES)
def test_a_cut_holds_after_the_network_was_moved_away_and_back(name):
    case = CASES[name]
    teacher = Frozen(seeded(case.make))
    assert [*teacher.network.parameters()]
    teacher.split(case.layer, case.inputs(9, 0))
    # What moving to another device and back does: new memory for parameters, new tensors for buffers.
    for _ in range(2):
        teacher.network._apply(torch.clone)
    with evaluating(teacher.network):
        split = teacher.split(case.layer, case.inputs(5, 1))
        for count in (1, 2, 33):
            inputs = case.inputs(count, count)
            (activation,), logits = run(teacher.network, case.layer, inputs)
            passed = split(inputs)
            assert close(passed.activation, activation)
            assert close(passed.logits, logits)
            _, truth = run(teacher.network, case.layer, inputs, lambda z: z * 0.5)
            assert not close(truth, logits)
            assert close(split.tail(activation * 0.5, passed.bypass), truth)


def test_every_device_has_its_own_cut(counts, monkeypatch):
    """A trace holds constants on the device it was made on."""
    teacher, inputs = Frozen(seeded(conv)), image(8, 0)
    here = teacher.split("4", inputs)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(frozen, "devices_of", lambda _: {torch.device("cuda:0")})
        there = teacher.split("4", inputs)
        assert teacher.split("4", inputs) is there is not here
    assert teacher.split("4", inputs) is here
    assert counts == {"split": 2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_and_on_the_processor(name, counts):
    case = CASES[name]
    teacher, pairs = Frozen(seeded(case.make)), splits(case)
    student = Frozen(seeded(lambda: nn.Linear(4, 3), 1))
    options = {"layer": case.layer, "channel_dim": case.channel_dim, "permutations": 2}
    mask = channel_saliency(teacher, student, pairs[0], **options).mask("general", 0.5)
    on_the_processor = masked_logits(teacher, [mask], pairs[1])
    for device in ("cuda", None, "cuda"):
        assert close(masked_logits(teacher, [mask], pairs[1], device=device)[0], on_the_processor[0])
    assert counts["split"] == 2
    with placed("cuda", teacher.network):
        assert teacher.fingerprint == fingerprint(teacher.network)


def test_every_kind_of_input_has_its_own_cut(counts):
    """A trace holds shapes; within one pass, inputs of another shape still go the long way."""
    teacher = Frozen(
        seeded(
            lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(8, 3))
        )
    )
    with evaluating(teacher.network):
        for length in (20, 31, 20, 31):
            inputs = randn(4, 1, length, seed=length)
            split = teacher.split("2", inputs)
            passed = split(inputs)
            assert not isinstance(passed.bypass, Whole)
            assert close(passed.logits, teacher.network(inputs))
            assert isinstance(split(randn(4, 1, 25)).bypass, Whole)
    assert counts == {"split": 2}


class Dropping(nn.Module):
    """Reads its own mode, which tracing writes into the graph."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(F.dropout(self.first(x), 0.5, self.training))


def test_a_cut_is_made_in_eval_mode():
    teacher, inputs = Frozen(seeded(Dropping).train()), flat(8, 0)
    split = teacher.split("first", inputs)
    assert split.traced
    assert teacher.network.training
    with evaluating(teacher.network):
        assert close(split(inputs).logits, teacher.network(inputs))
        assert not close(split(inputs).logits, teacher.network.train()(inputs))


def test_a_network_that_cannot_be_cut_says_so_once(caplog):
    teacher, student = Frozen(seeded(Branching)), Frozen(seeded(lambda: nn.Linear(4, 3), 1))
    pairs = [batches((flat(size, size), randn(size, 4, seed=size), torch.zeros(size)), 8) for size in (20, 12)]
    with caplog.at_level(logging.WARNING, "mfh"):
        mask = channel_saliency(teacher, student, pairs[0], layer="first", permutations=1).mask("general", 0.5)
        for split in pairs:
            masked_logits(teacher, [mask], split)
    assert [record.getMessage() for record in caplog.records] == [
        "Branching could not be cut at layer 'first'; every evaluation of its tail runs the whole network"
    ]


def test_a_layer_that_is_not_there_leaves_no_trace(counts):
    teacher = Frozen(seeded(conv))
    for _ in range(2):
        with pytest.raises(InputError, match="no layer '77'"):
            teacher.split("77", image(4, 0))
    assert counts == {"split": 2}
    assert teacher.split("4", image(4, 0)).traced


def test_of_a_frozen_network_is_itself_and_a_compiled_one_is_what_it_was_made_from():
    network = seeded(conv)
    teacher = Frozen.of(network)
    assert Frozen.of(teacher) is teacher
    assert teacher.network is network
    assert Frozen(torch.compile(network, backend="eager")).network is network
    assert teacher.fingerprint == fingerprint(network)


def test_a_copy_is_cut_anew():
    teacher = Frozen(seeded(conv))
    split = teacher.split("4", image(8, 0))
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert other.network is not teacher.network
        assert other.fingerprint == teacher.fingerprint
        again = other.split("4", image(8, 0))
        assert again.model is other.network
        with evaluating(teacher.network, other.network):
            assert close(again(image(5, 1)).logits, split(image(5, 1)).logits)


def test_a_frozen_network_refuses_what_was_made_for_another():
    teacher, other = Frozen(seeded(conv)), Frozen(seeded(conv, 1))
    mask = ChannelMask("2", np.ones(4), np.zeros(4), other.fingerprint)
    for call in (
        lambda: mask_channels(teacher, mask),
        lambda: masked_logits(teacher, [mask], [(image(4, 0), flat(4, 0), torch.zeros(4))]),
        lambda: check_fingerprint(teacher, other.fingerprint, "mask"),
    ):
        with pytest.raises(InputError, match=r"the mask was made for another teacher \(fingerprint.*score this one"):
            call()
    changed = mask_channels(other, mask)
    assert changed.teacher is not other.network
    assert torch.equal(changed.eval()(image(4, 0)), copy.deepcopy(other.network).eval()(image(4, 0)))
