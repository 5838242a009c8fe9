"""What logits and targets mean: single-label or multi-label classification, dense prediction, or regression."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mfh.errors import InputError, foreign
from mfh.problems import metrics
from mfh.problems.losses import (
    DistillationLoss,
    Divergence,
    KDLoss,
    LabelLoss,
    WeightedCrossEntropy,
    bernoulli_divergence,
    kl_divergence,
    output_distance,
)
from mfh.problems.metrics import Metric

#: A message that says what is wrong with a target, and the row of the batch that is wrong (None: all of them).
Fault = tuple[str, int | None]


def _no_fault(_logits: Tensor, _target: Tensor) -> None:
    """Accept any target."""


@dataclass(frozen=True)
class Problem:
    """What logits and targets mean, and so how networks are trained, distilled and measured.

    Make one by `classification`, `multi_label`, `dense` or `regression`, each of which takes a `label_loss` and a
    `metric` of your own; or make one by hand.

    Args:
        name: The problem's name in reports and messages.
        label_loss: A function (logits, target) -> scalar, the mean over samples.
        divergence: A function (student logits, teacher logits, *, temperature, reduction) -> scalar, the teacher's term
            of the distillation loss.
        metric: The metric by which epochs are chosen and students compared.
        fault: A function (logits, target) that returns what is wrong with the target and in which row of the batch, or
            None if the target is valid.
        categorical: Whether a softmax over dim 1 turns logits into probabilities.
        missing: Number that stands for "no label" in the targets of training data, for instance -1 or NaN; None where
            every target must be a label. A sample all of whose entries are missing is an unlabelled pair.
        ignore_index: Class index of pixels that have no class and count nowhere; None where each has one.

    Example:
        >>> problem = Problem.multi_label()
        >>> logits = torch.tensor([[2.0, -2.0]])
        >>> round(float(problem.label_loss(logits, torch.tensor([[1, 0]]))), 3), problem.metric.name
        (0.127, 'mean_average_precision')
    """

    name: str
    label_loss: LabelLoss
    divergence: Divergence
    metric: Metric
    fault: Callable[[Tensor, Tensor], Fault | None] = _no_fault
    categorical: bool = False
    missing: float | None = None
    ignore_index: int | None = None

    @staticmethod
    def classification(
        *, label_loss: LabelLoss = F.cross_entropy, metric: Metric | None = None, missing: float | None = None
    ) -> "Problem":
        """One class per sample: logits (N, K), target (N,) of class indices.

        Args:
            label_loss: A function (logits, target) -> scalar (default: cross-entropy).
            metric: The metric (default: `metrics.accuracy()`). Where classes differ much in size,
                `metrics.balanced_accuracy()` or `metrics.macro_f1()` count them equally.
            missing: The target of training samples without a label, for instance -1.
        """
        metric = metric or metrics.accuracy()
        fault = partial(_index_fault, dense=False, ignore_index=None)
        return Problem("classification", label_loss, kl_divergence, metric, fault, categorical=True, missing=missing)

    @staticmethod
    def multi_label(
        *, label_loss: LabelLoss | None = None, metric: Metric | None = None, missing: float | None = None
    ) -> "Problem":
        """Any number of classes per sample: logits (N, K), target (N, K) of zeros and ones.

        The divergence from the teacher is `bernoulli_divergence`, which sums over classes.

        Args:
            label_loss: A function (logits, target) -> scalar (default: binary cross-entropy of the logits, averaged
                over samples and classes).
            metric: The metric (default: `metrics.mean_average_precision()`; `metrics.f1()` is another).
            missing: The entry of training targets where it is not known whether a class is there, for instance -1.
        """
        metric = metric or metrics.mean_average_precision()
        return Problem(
            "multi-label classification",
            label_loss or _binary_cross_entropy,
            bernoulli_divergence,
            metric,
            _label_fault,
            missing=missing,
        )

    @staticmethod
    def dense(
        *,
        ignore_index: int = -100,
        label_loss: LabelLoss | None = None,
        metric: Metric | None = None,
        missing: float | None = None,
    ) -> "Problem":
        """One class per pixel (frame, point): logits (N, K, ...), target (N, ...) of class indices.

        The divergence from the teacher is averaged over all pixels, also over those without a label.

        Args:
            ignore_index: The target of pixels without a label.
            label_loss: A function (logits, target) -> scalar (default: cross-entropy, averaged over the labelled pixels
                of the batch).
            metric: The metric (default: `metrics.mean_iou(ignore_index)`).
            missing: The target of pixels that nobody has labelled yet, another number than `ignore_index`, which marks
                pixels that have no class. A sample of such pixels alone is an unlabelled pair.
        """
        metric = metric or metrics.mean_iou(ignore_index)
        label_loss = label_loss or partial(_pixel_cross_entropy, ignore_index=ignore_index)
        fault = partial(_index_fault, dense=True, ignore_index=ignore_index)
        return Problem(
            "dense prediction",
            label_loss,
            kl_divergence,
            metric,
            fault,
            categorical=True,
            missing=missing,
            ignore_index=ignore_index,
        )

    @staticmethod
    def regression(
        *, label_loss: LabelLoss = F.mse_loss, metric: Metric | None = None, missing: float | None = None
    ) -> "Problem":
        """Numbers: outputs and target (N, K), or any other shape that is the same for both.

        The divergence from the teacher is the mean squared difference of outputs; it has no temperature.

        Args:
            label_loss: A function (outputs, target) -> scalar (default: mean squared error).
            metric: The metric (default: `metrics.mean_squared_error()`).
            missing: The entry of training targets that is not known, for instance NaN.
        """
        metric = metric or metrics.mean_squared_error()
        return Problem("regression", label_loss, output_distance, metric, _value_fault, missing=missing)

    def complete(self, loss: DistillationLoss | None) -> DistillationLoss:
        """The distillation loss, with this problem's label loss and divergence in place of None.

        Args:
            loss: A loss; None stands for `KDLoss()`, whose label loss, also one of your own, then counts entries that
                are not `missing`. A function of your own is returned as it is.
        """
        loss = KDLoss() if loss is None else loss
        if not isinstance(loss, KDLoss):
            return loss
        completed = loss.completed(self.label_loss, self.divergence)
        if self.missing is None:
            return completed
        assert completed.label_loss is not None
        return replace(completed, label_loss=partial(self._over_known, completed.label_loss))

    def weighted(self, weights: Sequence[float], others: float | None = None) -> "Problem":
        """The same problem, with the cross-entropy of each sample times the weight of its class.

        The loss is averaged over samples, not divided by the weights of the batch, so every sample counts the same in
        whatever batch it is. It has the scale of the plain loss where the weights average 1 over the training samples.

        Args:
            weights: A weight for each class.
            others: Weight of classes beyond these; None refuses logits of more classes.

        Raises:
            InputError: The problem is not single-label classification, or has a label loss of its own.
        """
        if self.name != "classification" or self.label_loss is not F.cross_entropy:
            what = "another label loss" if self.name == "classification" else f"the problem {self.name}"
            raise InputError(
                f"class_weights were given for {what}; they weight the cross-entropy of Problem.classification(): "
                "leave them out, or weight your own loss"
            )
        return replace(self, label_loss=WeightedCrossEntropy(weights, others))

    def without_label(self, target: Tensor) -> Tensor:
        """(N,) whether a sample has no label at all: the entries of its target are `missing`, but for ignored ones."""
        missing = ~self.known(target)
        without = missing if self.ignore_index is None else missing | (target == self.ignore_index)
        missing, without = (entries.reshape(len(target), -1) for entries in (missing, without))
        return missing.any(1) & without.all(1)

    def known(self, target: Tensor) -> Tensor:
        """Whether each entry of a target is a label, in the target's shape: False where it is `missing`."""
        if self.missing is None:
            return torch.ones_like(target, dtype=torch.bool)
        return ~target.isnan() if math.isnan(self.missing) else target != self.missing

    def known_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The label loss over the entries of the target that are not `missing`; 0 without any."""
        return self._over_known(self.label_loss, logits, target)

    def _over_known(self, label_loss: LabelLoss, logits: Tensor, target: Tensor) -> Tensor:
        """A label loss over the entries of the target that are not `missing`; 0 without any."""
        if self.missing is not None and target.ndim > 1:
            logits, target = _entries(logits, target, self.known(target))
        return label_loss(logits, target) if len(target) else logits.sum() * 0

    def smoothed(self, amount: float) -> LabelLoss:
        """The label loss with smoothed labels: (1 - amount) * label loss + amount * loss against equal probabilities.

        For cross-entropy that is label smoothing as in Szegedy et al. 2016, section 7. Entries without a label count in
        neither.

        Args:
            amount: How much of the label is spread over all classes, in [0, 1].

        Raises:
            InputError: There are no classes, or the amount is out of range.
        """
        if not 0 <= amount <= 1:
            raise InputError(f"label smoothing is {amount}; choose a share of the label from 0 to 1")
        if not (self.categorical or self.name == "multi-label classification"):
            raise InputError(f"label smoothing needs classes, which {self.name} has not; leave it out")

        return Smoothed(self, amount)

    def target_fault(self, logits: Tensor, target: Tensor, *, training: bool = False) -> Fault | None:
        """What is wrong with these targets; the one place that decides whether a target is valid.

        Args:
            logits: (N, ...). Only their shape and type are used.
            target: (N, ...), the targets of the same samples.
            training: Whether these are training data, where entries may be `missing`.

        Returns:
            The reason, and the row of the first bad sample (None: all are bad); None if all targets are valid.
        """
        if training and self.missing is not None:
            target = torch.where(self.known(target), target, torch.zeros_like(target))
        with foreign(f"the fault function of the problem {self.name!r} failed"):
            return self.fault(logits, target)

    def check(
        self,
        logits: Tensor,
        target: Tensor,
        where: str = "",
        indices: Sequence[int] | None = None,
        *,
        training: bool = False,
    ) -> None:
        """Refuse a target that does not fit these logits.

        Args:
            logits: (N, ...). Only their shape and type are checked.
            target: (N, ...), the targets of the same samples.
            where: The name of the data in the message, for instance "val split".
            indices: The samples' positions in the data set, for the message.
            training: Whether these are training data, where entries may be `missing`.

        Raises:
            InputError: The target is not valid.
        """
        fault = self.target_fault(logits, target, training=training)
        if fault is not None:
            message, row = fault
            place = "" if row is None or indices is None else f", sample {int(indices[row])}"
            raise InputError(f"{where}{place}: {message}" if where else message)


@dataclass(frozen=True)
class Smoothed:
    """A label loss with smoothed labels, see `Problem.smoothed`.

    Args:
        problem: What logits and targets mean.
        amount: How much of the label is spread over all classes, in [0, 1].
    """

    problem: Problem
    amount: float

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar."""
        problem = self.problem
        plain = problem.known_loss(logits, target)
        if target.ndim > 1 and not (problem.missing is None and problem.ignore_index is None):
            known = problem.known(target)
            logits, target = _entries(
                logits, target, known if problem.ignore_index is None else known & (target != problem.ignore_index)
            )
        if not len(target):
            return plain
        if problem.categorical:
            spread = -F.log_softmax(logits, dim=1).mean()
        else:
            spread = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5))
        return (1 - self.amount) * plain + self.amount * spread


