"""One shared check of what a user hands to a training, and one clear line for each thing that cannot be used."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mfh.data.pairs import Nested, tensors
from mfh.errors import InputError
from mfh.networks.modes import check_one_device, check_weights
from mfh.parallel.distributed import world_size

ROLES = ("teacher", "student")


def check_role(role: Any) -> None:
    """Refuse anything but "teacher" and "student".

    Raises:
        InputError: The role is something else.
    """
    if role not in ROLES:
        raise InputError(f"role is {role!r}; choose 'teacher' or 'student'")


def check_dataset(dataset: Any, name: str) -> None:
    """Refuse what is no map-style data set, or an empty one.

    Args:
        dataset: What the user gave.
        name: Its name, as the beginning of the message: "train".

    Raises:
        InputError: It cannot be indexed, or it is empty.
    """
    expected = "a map-style data set of (teacher_input, student_input, target) was expected"
    if isinstance(dataset, DataLoader):
        raise InputError(f"{name} is a DataLoader; {expected}: give its data set, loader.dataset")
    if isinstance(dataset, IterableDataset):
        raise InputError(f"{name} is an IterableDataset, which has no len() and no items by number; {expected}")
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InputError(f"{name} is a {type(dataset).__name__}; {expected}, with len() and an item for each number")


def check_splits(train: Any, val: Any) -> None:
    """Refuse splits that cannot be trained on.

    Raises:
        InputError: One is no data set, is empty, or has fewer samples than there are processes.
    """
    for name, split in (("train", train), ("val", val)):
        check_dataset(split, name)
        if not len(split):
            raise InputError(f"the {name} split is empty; give at least one sample")
        if len(split) < world_size():
            raise InputError(f"the {name} split has {len(split)} samples for {world_size()} processes; start fewer")


def check_networks(networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks that cannot be trained.

    Args:
        networks: Role -> network to train.

    Raises:
        InputError: One is no module, has no weights, lies on several devices, or has no parameter to train.
    """
    for role, network in networks.items():
        if not isinstance(network, nn.Module):
            raise InputError(f"the {role} is a {type(network).__name__}; a torch.nn.Module was expected")
        check_weights(network)
        check_one_device(network, role)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            what = "all its parameters are frozen" if any(True for _ in network.parameters()) else "it has none"
            raise InputError(f"the {role} has no parameter to train ({what}); unfreeze some with requires_grad_(True)")


@contextmanager
def explained(network: nn.Module, role: str, inputs: Nested, split: str) -> Iterator[None]:
    """Say in one line why a network cannot read its input, where PyTorch or the network's own code raises an error.

    Args:
        network: The network.
        role: "teacher" or "student".
        inputs: Its input.
        split: Where the input is from, for the message.

    Raises:
        InputError: The block raised an error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the network is the user's own code
        raise InputError(_reason(error, network, role, inputs, split)) from error


def _reason(error: Exception, network: nn.Module, role: str, inputs: Nested, split: str) -> str:
    field, text = f"{role}_input of the {split} split", " ".join(f"{type(error).__name__}: {error}".split())[:300]
    weights = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    given = {tensor.dtype for tensor in tensors(inputs) if tensor.is_floating_point()}
    if weights is not None and given and weights not in given and not torch.is_autocast_enabled():
        ours, theirs = (str(dtype).removeprefix("torch.") for dtype in (weights, given.pop()))
        return (
            f"the {role} cannot read {field}: the data are {theirs} and its weights are {ours}; convert the data, for "
            f"instance with .to(torch.{ours}) or .astype('{ours}')"
        )
    if isinstance(inputs, Mapping):
        return (
            f"the {role} cannot read {field} ({text}); it is called with one argument, a dict of "
            f"{', '.join(map(str, inputs))}: wrap the network in a module whose forward(self, inputs) returns "
            "self.network(**inputs).logits"
        )
    return f"the {role} cannot read {field} ({text})"


@contextmanager
def explained_loss(loss: Callable[..., Any]) -> Iterator[None]:
    """Say in one line that a loss does not take student logits, teacher logits and target.

    Raises:
        InputError: The block raised a TypeError.
    """
    try:
        yield
    except InputError:
        raise
    except TypeError as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"loss {name} cannot be called with student logits, teacher logits and target ({reason}); give a KDLoss "
            "or a function of these three"
        ) from error
