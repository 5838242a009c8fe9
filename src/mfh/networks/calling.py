"""Call a network on its input, which is one argument, or several by name."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from mfh.data.pairs import Nested
from mfh.networks.modes import original


def call(network: nn.Module, inputs: Nested) -> Any:
    """Run a network on its input.

    A mapping whose keys are arguments of the network's `forward` is given by name, as networks of Hugging Face's
    `transformers` expect it. Everything else is one argument: so is a mapping for a `forward` with a single argument.

    Args:
        network: The network.
        inputs: Its input: a tensor, or nested tuples, lists and mappings of tensors.

    Example:
        >>> class Sum(nn.Module):
        ...     def forward(self, left, right):
        ...         return left + right
        >>> call(Sum(), {"left": 1, "right": 2})
        3
    """
    return network(**inputs) if takes_by_name(network, inputs) else network(inputs)


def takes_by_name(network: nn.Module, inputs: Nested) -> bool:
    """Whether `call` gives the parts of an input by name.

    Args:
        network: The network.
        inputs: Its input.
    """
    if not isinstance(inputs, Mapping) or not all(isinstance(key, str) for key in inputs):
        return False
    names, takes_any = argument_names(network)
    known = [key in names for key in inputs]
    return len(names) > 1 and any(known) and (takes_any or all(known))


def argument_names(network: nn.Module) -> tuple[list[str], bool]:
    """Names of the arguments of a network's `forward`, and whether it takes any other ones.

    A wrapper that takes anything, such as a focused teacher or `DistributedDataParallel`, has those of its only child.

    Args:
        network: The network.
    """
    network = original(network)
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return [], False
    names = [parameter.name for parameter in parameters if parameter.kind not in (_ANY_PLACE, _ANY_NAME)]
    children = list(network.children())
    if not names and len(children) == 1:
        return argument_names(children[0])
    return names, any(parameter.kind is _ANY_NAME for parameter in parameters)


_ANY_PLACE, _ANY_NAME = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
