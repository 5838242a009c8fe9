"""The losses of distillation, as pure functions of logits and features.

All of them take the student's values first, return a scalar and keep no state, so they work with any mask and in any
training loop.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mfh.errors import InputError
from mfh.values import Bounds, check_fields

Reduction = Literal["batchmean", "mean"]
#: A function (logits, target) -> scalar.
LabelLoss = Callable[[Tensor, Tensor], Tensor]
#: A function (student logits, teacher logits, target) -> scalar: a `KDLoss`, or one of your own.
DistillationLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Divergence(Protocol):
    """A function of both logits that says how far the student is from the teacher."""

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, reduction: Reduction
    ) -> Tensor:
        """The divergence: a scalar, differentiable with respect to the student's logits."""


@dataclass(frozen=True)
class KDLoss:
    """The distillation loss: label_weight * label loss + teacher_weight * divergence from the teacher.

    For classification that is label_weight * CE(student, target) + teacher_weight * T^2 KL(teacher || student). Tasks
    of another kind replace both terms by their own, see `Problem`.

    Args:
        temperature: The softmax temperature T > 0. It softens both predictions in the divergence.
        label_weight: The weight of the label loss, at least 0.
        teacher_weight: The weight of the divergence from the teacher, at least 0. With 0 the student is trained on
            labels alone.
        reduction: The reduction of the divergence, see `kl_divergence`.
        label_loss: A function (logits, target) -> scalar. None uses the problem's label loss, or cross-entropy where
            the loss is called without a problem.
        divergence: A function (student logits, teacher logits, *, temperature, reduction) -> scalar. None uses the
            problem's divergence, or `kl_divergence` where the loss is called without a problem.

    Raises:
        InputError: A weight is negative, both weights are zero, the temperature is not positive, or the reduction is
            unknown.

    Example:
        >>> loss = KDLoss(temperature=2.0, label_weight=0.0)
        >>> logits = torch.tensor([[1.0, -1.0]])
        >>> float(loss(logits, logits, torch.tensor([0])))
        0.0
    """

    temperature: Annotated[float, Bounds(0, 1_000_000)] = 1.0
    label_weight: Annotated[float, Bounds(0, 1_000_000)] = 1.0
    teacher_weight: Annotated[float, Bounds(0, 1_000_000)] = 1.0
    reduction: Reduction = "batchmean"
    label_loss: LabelLoss | None = None
    divergence: Divergence | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.temperature:
            raise InputError(f"temperature is {self.temperature}; it must be positive")
        if not (self.label_weight or self.teacher_weight):
            raise InputError("label_weight and teacher_weight are both 0; make one of them positive")

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            student_logits: (N, K).
            teacher_logits: (N, K).
            target: (N,), class indices.
        """
        label, teacher = self.terms(student_logits, teacher_logits, target)
        if label is None or teacher is None:  # one of the weights is positive
            return label if teacher is None else teacher  # type: ignore[return-value]
        return label + teacher

    def terms(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The weighted label loss and the weighted divergence of one batch; None for a term of weight 0.

        Args:
            student_logits: (N, K).
            teacher_logits: (N, K).
            target: (L,) class indices of the first L <= N samples; the others are unlabelled and count in the
                divergence alone.
        """
        label = teacher = None
        if self.label_weight:
            logits = student_logits if len(target) == len(student_logits) else student_logits[: len(target)]
            # The mean over no samples would be NaN.
            loss = (self.label_loss or F.cross_entropy)(logits, target) if len(target) else logits.sum()
            label = _weighted(self.label_weight, loss)
        if self.teacher_weight:
            divergence = (self.divergence or kl_divergence)(
                student_logits, teacher_logits, temperature=self.temperature, reduction=self.reduction
            )
            teacher = _weighted(self.teacher_weight, divergence)
        return label, teacher

    def completed(self, label_loss: LabelLoss, divergence: Divergence) -> "KDLoss":
        """The same loss, with the given label loss and divergence where it has None."""
        return replace(self, label_loss=self.label_loss or label_loss, divergence=self.divergence or divergence)


