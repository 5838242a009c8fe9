"""Read and replace the output of a named layer, and rearrange it to channels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, num_samples
from mfh.errors import InputError, close_names
from mfh.networks.modes import eager


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`.

    Raises:
        InputError: the network has no such layer; close names are listed.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not layer or layer not in modules:
        known = [name for name in modules if name]
        raise InputError(f"{type(model).__name__} has no layer {layer!r}; {close_names(layer, known)}")
    return modules[layer]


def as_logits(output: Any) -> Tensor:
    """The logits in a network's output: the output itself, or its `.logits`.

    Raises:
        InputError: the output is something else, or has no class dimension.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"a network returned a {type(output).__name__}; a tensor of logits (N, K), or an object with .logits, "
            "was expected: wrap the network in a module that returns its logits"
        )
    if logits.ndim < 2:
        raise InputError(
            f"a network returned logits of shape {tuple(logits.shape)}; (N, K) with one column per class was expected"
        )
    return logits


def check_activation(output: Any, layer: str, samples: int | None = None) -> Tensor:
    """The layer's output, if it is a tensor with samples along dim 0.

    Raises:
        InputError: it is not.
    """
    if not isinstance(output, Tensor):
        raise InputError(
            f"layer {layer!r} returns a {type(output).__name__}; a tensor was expected: choose a layer whose output "
            "is one tensor, or wrap it"
        )
    if not output.is_floating_point():
        raise InputError(
            f"layer {layer!r} returns {output.dtype}; floating point activations were expected: choose a later layer"
        )
    if output.ndim < 2 or (samples is not None and len(output) != samples):
        raise InputError(
            f"layer {layer!r} returns shape {tuple(output.shape)} for {samples} samples; samples along dim 0 and at "
            "least one more dimension were expected"
        )
    return output


def check_channel_dim(activation: Tensor, channel_dim: int, layer: str) -> int:
    """`channel_dim` counted from the front.

    Raises:
        InputError: there is no such dimension, or it is the samples'.
    """
    if not -activation.ndim <= channel_dim < activation.ndim or channel_dim % activation.ndim == 0:
        raise InputError(
            f"channel_dim is {channel_dim}, but layer {layer!r} returns shape {tuple(activation.shape)}; "
            f"choose 1 to {activation.ndim - 1} (dim 0 counts samples)"
        )
    return channel_dim % activation.ndim


def to_channels(activation: Tensor, channel_dim: int) -> Tensor:
    """Rearrange a layer's output to (N, C, P): samples, channels, positions."""
    moved = activation.movedim(channel_dim, 1)
    return moved.reshape(len(moved), moved.shape[1], -1)


def from_channels(channels: Tensor, shape: torch.Size, channel_dim: int) -> Tensor:
    """Undo `to_channels` for an output whose shape, but for the number of samples, is `shape`."""
    moved = torch.empty(shape, device="meta").movedim(channel_dim, 1).shape
    return channels.reshape(len(channels), *moved[1:]).movedim(1, channel_dim)


def capture(model: nn.Module, layer: str, inputs: Nested) -> tuple[Tensor, Tensor]:
    """Run the network once and read one layer on the way.

    Args:
        model: returns logits.
        layer: a name from `named_modules()`.
        inputs: the network's one argument.

    Returns:
        The layer's output (a copy, so later in-place changes do not reach it) and the logits.

    Raises:
        InputError: there is no such layer, it did not run exactly once, or its output is not a tensor.
    """
    (activation,), logits = capture_all(model, [layer], inputs)
    return activation, logits


def capture_all(model: nn.Module, layers: Sequence[str], inputs: Nested) -> tuple[list[Tensor], Tensor]:
    """`capture` of several layers in one run: their outputs in the given order, and the logits."""
    captured: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    samples = num_samples(inputs)

    def reader(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(_module: nn.Module, _args: Any, output: Any) -> None:
            captured[layer].append(check_activation(output, layer, samples).clone())

        return read

    with ExitStack() as stack:
        for layer in captured:
            stack.enter_context(hooked(find_layer(model, layer), reader(layer)))
        logits = as_logits(model(inputs))
    for layer, outputs in captured.items():
        _check_once(layer, len(outputs))
    return [captured[layer][0] for layer in layers], logits


def replace(model: nn.Module, layer: str, inputs: Nested, activation: Tensor) -> Tensor:
    """Run the network with one layer's output replaced.

    Args:
        model: returns logits.
        layer: a name from `named_modules()`.
        inputs: the network's one argument.
        activation: what the layer shall return instead.

    Returns:
        The logits.

    Raises:
        InputError: there is no such layer, or it did not run exactly once.
    """
    calls = 0

    def put(_module: nn.Module, _args: Any, _output: Any) -> Tensor:
        nonlocal calls
        calls += 1
        # A copy: in-place operations after the layer must not change the caller's tensor.
        return activation.clone()

    with hooked(find_layer(model, layer), put):
        logits = as_logits(model(inputs))
    _check_once(layer, calls)
    return logits


@contextmanager
def hooked(module: nn.Module, function: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Call `function` after every forward of the module; compiled networks run uncompiled meanwhile."""
    handle = module.register_forward_hook(function)
    try:
        with eager():
            yield
    finally:
        handle.remove()


def _check_once(layer: str, calls: int) -> None:
    if calls != 1:
        raise InputError(
            f"layer {layer!r} ran {calls} times in one forward; exactly once is needed"
            + (": give each use its own module, or choose another layer" if calls else ": choose a layer that is used")
        )
