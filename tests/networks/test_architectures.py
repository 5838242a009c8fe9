"""Whatever network a user brings: the right answer against a slow loop, or a refusal in one line."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from mfh import ChannelMask, Recipe, align, channel_saliency, distill, mask_channels, pretrain
from mfh.data.epochs import PairLoader
from mfh.data.pairs import map_tensors
from mfh.errors import InputError
from mfh.networks import modes
from mfh.networks.modes import fingerprint, unfused_attention
from mfh.networks.precision import relative_tolerance
from mfh.saliency.masks import masked_logits
from networks import CASES, Attention, Case, batches, conv, drawn, flat, image, padding, randn, run, seeded, slow_rises

COUNT = 12


@dataclass
class Output:
    """As networks of Hugging Face return it."""

    logits: torch.Tensor
    hidden_states: tuple = ()


class WithOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.body(x)
        return Output(self.head(torch.relu(hidden)), (hidden,))


class BothModalities(nn.Module):
    """A multimodal teacher: two inputs of different kind in one tuple."""

    def __init__(self):
        super().__init__()
        self.look, self.hear, self.out = conv(), nn.GRU(5, 4, batch_first=True), nn.Linear(7, 3)
        self.joined = nn.Identity()

    def forward(self, inputs):
        look, hear = inputs
        joined = torch.cat([self.look(look), self.hear(hear)[0][:, -1]], dim=1)
        return self.out(torch.relu(self.joined(joined)))


def halved(make, dtype=torch.bfloat16):
    return lambda: make().to(dtype)


def in_half(inputs, dtype=torch.bfloat16):
    return lambda count, seed: map_tensors(lambda t: t.to(dtype), inputs(count, seed))


def both(count, seed):
    return image(count, seed), randn(count, 4, 5, seed=seed + 1)


def dense():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


KINDS = {
    "transformer with a dict": CASES["attention"],
    "LSTM": CASES["before a recurrent layer"],
    "shared weights": CASES["tied"],
    "batch norm and dropout": Case(conv, image, "4"),
    "object with logits": Case(WithOutput, flat, "body"),
    "two modalities": Case(BothModalities, both, "joined"),
    "dense": Case(dense, image, "1"),
    "half precision": Case(halved(WithOutput), in_half(flat), "body"),
    "double precision": Case(halved(conv, torch.float64), in_half(image, torch.float64), "4"),
}


class Pairs(Dataset):
    """Teacher and student of one kind read different draws."""

    def __init__(self, case):
        self.parts = case.inputs(COUNT, 1), case.inputs(COUNT, 2), torch.arange(COUNT) % 3

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return map_tensors(lambda tensor: tensor[index], self.parts)


def trained_a_little(case, seed):
    """Batch statistics that differ from their initial values."""
    network = seeded(case.make, seed)
    with torch.no_grad():
        for s in range(3):
            network.train()(case.inputs(COUNT, 10 + s))
    return network


def logits_of(output):
    return getattr(output, "logits", output)


class Plain(nn.Module):
    """Logits as one flat tensor, for the slow loop."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, inputs):
        return logits_of(self.network(inputs)).flatten(1)


def slow(teacher, student, pairs, layer, **more):
    with unfused_attention():
        rises = slow_rises(Plain(teacher), Plain(student), pairs, f"network.{layer}", drawn(COUNT, 2), **more)
    return rises.mean(0).numpy()


