"""Features of layers, channels first."""

import pytest
import torch
from torch import nn

from mfh.errors import InputError
from mfh.networks.modes import evaluating
from mfh.networks.taps import Reader, find_taps, layer_at
from networks import Residual, Twice, conv, image, randn, series


class Tokens(nn.Module):
    """A transformer block's output before a head on every token."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.norm(self.embed(x)))


def read(network, layers, inputs, **more):
    taps = find_taps(network, layers, "student", **more)
    with Reader(network, taps) as reader:
        network(inputs)
        return reader.take(len(inputs))


def test_the_default_is_the_input_of_the_last_layer():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = randn(3, 5)
    (name, features), *_ = read(network, None, inputs).items()
    assert name == "input of 2"
    torch.testing.assert_close(features, network[:2](inputs), rtol=0, atol=0)
    assert features.requires_grad


def test_channels_come_first():
    tokens, inputs = Tokens(), randn(2, 4, 5)
    inside = tokens.norm(tokens.embed(inputs))
    for layers in (None, ("norm",), ("embed",)):  # linear layers and normalisation count channels last
        (features,) = read(tokens, layers, inputs).values()
        assert features.shape == (2, 6, 4)
    torch.testing.assert_close(read(tokens, ("norm",), inputs)["norm"], inside.movedim(-1, 1))
    assert read(tokens, ("norm",), inputs, channel_dim=1)["norm"].shape == (2, 4, 6)
    network = conv()
    assert read(network, ("0",), image(2, 0))["0"].shape == (2, 4, 4, 4)
    (tap,) = find_taps(tokens, ("norm",), "student")
    torch.testing.assert_close(tap.back(tap.channels_first(inside)), inside)


def test_operations_in_place_do_not_change_what_was_read():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    inputs = randn(3, 5)
    torch.testing.assert_close(read(network, ("0",), inputs)["0"], network[0](inputs))


def test_the_layer_at_a_tap():
    network = nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 2))
    (tap,) = find_taps(network, None, "teacher")
    with evaluating(network):
        assert layer_at(network, tap, randn(2, 5)) == "0.1"
        (named,) = find_taps(network, ("0.0",), "teacher")
        assert layer_at(network, named, randn(2, 5)) == "0.0"
    residual = Residual()
    (tap,) = find_taps(residual, None, "teacher")
    with evaluating(residual), pytest.raises(InputError, match="is no layer's output in Residual"):
        layer_at(residual, tap, image(2, 0))


def test_what_cannot_be_read_is_told():
    with pytest.raises(InputError, match="the teacher's layer: Sequential has no layer '9'; known names: '0'"):
        find_taps(conv(), ("9",), "teacher")
    with pytest.raises(InputError, match="layer 'relu' of Twice ran 2 times"):
        read(Twice(), ("relu",), randn(2, 5))
    with pytest.raises(InputError, match="layer 'unused' of Twice ran 0 times"):
        read(Twice(), ("unused",), randn(2, 5))
    with pytest.raises(InputError, match="channel_dim is 7"):
        read(Tokens(), ("norm",), series(2, 0), channel_dim=7)


def test_hooks_leave_with_the_block():
    network = conv()
    read(network, None, image(2, 0))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
