"""Read and replace the output of a named layer, check it, and rearrange it to channels."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, num_samples
from mfh.errors import InputError, close_names
from mfh.networks.calling import call
from mfh.networks.modes import eager

log = logging.getLogger("mfh")


def capture(model: nn.Module, layer: str, inputs: Nested) -> tuple[Tensor, Tensor]:
    """Run the network once and read the output of one layer.

    Args:
        model: A network that returns logits.
        layer: A name from `named_modules()`.
        inputs: The network's one argument.

    Returns:
        The layer's output and the logits. The output is a copy, which later in-place operations do not change.

    Raises:
        InputError: There is no such layer, it did not run exactly once, or its output is not a tensor.
    """
    (activation,), logits = capture_all(model, [layer], inputs)
    return activation, logits


def capture_given(model: nn.Module, layer: str, inputs: Nested) -> tuple[list[Any], Any]:
    """Run the network once and read the input of one layer.

    Returns:
        The layer's first positional argument in each of its runs (copies of tensors, which later in-place operations do
        not change), and what the network returned.
    """
    given = list[Any]()

    def read(_module: nn.Module, args: tuple[Any, ...]) -> None:
        given.extend(value.clone() if isinstance(value, Tensor) else value for value in args[:1])

    handle = model.get_submodule(layer).register_forward_pre_hook(read)
    try:
        return given, call(model, inputs)
    finally:
        handle.remove()


def capture_all(model: nn.Module, layers: Sequence[str], inputs: Nested) -> tuple[list[Tensor], Tensor]:
    """Run the network once and read the outputs of several layers, see `capture`.

    Returns:
        The outputs in the order of `layers`, and the logits.
    """
    captured: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    samples = num_samples(inputs)

    def reader(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(_module: nn.Module, _args: Any, output: Any) -> None:
            captured[layer].append(check_activation(output, layer, samples).clone())

        return read

    with ExitStack() as stack:
        for layer in captured:
            stack.enter_context(hooked(find_layer(model, layer), reader(layer)))
        logits = as_logits(call(model, inputs))
    for layer, outputs in captured.items():
        _check_once(layer, len(outputs))
    return [captured[layer][0] for layer in layers], logits


def replace(model: nn.Module, layer: str, inputs: Nested, activation: Tensor) -> Tensor:
    """Run the network with one layer's output replaced.

    Args:
        model: A network that returns logits.
        layer: A name from `named_modules()`.
        inputs: The network's one argument.
        activation: The tensor that replaces the layer's output.

    Returns:
        The logits.

    Raises:
        InputError: There is no such layer, or it did not run exactly once.
    """
    calls = 0

    def put(_module: nn.Module, _args: Any, _output: Any) -> Tensor:
        nonlocal calls
        calls += 1
        # A copy: in-place operations after the layer must not change the caller's tensor.
        return activation.clone()

    with hooked(find_layer(model, layer), put):
        logits = as_logits(call(model, inputs))
    _check_once(layer, calls)
    return logits


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`.

    Raises:
        InputError: The network has no such layer; the message lists close names.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not layer or layer not in modules:
        known = [name for name in modules if name]
        raise InputError(f"{type(model).__name__} has no layer {layer!r}; {close_names(layer, known)}")
    return modules[layer]


def default_layer(network: nn.Module, role: str = "student") -> str:
    """The name of the network's last leaf module with parameters, usually its classifier.

    Its input is the network's penultimate layer: what the probe reads of a student, and a method of features by
    default.

    Args:
        network: The network.
        role: "teacher" or "student", for the message.

    Raises:
        InputError: The network has no parameters.
    """
    leaves: list[str] = [
        name
        for name, module in network.named_modules()
        if not [*module.children()] and [*module.parameters(recurse=False)]
    ]
    if not leaves:
        raise InputError(f"the {role} ({type(network).__name__}) has no layer with parameters; name {role}_layer")
    return leaves[-1]


@contextmanager
def hooked(module: nn.Module, function: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Register `function` as a forward hook of the module; meanwhile compiled networks run uncompiled."""
    handle = module.register_forward_hook(function)
    try:
        with eager():
            yield
    finally:
        handle.remove()


def _check_once(layer: str, calls: int) -> None:
    if calls != 1:
        raise InputError(
            f"layer {layer!r} ran {calls} times in one forward, but exactly once was expected; "
            + ("give each use its own module, or choose another layer" if calls else "choose a layer that is used")
        )


