"""One residual network for two or three spatial dimensions: the audio teacher and the video student.

The blocks are the basic blocks of He et al. 2016. Modules have the names of torchvision's `resnet18`, so its weights
fit by name, see `from_torchvision`. Spectrogram and normalisation are part of the network: they run on its device, not
in the processes that read data.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfh.errors import InputError

#: The layer with the pooled channels before the classifier, 512 in the published networks. What follows is affine.
LAYER = "avgpool"

FFT_SIZE = 1024
HOP = 512

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def audio_network(num_classes: int, samples: int = 160_000, *, width: int = 64, log: bool = True) -> "ResidualNetwork":
    """ResNet-18 on a spectrogram: sound (N, T) -> logits (N, K).

    As published, the first convolution is 7 x 7 with stride 2 and padding 1, on one channel.

    Args:
        num_classes: Number K of classes.
        samples: Usual length T at 16 kHz. Spectrograms of sounds of another length are resized.
        width: Channels of the first stage. The last stage has 8 times as many.
        log: Whether magnitudes m become log(1 + m).
    """
    front = Spectrogram(columns=1 + samples // HOP, log=log)
    return ResidualNetwork(front, 1, num_classes, kernel=(7, 7), padding=(1, 1), blocks=(2, 2, 2, 2), width=width)


def video_network(num_classes: int, *, width: int = 64) -> "ResidualNetwork":
    """A 3-D residual network, three basic blocks per stage: video (N, F, H, W, 3), uint8 RGB -> logits (N, K).

    As published, the first convolution is 3 x 7 x 7 with stride 2 in time, height and width.

    Args:
        num_classes: Number K of classes.
        width: Channels of the first stage. The last stage has 8 times as many.
    """
    shape = {"kernel": (3, 7, 7), "padding": (1, 3, 3)}
    return ResidualNetwork(Pixels(), 3, num_classes, **shape, blocks=(3, 3, 3, 3), width=width)


class Spectrogram(nn.Module):
    """Magnitudes of the short-time Fourier transform: sound (N, T) -> (N, 1, 513, columns).

    Hann windows of 1024 samples start every 512 samples, centred and reflected at the ends, so 160000 samples give 313
    columns. Bilinear interpolation resizes another number of columns.

    Args:
        columns: Number of columns of the result.
        log: Whether magnitudes m become log(1 + m).
    """

    window: Tensor

    def __init__(self, columns: int, *, log: bool) -> None:
        super().__init__()
        self.shape, self.log = (FFT_SIZE // 2 + 1, columns), log
        self.register_buffer("window", torch.hann_window(FFT_SIZE), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """The spectrograms."""
        spectrum = torch.stft(sound.float(), FFT_SIZE, HOP, window=self.window, return_complex=True).abs()
        # This changes nothing if the size is right. Without a condition, the network can be traced.
        magnitudes = F.interpolate(spectrum[:, None], self.shape, mode="bilinear", align_corners=False)
        return torch.log1p(magnitudes) if self.log else magnitudes


class Pixels(nn.Module):
    """Pixels normalised by ImageNet's mean and standard deviation: (N, F, H, W, 3) uint8 -> (N, 3, F, H, W).

    The result is contiguous, because channels last would double the time of a step on a CPU. The option
    `channels_last` restores that format for a GPU.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (1 / (255 * std)).reshape(3, 1, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).reshape(3, 1, 1, 1), persistent=False)

    def forward(self, video: Tensor) -> Tensor:
        """The normalised videos."""
        return video.permute(0, 4, 1, 2, 3).contiguous() * self.scale + self.shift


class BasicBlock(nn.Module):
    """Two convolutions of width 3 beside a shortcut.

    Args:
        dims: Number of spatial dimensions, 2 or 3.
        before: Channels of the input.
        after: Channels of the output.
        stride: Stride of the first convolution, 1 or 2.
    """

    def __init__(self, dims: int, before: int, after: int, stride: int) -> None:
        super().__init__()
        conv, norm = _CONV[dims], _NORM[dims]
        self.conv1 = conv(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = norm(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(after, after, 3, padding=1, bias=False)
        self.bn2 = norm(after)
        # A projection if the shapes differ, otherwise the identity.
        self.downsample = (
            nn.Sequential(conv(before, after, 1, stride, bias=False), norm(after))
            if stride != 1 or before != after
            else nn.Sequential()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, ...) -> (N, after, ...)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))  # type: ignore[no-any-return]


class GlobalAverage(nn.Module):
    """Mean over all positions: (N, C, ...) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """The means."""
        return x.flatten(2).mean(2)


class ResidualNetwork(nn.Module):
    """Convolution, max pooling, four stages of basic blocks, global average `avgpool`, linear classifier `fc`.

    Args:
        front: First module, raw input -> (N, C, ...) with two or three spatial dimensions.
        channels: Number C of channels that `front` returns.
        num_classes: Number K of classes.
        kernel: Kernel of the first convolution, whose stride is 2. Its length is the number of spatial dimensions.
        padding: Padding of the first convolution.
        blocks: Number of blocks in each stage. Stages after the first halve every spatial dimension and double the
            channels.
        width: Channels of the first stage.
    """

    def __init__(
        self,
        front: nn.Module,
        channels: int,
        num_classes: int,
        *,
        kernel: Sequence[int],
        padding: Sequence[int],
        blocks: Sequence[int],
        width: int = 64,
    ) -> None:
        super().__init__()
        dims = len(kernel)
        if dims not in _CONV:
            raise InputError(f"a kernel of {dims} dimensions was given; 2 or 3 were expected")
        self.front = front
        self.conv1 = _CONV[dims](channels, width, tuple(kernel), 2, tuple(padding), bias=False)  # type: ignore[arg-type]
        self.bn1 = _NORM[dims](width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _POOL[dims](3, 2, padding=1)
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2**stage
            first = BasicBlock(dims, before, after, 1 if stage == 0 else 2)
            others = [BasicBlock(dims, after, after, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *others))
            before = after
        self._stages = [f"layer{stage + 1}" for stage in range(len(blocks))]
        self.avgpool = GlobalAverage()
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Raw input -> logits (N, K)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.front(x)))))
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.avgpool(x))  # type: ignore[no-any-return]


def from_torchvision(state_dict: Mapping[str, Tensor], network: ResidualNetwork) -> dict[str, Tensor]:
    """Weights of torchvision's `resnet18` as weights of the audio network.

    Every name keeps its meaning, and all names are needed. `conv1.weight` (64, 3, 7, 7) is summed over its three
    colours, so a grey picture gives the same result. The classifier `fc` is taken if it has the same number of classes.
    Otherwise the network keeps its own.

    Args:
        state_dict: Weights of torchvision's resnet18.
        network: The audio network, `audio_network(num_classes)`.

    Returns:
        A state_dict for `network.load_state_dict`.

    Raises:
        InputError: Names or shapes are not those of a ResNet-18.
    """
    own = network.state_dict()
    if unknown := sorted(set(state_dict) ^ set(own)):
        raise InputError(f"the weights are not those of torchvision's resnet18: {unknown[0]!r} is in one of them only")
    weights = OrderedDict(state_dict)
    weights["conv1.weight"] = weights["conv1.weight"].sum(1, keepdim=True)
    if weights["fc.weight"].shape != own["fc.weight"].shape:
        weights["fc.weight"], weights["fc.bias"] = own["fc.weight"], own["fc.bias"]
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}; {tuple(own[name].shape)} of a resnet18 was expected"
            )
    return weights
