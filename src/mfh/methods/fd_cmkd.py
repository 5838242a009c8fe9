"""Frequency-decoupled cross-modal knowledge distillation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfh.errors import InputError
from mfh.methods.batch import Batch, Context
from mfh.methods.checks import Weight, check_problem, drawing
from mfh.methods.features import FeatureMethod, in_single, pooled, weighted_mean
from mfh.problems.problem import Problem


@dataclass(frozen=True)
class FDCMKD(FeatureMethod):
    """Frequency decoupling: match low frequencies of the feature vector strictly, high ones loosely, and classify both.

    A feature vector X of D channels (means over positions) is divided by the Fourier transform over its channels: the
    lower half of the frequencies gives X_low, the others X_high, both of D channels again. With Std(X) = (X - mean) /
    |X - mean| and s(x) = sign(x) log(1 + |x|), the loss is low x mean (Std(X_low) difference)^2 + high x mean
    (s(Std(X_high)) difference)^2, means over samples and channels, + labels x the label losses of two linear
    classifiers, one for each band, which student and teacher share. Where the widths differ, a trained linear layer
    first maps the student's feature to the teacher's width (ours; the published pairs have equal widths). A focus
    weights the squared differences by channel.

    Source: Liu et al., "Distilling Cross-Modal Knowledge via Feature Disentanglement", AAAI 2026 (arXiv 2511.19887).
    The formulas are from a third party's notes and agree with two reimplementations; the paper and the authors' code
    could not be read. The published weights are not known: one reimplementation has 1 for all, as here.

    The two distances need no labels; the classifiers learn from labelled pairs. Published for one class per sample;
    with several labels or numbers the classifiers have the label loss of the problem.

    Args:
        low: Weight of the distance of low frequencies.
        high: Weight of the distance of high frequencies.
        labels: Weight of the label losses of the shared classifiers.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    low: Weight = 1.0
    high: Weight = 1.0
    labels: Weight = 1.0

    name = "fd-cmkd"

    def begin(self, context: Context) -> nn.Module:
        """Make the classifiers, and a projector where the widths differ.

        Raises:
            InputError: The problem has no label for a whole sample, or the teacher's feature is too short to divide.
        """
        check_problem(self.name, context, "classification", "multi-label classification", "regression")
        student, teacher = context.student_shape[0], context.teacher_shape[0]
        if teacher < 4:
            raise InputError(
                f"fd-cmkd divides the teacher's feature into frequencies and needs at least 4 channels, got {teacher}; "
                "choose another layer"
            )
        with drawing(context.seed):
            return Bands(student, teacher, context.num_classes, context.problem)

    @in_single
    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of both distances and the classifiers' label losses."""
        bands: Bands = batch.modules
        student = bands_of(bands.projector(pooled(batch.student_feature)))
        teacher = bands_of(pooled(batch.teacher_feature.detach()))
        (low, high), (their_low, their_high) = (tuple(map(standardised, parts)) for parts in (student, teacher))
        strict = weighted_mean((low - their_low).square(), batch.channel_weight)
        loose = weighted_mean((softened(high) - softened(their_high)).square(), batch.channel_weight)
        distance = self.low * strict + self.high * loose
        return distance + self.labels * bands.label_loss([student, teacher], batch.target, batch.labelled)


class Bands(nn.Module):
    """The projector, and the classifiers of both bands.

    Args:
        student_width: Number of the student's channels.
        teacher_width: Number of the teacher's channels.
        outputs: Number of outputs of a classifier.
        problem: Whose label loss the classifiers have.
    """

    def __init__(self, student_width: int, teacher_width: int, outputs: int, problem: Problem) -> None:
        super().__init__()
        same = student_width == teacher_width
        self.projector = nn.Identity() if same else nn.Linear(student_width, teacher_width)
        self.classifiers = nn.ModuleList(nn.Linear(teacher_width, outputs) for _ in range(2))
        self.problem = problem

    def label_loss(self, features: list[tuple[Tensor, Tensor]], target: Tensor, labelled: Tensor) -> Tensor:
        """The sum of the label losses of both classifiers on the bands of both roles; 0 without labelled pairs.

        Args:
            features: (N, C) of the low and the high band, by role.
            target: (N, ...).
            labelled: (N,), whether a pair has a label.
        """
        target = target[labelled]
        losses = [
            self.problem.known_loss(classifier(band[labelled]), target)
            for bands in features
            for classifier, band in zip(self.classifiers, bands, strict=True)
        ]
        return torch.stack(losses).sum()


def bands_of(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The lower half of the frequencies over channels, and the others, each (N, C) again.

    Args:
        vectors: (N, C).
    """
    spectrum = torch.fft.rfft(vectors, dim=1)
    lower = torch.arange(spectrum.shape[1], device=vectors.device) < (spectrum.shape[1] + 1) // 2
    low, high = (torch.fft.irfft(spectrum * kept, n=vectors.shape[1], dim=1) for kept in (lower, ~lower))
    return low, high


def standardised(vectors: Tensor) -> Tensor:
    """The vectors (N, C) less their mean over channels, and of length 1."""
    return nn.functional.normalize(vectors - vectors.mean(1, keepdim=True), dim=1)


def softened(values: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return values.sign() * values.abs().log1p()
