import copy
import io
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from torch import nn

from mfh import ChannelMask, channel_saliency, mask_channels
from mfh.errors import InputError
from mfh.networks.modes import fingerprint, unfused_attention
from mfh.saliency.masks import FocusedTeacher, apply_mask, masked_logits
from mfh.saliency.scores import soft_weights
from networks import CASES, Attention, Branching, Twice, batches, conv, flat, image, padding, randn, run, seeded


def mask_of(teacher, layer="2", width=4, weights=None, means=None, **more):
    generator = np.random.default_rng(0)
    return ChannelMask(
        layer=layer,
        weights=generator.random(width) if weights is None else weights,
        means=generator.normal(size=width) if means is None else means,
        fingerprint=fingerprint(teacher),
        **more,
    )


def saliency_of(teacher, inputs, layer, channel_dim=1, **more):
    count = len(inputs)
    student = seeded(lambda: nn.Linear(4, 3), 7)
    pairs = batches((inputs, randn(count, 4, seed=2), torch.zeros(count)), 16)
    return channel_saliency(teacher, student, pairs, layer=layer, channel_dim=channel_dim, permutations=2, **more)


# --- saliency -> mask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 0.9])
def test_general_and_specific_remove_the_two_ends(ratio):
    saliency = saliency_of(seeded(conv), image(40, 1), "5")
    general, specific = (saliency.mask(kind, ratio=ratio) for kind in ("general", "specific"))
    count = int(ratio * 24)
    assert sorted(general.removed) == sorted(np.argsort(saliency.scores)[:count])
    assert sorted(specific.removed) == sorted(np.argsort(-saliency.scores)[:count])
    assert (general.kind, general.ratio, general.score) == ("general", ratio, "distance")
    if ratio == 0.5:
        np.testing.assert_array_equal(general.weights, 1 - specific.weights)


def test_random_removes_without_replacement_and_by_seed():
    saliency = saliency_of(seeded(conv), image(40, 1), "5")
    masks = [saliency.mask("random", ratio=0.5, seed=seed) for seed in range(30)]
    assert {len(mask.removed) for mask in masks} == {12}
    assert len({tuple(mask.removed) for mask in masks}) > 25
    again = saliency.mask("random", ratio=0.5, seed=3)
    np.testing.assert_array_equal(again.weights, masks[3].weights)
    removed = np.mean([1 - mask.weights for mask in masks], axis=0)
    assert (np.abs(removed - 0.5) < 0.45).all()  # no channel is favoured


def test_soft_weights():
    teacher, inputs = seeded(conv), image(40, 1)
    distance = saliency_of(teacher, inputs, "5")
    np.testing.assert_array_equal(distance.mask("soft").weights, distance.normalized)
    probe = saliency_of(teacher, inputs, "5", score="probe")
    assert (probe.scores < 0).any()
    seen = np.clip(probe.scores, 0, 1)
    ceiling = max(np.quantile(seen, 0.95), 0.1)
    np.testing.assert_array_equal(probe.mask("soft").weights, np.minimum(seen / ceiling, 1))


def test_soft_weights_take_no_noise_for_a_signal():
    noise = np.random.default_rng(0).normal(scale=0.01, size=200)
    assert soft_weights(noise).max() < 0.4
    assert soft_weights([0.3] * 9 + [0.0] * 291).max() == 1.0  # few channels are shared, and kept whole
    np.testing.assert_array_equal(soft_weights([1.0, 1.0, 0.5]), [1.0, 1.0, 0.5])


def test_fill():
    saliency = saliency_of(seeded(conv), image(40, 1), "2")
    assert np.abs(saliency.means).max() > 0.1
    np.testing.assert_array_equal(saliency.mask("general", ratio=0.5).means, saliency.means)
    assert (saliency.mask("general", ratio=0.5, fill="zero").means == 0).all()


def test_bad_masks():
    saliency = saliency_of(seeded(conv), image(20, 1), "2")
    for ratio in (None, -0.1, 1, 1.5, float("nan")):
        with pytest.raises(InputError, match=rf"ratio is {ratio}; .*at least 0 and below 1"):
            saliency.mask("general", ratio=ratio)
    with pytest.raises(InputError, match=r"ratio is 0.5, but a soft mask removes nothing"):
        saliency.mask("soft", ratio=0.5)
    with pytest.raises(InputError, match=r"'generl'; close names: 'general'"):
        saliency.mask("generl", ratio=0.5)
    with pytest.raises(InputError, match=r"fill is 'median'; choose 'mean' or 'zero'"):
        saliency.mask("general", ratio=0.5, fill="median")
    teacher = conv()
    for wrong in ([0.5, 1.1], [-0.1], [[0.5]], [], [float("nan")]):
        with pytest.raises(InputError, match="one number in \\[0, 1\\] per channel"):
            mask_of(teacher, weights=wrong, means=[0.0] * len(wrong))
    for wrong in ([0.0] * 3, 1.0, [float("inf")] * 4):
        with pytest.raises(InputError, match=r"finite values of shape \(C,\)"):
            mask_of(teacher, means=wrong)


