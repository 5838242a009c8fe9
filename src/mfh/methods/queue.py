"""Distillation of similarities to a queue of teacher features (COMODO)."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfh.methods.batch import Batch, Context
from mfh.methods.checks import Temperature, drawing
from mfh.methods.features import FeatureMethod, focused, in_single, of_all_processes, pooled
from mfh.values import Bounds


@dataclass(frozen=True)
class Queue(FeatureMethod):
    """Queue distillation: the student is as similar to recent teacher features as the teacher itself is.

    The loss is the mean over samples of -sum_j softmax(v'Q / T_teacher)_j log softmax(u'Q / T_student)_j. v is the
    teacher's feature and u the linearly projected feature of the student (means over positions), both of length 1. Q is
    a queue of the teacher's last features, with those of the batch at its end. A focus multiplies the teacher's
    features by the square roots of the weights. With several processes the queue holds the features of all.

    Source: Chen et al., "COMODO: Cross-Modal Video-to-IMU Distillation for Efficient Egocentric Human Activity
    Recognition", 2025 (arXiv 2503.07259), checked against the authors' code, from which the defaults are. Their student
    ends in a network of two layers, where we have one linear layer, and their queue begins with random training pairs,
    as here where the teacher's features are known beforehand; otherwise it fills batch by batch.

    It needs no labels and no classes.

    Args:
        size: Length of the queue, at most the number of training pairs.
        teacher_temperature: Softmax temperature of the teacher's similarities.
        student_temperature: Softmax temperature of the student's similarities.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    size: Annotated[int, Bounds(1, 10_000_000)] = 16384
    teacher_temperature: Temperature = 0.1
    student_temperature: Temperature = 0.05

    name = "queue"

    def begin(self, context: Context) -> nn.Module:
        """Make the projector and the queue, with the features of random training pairs where they are known."""
        size = min(self.size, context.num_pairs) or self.size
        with drawing(context.seed):
            features = Features(context.student_shape[0], context.teacher_shape[0], size)
            if context.teacher_features:
                (known,) = context.teacher_features.values()
                chosen = known[torch.randperm(len(known))[:size].to(known.device)]
                features.append(self._unit(chosen, next(iter(context.channel_weights.values()), None)))
        return features

    @in_single
    def loss(self, batch: Batch) -> Tensor:
        """The cross-entropy between both distributions of similarities; the queue then moves on."""
        features: Features = batch.modules
        teacher = self._unit(batch.teacher_feature.detach(), batch.channel_weight)
        student = F.normalize(features.projector(pooled(batch.student_feature)), dim=1)
        new = of_all_processes(teacher)
        keys, there = features.with_new(new)
        wanted, found = (
            (rows @ keys.T / temperature).masked_fill(~there, -torch.inf)
            for rows, temperature in ((teacher, self.teacher_temperature), (student, self.student_temperature))
        )
        # Places that are still empty have probability 0 and logarithm minus infinity: their product counts as 0.
        products = torch.where(there, wanted.softmax(1) * found.log_softmax(1).masked_fill(~there, 0.0), 0.0)
        features.append(new)
        return -products.sum(1).mean()

    @staticmethod
    def _unit(features: Tensor, weights: Tensor | None) -> Tensor:
        return F.normalize(focused(pooled(features), weights), dim=1)


class Features(nn.Module):
    """The projector, and a queue of teacher features whose last rows are the newest.

    Args:
        student_width: Number of the student's channels.
        teacher_width: Number of the teacher's channels.
        size: Length of the queue.
    """

    def __init__(self, student_width: int, teacher_width: int, size: int) -> None:
        super().__init__()
        self.projector = nn.Linear(student_width, teacher_width)
        self.queue: Tensor
        self.filled: Tensor
        self.register_buffer("queue", torch.zeros(size, teacher_width))
        self.register_buffer("filled", torch.tensor(0))

    def with_new(self, new: Tensor) -> tuple[Tensor, Tensor]:
        """The queue with new rows at its end, (size + M, C), and whether a row holds a feature, (size + M,)."""
        keys = torch.cat([self.queue.to(new), new])
        return keys, torch.arange(len(keys), device=keys.device) >= len(self.queue) - self.filled

    @torch.no_grad()
    def append(self, new: Tensor) -> None:
        """Put new rows at the end of the queue, and forget the oldest."""
        size = len(self.queue)
        self.queue.copy_(torch.cat([self.queue, new.to(self.queue)])[-size:])
        self.filled.copy_((self.filled + len(new)).clamp_max(size))