def _weighted(weight: float, loss: Tensor) -> Tensor:
    return loss if weight == 1 else weight * loss


class WeightedCrossEntropy:
    """Cross-entropy times the weight of the true class, averaged over samples.

    Args:
        weights: A weight for each class.
        others: Weight of classes beyond these; None refuses logits of more classes.

    Raises:
        InputError: There are no weights, one is negative or not finite, or none is positive.

    Example:
        >>> loss = WeightedCrossEntropy([0.5, 2.0])
        >>> logits, target = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> round(float(loss(logits, target) / F.cross_entropy(logits, target)), 3)
        1.25
    """

    def __init__(self, weights: Sequence[float], others: float | None = None) -> None:
        self.weights, self.others = torch.as_tensor(weights, dtype=torch.float32), others
        if not len(weights) or not (self.weights >= 0).all() or not 0 < float(self.weights.sum()) < math.inf:
            raise InputError(
                f"class weights are {list(weights)}; a number of at least 0 for each class was expected, one above 0"
            )

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            logits: (N, K).
            target: (N,), class indices.

        Raises:
            InputError: There are not K weights.
        """
        weights = self.of_classes(logits.shape[1], logits.device)
        # A weighted mean would be divided by the weights of the batch.
        return (weights[target] * F.cross_entropy(logits, target, reduction="none")).mean()

    def of_classes(self, num_classes: int, device: torch.device) -> Tensor:
        """(K,) the weights of so many classes.

        Args:
            num_classes: Number of classes K.
            device: Device to have them on; they stay there.

        Raises:
            InputError: There are not K weights.
        """
        more = num_classes - len(self.weights)
        if more and (more < 0 or self.others is None):
            raise InputError(
                f"there are {len(self.weights)} class weights for {num_classes} classes; give one for each class"
            )
        if more or self.weights.device != device:
            self.weights = F.pad(self.weights, (0, more), value=self.others or 0.0).to(device)
        return self.weights


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """The Kullback-Leibler divergence between the softened predictions of teacher and student.

    T^2 * KL(softmax(teacher / T) || softmax(student / T)), Hinton et al. 2015, eq. 1 and section 2.1. For dense
    prediction it is averaged over pixels.

    Args:
        student_logits: (N, K) or (N, K, *positions).
        teacher_logits: The teacher's logits, of the same shape.
        temperature: The softmax temperature T > 0. The factor T^2 keeps the size of gradients the same for any T.
        reduction: "batchmean" sums over classes and averages over samples and positions. "mean" averages over classes
            as well, which divides the divergence by K; the published code of the MFH paper does that.

    Raises:
        InputError: The logits of student and teacher differ in shape.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> float(kl_divergence(logits, logits, temperature=4.0))
        0.0
    """
    _check_same_classes(student_logits, teacher_logits)
    # A small student's step is so short that every operation counts: no division by 1, and a single factor at the end.
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
    """The divergence between the yes-or-no predictions of teacher and student, summed over classes, for multi-label.

    T^2 * sum_k KL(Bernoulli(sigmoid(teacher_k / T)) || Bernoulli(sigmoid(student_k / T))).

    Args:
        student_logits: (N, K).
        teacher_logits: (N, K).
        temperature: The temperature T > 0, which divides the logits.
        reduction: "batchmean" sums over classes and averages over samples. "mean" averages over classes as well.

    Raises:
        InputError: The logits of student and teacher differ in shape.

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
    """The mean squared difference between the outputs of student and teacher, for regression.

    It is averaged over samples and outputs with any `reduction`, like the label loss of regression.

    Args:
        student_logits: (N, ...), the student's outputs.
        teacher_logits: The teacher's outputs, of the same shape.
        temperature: The temperature must be 1: there are no probabilities to soften.
        reduction: The reduction has no effect.

    Raises:
        InputError: The outputs of student and teacher differ in shape, or the temperature is not 1.
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


def alignment_loss(
    teacher_logits: Tensor,
    student_logits: Tensor,
    target: Tensor,
    *,
    label_loss: LabelLoss = F.cross_entropy,
) -> Tensor:
    """The joint loss of Algorithm 1, step 1: CE(teacher, y) + CE(student, y) + MSE(teacher, student), on logits.

    Args:
        teacher_logits: (N, K).
        student_logits: (N, K).
        target: (N,), class indices y.
        label_loss: A function (logits, target) -> scalar (default: cross-entropy).

    Raises:
        InputError: The logits of student and teacher differ in shape.
    """
    distance = logit_distance(teacher_logits, student_logits)
    return label_loss(teacher_logits, target) + label_loss(student_logits, target) + distance


def logit_distance(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """The mean squared error between the logits of teacher and student, the distance term of Algorithm 1.

    Args:
        teacher_logits: (N, K).
        student_logits: (N, K).

    Raises:
        InputError: The logits of student and teacher differ in shape.
    """
    _check_same_classes(student_logits, teacher_logits)
    return F.mse_loss(teacher_logits, student_logits)


def hint_loss(student_features: Tensor, teacher_features: Tensor, projector: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean squared error between projected student features and teacher features.

    FitNets, Romero et al. 2015, eq. 3.

    Args:
        student_features: (N, ...), the input of `projector`.
        teacher_features: (N, ...); the function detaches them. Mask them before to focus on modality-general channels.
        projector: A function from student features to the teacher's shape, for instance a linear layer that is trained
            together with the student.

    Raises:
        InputError: The projected features differ in shape from the teacher's.
    """
    projected = projector(student_features)
    if projected.shape != teacher_features.shape:
        raise InputError(
            f"the projector returns shape {tuple(projected.shape)}; the teacher's features have "
            f"{tuple(teacher_features.shape)}: give a projector that returns that shape"
        )
    return F.mse_loss(projected, teacher_features.detach())


