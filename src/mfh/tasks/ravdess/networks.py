"""The published RAVDESS networks: three convolutions, an adaptive pool, three fully connected layers.

Raw inputs go in; they are normalised by the network's first layer, on its device.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: The 128 channels that the paper scores (its "place 5"), and the 1024 before them ("place 4").
LAYER, WIDE_LAYER = "relu5", "relu4"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Of the authors' MFCC features.
PUBLISHED_MFCC_MEAN, PUBLISHED_MFCC_STD = -10.59, 85.66

_FILTERS, _POOLED, _WIDTHS = (32, 64, 128), (7, 14), (1024, 128)


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel (dim 1); bytes become floats first.

    Args:
        mean: one number per channel.
        std: one number per channel.
        scale: what inputs are divided by beforehand: 255 for bytes that stand for [0, 1].
    """

    shift: Tensor
    factor: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], scale: float = 1.0) -> None:
        super().__init__()
        mean_, std_ = (torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("shift", mean_ / std_)
        self.register_buffer("factor", 1 / (std_ * scale))

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) of any type -> the same shape, of the factor's type."""
        return inputs.to(self.factor.dtype) * self.factor - self.shift


class RavdessNetwork(nn.Sequential):
    """One of the two networks: (N, C, H, W) -> logits (N, num_classes).

    A state_dict whose names differ but whose tensors come in the same order and shapes (as the authors' networks have
    them: weight and bias of each layer, from first to last) is accepted as well.

    Args:
        normalize: the first layer.
        kernels: sizes of the three square convolution kernels; padding is 1.
        num_classes: K.
    """

    def __init__(self, normalize: Normalize, kernels: Sequence[int], num_classes: int = 8) -> None:
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
        super().__init__(OrderedDict(layers))

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As usual, but tensors without our names are taken in order, if all shapes agree."""
        mine = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("normalize.")}
        given = {name: tensor for name, tensor in state_dict.items() if isinstance(tensor, Tensor)}
        in_order = [tensor.shape for tensor in given.values()] == [tensor.shape for tensor in mine.values()]
        if in_order and not set(mine) & set(given):
            normalize = {name: tensor for name, tensor in self.state_dict().items() if name not in mine}
            state_dict = normalize | dict(zip(mine, given.values(), strict=True))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def audio_network(mean: float, std: float, num_classes: int = 8) -> RavdessNetwork:
    """The teacher: MFCC (N, 1, 40, 256) -> logits; kernels 7, 5, 5.

    Args:
        mean: of the training split's features.
        std: of the training split's features.
        num_classes: K.
    """
    return RavdessNetwork(Normalize([mean], [std]), (7, 5, 5), num_classes)


def image_network(num_classes: int = 8) -> RavdessNetwork:
    """The student: RGB bytes (N, 3, 256, 512) -> logits; kernels 3, 3, 3.

    Args:
        num_classes: K.
    """
    return RavdessNetwork(Normalize(IMAGENET_MEAN, IMAGENET_STD, scale=255), (3, 3, 3), num_classes)
