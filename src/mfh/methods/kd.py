"""Distillation from the teacher's logits: Hinton et al. 2015, or a function of your own."""

from torch import Tensor

from mfh.errors import InputError
from mfh.methods.batch import Batch, Method
from mfh.problems.losses import DistillationLoss, KDLoss, kl_divergence


class KD(Method):
    """The divergence of the student's softened predictions from the teacher's: T^2 KL(teacher || student).

    Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.1.

    Args:
        distillation_loss: A `KDLoss` with its temperature and weights, or a function of (student logits, teacher
            logits, target) that covers the labels too (default: `KDLoss()`). In `distill` and `study`, a `KDLoss`
            takes label loss and divergence from the problem where it has none of its own.

    Raises:
        InputError: It is no function.

    Example:
        >>> KD(KDLoss(temperature=4.0, teacher_weight=0.5)).teacher_weight
        0.5
    """

    name = "kd"

    def __init__(self, distillation_loss: DistillationLoss | None = None) -> None:
        loss = KDLoss() if distillation_loss is None else distillation_loss
        if not callable(loss):
            raise InputError(
                f"loss is of type {type(loss).__name__}; a function of (student_logits, teacher_logits, target) was "
                "expected: give mfh.KDLoss(...) or your own"
            )
        self.distillation_loss = loss
        self.needs_labels = self.owns_labels = not isinstance(loss, KDLoss)
        if isinstance(loss, KDLoss):
            self.label_weight, self.teacher_weight = loss.label_weight, loss.teacher_weight

    def loss(self, batch: Batch) -> Tensor:
        """The divergence of one batch, without its weight; of a function of your own, its value."""
        loss = self.distillation_loss
        if not isinstance(loss, KDLoss):
            return loss(batch.student_logits, batch.teacher_logits, batch.target)
        divergence = loss.divergence or kl_divergence
        return divergence(
            batch.student_logits, batch.teacher_logits, temperature=loss.temperature, reduction=loss.reduction
        )
