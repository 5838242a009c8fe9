"""Contrastive representation distillation."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfh.methods.batch import Batch, Context
from mfh.methods.checks import Temperature, Weight, check_pairs, drawing
from mfh.methods.features import FeatureMethod, focused, in_single, of_all_processes, pooled
from mfh.parallel.distributed import rank, total, world_size
from mfh.values import Bounds

_EPSILON = 1e-7


@dataclass(frozen=True)
class CRD(FeatureMethod):
    """Contrastive distillation: student and teacher agree on which of many features belongs to the same pair.

    Both features (means over positions) are mapped linearly to `width` numbers and to length 1: u of the student, v of
    the teacher. Memories hold a moving average of both for each training pair. With P(a, b) = exp(a'b / T) / Z, m
    negatives and n pairs, each anchor a pays -log(P / (P + m / n)) for the memory of its own pair and
    -log((m / n) / (P + m / n)) for each negative. The loss is the mean over samples of both directions: u
    against the teacher's memory, v against the student's. Z is set by the first batch to n x the mean of exp(a'b / T).
    The negatives are all other pairs; where there are more than `negatives`, each batch draws as many pairs at random
    with replacement, and a sample that is among them is no negative of itself. A focus multiplies the teacher's
    features by the square roots of the weights. With several processes the memories are the same in all.

    Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020, equations 17 to 19 as in the authors'
    code (RepDistiller), from which the defaults are. The numbers of the equations are from memory, but for 18. That
    code draws `negatives` with replacement for each sample, of other classes. Classes need labels, so here they may be
    of any class; one draw for the whole batch takes the memory of one sample's.

    It needs no labels. The memories hold 2 x pairs x width numbers; the time of a batch does not grow with the pairs
    beyond `negatives`.

    Args:
        teacher_weight: Weight of the loss in the training.
        width: Number of dimensions of the common space.
        negatives: The greatest number of negatives m.
        temperature: Temperature T.
        momentum: Share of the old feature in the moving average.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    teacher_weight: Weight = 0.8
    width: Annotated[int, Bounds(1, 1_000_000)] = 128
    negatives: Annotated[int, Bounds(1, 10_000_000)] = 16384
    temperature: Temperature = 0.07
    momentum: Annotated[float, Bounds(0, 1, below=True)] = 0.5

    name = "crd"

    def begin(self, context: Context) -> nn.Module:
        """Make both maps and both memories.

        Raises:
            InputError: There are fewer than two training pairs.
        """
        check_pairs(self.name, context)
        with drawing(context.seed):
            widths = context.student_shape[0], context.teacher_shape[0]
            return Memories(*widths, self.width, context.num_pairs, context.seed)

    @in_single
    def loss(self, batch: Batch) -> Tensor:
        """The contrastive loss of both directions; the memories then learn the batch."""
        memories: Memories = batch.modules
        student = F.normalize(memories.of_student(pooled(batch.student_feature)), dim=1)
        focus = focused(pooled(batch.teacher_feature.detach()), batch.channel_weight)
        teacher = F.normalize(memories.of_teacher(focus), dim=1)
        drawn = memories.drawn(self.negatives)
        loss = self._contrast(student, memories.teacher, batch.index, drawn, memories.teacher_scale)
        loss = loss + self._contrast(teacher, memories.student, batch.index, drawn, memories.student_scale)
        memories.learn(batch.index, student.detach(), teacher.detach(), self.momentum)
        return loss

    def _contrast(self, anchors: Tensor, memory: Tensor, index: Tensor, drawn: Tensor, scale: Tensor) -> Tensor:
        """The mean loss of the anchors, whose own rows of the memory are `index`, against the rows that were drawn."""
        # Rows picked by index are copies, and they must be: the memory changes before the backward pass.
        own = (anchors * memory[index].to(anchors)).sum(1).div(self.temperature).exp()
        others = (anchors @ memory[drawn].to(anchors).T).div(self.temperature).exp()
        negative = drawn != index[:, None]  # a pair is no negative of itself
        numbers, count = negative.sum(1), len(memory)
        with torch.no_grad():
            values = own.sum() + others.where(negative, 0.0).sum()
            sums = total(torch.stack([values, (numbers.sum() + len(own)).to(values)]))
            scale.copy_(torch.where(scale > 0, scale, count * sums[0] / sums[1]))
        noise = numbers / count
        right = own / scale
        right = right / (right + noise + _EPSILON)
        wrong = noise[:, None] / (others / scale + noise[:, None] + _EPSILON)
        return -(right.log() + wrong.where(negative, 1.0).log().sum(1)).mean()


class Memories(nn.Module):
    """Maps to a common space, and what was last seen there of every training pair.

    Args:
        student_width: Number of the student's channels.
        teacher_width: Number of the teacher's channels.
        width: Number of dimensions of the common space.
        count: Number of training pairs.
        seed: Seed of the negatives.
    """

    def __init__(self, student_width: int, teacher_width: int, width: int, count: int, seed: int) -> None:
        super().__init__()
        self.of_student, self.of_teacher = nn.Linear(student_width, width), nn.Linear(teacher_width, width)
        bound = (3 / width) ** 0.5
        self.student: Tensor
        self.teacher: Tensor
        self.student_scale: Tensor
        self.teacher_scale: Tensor
        self.register_buffer("student", torch.empty(count, width).uniform_(-bound, bound))
        self.register_buffer("teacher", torch.empty(count, width).uniform_(-bound, bound))
        self.register_buffer("student_scale", torch.tensor(0.0))
        self.register_buffer("teacher_scale", torch.tensor(0.0))
        # The number of batches says what is drawn next, so a resumed training draws what it would have drawn.
        self.batches: Tensor
        self.register_buffer("batches", torch.tensor(0))
        self.seed = seed

    def drawn(self, negatives: int) -> Tensor:
        """(m,): the rows that are negatives of a batch, all of them or as many at random.

        Args:
            negatives: The greatest number of negatives.
        """
        count, device = len(self.student), self.student.device
        if count - 1 <= negatives:
            return torch.arange(count, device=device)
        generator = torch.Generator()
        generator.manual_seed((self.seed + int(self.batches) * world_size() + rank()) % 2**63)
        return torch.randint(count, (negatives,), generator=generator).to(device)

    @torch.no_grad()
    def learn(self, index: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Move the rows of a batch, of all processes, towards its features.

        Args:
            index: (N,), the samples' positions among the training pairs.
            student: (N, width).
            teacher: (N, width).
            momentum: Share of the old feature.
        """
        index = of_all_processes(index)
        for memory, new in ((self.student, student), (self.teacher, teacher)):
            moved = momentum * memory[index] + (1 - momentum) * of_all_processes(new).to(memory)
            memory.index_copy_(0, index, F.normalize(moved, dim=1))
        self.batches += 1
