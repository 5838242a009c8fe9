"""Hints: the student's features, projected, shall be the teacher's."""

from dataclasses import dataclass

from torch import Tensor, nn

from mfh.methods.batch import Batch, Context
from mfh.methods.checks import check_positions, drawing
from mfh.methods.features import FeatureMethod, pointwise, weighted_mean
from mfh.networks.precision import at_least_single


@dataclass(frozen=True)
class FitNets(FeatureMethod):
    """The mean squared error between projected student features and teacher features: mean (r(s) - t)^2.

    r is a linear map of channels (a convolution of size 1 where features have positions), trained with the student. A
    focus weights the squared differences by channel.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3. The published method trains on
    the hint first and distils afterwards; here both losses are minimised together, as the comparisons of later papers
    do.

    It needs no labels.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    name = "fitnets"

    def begin(self, context: Context) -> nn.Module:
        """Make the projector.

        Raises:
            InputError: The features differ in their positions.
        """
        check_positions(self.name, context)
        (channels, *positions), (width, *_) = context.student_shape, context.teacher_shape
        with drawing(context.seed):
            return pointwise(channels, width, len(positions))

    def loss(self, batch: Batch) -> Tensor:
        """The mean squared difference over samples, channels and positions."""
        error = at_least_single(batch.modules(batch.student_feature)) - batch.teacher_feature.detach()
        return weighted_mean(error.square(), batch.channel_weight)
