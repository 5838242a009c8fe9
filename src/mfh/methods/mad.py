"""Margin-aware distillation of relations (MMANet)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mfh.methods.batch import Batch, Context
from mfh.methods.checks import Weight, check_problem
from mfh.methods.features import FeatureMethod, in_single, of_all_processes, share_of
from mfh.methods.sp import similarities
from mfh.networks.precision import at_least_single


@dataclass(frozen=True)
class MAD(FeatureMethod):
    """Margin-aware distillation: relations count more for samples that the teacher is unsure of.

    The loss is sum_i w_i |G_student[i] - G_teacher[i]|^2 with the similarities G of `SP` and w_i = H_i / sum_j H_j,
    where H_i is the entropy of the teacher's prediction for sample i. In dense prediction H_i is the mean over
    positions; with several labels per sample, the sum of the entropies of the classes (both are our extensions). A
    focus acts as in `SP`. With several processes the samples of all are compared.

    Source: Wei et al., "MMANet: Margin-Aware Distillation and Modality-Aware Regularization for Incomplete Multimodal
    Learning", CVPR 2023, checked against the authors' code; the paper could not be read. The code weights columns of
    the differences where we weight rows: the relations *of* the uncertain samples. The weight 30 is that of their
    scripts for CASIA-SURF.

    It needs no labels.

    Args:
        teacher_weight: Weight of the loss in the training.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    teacher_weight: Weight = 30.0

    name = "mad"

    def begin(self, context: Context) -> nn.Module:
        """Keep how entropies of predictions are computed.

        Raises:
            InputError: The problem has no classes.
        """
        check_problem(self.name, context, "classification", "dense prediction", "multi-label classification")
        return Entropy(context.problem.categorical)

    @in_single
    def loss(self, batch: Batch) -> Tensor:
        """The weighted squared difference of similarities."""
        student, teacher = similarities(batch)
        entropy = of_all_processes(batch.modules(at_least_single(batch.teacher_logits.detach())))
        # The smallest positive number keeps a batch of certain samples from being divided by 0.
        weights = (entropy + 1e-12) / (entropy + 1e-12).sum()
        loss = (weights[:, None] * (student - teacher).square()).sum()
        return share_of(loss, len(batch.student_feature), len(student))


class Entropy(nn.Module):
    """Entropies of predictions.

    Args:
        categorical: Whether a softmax turns logits into probabilities; otherwise each class has its own sigmoid.
    """

    def __init__(self, categorical: bool) -> None:
        super().__init__()
        self.categorical = categorical

    def forward(self, logits: Tensor) -> Tensor:
        """(N,), in nats; the mean over positions of (N, K, *positions)."""
        if self.categorical:
            entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
        else:
            entropy = -(logits.sigmoid() * F.logsigmoid(logits) + (-logits).sigmoid() * F.logsigmoid(-logits)).sum(1)
        return entropy.flatten(1).mean(1) if entropy.ndim > 1 else entropy
