"""Losses of distillation as pure functions of logits and features.

All take the student's values first, return a scalar, and carry no state, so they combine with any mask and
any training loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mfh.errors import InputError

Reduction = Literal["batchmean", "mean"]
#: (logits, target) -> scalar.
LabelLoss = Callable[[Tensor, Tensor], Tensor]


#: (student logits, teacher logits, target) -> scalar; a `KDLoss`, or a function of your own.
DistillationLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Divergence(Protocol):
    """How far the student is from the teacher: a scalar of both logits."""

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, reduction: Reduction
    ) -> Tensor:
        """A scalar, differentiable in the student's logits."""


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Kullback-Leibler divergence of the student's softened predictions from the teacher's.

    T^2 * KL(softmax(teacher / T) || softmax(student / T)), Hinton et al. 2015, eq. 1 and section 2.1; for dense
    prediction the mean of that over pixels.

    Args:
        student_logits: (N, K) or (N, K, *positions).
        teacher_logits: the same shape.
        temperature: T > 0; the factor T^2 keeps gradients of one size for any T.
        reduction: "batchmean" sums over classes and averages over samples and positions; "mean" averages over classes
            too, as the published code of the MFH paper does, which divides the divergence by K.

    Raises:
        InputError: student and teacher have different classes.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> float(kl_divergence(logits, logits, temperature=4.0))
        0.0
    """
    _check_same_classes(student_logits, teacher_logits)
    # A small student's step is so short that every operation shows: no division by 1, and one factor for all.
    if temperature != 1:
        student_logits, teacher_logits = student_logits / temperature, teacher_logits / temperature
    student, teacher = F.log_softmax(student_logits, dim=1), F.log_softmax(teacher_logits, dim=1)
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return total * (temperature**2 / _divisor(student, reduction))


def bernoulli_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Sum over classes of the divergence between the coins of student and teacher, for multi-label targets.

    T^2 * sum_k KL(Bernoulli(sigmoid(teacher_k / T)) || Bernoulli(sigmoid(student_k / T))).

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K).
        temperature: T > 0.
        reduction: "batchmean" sums over classes and averages over samples; "mean" averages over classes too.

    Raises:
        InputError: student and teacher have different classes.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> float(bernoulli_divergence(logits, logits))
        0.0
    """
    _check_same_classes(student_logits, teacher_logits)
    student, teacher = student_logits / temperature, teacher_logits / temperature
    there = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (there + absent).sum() * (temperature**2 / _divisor(student, reduction))


def output_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",  # noqa: ARG001
) -> Tensor:
    """Mean squared difference between the outputs of student and teacher, for regression.

    Averaged over samples and outputs whatever the `reduction`, as the label loss of regression is.

    Args:
        student_logits: (N, ...).
        teacher_logits: the same shape.
        temperature: must be 1: there are no probabilities to soften.
        reduction: without effect.

    Raises:
        InputError: student and teacher have different outputs, or there is a temperature.
    """
    _check_same_classes(student_logits, teacher_logits)
    if temperature != 1:
        raise InputError(f"temperature is {temperature}, but outputs of a regression cannot be softened; leave it at 1")
    return F.mse_loss(student_logits, teacher_logits)


def _divisor(logits: Tensor, reduction: Reduction) -> int:
    return logits.numel() // (logits.shape[1] if reduction == "batchmean" else 1)


def _check_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"the student returns logits of shape {tuple(student_logits.shape)} and the teacher "
            f"{tuple(teacher_logits.shape)}; both must have the same classes"
        )


