"""Variational information distillation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfh.methods.batch import Batch, Context
from mfh.methods.checks import Weight, check_positions, drawing
from mfh.methods.features import FeatureMethod, pointwise, weighted_mean
from mfh.networks.precision import at_least_single

_EPSILON = 1e-5


@dataclass(frozen=True)
class VID(FeatureMethod):
    """Variational information distillation: predict the teacher's channels, each as well as it can be predicted.

    The mean over samples, channels c and positions of [(mu_c(student) - teacher_c)^2 / v_c + log v_c] / 2, the
    negative log-likelihood of a Gaussian but for a constant. mu is a trained network of three pointwise layers without
    bias, as wide as the teacher's layer, with ReLU between them. v_c = softplus(a_c) + 1e-5 is a trained variance of
    each teacher channel, so channels that the student cannot predict count less: the learned relative of the probe's
    R^2. A focus multiplies the terms of a channel by its weight.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, as in the code of
    RepDistiller, from which the defaults are. There the larger map is pooled to the size of the smaller one; here both
    must have the same positions, because those of two modalities rarely mean the same.

    It needs no labels.

    Args:
        variance: The variance v_c in the beginning.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    variance: Weight = 5.0

    name = "vid"

    def begin(self, context: Context) -> nn.Module:
        """Make the regression and the variances.

        Raises:
            InputError: The features differ in their positions.
        """
        check_positions(self.name, context)
        with drawing(context.seed):
            return Regression(context.student_shape[0], context.teacher_shape, max(self.variance, 2 * _EPSILON))

    def loss(self, batch: Batch) -> Tensor:
        """The negative log-likelihood of the teacher's features."""
        regression, teacher = batch.modules, at_least_single(batch.teacher_feature.detach())
        error = at_least_single(regression(batch.student_feature)) - teacher
        variance = regression.variance().reshape(-1, *[1] * (teacher.ndim - 2))
        return weighted_mean((error.square() / variance + variance.log()) / 2, batch.channel_weight)


class Regression(nn.Module):
    """Means and variances of the teacher's channels given the student's.

    Args:
        channels: Number of the student's channels.
        shape: Shape of one sample's teacher features, (C, *positions).
        variance: The variance in the beginning.
    """

    def __init__(self, channels: int, shape: Sequence[int], variance: float) -> None:
        super().__init__()
        width, positions = shape[0], len(shape) - 1
        self.mean = nn.Sequential(
            pointwise(channels, width, positions, bias=False),
            nn.ReLU(),
            pointwise(width, width, positions, bias=False),
            nn.ReLU(),
            pointwise(width, width, positions, bias=False),
        )
        self.scale = nn.Parameter(torch.full((width,), math.log(math.expm1(variance - _EPSILON))))

    def forward(self, features: Tensor) -> Tensor:
        """The predicted means, in the teacher's shape."""
        means: Tensor = self.mean(features)
        return means

    def variance(self) -> Tensor:
        """(C,), the variances of the teacher's channels."""
        return F.softplus(self.scale) + _EPSILON
