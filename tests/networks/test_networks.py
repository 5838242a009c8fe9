import copy
import logging
import random
import warnings
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

from mfh.errors import InputError
from mfh.networks import cut, layers
from mfh.networks.cut import Whole
from mfh.networks.layers import as_logits, capture, check_channel_dim, find_layer, from_channels, to_channels
from mfh.networks.modes import evaluating, fingerprint, placed
from networks import CASES, BatchScale, Branching, Mixing, Recurrent, Twice, conv, flat, image, randn, run, seeded


def close(a, b, tolerance=1e-5):
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_trunk_and_tail_are_the_network(name):
    case = CASES[name]
    model, inputs = seeded(case.make).eval(), case.inputs(9, 0)
    with evaluating(model):
        split = cut.split(model, case.layer, inputs)
        if case.traced:
            assert split.traced
        # Batches of other sizes and values than the cut was verified on.
        for count in (1, 2, 33):
            other = case.inputs(count, count + 5)
            (activation,), logits = run(model, case.layer, other)
            passed = split(other)
            assert close(passed.activation, activation)
            assert close(passed.logits, logits)
            changed = randn(*activation.shape, seed=3)
            _, truth = run(model, case.layer, other, lambda _, changed=changed: changed)
            assert not close(truth, logits)
            before = changed.clone()
            assert close(split.tail(changed, passed.bypass), truth)
            assert torch.equal(changed, before)  # whatever the tail does in place
            if split.head is not None:
                hidden = nn.functional.linear(changed.flatten(1), split.head.weight, split.head.bias)
                assert close(split.head.rest(hidden, passed.bypass), truth)


@pytest.mark.parametrize(
    ("name", "has_head"),
    [("flattened", True), ("flattened by the head", True), ("hidden", True), ("linear by position", False)],
)
def test_linear_head(name, has_head):
    case = CASES[name]
    model, inputs = seeded(case.make), case.inputs(9, 0)
    with evaluating(model):
        split = cut.split(model, case.layer, inputs)
    assert split.traced
    assert (split.head is not None) == has_head


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    model, inputs = seeded(conv).to(dtype), image(8, 0).to(dtype)
    with evaluating(model):
        split = cut.split(model, "4", inputs)
        assert split.traced
        (activation,), logits = run(model, "4", inputs)
        passed = split(inputs)
    assert passed.activation.dtype == passed.logits.dtype == dtype
    assert close(passed.logits, logits, 0.02)
    assert torch.equal(passed.activation, activation)


def test_networks_are_cut_without_a_warning():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch gives each warning once
    try:
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            assert cut.split(network, "1", torch.randn(5, 4)).head is not None
    finally:
        torch.set_warn_always(always)
    assert not [warning for warning in given if "requires_grad" in str(warning.message)]


def test_a_network_that_cannot_be_cut_is_replayed_and_says_so_once(caplog):
    model, inputs = seeded(Branching), flat(6, 0)
    with evaluating(model), caplog.at_level(logging.WARNING, "mfh"):
        split = cut.split(model, "first", inputs)
        for seed in range(3):
            split(flat(6, seed))
    assert not split.traced
    assert [record.getMessage() for record in caplog.records] == [
        "Branching could not be cut at layer 'first'; every evaluation of its tail runs the whole network"
    ]


def test_a_tail_that_mixes_samples_is_not_run_on_stacked_batches():
    model, inputs = seeded(Mixing), flat(6, 0)
    with evaluating(model):
        split = cut.split(model, "first", inputs)
    assert not split.traced


@pytest.mark.parametrize("count", [1, 6])
def test_what_was_constant_by_chance_is_noticed(count):
    model, inputs = seeded(BatchScale), flat(count, 0)
    inputs[0, 0] = 9.0  # the first half of the batch has the largest value
    with evaluating(model):
        split = cut.split(model, "first", inputs)
        other = flat(8, 1)
        _, logits = run(model, "first", other)
        assert close(split(other).logits, logits)


def test_inputs_of_another_shape_go_the_long_way():
    model = seeded(
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(8, 3))
    )
    with evaluating(model):
        split = cut.split(model, "2", randn(5, 1, 20))
        assert split.traced
        for length in (20, 31):
            other = randn(4, 1, length, seed=length)
            (activation,), logits = run(model, "2", other)
            passed = split(other)
            assert isinstance(passed.bypass, Whole) == (length != 20)
            assert close(passed.logits, logits)
            _, truth = run(model, "2", other, lambda z: z * 2)
            assert close(split.tail(activation * 2, passed.bypass), truth)


def test_mappings_of_any_kind_are_cut_as_dicts():
    case = CASES["dictionary"]
    model, inputs = seeded(case.make), case.inputs(6, 0)
    with evaluating(model):
        split = cut.split(model, case.layer, UserDict(inputs))
        assert split.traced
        passed = split(UserDict(inputs))
        assert not isinstance(passed.bypass, Whole)
        assert close(passed.logits, model(inputs))


