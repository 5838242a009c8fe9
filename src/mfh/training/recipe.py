"""How a network is trained: everything but the data and the loss."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mfh.errors import InputError

Keep = Literal["best-metric", "best-loss", "last"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

#: Larger counts are slips of the keyboard, not trainings.
_MOST = 10**9


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    """Adam with learning rate 1e-3, the default optimizer."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class Recipe:
    """How to train one network, or the aligned pair.

    Args:
        epochs: Number of passes over the training data, at least 1.
        batch_size: Number of samples in a batch, at least 1. Each of several processes has its own batch.
        optimizer: A function from the parameters to a `torch.optim.Optimizer`.
        scheduler: A function from the optimizer to a learning rate scheduler, which is stepped once per epoch; a
            `ReduceLROnPlateau` is given the watched metric of the validation split. None keeps the learning rate.
        keep: The epoch whose weights the result has: "best-metric" (best metric on the validation split; ties go to
            the lower validation loss, then to the earlier epoch), "best-loss" (lowest validation loss) or "last".
        patience: Number of epochs without a better one after which training stops; None trains all epochs. Without a
            best epoch (keep="last") it has no effect.
        precision: "32-true", "bf16-mixed", or "16-mixed" (on a GPU).
        num_workers: Number of processes that load data; 0 loads in the training process.
        accumulate: Number of batches in an optimizer step, at least 1. A step has batch_size * accumulate * processes
            samples.
        channels_last: Whether to keep the weights of convolutions channels-last during training, which is often faster
            on a GPU in mixed precision.
        compile: Whether to compile the networks with `torch.compile` during training, which pays off in long training
            with inputs of one shape.

    Raises:
        InputError: A value has the wrong type or is out of range.
    """

    epochs: int = 15
    batch_size: int = 64
    optimizer: Callable[[Iterable[Tensor]], Optimizer] = adam
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    patience: int | None = None
    precision: Precision = "32-true"
    num_workers: int = 0
    accumulate: int = 1
    channels_last: bool = False
    compile: bool = False
    keep: Keep = "best-metric"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("num_workers", 0)):
            _check_count(name, getattr(self, name), least)
        if self.patience is not None:
            _check_count("patience", self.patience, 1, " or None, which trains all epochs")
        for name, choices in (("precision", get_args(Precision)), ("keep", get_args(Keep))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose {', '.join(map(repr, choices))}")
        _check_factory("optimizer", self.optimizer, "lambda parameters: torch.optim.Adam(parameters, lr=1e-3)")
        if self.scheduler is not None:
            example = "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10)"
            _check_factory("scheduler", self.scheduler, example)

    def facts(self) -> dict[str, Any]:
        """What decides the result beyond floating point, as JSON can hold it; functions by their names."""
        names = ("epochs", "batch_size", "accumulate", "optimizer", "scheduler", "patience", "precision", "keep")
        return {name: describe(getattr(self, name)) for name in names}


def _check_count(name: str, value: Any, least: int, otherwise: str = "") -> None:
    if type(value) is not int:
        raise InputError(f"{name} is {value!r}; a whole number from {least}{otherwise} was expected")
    if value < least:
        raise InputError(f"{name} is {value}; it must be at least {least}{otherwise}")
    if value > _MOST:
        raise InputError(f"{name} is {value}; it must be at most {_MOST}")


def _check_factory(name: str, value: Any, example: str) -> None:
    """A function is wanted, because the parameters exist only once the network is made."""
    made = isinstance(value, Optimizer | LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau)
    if made or not callable(value):
        given = f"a {type(value).__name__} object" if made else repr(value)
        raise InputError(f"{name} is {given}; a function that makes one was expected: {name}={example}")


def describe(value: Any) -> Any:
    """A plain value itself; a function or class by its full name, a partial one with its arguments."""
    if isinstance(value, functools.partial):
        keywords = [f"{name}={describe(argument)!r}" for name, argument in value.keywords.items()]
        return f"{describe(value.func)}({', '.join([*(repr(describe(a)) for a in value.args), *keywords])})"
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return value
