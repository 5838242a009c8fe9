"""Customised cross-modal knowledge distillation (C2KD)."""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from mfh.errors import InputError
from mfh.methods.batch import Batch, Context
from mfh.methods.checks import check_problem, drawing, warn_once
from mfh.methods.dkd import non_target
from mfh.methods.features import BatchNorm, FeatureMethod, in_single, pooled
from mfh.networks.precision import at_least_single
from mfh.values import Bounds


@dataclass(frozen=True)
class C2KD(FeatureMethod):
    """C2KD: teacher and student adapt to each other through two proxies, where their rankings of the classes agree.

    z are the logits of the networks, q those of their proxies: trained heads on the features (means over positions)
    with a linear layer, batch normalisation, leaky ReLU (0.1) and a linear layer. For teacher and student alike, KL(z
    || q) + KL(q || z), plus KL(q' || q) without the true class, where q' is the other network's proxy, over the samples
    in which Kendall's tau of both proxies is above `agreement` (the mean is over all samples). What stands first in a
    KL is detached. The teacher, a copy for this arm, is trained by these and by its label loss.

    Source: Huo et al., "C2KD: Bridging the Modality Gap for Cross-Modal Knowledge Distillation", CVPR 2024, as in the
    authors' code; all weights there are 1. The paper could not be read. That code sets the logit of the true class to 0
    instead of leaving the class out, as the paper's abstract has it and as is done here. With two classes nothing is
    left without the true class, so no knowledge crosses.

    It needs labels: unlabelled pairs teach nothing. It takes no focus, because it changes the teacher.

    Args:
        agreement: Samples count where Kendall's tau of both proxies is above it.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    agreement: Annotated[float, Bounds(-1, 1)] = 0.0

    name = "c2kd"
    needs_labels = True
    trains_teacher = True
    takes_focus = False

    def begin(self, context: Context) -> nn.Module:
        """Make the proxies.

        Raises:
            InputError: The problem has no single true class per sample, there is a focus, or only the teacher's outputs
                are known.
        """
        check_problem(self.name, context, "classification")
        if context.channel_weights:
            raise InputError("c2kd takes no focus, because it trains the teacher; leave out what follows the +")
        if context.teacher is None:
            raise InputError("c2kd trains the teacher, but only its outputs are known; give the teacher's network")
        if context.num_classes == 2:
            warn_once("c2kd: with two classes nothing is left without the true class, so no knowledge crosses")
        with drawing(context.seed):
            return nn.ModuleDict(
                {
                    role: _proxy(shape[0], context.num_classes)
                    for role, shape in (("student", context.student_shape), ("teacher", context.teacher_shape))
                }
            )

    @in_single
    def loss(self, batch: Batch) -> Tensor:
        """The terms of both networks and the teacher's label loss."""
        student, teacher = at_least_single(batch.student_logits), at_least_single(batch.teacher_logits)
        student_proxy = batch.modules["student"](pooled(batch.student_feature))
        teacher_proxy = batch.modules["teacher"](pooled(batch.teacher_feature))
        agree = (kendall(student_proxy.detach(), teacher_proxy.detach()) > self.agreement).to(student)
        own = sum(
            _divergence(first, second).mean() + _divergence(second, first).mean()
            for first, second in ((student, student_proxy), (teacher, teacher_proxy))
        )
        ours, theirs = non_target(student_proxy, batch.target), non_target(teacher_proxy, batch.target)
        crossing = (agree * (_divergence(ours, theirs) + _divergence(theirs, ours))).mean()
        return own + crossing + F.cross_entropy(teacher, batch.target)


def _proxy(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(channels, channels, bias=False),
        BatchNorm(channels),
        nn.LeakyReLU(0.1),
        nn.Linear(channels, classes),
    )


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,), KL(teacher || student) of logits (N, K); the teacher's are detached."""
    log_teacher = teacher.detach().log_softmax(1)
    return (log_teacher.exp() * (log_teacher - student.log_softmax(1))).sum(1)


def kendall(first: Tensor, second: Tensor) -> Tensor:
    """(N,) Kendall's rank correlations tau-b of rows; 0 where a row is constant. It costs N K^2.

    Args:
        first: (N, K).
        second: (N, K).
    """
    signs = [
        (rows[:, :, None] > rows[:, None, :]).to(rows) - (rows[:, :, None] < rows[:, None, :]).to(rows)
        for rows in (first, second)
    ]
    agreeing, *untied = ((a * b).sum((1, 2)) for a, b in (signs, signs[:1] * 2, signs[1:] * 2))
    return agreeing / (untied[0] * untied[1]).sqrt().clamp_min(1)