def test_capture_is_not_touched_by_in_place_operations():
    model, inputs = seeded(conv).eval(), image(5, 0)
    activation, logits = capture(model, "1", inputs)
    assert (activation < 0).any()
    assert close(layers.replace(model, "1", inputs, activation), logits)
    assert (activation < 0).any()


def test_unknown_layer_lists_close_names():
    with pytest.raises(InputError, match=r"Residual has no layer 'conf'; close names: 'conv'"):
        find_layer(CASES["residual, around"].make(), "conf")
    with pytest.raises(InputError, match=r"Linear has no layer 'x'; there are none"):
        find_layer(nn.Linear(2, 2), "x")
    with pytest.raises(InputError, match="no layer ''"):
        find_layer(conv(), "")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_tuple_output(kind):
    with pytest.raises(InputError, match=r"layer 'rnn' returns a tuple; a tensor was expected"):
        cut.split(Recurrent(kind), "rnn", randn(3, 4, 5))


@pytest.mark.parametrize(
    ("layer", "message"),
    [("relu", "'relu' ran 2 times.*exactly once"), ("unused", "'unused' ran 0 times.*choose a layer that is used")],
)
def test_layer_must_run_once(layer, message):
    model = Twice()
    for call in (capture, cut.split, lambda *a: layers.replace(*a, torch.zeros(3, 5))):
        with pytest.raises(InputError, match=message):
            call(model, layer, flat(3, 0))
    assert not any(module._forward_hooks for module in model.modules())


def test_other_outputs_of_layers():
    class Sums(nn.Module):
        def forward(self, x):
            return x.sum(1)

    class Ranks(nn.Module):
        def forward(self, x):
            return x.argsort(1)

    class Net(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.out = inner, nn.Linear(5, 3)

        def forward(self, x):
            self.inner(x)
            return self.out(x)

    with pytest.raises(InputError, match=r"returns shape \(4,\).*at least one more dimension"):
        capture(Net(Sums()), "inner", flat(4, 0))
    with pytest.raises(InputError, match=r"returns torch.int64; floating point"):
        capture(Net(Ranks()), "inner", flat(4, 0))


def test_outputs_of_networks():
    class Output:
        logits = torch.zeros(3, 2)

    assert as_logits(Output()).shape == (3, 2)
    with pytest.raises(InputError, match=r"returned a dict; a tensor of logits"):
        as_logits({"logits": torch.zeros(3, 2)})
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        as_logits(torch.zeros(3))


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("on purpose")


def test_nothing_is_left_behind_after_an_exception():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(), Failing())
    model[1].eval()
    model.to(torch.float64)
    fast = torch.backends.mha.get_fastpath_enabled()
    for call in (capture, cut.split, lambda *a: layers.replace(*a, torch.zeros(3, 4))):
        with (
            pytest.raises(RuntimeError, match="on purpose"),
            placed("cpu", model),
            evaluating(model),
        ):
            call(model, "0", flat(3, 0).double())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["residual, around", "attention", "branching", "blocks"])
def test_the_callers_network_is_left_as_found(name):
    case = CASES[name]
    model = seeded(case.make).train()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if i % 2 == 0 else None
    before = copy.deepcopy(model)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with evaluating(model):
        split = cut.split(model, case.layer, case.inputs(6, 0))
        passed = split(case.inputs(6, 1))
        with torch.enable_grad():
            split.tail(passed.activation.requires_grad_(), passed.bypass)
        torch.rand(3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)
        assert now.requires_grad == then.requires_grad
        assert torch.equal(now.grad, torch.ones_like(now)) if now.requires_grad else now.grad is None
    assert not any(module._forward_hooks for module in model.modules())
    assert list(model.state_dict()) == list(before.state_dict())


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 1), ((3, 4, 2, 5), 1), ((3, 4, 2, 5), 3), ((3, 4, 2, 5), -2)])
def test_channels_and_back(shape, dim):
    z = randn(*shape)
    rows = to_channels(z, dim)
    assert rows.shape[:2] == (3, shape[dim])
    assert torch.equal(rows[:, 1].flatten(), z.select(dim, 1).flatten())
    assert torch.equal(from_channels(rows, z.shape, dim % z.ndim), z)


@pytest.mark.parametrize("dim", [0, 4, -4, -5])
def test_impossible_channel_dim(dim):
    with pytest.raises(InputError, match=rf"channel_dim is {dim}, .* choose 1 to 3"):
        check_channel_dim(randn(2, 3, 4, 5), dim, "features")


def test_fingerprint():
    model = seeded(conv)
    print_before = fingerprint(model)
    assert print_before == fingerprint(copy.deepcopy(model).eval())
    assert print_before != fingerprint(seeded(conv, 1))
    model[1].running_mean += 1e-3  # buffers count
    assert print_before != fingerprint(model)
    assert fingerprint(seeded(conv).bfloat16()) != print_before


def test_logits_of_whole_numbers_are_refused():
    from mfh.networks.layers import as_logits

    with pytest.raises(InputError, match="logits of type int64; floating point numbers were expected"):
        as_logits(torch.zeros(3, 2, dtype=torch.long))
