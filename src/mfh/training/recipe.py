"""How a network is trained: everything but the data and the loss."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mfh.errors import InputError, shown
from mfh.values import Bounds, check_fields

Keep = Literal["best-metric", "best-loss", "last"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_SHORT_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    """Adam with learning rate 1e-3, the default optimizer."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class Recipe:
    """How to train one network, or the aligned pair.

    Args:
        epochs: Number of passes over the training data, at least 1.
        batch_size: Number of samples per batch, at least 1; each of several processes has its own batch.
        optimizer: Function that makes an optimizer of the parameters, for instance
            `lambda parameters: torch.optim.SGD(parameters, lr=0.1)`.
        scheduler: Function that makes a learning-rate scheduler of the optimizer; it is stepped once per epoch, and
            `ReduceLROnPlateau` gets the validation metric (with keep="best-loss" the validation loss). None keeps the
            learning rate.
        patience: Number of epochs without a better one after which training stops, where "better" is what `keep`
            compares; None trains all epochs, and so does keep="last", which ignores the patience.
        precision: "32-true", "bf16-mixed" or, on a GPU, "16-mixed".
        num_workers: Number of processes that read the data; 0 reads in the training process.
        accumulate: Number of batches per step, at least 1; a step has batch_size * accumulate * processes samples.
        channels_last: Whether weights of convolutions lie channels-last while training, which suits GPUs with mixed
            precision.
        compile: Whether to compile the networks while training (`torch.compile`), which pays for long runs of one input
            shape.
        keep: Epoch whose weights the result has: "best-metric" and "best-loss" compare epochs on the validation split
            (ties of the metric go to the lower loss, then to the earlier epoch); "last" takes the last epoch.
        labelled_share: Share of labelled pairs in every batch where there are unlabelled pairs too, above 0 and at most
            1. None deals both out evenly: an epoch is then one pass over all pairs. With a share, labelled pairs come
            around several times in an epoch, which has as many steps as without.
        class_weights: Weights of the classes in the cross-entropy of single-label classification: "balanced" for
            N / (K n_k) with n_k of N training samples in class k of K, or a number for each class, which is scaled so
            that the mean over training samples is 1. None weights all samples equally. The divergence from a teacher is
            not weighted.
        balanced_sampling: Whether labelled samples are drawn so that the classes of single-label classification come
            equally often in an epoch. Samples of rare classes then come around several times, and not all samples of
            frequent classes have their turn; an epoch has as many samples as without. Unlabelled pairs are drawn as
            ever. It is another remedy than `class_weights`, so only one of them can be given.

    Raises:
        InputError: A value has the wrong type or is out of range.
    """

    epochs: Annotated[int, Bounds(1, 1_000_000)] = 15
    batch_size: Annotated[int, Bounds(1, 2**31 - 1)] = 64
    optimizer: Callable[[Iterable[Tensor]], Optimizer] = adam
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    patience: Annotated[int | None, Bounds(1, 1_000_000)] = None
    precision: Precision = "32-true"
    num_workers: Annotated[int, Bounds(0, 256)] = 0
    accumulate: Annotated[int, Bounds(1, 10_000)] = 1
    channels_last: bool = False
    compile: bool = False
    keep: Keep = "best-metric"
    labelled_share: Annotated[float | None, Bounds(1e-4, 1)] = None
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    balanced_sampling: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.precision, (str, int)):
            short = _SHORT_PRECISIONS.get(str(self.precision), self.precision)
            object.__setattr__(self, "precision", short)
        if self.class_weights not in (None, "balanced"):
            object.__setattr__(self, "class_weights", _weights(self.class_weights))
        _check_factory("optimizer", self.optimizer, "lambda parameters: torch.optim.{}(parameters, lr=...)", "Adam")
        if self.scheduler is not None:
            example = "lambda optimizer: torch.optim.lr_scheduler.{}(optimizer, ...)"
            _check_factory("scheduler", self.scheduler, example, "StepLR")
        check_fields(self)
        if self.balanced_sampling and self.class_weights is not None:
            raise InputError(
                "balanced_sampling and class_weights are both given; together they would correct twice for the sizes "
                "of classes: leave one of them out"
            )

    def facts(self) -> dict[str, Any]:
        """What decides the result beyond floating point, as JSON can hold it; functions by their names."""
        names = ("epochs", "batch_size", "accumulate", "optimizer", "scheduler", "patience", "precision", "keep")
        facts = {name: describe(getattr(self, name)) for name in names}
        # Only where they are given: a run of an earlier version has no such entry.
        more = {name: getattr(self, name) for name in ("labelled_share", "class_weights", "balanced_sampling")}
        return facts | {name: value for name, value in more.items() if value not in (None, False)}


def _weights(value: Any) -> tuple[float, ...]:
    try:
        weights = () if isinstance(value, str) else tuple(float(weight) for weight in value)
    except (TypeError, ValueError):
        weights = ()
    if len(weights) < 2 or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise InputError(
            f"class_weights is {value!r}; choose 'balanced', None, or a number of at least 0 for each class, one of "
            "them above 0"
        )
    return weights


def _check_factory(name: str, value: Any, example: str, usual: str) -> None:
    made = isinstance(value, (Optimizer, LRScheduler))
    if made or not callable(value):
        kind = type(value).__name__
        given = f"a {kind} that exists already" if made else shown(value)
        example = example.format(kind if made else usual)
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
