"""Distillation of relations between predictions (DIST)."""

from dataclasses import dataclass

from torch import Tensor, nn

from mfh.methods.batch import Batch, Context, Method
from mfh.methods.checks import Temperature, Weight, check_problem, warn_once
from mfh.methods.features import of_all_processes, share_of
from mfh.networks.precision import at_least_single
from mfh.values import check_fields

_EPSILON = 1e-8


@dataclass(frozen=True)
class DIST(Method):
    """DIST: the student's predictions need only correlate with the teacher's, within each sample and each class.

    With p = softmax(logits / T), T^2 [beta (1 - mean_i r(p_student[i], p_teacher[i])) + gamma (1 - mean_k
    r(p_student[:, k], p_teacher[:, k]))], where r is Pearson's correlation, over the classes of a sample (inter-class)
    and over the samples of the batch (intra-class). In dense prediction every position is a sample; with several labels
    per sample p is the sigmoid. The correlation of two numbers is 1 or -1, so with two classes the inter-class term has
    no gradient and is left out. With several processes the intra-class term counts the samples of all.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022. Weights 1 and 1 are the
    defaults of the authors' code for segmentation, which has no temperature. The factor T^2 is that of copies of their
    classification code, and the weights of the paper's own experiments could not be verified.

    It needs no labels.

    Args:
        beta: Weight of the inter-class term.
        gamma: Weight of the intra-class term.
        temperature: Softmax temperature T.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Temperature = 1.0

    name = "dist"

    def __post_init__(self) -> None:
        check_fields(self)

    def begin(self, context: Context) -> nn.Module | None:
        """Check the problem, and keep whether classes exclude each other.

        Raises:
            InputError: The problem has no classes.
        """
        check_problem(self.name, context, "classification", "dense prediction", "multi-label classification")
        if context.num_classes <= 2:
            warn_once("dist: with two classes the inter-class term vanishes; only the intra-class term is left")
        return nn.Softmax(1) if context.problem.categorical else nn.Sigmoid()

    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of both terms."""
        student, teacher = (
            batch.modules(at_least_single(logits) / self.temperature).movedim(1, -1).flatten(0, -2)
            for logits in (batch.student_logits, batch.teacher_logits.detach())
        )
        own = len(student)
        student, teacher = of_all_processes(student), of_all_processes(teacher)
        loss = self.gamma * (1 - correlation(student.T, teacher.T).mean())
        if student.shape[1] > 2:
            loss = loss + self.beta * (1 - correlation(student, teacher).mean())
        return share_of(self.temperature**2 * loss, own, len(student))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """(N,) Pearson's correlations of rows; 0 where a row is constant.

    Args:
        first: (N, M).
        second: (N, M).
    """
    first, second = (rows - rows.mean(1, keepdim=True) for rows in (first, second))
    found: Tensor = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + _EPSILON)
    return found
