"""Masks over a teacher's channels, and the focused teacher they make."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mfh import files
from mfh.data.pairs import as_batch, to_device
from mfh.data.spool import Rows
from mfh.errors import InputError
from mfh.networks import cut
from mfh.networks.layers import as_logits, check_activation, find_layer
from mfh.networks.modes import device_of, eager, evaluating, fingerprint, original, placed, unfused_attention
from mfh.parallel.distributed import share_rows


@dataclass(frozen=True, eq=False)
class ChannelMask:
    """How much of each channel a focused teacher keeps: means + weights * (z - means).

    Usually made by `ChannelSaliency.mask`; make one by hand for channels you know (an oracle), or change one with
    `dataclasses.replace`.

    Args:
        layer: of the teacher, a name from `named_modules()`.
        weights: (C,) in [0, 1]; 0 removes a channel, 1 keeps it.
        means: (C, *positions), or (C,) for all positions; what a removed channel becomes.
        fingerprint: of the teacher's weights; channels belong to one network.
        channel_dim: the dimension of the layer's output that counts channels.
        kind: "general", "specific", "random", "soft" or a name of your own.
        score: the saliency's score the mask was made from, if any.
        ratio: fraction of channels removed, if that is how it was made.

    Raises:
        InputError: weights are not one number in [0, 1] per channel, or means do not fit.
    """

    layer: str
    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    fingerprint: str
    channel_dim: int = 1
    kind: str = "custom"
    score: str | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        # Copies, so that the caller's arrays can change without changing the mask.
        weights, means = (np.array(values, dtype=np.float64, order="C") for values in (self.weights, self.means))
        if weights.ndim != 1 or not len(weights) or not ((weights >= 0) & (weights <= 1)).all():
            raise InputError(
                f"mask weights have shape {weights.shape} and range {_range(weights)}; one number in [0, 1] per "
                "channel was expected"
            )
        if not means.ndim or len(means) != len(weights) or not np.isfinite(means).all():
            raise InputError(
                f"mask means have shape {means.shape} for {len(weights)} channels; finite values of shape (C,) or "
                "(C, *positions) were expected"
            )
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "means", means)

    @property
    def removed(self) -> NDArray[np.intp]:
        """Indices of the channels whose weight is 0, ascending."""
        return np.flatnonzero(self.weights == 0)

    def save(self, path: str | Path) -> None:
        """Write the mask to a safetensors file, atomically."""
        files.save_fields(self, path, "mask")

    @classmethod
    def load(cls, path: str | Path) -> "ChannelMask":
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file, or it is not a mask.
        """
        return files.load_fields(cls, path, "mask")


def _range(values: NDArray[np.float64]) -> str:
    return f"[{values.min():.3g}, {values.max():.3g}]" if values.size else "(empty)"