def _entries(logits: Tensor, target: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and targets of single entries, (M,) or, with one class per entry, (M, K) and (M,)."""
    scores = logits if logits.shape == target.shape else logits.movedim(1, -1)
    return scores[chosen], target[chosen]


def _binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def _pixel_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    # A batch without any label has loss 0; the mean of cross_entropy itself would be 0 / 0.
    total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp_min(1)


def _index_fault(logits: Tensor, target: Tensor, dense: bool, ignore_index: int | None) -> Fault | None:
    shape = tuple(logits.shape)
    if not dense and logits.ndim != 2:
        return (
            f"logits have shape {shape}; classification expects (N, K): for one class per pixel give the task "
            "problem=Problem.dense()",
            None,
        )
    wanted = (shape[0], *shape[2:])
    if tuple(target.shape) == wanted and target.dtype != torch.int64:
        return f"the target is of type {target.dtype}; class indices of type torch.int64 were expected: .long()", None
    if tuple(target.shape) != wanted:
        return (
            f"the target has shape {tuple(target.shape)} and type {target.dtype} for logits of shape {shape}; class "
            f"indices of shape {wanted} and type torch.int64 were expected"
            + (": for several classes per sample give the task problem=Problem.multi_label()" if not dense else ""),
            None,
        )
    wrong = (target < 0) | (target >= shape[1])
    if ignore_index is not None:
        wrong &= target != ignore_index
    ignored = "" if ignore_index is None else f" or {ignore_index} (ignored)"
    return _first_wrong(wrong, target, f"class indices from 0 to {shape[1] - 1}{ignored} were expected")


def _label_fault(logits: Tensor, target: Tensor) -> Fault | None:
    if target.shape != logits.shape:
        return _shapes_differ(logits, target)
    return _first_wrong((target != 0) & (target != 1), target, "0 or 1 for each class was expected")


def _value_fault(logits: Tensor, target: Tensor) -> Fault | None:
    if target.shape != logits.shape:
        return _shapes_differ(logits, target)
    if not target.is_floating_point():
        return f"the target has type {target.dtype}; floating point numbers were expected", None
    return _first_wrong(~torch.isfinite(target), target, "a finite number was expected")


def _shapes_differ(logits: Tensor, target: Tensor) -> Fault:
    return (
        f"the target has shape {tuple(target.shape)} and the network returns {tuple(logits.shape)}; both must have the "
        "same shape",
        None,
    )


def _first_wrong(wrong: Tensor, target: Tensor, expectation: str) -> Fault | None:
    if not wrong.any():
        return None
    place = wrong.nonzero()[0].tolist()
    return f"the target holds {target[tuple(place)].item()}; {expectation}", place[0]