@dataclass(frozen=True)
class KDLoss:
    """The distillation loss: label_weight * label loss + teacher_weight * divergence from the teacher.

    On its own, and for classification, that is label_weight * CE(student, target) + teacher_weight * T^2 KL(teacher ||
    student); tasks of another kind fill in theirs (see `Problem`).

    Args:
        temperature: T > 0, softens both predictions in the second term.
        label_weight: weight of the label loss, at least 0.
        teacher_weight: weight of the divergence from the teacher, at least 0. With 0 this is plain training.
        reduction: of the divergence, see `kl_divergence`.
        label_loss: (logits, target) -> scalar; None for the problem's, cross-entropy without one.
        divergence: (student logits, teacher logits, *, temperature, reduction) -> scalar; None for the problem's,
            `kl_divergence` without one.

    Raises:
        InputError: a weight is negative, both are zero, or the temperature is not positive.

    Example:
        >>> loss = KDLoss(temperature=2.0, label_weight=0.0)
        >>> logits = torch.tensor([[1.0, -1.0]])
        >>> float(loss(logits, logits, torch.tensor([0])))
        0.0
    """

    temperature: float = 1.0
    label_weight: float = 1.0
    teacher_weight: float = 1.0
    reduction: Reduction = "batchmean"
    label_loss: LabelLoss | None = None
    divergence: Divergence | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be positive")
        if not (self.label_weight >= 0 and self.teacher_weight >= 0 and self.label_weight + self.teacher_weight > 0):
            raise InputError(
                f"label_weight is {self.label_weight} and teacher_weight {self.teacher_weight}; "
                "both must be at least 0 and one of them positive"
            )
        if self.reduction not in ("batchmean", "mean"):
            raise InputError(f"reduction is {self.reduction!r}; choose 'batchmean' or 'mean'")

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch: logits (N, K) of student and teacher, target (N,)."""
        terms = []
        if self.label_weight:
            terms.append(_weighted(self.label_weight, (self.label_loss or F.cross_entropy)(student_logits, target)))
        if self.teacher_weight:
            divergence = (self.divergence or kl_divergence)(
                student_logits, teacher_logits, temperature=self.temperature, reduction=self.reduction
            )
            terms.append(_weighted(self.teacher_weight, divergence))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def completed(self, label_loss: LabelLoss, divergence: Divergence) -> "KDLoss":
        """The same loss with these where it leaves them open."""
        return replace(self, label_loss=self.label_loss or label_loss, divergence=self.divergence or divergence)


def _weighted(weight: float, loss: Tensor) -> Tensor:
    return loss if weight == 1 else weight * loss


def alignment_loss(
    teacher_logits: Tensor,
    student_logits: Tensor,
    target: Tensor,
    *,
    label_loss: LabelLoss = F.cross_entropy,
) -> Tensor:
    """Joint loss of Algorithm 1, step 1: CE(teacher, y) + CE(student, y) + MSE(teacher, student), all on logits.

    Args:
        teacher_logits: (N, K).
        student_logits: (N, K).
        target: (N,) class indices.
        label_loss: (logits, target) -> scalar.

    Raises:
        InputError: student and teacher have different classes.
    """
    _check_same_classes(student_logits, teacher_logits)
    distance = F.mse_loss(teacher_logits, student_logits)
    return label_loss(teacher_logits, target) + label_loss(student_logits, target) + distance


def hint_loss(student_features: Tensor, teacher_features: Tensor, projector: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean squared error between projected student features and the teacher's (FitNets, Romero et al. 2015, eq. 3).

    Args:
        student_features: (N, ...), fed to `projector`.
        teacher_features: (N, ...); detached. Mask them first to focus on modality-general channels.
        projector: maps student features to the teacher's shape, for instance a linear layer trained along.

    Raises:
        InputError: the projected shape differs from the teacher's.
    """
    projected = projector(student_features)
    if projected.shape != teacher_features.shape:
        raise InputError(
            f"the projector returns shape {tuple(projected.shape)}; the teacher's features have "
            f"{tuple(teacher_features.shape)}: give a projector onto that shape"
        )
    return F.mse_loss(projected, teacher_features.detach())


def relational_distance_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Distance-wise relational distillation (Park et al. 2019, eq. 5): pairwise distances within the batch.

    Distances of flattened samples are divided by their mean over distinct pairs and compared by the Huber loss,
    so the two feature spaces may have any width and scale.

    Args:
        student_features: (N, ...), N at least 2.
        teacher_features: (N, ...); detached.
    """
    return F.smooth_l1_loss(_relative_distances(student_features), _relative_distances(teacher_features.detach()))


def relational_angle_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Angle-wise relational distillation (Park et al. 2019, eq. 7): cosines of all angles within the batch.

    Costs O(N^2 * width + N^3) for a batch of N samples.

    Args:
        student_features: (N, ...), N at least 3.
        teacher_features: (N, ...); detached.
    """
    return F.smooth_l1_loss(_angle_cosines(student_features), _angle_cosines(teacher_features.detach()))


def _relative_distances(features: Tensor) -> Tensor:
    if len(features) < 2:
        raise InputError(f"a batch of {len(features)} sample(s) has no pairwise distances; give at least 2")
    # pdist keeps distinct pairs only: the zero diagonal would have an undefined gradient.
    distances = torch.pdist(features.flatten(1))
    return distances / distances.mean().clamp_min(torch.finfo(distances.dtype).tiny)


def _angle_cosines(features: Tensor) -> Tensor:
    if len(features) < 3:
        raise InputError(f"a batch of {len(features)} sample(s) has no angles; give at least 3")
    flat = features.flatten(1)
    directions = F.normalize(flat[None, :, :] - flat[:, None, :], dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
