"""Decoupled knowledge distillation."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfh.methods.batch import Batch, Context, Method
from mfh.methods.checks import Temperature, Weight, check_problem, warn_once
from mfh.networks.precision import at_least_single
from mfh.problems.problem import Problem
from mfh.values import Bounds, check_fields


@dataclass(frozen=True)
class DKD(Method):
    """Decoupled knowledge distillation: what the teacher says of the true class and of the others, weighted apart.

    With p = softmax(logits / T), b = (p_y, 1 - p_y) for the true class y, and q = softmax of the logits / T without y:
    T^2 [alpha KL(b_teacher || b_student) + beta KL(q_teacher || q_student)], averaged over samples (over labelled
    positions in dense prediction). With two classes q has one entry and the second term vanishes.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022. The defaults are those of the authors' code
    (mdistiller); its configurations set beta between 0.5 and 8 by pair of networks. That code also raises the weight of
    the loss linearly over the first 20 of 240 epochs: `warm_up=20`. Our trainings are shorter, so the default is 0.

    It needs labels: unlabelled pairs teach nothing.

    Args:
        alpha: Weight of the term of the true class.
        beta: Weight of the term of the other classes.
        temperature: Softmax temperature T.
        warm_up: Number of epochs over which the weight of the loss rises linearly to 1.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Temperature = 4.0
    warm_up: Annotated[float, Bounds(0, 1_000_000)] = 0.0

    name = "dkd"
    needs_labels = True

    def __post_init__(self) -> None:
        check_fields(self)

    def begin(self, context: Context) -> nn.Module | None:
        """Check the problem; a dense one is kept, because it says which positions have a class.

        Raises:
            InputError: The problem has no single true class per sample or position.
        """
        check_problem(self.name, context, "classification", "dense prediction")
        if context.num_classes == 2:
            warn_once("dkd: with two classes the term of the other classes vanishes; only the true class is distilled")
        return Positions(context.problem) if context.problem.name == "dense prediction" else None

    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of both terms."""
        student, teacher = at_least_single(batch.student_logits), at_least_single(batch.teacher_logits.detach())
        target = batch.target
        if batch.modules is not None:
            student, teacher, target = batch.modules(student, teacher, target)
        if not len(target):
            return student.sum() * 0
        student, teacher = student / self.temperature, teacher / self.temperature
        student_others, teacher_others = non_target(student, target), non_target(teacher, target)
        of_target = _divergence(_binary(student, student_others, target), _binary(teacher, teacher_others, target))
        of_others = _divergence(F.log_softmax(student_others, 1), F.log_softmax(teacher_others, 1))
        ramp = min((batch.epoch + 1) / self.warm_up, 1.0) if self.warm_up else 1.0
        return ramp * self.temperature**2 * (self.alpha * of_target + self.beta * of_others)


class Positions(nn.Module):
    """Turns dense logits and targets into those of the positions that have a class.

    Args:
        problem: Which marks in a target mean that there is none.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M, K), (M, K) and (M,) of the positions with a class.

        Args:
            student: (N, K, *positions).
            teacher: (N, K, *positions).
            target: (N, *positions).
        """
        known = self.problem.known(target) & (target != self.problem.ignore_index)
        return student.movedim(1, -1)[known], teacher.movedim(1, -1)[known], target[known]


def non_target(logits: Tensor, target: Tensor) -> Tensor:
    """(N, K - 1): the logits of all classes but the true one, in their order.

    Args:
        logits: (N, K).
        target: (N,), the true classes.
    """
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, others + (others >= target[:, None]))


def _binary(logits: Tensor, others: Tensor, target: Tensor) -> Tensor:
    """(N, 2): the logarithms of p_y and 1 - p_y, stable where one of them is tiny."""
    parts = [logits.gather(1, target[:, None]), others.logsumexp(1, keepdim=True)]
    return torch.cat(parts, 1) - logits.logsumexp(1, keepdim=True)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