def test_a_mask_does_not_change_with_the_arrays_it_was_made_of(tmp_path):
    weights, means = np.ones(4), np.zeros(4)
    mask = mask_of(conv(), weights=weights[::-1], means=means)
    weights[:], means[:] = 0, 9
    assert mask.weights.tolist() == [1] * 4
    assert mask.means.tolist() == [0] * 4
    mask.save(tmp_path / "m")


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(0, 1)),
    st.sampled_from([None, "probe"]),
    st.one_of(st.none(), st.floats(0, 0.99)),
)
def test_round_trip(tmp_path_factory, weights, score, ratio):
    path = tmp_path_factory.mktemp("mask") / "mask.safetensors"
    mask = ChannelMask("a.b", weights, weights * 3 - 1, "f" * 32, channel_dim=2, kind="mine", score=score, ratio=ratio)
    mask.save(path)
    loaded = ChannelMask.load(path)
    for name in ChannelMask.__dataclass_fields__:
        a, b = getattr(mask, name), getattr(loaded, name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def test_oracle_by_replacing_weights():
    import dataclasses

    mask = saliency_of(seeded(conv), image(20, 1), "2").mask("general", ratio=0.5)
    oracle = dataclasses.replace(mask, weights=[1, 0, 0, 1], kind="oracle")
    assert oracle.removed.tolist() == [1, 2]
    with pytest.raises(AttributeError):
        oracle.kind = "other"


# --- mask -> focused teacher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_focused_teacher_is_its_formula(name):
    case = CASES[name]
    teacher, inputs = seeded(case.make).eval(), case.inputs(7, 1)
    (activation,), logits = run(teacher, case.layer, inputs)
    moved = activation.movedim(case.channel_dim, 1)
    width = moved.shape[1]
    generator = np.random.default_rng(0)
    for means in (generator.normal(size=width), generator.normal(size=tuple(moved.shape[1:]))):
        mask = mask_of(teacher, case.layer, width, means=means, channel_dim=case.channel_dim % activation.ndim)

        def change(z, mask=mask):
            z = z.movedim(mask.channel_dim, -1)
            middle = torch.from_numpy(np.moveaxis(mask.means, 0, -1)).float()
            return (middle + torch.from_numpy(mask.weights).float() * (z - middle)).movedim(-1, mask.channel_dim)

        _, expected = run(teacher, case.layer, inputs, change)
        focused = mask_channels(teacher, mask)
        with torch.no_grad():
            found = focused(inputs)
        assert not torch.allclose(found, logits, atol=1e-3)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        cached = masked_logits(teacher, [None, mask, None], batches((inputs, randn(7, 1), torch.zeros(7)), 3))
        torch.testing.assert_close(cached[1], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(cached[0], cached[2])
        torch.testing.assert_close(cached[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["convolution, pooled", "hidden", "attention", "in-place after a convolution"])
def test_ratio_zero_changes_no_bit(name):
    case = CASES[name]
    teacher, inputs = seeded(case.make).eval(), case.inputs(33, 1)
    (activation,), _ = run(teacher, case.layer, inputs)
    width = activation.shape[case.channel_dim]
    dim = case.channel_dim % activation.ndim
    mask = mask_of(teacher, case.layer, width, weights=np.ones(width), channel_dim=dim)
    focused = mask_channels(teacher, mask)
    with torch.no_grad(), unfused_attention():
        assert torch.equal(focused(inputs), teacher(inputs))
    torch.manual_seed(3)
    training = focused.train()(inputs)
    torch.manual_seed(3)
    assert torch.equal(training, teacher.train()(inputs))


def test_removing_everything_makes_the_teacher_constant():
    teacher, inputs = seeded(conv).eval(), image(20, 1)
    assert teacher(inputs).std(0).min() > 0.01
    means = saliency_of(teacher, inputs, "2").means
    focused = mask_channels(teacher, mask_of(teacher, weights=np.zeros(4), means=means))
    with torch.no_grad():
        logits = focused(inputs)
        assert torch.equal(logits, logits[:1].expand_as(logits))
        mean = torch.from_numpy(means).float()[None]
        torch.testing.assert_close(logits[:1], run(teacher, "2", inputs[:1], lambda _: mean)[1])


def test_removal_agrees_with_captum():
    # One channel put at its mean: what feature ablation with that baseline computes.
    teacher, inputs = seeded(conv).eval(), image(20, 1)
    (activation,), logits = run(teacher, "7", inputs)
    means = activation.mean(0)
    for logit in range(3):
        ablation = FeatureAblation(lambda z, logit=logit: teacher[8:](z)[:, logit])
        with torch.no_grad():
            expected = ablation.attribute(activation, baselines=means[None])
            found = []
            for c in range(7):
                mask = mask_of(teacher, "7", 7, weights=np.arange(7) != c, means=means.numpy())
                found.append(logits[:, logit] - mask_channels(teacher, mask)(inputs)[:, logit])
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(torch.stack(found, 1), expected, rtol=1e-3, atol=1e-5)


def test_the_teacher_is_untouched():
    teacher = seeded(conv).train()
    before = copy.deepcopy(teacher.state_dict())
    focused = mask_channels(teacher, mask_of(teacher))
    focused(image(6, 1)).sum().backward()
    assert not any(module._forward_hooks for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training
    assert focused.training
    assert not mask_channels(teacher.eval(), mask_of(teacher)).training


def copies(focused):
    buffer = io.BytesIO()
    torch.save(focused, buffer)
    buffer.seek(0)
    yield copy.deepcopy(focused)
    yield pickle.loads(pickle.dumps(focused))
    yield torch.load(buffer, weights_only=False)


def test_copies_are_independent():
    teacher, inputs = seeded(conv).eval(), image(6, 1)
    focused = mask_channels(teacher, mask_of(teacher))
    with torch.no_grad():
        expected, plain = focused(inputs), teacher(inputs)
        assert not torch.allclose(expected, plain)
        for other in copies(focused):
            assert torch.equal(other(inputs), expected)
            other.weights.fill_(1)
            assert torch.equal(other(inputs), plain)
            assert torch.equal(focused(inputs), expected)
            assert other(inputs).shape == (6, 3)  # each counts its own layer's runs


def test_state_dict_round_trip():
    teacher, other, inputs = seeded(conv).eval(), seeded(conv, 1).eval(), image(6, 1)
    focused = mask_channels(teacher, mask_of(teacher))
    target = mask_channels(other, mask_of(other, weights=np.ones(4)))
    with torch.no_grad():
        assert not torch.allclose(target(inputs), focused(inputs))
        target.load_state_dict(focused.state_dict())
        assert torch.equal(target(inputs), focused(inputs))
    assert {"weights", "means"} <= set(focused.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_moves_and_precisions(dtype):
    teacher, inputs = seeded(conv).eval(), image(6, 1)
    focused = mask_channels(teacher, mask_of(teacher))
    with torch.no_grad():
        expected = focused(inputs)
        moved = copy.deepcopy(focused).to(dtype)
        assert moved(inputs.to(dtype)).dtype == dtype
        torch.testing.assert_close(moved(inputs.to(dtype)).float(), expected, rtol=0.05, atol=0.05)
        half = seeded(conv).eval().to(dtype)
        made = mask_channels(half, mask_of(half))(inputs.to(dtype))
        assert made.dtype == dtype
        torch.testing.assert_close(made.float(), expected, rtol=0.05, atol=0.05)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(focused(inputs).float(), expected, rtol=0.05, atol=0.05)
    meta = focused.to("meta")
    assert meta.weights.device.type == meta.means.device.type == "meta"


@pytest.mark.parametrize("trained", ["student", "teacher"])
def test_in_a_plain_training_loop(trained):
    teacher, student = seeded(conv), seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)))
    focused = mask_channels(teacher, mask_of(teacher, weights=[1, 0, 1, 0.5]))
    inputs, target = image(30, 1), torch.arange(30) % 3
    module = focused if trained == "teacher" else student
    if trained == "student":
        focused.eval().requires_grad_(False)
    optimizer, losses = torch.optim.Adam(module.parameters(), lr=0.02), []
    for _ in range(30):
        logits = student(inputs) if trained == "student" else focused(inputs)
        loss = nn.functional.cross_entropy(logits, target)
        if trained == "student":
            loss = loss + nn.functional.mse_loss(logits, focused(inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    if trained == "teacher":  # nothing flows through a removed channel
        gradient = focused.teacher[0].weight.grad.flatten(1).abs().sum(1)
        assert gradient[1] == 0
        assert (gradient[[0, 2, 3]] > 0).all()


@pytest.mark.parametrize("layer", ["embed", "encoder.layers.0", "encoder.layers.0.linear1", "encoder"])
def test_attention_keeps_its_mask_in_eval_mode_without_gradients(layer):
    # PyTorch's fused path would skip the layer's hook, or hand it nested tensors.
    teacher = seeded(Attention).eval()
    inputs = {"x": randn(6, 4, 5), "padding": padding(6, 4)}
    (activation,), _ = run(teacher, layer, inputs)
    width = activation.shape[2]
    mask = mask_of(teacher, layer, width, channel_dim=2)
    focused = mask_channels(teacher, mask)
    expected = focused(inputs).detach()
    with torch.no_grad():
        torch.testing.assert_close(focused(inputs), expected)
    with torch.inference_mode():
        torch.testing.assert_close(focused(inputs), expected)


def test_masks_on_two_layers():
    teacher, inputs = seeded(conv).eval(), image(6, 1)
    once = mask_channels(teacher, mask_of(teacher))
    twice = mask_channels(once, mask_of(once, "teacher.7", 7))
    (hidden,), _ = run(once, "teacher.7", inputs)
    mask = mask_of(once, "teacher.7", 7)
    changed = apply_mask(hidden, torch.tensor(mask.weights).float(), torch.tensor(mask.means).float(), 1)
    with torch.no_grad():
        torch.testing.assert_close(twice(inputs), teacher[8:](changed))
    (logits,) = masked_logits(twice, [None], [(inputs, inputs, torch.zeros(6))])
    torch.testing.assert_close(logits, twice(inputs).detach())


def test_saliency_of_a_focused_teacher():
    teacher, inputs = seeded(conv).eval(), image(20, 1)
    focused = mask_channels(teacher, mask_of(teacher, weights=[1, 0, 1, 1]))
    saliency = saliency_of(focused, inputs, "teacher.2")
    assert saliency.scores[1] == pytest.approx(0, abs=1e-9)
    assert (saliency.scores[[0, 2, 3]] != 0).all()
    assert len(focused.teacher[2]._forward_hooks) == 1


# --- bad input -------------------------------------------------------------------------------------------------------


def test_mask_of_another_teacher():
    mask = mask_of(seeded(conv))
    other = seeded(conv, 1)
    with pytest.raises(InputError, match=r"the mask was made for another teacher \(fingerprint.*score this one"):
        mask_channels(other, mask)
    with pytest.raises(InputError, match="another teacher"):
        masked_logits(other, [None, mask], [(image(3, 0), image(3, 0), torch.zeros(3))])


def test_mask_of_another_layer_or_width():
    teacher, inputs = seeded(conv).eval(), image(3, 0)
    with pytest.raises(InputError, match="no layer '77'"):
        mask_channels(teacher, mask_of(teacher, "77"))
    for layer, means in (("7", None), ("2", np.zeros((4, 3, 3)))):
        mask = mask_of(teacher, layer, 4, means=means)
        for call in (
            lambda mask=mask: mask_channels(teacher, mask)(inputs),
            lambda mask=mask: masked_logits(teacher, [mask], [(inputs, inputs, torch.zeros(3))]),
        ):
            with pytest.raises(InputError, match="made for another layer or input size"):
                call()
    several = [mask_of(teacher, "2"), mask_of(teacher, "7", 7)]
    with pytest.raises(InputError, match="evaluate one layer at a time"):
        masked_logits(teacher, several, [(inputs, inputs, torch.zeros(3))])
    with pytest.raises(InputError, match="no samples"):
        masked_logits(teacher, [None], [])


def test_a_layer_that_runs_twice():
    teacher = seeded(Twice)
    focused = mask_channels(teacher, mask_of(teacher, "relu", 5))
    with pytest.raises(InputError, match="'relu' ran 2 times"):
        focused(flat(3, 0))
    unused = mask_channels(teacher, mask_of(teacher, "unused", 2))
    with pytest.raises(InputError, match="'unused' ran 0 times"):
        unused(flat(3, 0))


def test_a_network_that_cannot_be_cut():
    teacher, inputs = seeded(Branching).eval(), flat(9, 0)
    mask = mask_of(teacher, "first", 6)
    found = masked_logits(teacher, [mask], batches((inputs, inputs, torch.zeros(9)), 4))[0]
    torch.testing.assert_close(found, mask_channels(teacher, mask)(inputs).detach())


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, (3, 2, 4), elements=st.floats(-1e6, 1e6, width=32)), st.integers(1, 2))
def test_apply_mask_is_exact_at_the_ends(z, dim):
    z = torch.from_numpy(z)
    width = z.shape[dim]
    means = torch.linspace(-3, 7, width)
    weights = torch.arange(width) % 2
    found = apply_mask(z, weights, means, dim).movedim(dim, 0)
    for c in range(width):
        assert torch.equal(found[c], z.select(dim, c) if weights[c] else means[c].expand_as(found[c]))


def test_keyword_arguments_reach_the_teacher():
    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(5, 4)

        def forward(self, x, *, volume=1.0):
            return self.first(x) * volume

    teacher = Loud()
    focused = mask_channels(teacher, mask_of(teacher, "first"))
    assert isinstance(focused, FocusedTeacher)
    torch.testing.assert_close(focused(flat(3, 0), volume=3.0), focused(x=flat(3, 0)) * 3)