def relational_distance_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The distance-wise relational loss: it compares all distances between two samples of the batch.

    Park et al. 2019, eq. 5. The distances between flattened samples are divided by their mean over distinct pairs, and
    the Huber loss compares them. So the features of student and teacher may have any width and scale.

    Args:
        student_features: (N, ...), N at least 2.
        teacher_features: (N, ...); the function detaches them.

    Raises:
        InputError: The batch has fewer than 2 samples.
    """
    return F.smooth_l1_loss(_relative_distances(student_features), _relative_distances(teacher_features.detach()))


def _relative_distances(features: Tensor) -> Tensor:
    if len(features) < 2:
        raise InputError(f"a batch of {len(features)} sample(s) has no pairwise distances; give at least 2")
    # pdist returns distinct pairs only: at the zero distance of a sample to itself the gradient is undefined.
    distances = torch.pdist(features.flatten(1))
    return distances / distances.mean().clamp_min(torch.finfo(distances.dtype).tiny)


def relational_angle_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The angle-wise relational loss: it compares the cosines of all angles between three samples of the batch.

    Park et al. 2019, eq. 7. The cost is O(N^2 * width + N^3) for a batch of N samples.

    Args:
        student_features: (N, ...), N at least 3.
        teacher_features: (N, ...); the function detaches them.

    Raises:
        InputError: The batch has fewer than 3 samples.
    """
    return F.smooth_l1_loss(_angle_cosines(student_features), _angle_cosines(teacher_features.detach()))


def _angle_cosines(features: Tensor) -> Tensor:
    if len(features) < 3:
        raise InputError(f"a batch of {len(features)} sample(s) has no angles; give at least 3")
    flat = features.flatten(1)
    directions = F.normalize(flat[None, :, :] - flat[:, None, :], dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
