"""Hints: the student's features, projected, shall be the teacher's."""

from torch import Tensor, nn

from mfh.errors import InputError
from mfh.methods.batch import Batch, Context, Method


class FitNets(Method):
    """The mean squared error between projected student features and teacher features: mean ||r(s) - t||^2.

    Romero et al. 2015, "FitNets: hints for thin deep nets", eq. 3, with a linear regressor r (a 1x1 convolution where
    features have positions), trained with the student. The published method trains on the hint first and distils
    afterwards; here both losses are minimised together, as the comparisons of later papers do.

    Args:
        student_layers: The student's layer, or None for the penultimate one.
        teacher_layers: The teacher's layer, or None for the penultimate one.
    """

    name = "fitnets"

    def __init__(
        self, student_layers: tuple[str, ...] | None = None, teacher_layers: tuple[str, ...] | None = None
    ) -> None:
        self.student_layers, self.teacher_layers = student_layers, teacher_layers

    def begin(self, context: Context) -> nn.Module:
        """The regressor.

        Raises:
            InputError: The features of student and teacher have other positions.
        """
        (wide, *here), (target, *there) = context.student_shape, context.teacher_shape
        if here != there:
            raise InputError(
                f"fitnets: the student's features have positions {tuple(here)} and the teacher's {tuple(there)}; name "
                "layers of equal positions, or layers behind the pooling"
            )
        return nn.Linear(wide, target)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over samples, channels and positions; with a focus, channels count by their weights."""
        projected = batch.modules(batch.student_feature.movedim(1, -1))
        squares: Tensor = (projected - batch.teacher_feature.movedim(1, -1)).square()
        weight = batch.channel_weight
        return (squares if weight is None else squares * weight.to(squares)).mean()
