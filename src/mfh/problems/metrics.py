"""Metrics: one number per data set that says how good a network is, added up over batches where that is possible."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfh.errors import FOREIGN, InputError, foreign, in_a_line
from mfh.problems.scale import Scale


@dataclass(frozen=True)
class Metric:
    """A number by which epochs are chosen, students compared and teachers judged.

    Args:
        name: The metric's name in the rows of a study. The teacher's rows have the same name with "teacher_" before it.
        value: A function that returns the number. With `statistics` it takes their sum over all batches. Without, it
            takes (logits, target) of the whole data set; functions of torchmetrics.functional can be used here.
        statistics: A function (logits, target) of one batch that returns a tensor. The tensors are added over batches
            and processes, so the result does not depend on how the data are divided. None keeps all logits and targets
            in memory instead.
        higher_is_better: Whether a higher number is better.
        percent: Whether the number is a fraction that reports show times 100.

    Example:
        >>> close = Metric("close", lambda logits, target: ((logits - target).abs() <= 1).double().mean())
        >>> close.of(torch.tensor([[1.0], [5.0]]), torch.tensor([[1.5], [2.0]]))
        0.5
    """

    name: str
    value: Callable[..., Tensor | float]
    statistics: Callable[[Tensor, Tensor], Tensor] | None = None
    higher_is_better: bool = True
    percent: bool = True

    @property
    def scale(self) -> Scale:
        """How to show the metric's values in text, tables and figures."""
        return Scale(self.name, self.higher_is_better, self.percent)

    def of(self, logits: Tensor, target: Tensor, *, block: int = 4096) -> float:
        """The metric of a data set whose logits are all known.

        Args:
            logits: (N, ...), the logits of all samples.
            target: (N, ...), the targets of all samples.
            block: The number of samples to compute at once.
        """
        tally = Tally(self)
        for start in range(0, len(logits), block):
            tally.add(logits[start : start + block], target[start : start + block])
        return tally.value()


