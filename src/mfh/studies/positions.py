"""Positions of dense problems as samples: which are read of each item, and what a network shows there.

Where something is, is said relative to the size of the item, from 0 to 1 along each dimension, so that targets, logits
and maps of features of different sizes can be read at the same places.
"""

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, tensors
from mfh.errors import InputError
from mfh.networks.layers import capture, capture_given, default_layer
from mfh.problems.problem import Problem
from mfh.saliency.probe import is_input

#: Positions of an item that are read.
PER_ITEM = 8


def has_class(problem: Problem, target: Tensor) -> Tensor:
    """Which positions of dense targets, (N, ...), have a class that is known and counts."""
    known = problem.known(target)
    return known if problem.ignore_index is None else known & (target != problem.ignore_index)


def labelled_places(problem: Problem, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw positions that have a class.

    Args:
        problem: The problem, which says which positions have a class.
        target: Targets, (n, *space), with at least one class each.
        seed: Random seed.

    Returns:
        Classes (n * P,) at the positions, and places (n, P, dimensions).
    """
    weights = has_class(problem, target).flatten(1).float()
    flat = torch.multinomial(weights, PER_ITEM, replacement=True, generator=torch.Generator().manual_seed(seed))
    places = torch.stack(torch.unravel_index(flat, target.shape[1:]), dim=-1)
    return target.flatten(1).gather(1, flat).flatten(), (places + 0.5) / torch.tensor(target.shape[1:])


def any_places(count: int, dimensions: int, seed: int) -> Tensor:
    """Places (count, P, dimensions) anywhere in so many items."""
    return torch.rand(count, PER_ITEM, dimensions, generator=torch.Generator().manual_seed(seed))


def at_places(values: Tensor, places: Tensor, what: str) -> Tensor:
    """What maps show at places.

    Args:
        values: Maps, (n, C, *space).
        places: Places, (n, P, dimensions).
        what: What the maps are, for the message.

    Returns:
        Rows (n * P, C), the places of an item one after the other.

    Raises:
        InputError: The maps have another number of dimensions than the places.
    """
    space = values.shape[2:]
    if len(space) != places.shape[2]:
        raise InputError(
            f"{what} have shape {tuple(values.shape)}; samples, channels and positions in {places.shape[2]} "
            "dimension(s) were expected, as targets have them; run a small study instead"
        )
    index = (places * torch.tensor(space)).long()
    flat = torch.zeros(index.shape[:2], dtype=torch.long)
    for dimension, size in enumerate(space):
        flat = flat * size + index[:, :, dimension]
    rows = values.flatten(2).gather(2, flat[:, None].expand(-1, values.shape[1], -1))
    return rows.movedim(1, 2).flatten(0, 1)


def feature_map(network: nn.Module, layer: str | None, inputs: Nested) -> Tensor:
    """Features of each position, (n, C, *space): the output of a layer, or the input of the network's last layer.

    The features of a fully connected layer are its last dimension, those of any other its second one.

    Args:
        network: The network.
        layer: Name of the layer; "input" means the network's input, unless a layer has that name; None its last layer.
        inputs: A batch of inputs.

    Raises:
        InputError: There is no such layer, or it does not run once on one tensor.
    """
    if layer is not None and is_input(network, layer):
        maps = [*tensors(inputs)]
        if len(maps) != 1:
            raise InputError(
                f"the network has {len(maps)} inputs; name a layer whose output has positions, not 'input'"
            )
        return maps[0]
    if layer is not None:
        found, module = capture(network, layer, inputs)[0], network.get_submodule(layer)
    else:
        name = default_layer(network)
        module, (seen, _) = network.get_submodule(name), capture_given(network, name, inputs)
        if len(seen) != 1 or not isinstance(seen[0], Tensor):
            raise InputError(
                f"the layer {name!r} does not run once on one tensor, so its input cannot be read; name another "
                "student_layer, or run a small study"
            )
        found = seen[0]
    return found.movedim(-1, 1) if isinstance(module, nn.Linear) else found
