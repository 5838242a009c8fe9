"""Distillation with the reused teacher classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mfh.errors import InputError
from mfh.methods.batch import Batch, Context
from mfh.methods.checks import check_positions, drawing
from mfh.methods.features import BatchNorm, FeatureMethod, pointwise, weighted_mean
from mfh.networks.calling import call
from mfh.networks.modes import original
from mfh.networks.precision import at_least_single
from mfh.networks.taps import Tap, find_taps


@dataclass(frozen=True)
class SimKD(FeatureMethod):
    """SimKD: the student learns the teacher's features only, and is used with the teacher's own classifier.

    The mean squared difference between P(student) and the teacher's features, where P is a trained projector.
    The network that is kept is teacher tail(P(student layer)): the teacher's frozen layers after its layer, on the
    projected features. P is a bottleneck: pointwise to half of the teacher's channels, 3x3 convolution (on vectors a
    linear layer), pointwise to the teacher's channels, with batch normalisation and ReLU after the first two. A focus
    weights the squared differences by channel.

    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, checked against the
    authors' code, from which the defaults are. Two differences: their projector ends in batch normalisation and ReLU,
    which only fits features that follow a ReLU; and they pool the larger map to the size of the smaller one, where here
    both must have the same positions.

    It needs no labels and has no label loss, so the student's own last layers are not trained.

    Args:
        factor: The bottleneck has 1 / factor of the teacher's channels.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    factor: int = 2

    name = "simkd"
    owns_labels = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1:
            raise InputError(f"factor is {self.factor}; choose 1 or more")

    def begin(self, context: Context) -> nn.Module:
        """Make the projector, and keep the teacher's tail.

        Raises:
            InputError: The features differ in their positions, or the teacher cannot be cut at its layer.
        """
        check_positions(self.name, context)
        channels, *positions = context.student_shape
        ((teacher_layer, (width, *_)),) = context.teacher_shapes.items()
        if teacher_layer not in context.teacher_tails:
            raise InputError(
                f"simkd uses the teacher's layers after {teacher_layer!r}, but the teacher cannot be cut there or only "
                "its outputs are known; give the teacher's network, or choose another layer"
            )
        with drawing(context.seed):
            projector = _projector(channels, width, max(width // self.factor, 1), len(positions))
        return Reuse(projector, context.teacher_tails[teacher_layer], context.student_channel_dim)

    def loss(self, batch: Batch) -> Tensor:
        """The mean squared difference of features."""
        error = at_least_single(batch.modules(batch.student_feature)) - batch.teacher_feature.detach()
        # Several processes expect a gradient for every parameter, also for those of the student's own last layers.
        unused = 0 * batch.student_logits.sum()
        return weighted_mean(error.square(), batch.channel_weight) + unused

    def deploy(self, student: nn.Module, modules: nn.Module | None) -> nn.Module:
        """The student up to its layer, the projector and the teacher's tail."""
        assert isinstance(modules, Reuse)
        (tap,) = find_taps(student, self.student_layers, "student", modules.channel_dim)
        return Reused(student, tap, modules)


class Reuse(nn.Module):
    """The projector, and what it projects onto.

    Args:
        projector: From the student's features to the teacher's.
        tail: Function from the output of the teacher's layer, channels first, to logits.
        channel_dim: Dimension of the student's layer that counts channels; see `find_taps`.
    """

    def __init__(self, projector: nn.Module, tail: Callable[[Tensor], Tensor], channel_dim: int | None = None) -> None:
        super().__init__()
        self.projector, self.channel_dim = projector, channel_dim
        # In a tuple, so that the teacher's weights are not trained and not written with the projector's.
        self.tail = (tail,)

    def forward(self, features: Tensor) -> Tensor:
        """The projected features, in the teacher's shape."""
        projected: Tensor = self.projector(features)
        return projected


class Reused(nn.Module):
    """The student with the teacher's classifier.

    Args:
        student: The trained student.
        tap: Where its features are read.
        reuse: The trained projector and the teacher's tail.
    """

    def __init__(self, student: nn.Module, tap: Tap, reuse: Reuse) -> None:
        super().__init__()
        self.student, self.tap, self.projector = original(student), tap, reuse.projector
        self.tail = reuse.tail[0]

    def forward(self, inputs: Any) -> Tensor:
        """(N, K, ...), the logits of the teacher's classifier."""
        seen: list[Tensor] = []
        layer = self.student.get_submodule(self.tap.layer)
        if self.tap.at == "output":  # a copy, because operations in place may follow
            handle = layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.clone()))
        else:
            handle = layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
        try:
            call(self.student, inputs)
        finally:
            handle.remove()
        features = self.tap.channels_first(seen[0])
        logits: Tensor = self.tail(self.projector(features))
        return logits


def _projector(channels: int, width: int, middle: int, positions: int) -> nn.Module:
    return nn.Sequential(
        pointwise(channels, middle, positions, bias=False),
        BatchNorm(middle),
        nn.ReLU(),
        pointwise(middle, middle, positions, bias=False, size=3),
        BatchNorm(middle),
        nn.ReLU(),
        pointwise(middle, width, positions),
    )
