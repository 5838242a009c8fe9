"""Standardisation as a part of a network, so that it takes raw inputs wherever it runs."""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Subtract the mean and divide by the standard deviation of every feature or channel.

    Args:
        mean: Mean of each feature or channel, (C,).
        std: Standard deviation of each, (C,). Zero counts as 1, so a constant feature becomes 0.
        ndim: Number of dimensions of an input with its batch dimension, at least 2.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, ndim: int = 2) -> None:
        super().__init__()
        shape = (-1, *(1,) * (ndim - 2))
        self.register_buffer("mean", mean.reshape(shape).clone())
        self.register_buffer("std", torch.where(std > 0, std, 1.0).reshape(shape))

    @classmethod
    def of(cls, inputs: Tensor) -> "Standardise":
        """Standardise as these inputs (N, C, ...) need it."""
        return cls(*moments(inputs), inputs.ndim)

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardised inputs, of the same shape (N, C, ...)."""
        return (inputs - self.mean) / self.std


def moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature or channel of inputs (N, C, ...), each (C,)."""
    rows = inputs.double().transpose(0, 1).flatten(1)
    return rows.mean(1).float(), rows.std(1, correction=0).float()
