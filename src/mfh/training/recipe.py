"""How a network is trained: everything but the data and the loss."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mfh.errors import InputError


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    """Adam with learning rate 1e-3, the default optimizer."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class Recipe:
    """How to train one network, or the aligned pair.

    Args:
        epochs: passes over the training data, at least 1.
        batch_size: samples per batch, at least 1; each of several processes has its own batch.
        optimizer: called with the parameters.
        scheduler: called with the optimizer; stepped once per epoch. None keeps the learning rate.
        patience: stop after this many epochs without a better metric on the validation split; None trains all epochs.
        precision: of Lightning's Trainer: "32-true", "bf16-mixed", "16-mixed" (on a GPU), ...
        num_workers: processes that read the data; 0 reads in the training process.
        accumulate: batches per step, at least 1; a step has batch_size * accumulate * processes samples.
        channels_last: keep weights of convolutions channels-last while training, which GPUs with mixed precision like.
        compile: compile the networks while training (`torch.compile`), which pays for long runs of one input shape.

    Raises:
        InputError: a number is out of range.
    """

    epochs: int = 15
    batch_size: int = 64
    optimizer: Callable[[Iterable[Tensor]], Optimizer] = adam
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    patience: int | None = None
    precision: Any = "32-true"
    num_workers: int = 0
    accumulate: int = 1
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience is {self.patience}; it must be at least 1, or None for no early stopping")

    def facts(self) -> dict[str, Any]:
        """What decides the result beyond floating point, as JSON can hold it; functions by their names."""
        names = ("epochs", "batch_size", "accumulate", "optimizer", "scheduler", "patience", "precision")
        return {name: describe(getattr(self, name)) for name in names}


def describe(value: Any) -> Any:
    """A plain value itself; a function or class by its full name, a partial one with its arguments."""
    if isinstance(value, functools.partial):
        keywords = [f"{name}={describe(argument)!r}" for name, argument in value.keywords.items()]
        return f"{describe(value.func)}({', '.join([*(repr(describe(a)) for a in value.args), *keywords])})"
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return value
