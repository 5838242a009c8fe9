"""Similarity-preserving knowledge distillation."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mfh.methods.batch import Batch
from mfh.methods.checks import Weight
from mfh.methods.features import FeatureMethod, focused, in_single, of_all_processes, share_of
from mfh.networks.precision import at_least_single


@dataclass(frozen=True)
class SP(FeatureMethod):
    """Similarity-preserving distillation: samples that are alike for the teacher shall be alike for the student.

    The loss is |G_student - G_teacher|^2 / N^2, where G = F F' are the products of the flattened features F of the
    batch's N samples, with rows of length 1. A focus multiplies the teacher's features by the square roots of the
    weights. With several processes the samples of all are compared.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. The weight 3000 is that of
    RepDistiller and mdistiller.

    It needs no labels.

    Args:
        teacher_weight: Weight of the loss in the training.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    teacher_weight: Weight = 3000.0

    name = "sp"

    @in_single
    def loss(self, batch: Batch) -> Tensor:
        """The mean squared difference of similarities."""
        student, teacher = similarities(batch)
        return share_of(F.mse_loss(student, teacher), len(batch.student_feature), len(student))


def similarities(batch: Batch) -> tuple[Tensor, Tensor]:
    """(M, M) of student and teacher: products of the M samples of all processes, with rows of length 1."""
    student = at_least_single(batch.student_feature)
    teacher = focused(at_least_single(batch.teacher_feature.detach()), batch.channel_weight)
    student, teacher = (of_all_processes(features.flatten(1)) for features in (student, teacher))
    return F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1)