def as_logits(output: Any) -> Tensor:
    """The logits in a network's output: the output itself, or its `.logits`.

    Raises:
        InputError: The output is something else, has no class dimension, or is of whole numbers.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"a network returned a {type(output).__name__}; a tensor of logits (N, K), or an object with .logits, "
            "was expected; wrap the network in a module that returns its logits"
        )
    if logits.ndim < 2:
        raise InputError(
            f"a network returned logits of shape {tuple(logits.shape)}; (N, K) with one column per class was expected; "
            "wrap the network in a module that returns its logits"
        )
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise InputError(f"a network returned logits of type {kind}; floating point numbers were expected")
    return logits


def check_activation(output: Any, layer: str, samples: int | None = None) -> Tensor:
    """The layer's output, if it is a floating point tensor with samples along dim 0.

    Args:
        output: What the layer returned.
        layer: The layer's name, for the message.
        samples: The number of samples in the batch; None if it is unknown.

    Raises:
        InputError: The output is something else.
    """
    if not isinstance(output, Tensor):
        raise InputError(
            f"layer {layer!r} returns a {type(output).__name__}; a tensor was expected; choose a layer whose output "
            "is one tensor, or wrap it"
        )
    if not output.is_floating_point():
        raise InputError(
            f"layer {layer!r} returns {output.dtype}; floating point activations were expected; choose a later layer"
        )
    for_samples = "" if samples is None else f" for {samples} samples"
    if output.ndim < 2 or (samples is not None and len(output) != samples):
        raise InputError(
            f"layer {layer!r} returns shape {tuple(output.shape)}{for_samples}; samples along dim 0 and at "
            "least one more dimension were expected; choose another layer"
        )
    return output


def check_channel_dim(activation: Tensor, channel_dim: int, layer: str) -> int:
    """`channel_dim` counted from the front.

    Raises:
        InputError: There is no such dimension, or it is dim 0, which counts samples.
    """
    if not -activation.ndim <= channel_dim < activation.ndim or channel_dim % activation.ndim == 0:
        raise InputError(
            f"channel_dim is {channel_dim}, but layer {layer!r} returns shape {tuple(activation.shape)}; "
            f"choose 1 to {activation.ndim - 1} (dim 0 counts samples)"
        )
    return channel_dim % activation.ndim


def warn_of_tokens(model: nn.Module, layer: str, activation: Tensor, channel_dim: int) -> None:
    """Warn where the channels that were asked for look like the tokens of a transformer.

    Its layers return (N, tokens, width), while convolutions over time return (N, channels, time). The parameters of the
    last module that made the output know which it is: a linear layer or a normalisation has as many as its width.

    Args:
        model: The network.
        layer: Name of the layer.
        activation: Its output.
        channel_dim: The dimension that counts channels, from the front.
    """
    if activation.ndim != 3 or channel_dim != 1 or activation.shape[1] == activation.shape[2]:
        return
    tokens, width = activation.shape[1:]
    own = list(find_layer(model, layer).parameters())
    if not own:  # a dropout or an activation function: what comes before it made the width
        names = [name for name, _ in model.named_modules(remove_duplicate=False)]
        before = names[: names.index(layer)]
        own = [p for name in before for p in model.get_submodule(name).parameters(recurse=False)]
    sizes = {size for parameter in own[-2:] for size in (parameter.shape[0], parameter.shape[-1])}
    if width in sizes and tokens not in sizes:
        log.warning(
            "layer %r returns shape (N, %d, %d), and channel_dim=1 takes the %d tokens for its channels; channel_dim=2 "
            "takes the %d units of its width",
            layer,
            tokens,
            width,
            tokens,
            width,
        )


def to_channels(activation: Tensor, channel_dim: int) -> Tensor:
    """Rearrange a layer's output to (N, C, P): samples, channels, positions.

    Args:
        activation: The layer's output, samples along dim 0.
        channel_dim: The dimension of the output that counts channels.
    """
    moved = activation.movedim(channel_dim, 1)
    return moved.reshape(len(moved), moved.shape[1], -1)


def from_channels(channels: Tensor, shape: torch.Size, channel_dim: int) -> Tensor:
    """Undo `to_channels`.

    Args:
        channels: (N, C, P).
        shape: The shape of the layer's output; its number of samples may differ.
        channel_dim: The dimension of the output that counts channels.
    """
    moved = torch.empty(shape, device="meta").movedim(channel_dim, 1).shape
    return channels.reshape(len(channels), *moved[1:]).movedim(1, channel_dim)