class FocusedTeacher(nn.Module):
    """A teacher whose channels at one layer are masked. Made by `mask_channels`.

    Works wherever the teacher worked: devices, precision, modes, state_dict. The mask is a pair of buffers.
    """

    weights: Tensor
    means: Tensor

    def __init__(self, teacher: nn.Module, mask: ChannelMask) -> None:
        super().__init__()
        self.teacher = teacher
        self.training = teacher.training
        self.layer, self.channel_dim = mask.layer, mask.channel_dim
        home = device_of(teacher)
        self.register_buffer("weights", _float32(mask.weights, home))
        self.register_buffer("means", _float32(mask.means, home))
        self._calls = 0
        find_layer(teacher, mask.layer).register_forward_hook(self._mask)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher returns, computed from the masked channels."""
        self._calls = 0
        with unfused_attention(), eager():
            output = self.teacher(*args, **kwargs)
        if self._calls != 1:
            raise InputError(f"layer {self.layer!r} ran {self._calls} times in one forward; exactly once is needed")
        return output

    def _mask(self, _module: nn.Module, _args: Any, output: Any) -> Tensor:
        self._calls += 1
        activation = check_activation(output, self.layer)
        return apply_mask(activation, self.weights, self.means, self.channel_dim)


def mask_channels(teacher: nn.Module, mask: ChannelMask) -> FocusedTeacher:
    """A new network: the teacher with its channels at `mask.layer` replaced by means + weights * (z - means).

    The teacher is copied, not touched. The copy keeps the teacher's mode and device; its parameters can be trained
    like any others, distillation freezes them.

    Args:
        teacher: the very network the saliency was computed on.
        mask: which channels to keep, and how much of them.

    Raises:
        InputError: the mask belongs to another teacher (fingerprint of the weights) or there is no such layer.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> from mfh.networks import fingerprint
        >>> mask = ChannelMask(layer="0", weights=[0, 0, 0], means=[1, 2, 3], fingerprint=fingerprint(teacher))
        >>> logits = mask_channels(teacher, mask)(torch.randn(5, 2))
        >>> bool((logits == logits[0]).all())  # nothing is left of the input
        True
    """
    check_fingerprint(teacher, mask.fingerprint, "mask")
    teacher = original(teacher)
    find_layer(teacher, mask.layer)
    return FocusedTeacher(deepcopy(teacher), mask)


def check_fingerprint(teacher: nn.Module, expected: str, what: str) -> None:
    """Refuse a saliency or mask of another network.

    Raises:
        InputError: fingerprints differ.
    """
    found = fingerprint(teacher)
    if found != expected:
        raise InputError(
            f"the {what} was made for another teacher (fingerprint of its weights {expected}, this teacher's is "
            f"{found}); channels belong to one network: use the teacher that was scored, or score this one"
        )


def apply_mask(activation: Tensor, weights: Tensor, means: Tensor, channel_dim: int) -> Tensor:
    """Compute means + weights * (activation - means), exact where a weight is 0 or 1.

    Args:
        activation: (N, ..., C, ...), channels along `channel_dim`.
        weights: (C,).
        means: (C, *positions) or (C,).
        channel_dim: counted from the front.

    Raises:
        InputError: the activation has another number of channels or other positions.
    """
    width = activation.shape[channel_dim]
    moved = activation.movedim(channel_dim, 1)
    if width != len(weights) or (means.ndim > 1 and moved.shape[1:] != means.shape):
        raise InputError(
            f"the mask has {len(weights)} channels (means of shape {tuple(means.shape)}); the layer's output has "
            f"{width} (shape {tuple(activation.shape)}): it was made for another layer or input size"
        )
    if means.ndim == 1:
        means = means.reshape(-1, *[1] * (moved.ndim - 2))
    keep = weights.reshape(-1, *[1] * (moved.ndim - 2)).to(activation)
    return torch.lerp(means.to(activation).expand_as(moved), moved, keep).movedim(1, channel_dim)


def masked_logits(
    teacher: nn.Module,
    masks: Sequence[ChannelMask | None],
    pairs: Iterable[Any],
    *,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """Logits of one teacher under several masks: its trunk runs once per sample, its tail once per mask.

    Args:
        teacher: the network the masks were made for.
        masks: all of one layer; None stands for the unmasked teacher.
        pairs: batches, read once, in order; under torch.distributed each process passes a disjoint part.
        device: where to run; default: where the teacher is.

    Returns:
        One (N, K) tensor on the CPU per mask, of all processes' samples in order of rank; memory-mapped where it is
        larger than 2 GiB.

    Raises:
        InputError: masks belong to another teacher, or to several layers; there are no samples.
    """
    teacher, given = original(teacher), [mask for mask in masks if mask is not None]
    layers = {(mask.layer, mask.channel_dim) for mask in given}
    if len(layers) > 1:
        raise InputError(f"masks are for layers {sorted(layers)}; evaluate one layer at a time")
    for digest in {mask.fingerprint for mask in given}:
        check_fingerprint(teacher, digest, "mask")
    results, samples = [Rows() for _ in masks], 0
    split: cut.Split | None = None
    with placed(device, teacher), evaluating(teacher):
        home = device_of(teacher)
        values = [
            None if mask is None else (_float32(mask.weights, home), _float32(mask.means, home)) for mask in masks
        ]
        for item in pairs:
            batch = as_batch(item)
            inputs = to_device(batch.teacher_input, home)
            samples += len(batch.target)
            if not given:
                logits = as_logits(teacher(inputs)).cpu()
                for result in results:
                    result.append(logits)
                continue
            split = split or cut.split(teacher, given[0].layer, inputs)
            passed = split(inputs)
            for result, value in zip(results, values, strict=True):
                if value is None:
                    result.append(passed.logits.cpu())
                else:
                    activation = apply_mask(passed.activation, *value, given[0].channel_dim)
                    result.append(split.tail(activation, passed.bypass).cpu())
    if not samples:
        raise InputError("pairs has no samples; give at least one batch")
    return [share_rows(result.finish()) for result in results]


def _float32(values: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