class Tally:
    """Adds up a metric batch by batch, on the device of the batches and without waiting for the device.

    Args:
        metric: The metric to add up.
        where: Name of the data in messages, for instance "val split".

    Raises:
        InputError: The metric's own code raised an exception, or its value is no number (from `add` and `value`).
    """

    def __init__(self, metric: Metric, where: str = "") -> None:
        self.metric = metric
        self._failed = f"{where}: the metric {metric.name} failed" if where else f"the metric {metric.name} failed"
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Add one batch."""
        if self.metric.statistics is None:
            self._parts.append((logits.detach().cpu(), target.cpu()))
        else:
            try:  # not `foreign`: small batches come by thousands
                batch = self.metric.statistics(logits.detach(), target)
            except FOREIGN as error:  # the function may be the user's own
                raise InputError(f"{self._failed}: {in_a_line(error)}") from error
            self._parts = [(self._parts[0][0] + batch if self._parts else batch,)]

    def state(self) -> tuple[Tensor, ...]:
        """What processes exchange: the sum of the statistics, or all logits and targets; empty without batches."""
        if len(self._parts) < 2:
            return self._parts[0] if self._parts else ()
        return tuple(torch.cat(part) for part in zip(*self._parts, strict=True))

    def value(self, states: Iterable[tuple[Tensor, ...]] | None = None) -> float:
        """The metric of all batches.

        Args:
            states: The states of all processes, in order of rank (default: the state of this process alone).
        """
        parts: Any = [state for state in ([self.state()] if states is None else states) if state]
        with foreign(self._failed):
            if self.metric.statistics is None:
                return float(self.metric.value(*(torch.cat(part) for part in zip(*parts, strict=True))))
            return float(self.metric.value(sum(statistics.cpu() for (statistics,) in parts)))


def accuracy() -> Metric:
    """The fraction of samples whose largest logit is that of the true class."""
    return Metric("accuracy", _ratio, _correct)


def _correct(logits: Tensor, target: Tensor) -> Tensor:
    correct = (logits.argmax(1) == target).sum()
    return torch.stack([correct, torch.full_like(correct, len(target))])


def balanced_accuracy() -> Metric:
    """The fraction of correct predictions of every class, averaged over the classes that occur; for single labels."""
    return Metric("balanced_accuracy", _mean_recall, confusion)


def _mean_recall(counts: Tensor) -> Tensor:
    samples = counts.sum(1)
    occurs = samples > 0
    return (counts.diagonal()[occurs].double() / samples[occurs]).mean()


def macro_f1() -> Metric:
    """The F1 score of every class, averaged over the classes that occur or are predicted; for single labels."""
    return Metric("macro_f1", _mean_class_f1, confusion)


def _mean_class_f1(counts: Tensor) -> Tensor:
    both, either = 2 * counts.diagonal().double(), counts.sum(0) + counts.sum(1)
    return (both[either > 0] / either[either > 0]).mean()


def mean_average_precision() -> Metric:
    """The area under the precision-recall curve of every class, averaged over classes; for multi-label targets.

    torchmetrics computes it from all logits of the data set. Classes without a positive sample are left out.
    """
    return Metric("mean_average_precision", _mean_average_precision)


def _mean_average_precision(logits: Tensor, target: Tensor) -> Tensor:
    from torchmetrics.functional.classification import multilabel_average_precision

    # Probabilities, because torchmetrics treats logits that happen to lie in [0, 1] as probabilities.
    probabilities, classes = logits.double().sigmoid(), (target > 0).any(0).nonzero().flatten()
    if not len(classes):
        return torch.zeros(())
    if len(classes) == 1:  # torchmetrics needs two: the mean of one taken twice is the same
        classes = classes.expand(2)
    each = multilabel_average_precision(
        probabilities[:, classes], target[:, classes].long(), num_labels=len(classes), average="none"
    )
    return each.mean()


def f1(threshold: float = 0.5) -> Metric:
    """The F1 score of every class, averaged over classes; for multi-label targets.

    A class that neither occurs nor is predicted counts as 0, as in scikit-learn.

    Args:
        threshold: The probability above which a class counts as predicted.
    """
    return Metric("f1", _mean_f1, partial(_label_counts, threshold=threshold))


def _label_counts(logits: Tensor, target: Tensor, threshold: float) -> Tensor:
    from torchmetrics.functional.classification import multilabel_stat_scores

    predicted, width = (logits.sigmoid() > threshold).long(), logits.shape[1]
    counts: Tensor = multilabel_stat_scores(
        predicted, target.long(), num_labels=width, average="none", validate_args=False
    )
    return counts


def _mean_f1(counts: Tensor) -> Tensor:
    right, wrong, _, missed, _ = counts.double().T
    each: Tensor = 2 * right / (2 * right + wrong + missed).clamp_min(1)
    return each.mean()


def mean_iou(ignore_index: int | None = None) -> Metric:
    """The intersection over union of every class over all pixels, averaged over classes; for dense targets.

    Classes that neither occur nor are predicted are left out.

    Args:
        ignore_index: The target of pixels that do not count; None counts all pixels.
    """
    return Metric("mean_iou", _mean_iou, partial(confusion, ignore_index=ignore_index))


def confusion(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> Tensor:
    """The confusion matrix: (K, K) counts, true class by predicted class.

    Args:
        logits: (N, K, ...).
        target: (N, ...), class indices.
        ignore_index: The target of samples or pixels that do not count; None counts all.
    """
    # Counted here: importing torchmetrics takes two seconds, and every classification task comes by.
    width = logits.shape[1]
    places = target * width + logits.argmax(1)
    counted = places.flatten() if ignore_index is None else places[target != ignore_index]
    return torch.bincount(counted, minlength=width * width).reshape(width, width)


def _mean_iou(counts: Tensor) -> Tensor:
    both = counts.diagonal().double()
    either = counts.sum(0) + counts.sum(1) - both
    return (both[either > 0] / either[either > 0]).mean()


def mean_squared_error() -> Metric:
    """The squared difference between outputs and target, averaged over samples and outputs. Lower is better."""
    return Metric("mean_squared_error", _ratio, _squared_errors, higher_is_better=False, percent=False)


def _squared_errors(logits: Tensor, target: Tensor) -> Tensor:
    squares = (logits.double() - target.double()).square().sum()
    return torch.stack([squares, torch.full_like(squares, target.numel())])


def _ratio(sums: Tensor) -> float:
    return float(sums[0]) / float(sums[1])
