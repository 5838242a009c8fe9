"""The published RAVDESS networks: three convolutions, an adaptive pool, three fully connected layers.

The networks read raw inputs, and their first layer normalises them on the network's device. They also load the
authors' weights: a state_dict with other names whose tensors have the same order and shapes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: The layer with the 128 channels that the paper scores ("place 5"), and the one with 1024 before it ("place 4").
LAYER, WIDE_LAYER = "relu5", "relu4"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Mean and standard deviation of the authors' MFCC features.
PUBLISHED_MFCC_MEAN, PUBLISHED_MFCC_STD = -10.59, 85.66

_FILTERS, _POOLED, _WIDTHS = (32, 64, 128), (7, 14), (1024, 128)


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, by channel (dim 1). Bytes become floats first.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        scale: Divisor of the inputs before that: 255 for bytes that stand for [0, 1].
    """

    shift: Tensor
    factor: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], scale: float = 1.0) -> None:
        super().__init__()
        mean_, std_ = (torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("shift", mean_ / std_)
        self.register_buffer("factor", 1 / (std_ * scale))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, C, H, W) of any type -> the same shape in floating point."""
        return inputs.to(self.factor.dtype) * self.factor - self.shift


def _network(normalize: Normalize, kernels: Sequence[int], num_classes: int) -> nn.Sequential:
    """A network (N, C, H, W) -> logits (N, num_classes), with three square kernels of the given sizes and padding 1."""
    layers: list[tuple[str, nn.Module]] = [("normalize", normalize)]
    width = normalize.factor.shape[1]
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(_POOLED)]
    for number, (filters, kernel, pool) in enumerate(zip(_FILTERS, kernels, pools, strict=True), start=1):
        layers.append((f"conv{number}", nn.Conv2d(width, filters, kernel, padding=1)))
        layers += [(f"relu{number}", nn.ReLU()), (f"pool{number}", pool)]
        width = filters
    layers.append(("flatten", nn.Flatten()))
    width *= _POOLED[0] * _POOLED[1]
    for number, features in enumerate(_WIDTHS, start=1):
        layers += [(f"fc{number}", nn.Linear(width, features)), (f"relu{number + 3}", nn.ReLU())]
        width = features
    layers.append(("fc3", nn.Linear(width, num_classes)))
    network = nn.Sequential(OrderedDict(layers))
    network.register_load_state_dict_pre_hook(_take_in_order)  # type: ignore[no-untyped-call]
    return network


def _take_in_order(network: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename tensors that have other names but the order and shapes of the network's own.

    The authors' networks have the same layers, from first to last, each with weight and bias.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("normalize.")}
    given = {name: tensor for name, tensor in state_dict.items() if isinstance(tensor, Tensor)}
    in_order = [tensor.shape for tensor in given.values()] == [tensor.shape for tensor in own.values()]
    if prefix or not in_order or set(own) & set(given):
        return
    state_dict.clear()
    state_dict |= network.state_dict() | dict(zip(own, given.values(), strict=True))


def audio_network(mean: float, std: float, num_classes: int = 8) -> nn.Sequential:
    """The teacher: MFCC (N, 1, 40, 256) -> logits (N, K), with kernels 7, 5, 5.

    Args:
        mean: Mean of the training split's features.
        std: Standard deviation of the training split's features.
        num_classes: Number K of classes.
    """
    return _network(Normalize([mean], [std]), (7, 5, 5), num_classes)


def image_network(num_classes: int = 8) -> nn.Sequential:
    """The student: RGB bytes (N, 3, 256, 512) -> logits (N, K), with kernels 3, 3, 3.

    Args:
        num_classes: Number K of classes.
    """
    return _network(Normalize(IMAGENET_MEAN, IMAGENET_STD, scale=255), (3, 3, 3), num_classes)