@pytest.mark.filterwarnings("ignore:.*nested tensors")  # PyTorch's, when a transformer is validated with padding
@pytest.mark.parametrize("kind", KINDS)
def test_saliency_mask_and_distillation_are_those_of_a_slow_loop(kind):
    case = KINDS[kind]
    teacher, student, data = trained_a_little(case, 1), trained_a_little(case, 2), Pairs(case)
    modes = [module.training for module in teacher.modules()]
    saliency = channel_saliency(
        teacher, student, PairLoader(data, batch_size=5), layer=case.layer, channel_dim=case.channel_dim, permutations=2
    )
    expected = slow(teacher, student, data.parts, case.layer, channel_dim=case.channel_dim)
    # Also for a network in half precision: sums over samples are taken in single precision at least.
    precision = torch.float64 if kind == "double precision" else torch.float32
    allowed = relative_tolerance(precision) * saliency.baseline
    assert np.abs(expected).max() > 100 * allowed
    np.testing.assert_allclose(saliency.scores, expected, atol=allowed, rtol=0)

    mask = saliency.mask("general", 0.5)
    weights, dim = torch.tensor(mask.weights), case.channel_dim
    with torch.no_grad():
        (activation,), plain = run(teacher, case.layer, data.parts[0])
        mean = activation.double().mean(0, keepdim=True).to(activation.dtype)

        def change(z):
            shape = [1] * z.ndim
            shape[dim] = -1
            return torch.where(weights.reshape(shape) > 0, z, mean.expand_as(z))

        _, masked = run(teacher, case.layer, data.parts[0], change)
        focused = mask_channels(teacher, mask).eval()
        found = logits_of(focused(data.parts[0]))
    masked, plain = logits_of(masked), logits_of(plain)
    assert not torch.allclose(masked, plain)
    # A mask holds its means in single precision.
    coarse = masked.dtype if masked.dtype == torch.bfloat16 else torch.float32
    close = {"atol": relative_tolerance(coarse) * float(masked.abs().max()), "rtol": 0}
    torch.testing.assert_close(found, masked, **close)
    cached, unmasked = masked_logits(teacher, [mask, None], PairLoader(data, batch_size=7))
    torch.testing.assert_close(cached, masked, **close)
    torch.testing.assert_close(unmasked, plain, **close)
    assert modes == [module.training for module in teacher.modules()]

    if kind in ("dense", "half precision"):  # trained with a problem of their own, and in another way
        return
    recipe, fresh = Recipe(epochs=1, batch_size=4), seeded(case.make, 3)
    ours = distill(focused, copy.deepcopy(fresh), data, data, recipe=recipe).student
    slow_way = distill(None, copy.deepcopy(fresh), data, data, recipe=recipe, teacher_logits=masked).student
    for (name, a), (_, b) in zip(ours.state_dict().items(), slow_way.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert fingerprint(ours) != fingerprint(fresh)


def test_dense_outputs_all_count_in_the_exact_formula():
    """K = all outputs, for a tail that is affine: the mean over all permutations is the mean over rotations."""
    from networks import rotations

    case = KINDS["dense"]
    teacher, student, data = trained_a_little(case, 1), trained_a_little(case, 2), Pairs(case)
    pairs = PairLoader(data, batch_size=5)
    exact = channel_saliency(teacher, student, pairs, layer="1", permutations="exact")
    rises = slow_rises(Plain(teacher), Plain(student), data.parts, "network.1", rotations(COUNT)).mean(0).numpy()
    np.testing.assert_allclose(exact.scores, rises, rtol=1e-4, atol=1e-9)
    logits = [logits_of(network.eval()(part)) for network, part in zip((teacher, student), data.parts, strict=False)]
    assert exact.baseline == pytest.approx(float((logits[0] - logits[1]).square().mean().detach()), rel=1e-5)


def test_a_matrix_too_large_is_sampled_instead(monkeypatch):
    case = KINDS["dense"]
    teacher, student, data = trained_a_little(case, 1), trained_a_little(case, 2), Pairs(case)
    monkeypatch.setattr("mfh.saliency.permutation._MATRIX_ELEMENTS", 1000)
    assert channel_saliency(teacher, student, PairLoader(data), layer="1").permutations == 10
    with pytest.raises(InputError, match="'exact', but the matrix of the network after layer '1' would have 108 x 144"):
        channel_saliency(teacher, student, PairLoader(data), layer="1", permutations="exact")


@pytest.mark.parametrize("how", ["whole", "in place", "a part"])
def test_compiled_networks_are_read_as_what_they_were_made_from(how):
    case = Case(conv, image, "4")
    plain, plain_student, data = trained_a_little(case, 1), trained_a_little(case, 2), Pairs(case)
    teacher, student = copy.deepcopy(plain), copy.deepcopy(plain_student)
    layer = "4"
    if how == "whole":
        teacher, student = (torch.compile(network, backend="eager") for network in (teacher, student))
    elif how == "in place":
        for network in (teacher, student):
            network.compile(backend="eager")
    else:
        body = nn.Sequential(*list(teacher)[:6])
        teacher, layer = nn.Sequential(torch.compile(body, backend="eager"), *list(teacher)[6:]), "0._orig_mod.4"
        plain, slow_layer = nn.Sequential(nn.Sequential(*list(plain)[:6]), *list(plain)[6:]), "0.4"
    slow_layer = "0.4" if how == "a part" else "4"
    with torch.no_grad():
        teacher.eval()(data.parts[0])  # compiled before anyone looks inside
    saliency = channel_saliency(teacher, student, PairLoader(data, batch_size=5), layer=layer, permutations=2)
    expected = slow(plain, plain_student, data.parts, slow_layer)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(saliency.scores, expected, rtol=1e-4, atol=1e-6)
    mask = saliency.mask("general", 0.5)
    focused = mask_channels(teacher, mask).eval()(data.parts[0])
    (cached,) = masked_logits(teacher, [mask], PairLoader(data))
    other = ChannelMask(slow_layer, mask.weights, mask.means, fingerprint(plain))
    truth = mask_channels(plain, other).eval()(data.parts[0])
    assert not torch.allclose(truth, plain.eval()(data.parts[0]))
    torch.testing.assert_close(focused, truth)
    torch.testing.assert_close(cached, truth.detach())
    if how == "whole":
        same = channel_saliency(plain, plain_student, PairLoader(data), layer="_orig_mod.4", permutations=2)
        assert same.fingerprint == saliency.fingerprint
        assert same.layer == saliency.layer == "4"
        fit = distill(teacher, student, data, data, recipe=Recipe(epochs=1))
        again = distill(plain, plain_student, data, data, recipe=Recipe(epochs=1))
        assert fingerprint(fit.student) == fingerprint(again.student)


def test_under_autocast_scores_are_those_of_the_network_under_autocast():
    case = Case(WithOutput, flat, "body")
    teacher, student, data = trained_a_little(case, 1), trained_a_little(case, 2), Pairs(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        saliency = channel_saliency(teacher, student, PairLoader(data, batch_size=5), layer="body", permutations=2)
        expected = slow(teacher, student, data.parts, "body")
    full = slow(teacher, student, data.parts, "body")
    assert not np.allclose(expected, full, rtol=1e-3)
    single, half = (relative_tolerance(dtype) for dtype in (torch.float32, torch.bfloat16))
    np.testing.assert_allclose(saliency.scores, expected, atol=single * saliency.baseline, rtol=0)
    np.testing.assert_allclose(saliency.scores, full, atol=half * saliency.baseline, rtol=0)


def test_training_in_mixed_precision_moves_towards_what_single_precision_finds():
    case = Case(WithOutput, flat, "body")
    data, teacher = Pairs(case), trained_a_little(case, 1)
    fits = {
        precision: distill(teacher, seeded(case.make, 3), data, data, recipe=Recipe(epochs=3, precision=precision))
        for precision in ("32-true", "bf16-mixed")
    }
    losses = [fit.history[-1]["train_loss"] for fit in fits.values()]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in fits["bf16-mixed"].student.parameters())


def test_a_teacher_in_half_precision_teaches_a_student_in_single():
    case = KINDS["half precision"]
    data, teacher = Pairs(Case(WithOutput, flat, "body")), seeded(case.make, 1)

    class Rounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def forward(self, x):
            return self.teacher(x.to(torch.bfloat16))

    student = seeded(WithOutput, 3)
    with torch.no_grad():
        logits = Rounding()(data.parts[0]).logits
    assert logits.dtype == torch.bfloat16
    recipe = Recipe(epochs=1, batch_size=4)
    ours = distill(Rounding(), copy.deepcopy(student), data, data, recipe=recipe).student
    theirs = distill(None, copy.deepcopy(student), data, data, recipe=recipe, teacher_logits=logits.float()).student
    assert fingerprint(ours) == fingerprint(theirs)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_networks_without_weights_are_refused():
    case = Case(WithOutput, flat, "body")
    data, good = Pairs(case), seeded(case.make)
    with torch.device("meta"):
        empty = WithOutput()
    said = "WithOutput has parts on the meta device, which holds no values; load its weights first"
    for call in (
        lambda: channel_saliency(empty, good, PairLoader(data), layer="body"),
        lambda: channel_saliency(good, empty, PairLoader(data), layer="body"),
        lambda: distill(empty, good, data, data),
        lambda: distill(good, empty, data, data),
        lambda: pretrain(empty, data, data, role="student"),
        lambda: align(empty, good, data, data),
        lambda: mask_channels(empty, ChannelMask("body", np.ones(6), np.zeros(6), "")),
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_a_network_on_several_devices_is_left_there_and_only_read(monkeypatch):
    """Tried with one device and a network that says otherwise."""
    case = Case(WithOutput, flat, "body")
    data, teacher, student = Pairs(case), seeded(case.make, 1), seeded(case.make, 2)
    expected = distill(teacher, copy.deepcopy(student), data, data, recipe=Recipe(epochs=1)).student
    monkeypatch.setattr(teacher, "to", lambda *_: pytest.fail("a network with places of its own was moved"))
    places = {torch.device("cpu"), torch.device("cuda:1")}
    devices_of = modes.devices_of
    monkeypatch.setattr(modes, "devices_of", lambda m: places if m is teacher else devices_of(m))
    fit = distill(teacher, copy.deepcopy(student), data, data, recipe=Recipe(epochs=1), device="cpu")
    assert fingerprint(fit.student) == fingerprint(expected)
    said = r"the {} is spread over several devices \(cpu, cuda:1\)"
    with pytest.raises(InputError, match=said.format("teacher")):
        channel_saliency(teacher, student, PairLoader(data), layer="body")
    with pytest.raises(InputError, match=said.format("student")):
        pretrain(teacher, data, data, role="student")


def test_padding_masks_and_dropout_do_not_change_what_is_read_twice():
    network, inputs = seeded(Attention), {"x": randn(6, 4, 5), "padding": padding(6, 4)}
    data = [({k: v[i] for k, v in inputs.items()}, torch.zeros(2), 0) for i in range(6)]
    first, second = (masked_logits(network.train(), [None], PairLoader(data, batch_size=size))[0] for size in (2, 6))
    torch.testing.assert_close(first, second)
    assert batches((inputs, torch.zeros(6, 2), torch.zeros(6)), 3)
