"""What methods that read features share: pooled vectors, focus, projectors, rows of all processes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfh.methods.batch import Batch, Method
from mfh.methods.checks import Weight
from mfh.networks.precision import at_least_single
from mfh.parallel.distributed import gather, rank, world_size
from mfh.values import check_fields

M = TypeVar("M", bound=Method)


@dataclass(frozen=True)
class FeatureMethod(Method):
    """A method that reads one layer of the student and one of the teacher.

    Args:
        student_layers: Name of the student's layer, as a tuple of one; None means its penultimate layer.
        teacher_layers: Name of the teacher's layer, likewise.
        teacher_weight: Weight of the loss in the training; `loss` itself is without it.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    student_layers: tuple[str, ...] | None = None
    teacher_layers: tuple[str, ...] | None = None
    teacher_weight: Weight = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


def in_single(loss: Callable[[M, Batch], Tensor]) -> Callable[[M, Batch], Tensor]:
    """A method's loss without autocast: small differences of products are lost in half precision.

    Args:
        loss: The method `loss` of a class. It makes features and logits single by `pooled` or `at_least_single`.
    """

    @functools.wraps(loss)
    def exact(self: M, batch: Batch) -> Tensor:
        with torch.autocast(batch.student_logits.device.type, enabled=False):
            return loss(self, batch)

    return exact


def pooled(features: Tensor) -> Tensor:
    """(N, C): the means of the channels over positions, at least in single precision.

    Args:
        features: (N, C, *positions).
    """
    features = at_least_single(features)
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def focused(features: Tensor, weights: Tensor | None) -> Tensor:
    """The features times the square root of their channel's weight, so that squared distances are weighted by channel.

    Args:
        features: (N, C, *positions).
        weights: (C,); None leaves the features as they are.
    """
    return features if weights is None else features * _by_channel(weights, features).sqrt()


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of values that are weighted by channel, a scalar.

    Args:
        values: (N, C, *positions).
        weights: (C,), of mean 1; None weights all channels alike.
    """
    return values.mean() if weights is None else (values * _by_channel(weights, values)).mean()


def _by_channel(weights: Tensor, features: Tensor) -> Tensor:
    return weights.to(features).reshape(-1, *[1] * (features.ndim - 2))


def pointwise(inputs: int, outputs: int, positions: int, *, bias: bool = True, size: int = 1) -> nn.Module:
    """A linear map of channels: a linear layer on vectors, a convolution on maps.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        positions: Number of dimensions of the positions, 0 to 3; 0 means vectors.
        bias: Whether there is a bias.
        size: Side of the convolution's kernel, an odd number. Vectors have no neighbours, so it means nothing there.
    """
    if positions == 0:
        return nn.Linear(inputs, outputs, bias=bias)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[positions - 1]
    return kind(inputs, outputs, size, padding=size // 2, bias=bias)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of (N, C, *positions), which takes a batch of one value per channel too.

    A single value has no variance; then the running statistics are used, and kept.
    """

    def _check_input_dim(self, _features: Tensor) -> None:
        """Features of any number of positions are taken."""

    def forward(self, features: Tensor) -> Tensor:
        """The normalised features."""
        if self.training and features.numel() == features.shape[1]:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(features, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        normalised: Tensor = super().forward(features)
        return normalised


def of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes in order of rank; those of this process keep their gradient.

    Args:
        rows: (N, ...); N may differ between processes.
    """
    if world_size() == 1:
        return rows
    parts = [part.to(rows.device) for part in gather(rows.detach().cpu())]
    parts[rank()] = rows
    return torch.cat(parts)


def share_of(loss: Tensor, own: int, together: int) -> Tensor:
    """A loss over the rows of all processes as the share of this one: the same value, a larger gradient.

    The gradient reaches the rows of this process only, and the processes' gradients are averaged. Averaged by their
    numbers of rows, they are then the gradient of the whole loss.

    Args:
        loss: A scalar that was computed from the rows of all processes.
        own: Number of rows of this process.
        together: Number of rows of all processes.
    """
    return loss if own == together else loss.detach() + (together / own) * (loss - loss.detach())
