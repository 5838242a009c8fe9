"""Masks over a teacher's channels, and the focused teacher that a mask makes."""

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
from mfh.data.pairs import as_batch, num_samples, to_device
from mfh.data.spool import Rows
from mfh.errors import InputError
from mfh.networks.calling import call
from mfh.networks.cut import Split
from mfh.networks.frozen import Frozen
from mfh.networks.layers import as_logits, check_activation, find_layer
from mfh.networks.modes import device_of, eager, evaluating, placed, reading_samples, unfused_attention
from mfh.parallel.distributed import share_rows


@dataclass(frozen=True, eq=False, repr=False)
class ChannelMask:
    """How much of each channel a focused teacher keeps: means + weights * (z - means).

    Usually `ChannelSaliency.mask` makes one. Make one by hand if you know which channels matter (an oracle), or change
    one with `dataclasses.replace`.

    Args:
        layer: The teacher's layer, a name from `named_modules()`.
        weights: (C,) in [0, 1], one weight per channel: 0 removes the channel, 1 keeps it.
        means: (C, *positions), or (C,) for all positions. A removed channel becomes its mean.
        fingerprint: The fingerprint of the teacher's weights, see `mfh.networks.fingerprint`. A mask works only with
            the network it was made for.
        channel_dim: The dimension of the layer's output that counts channels.
        kind: "general", "specific", "random", "soft" or a name of your own.
        score: The score that the mask was made from, or None.
        ratio: The fraction of channels removed, or None if the mask was made in another way.

    Raises:
        InputError: The weights are not one number in [0, 1] per channel, or the means do not fit.
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
        # Copies: the caller may change the arrays later.
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
        """The indices of the channels whose weight is 0, ascending."""
        return np.flatnonzero(self.weights == 0)

    def __repr__(self) -> str:
        kept = f"keeps {self.weights.sum():.4g} of {len(self.weights)} channels of layer {self.layer!r}"
        score = "" if self.score is None else f", by {self.score}"
        return f"ChannelMask({self.kind}, {kept}{score})"

    def save(self, path: str | Path) -> None:
        """Write the mask to a safetensors file, atomically."""
        files.save_fields(self, path, "mask")

    @classmethod
    def load(cls, path: str | Path) -> "ChannelMask":
        """Read a mask that `save` wrote.

        Raises:
            InputError: There is no such file, or it is not a mask.
        """
        return files.load_fields(cls, path, "mask")


def mask_channels(teacher: nn.Module | Frozen, mask: ChannelMask) -> "FocusedTeacher":
    """A new network: the teacher with its channels z at `mask.layer` replaced by means + weights * (z - means).

    The teacher is copied and stays as it is. The copy keeps the teacher's mode and device. Its parameters can be
    trained like any others; `distill` freezes them.

    Args:
        teacher: An `nn.Module`, the network that the saliency was computed on.
        mask: The mask, which says how much of each channel is kept.

    Raises:
        InputError: The mask belongs to another teacher (their weights have different fingerprints), or there is no
            such layer.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> from mfh.networks import fingerprint
        >>> mask = ChannelMask(layer="0", weights=[0, 0, 0], means=[1, 2, 3], fingerprint=fingerprint(teacher))
        >>> logits = mask_channels(teacher, mask)(torch.randn(5, 2))
        >>> bool((logits == logits[0]).all())  # nothing is left of the input
        True
    """
    teacher = Frozen.of(teacher)
    check_fingerprint(teacher, mask.fingerprint, "mask")
    find_layer(teacher.network, mask.layer)
    return FocusedTeacher(deepcopy(teacher.network), mask)


class FocusedTeacher(nn.Module):
    """A teacher whose channels at one layer are masked. Made by `mask_channels`.

    It can be moved, cast, switched between modes and saved like the teacher itself. The mask's weights and means are
    buffers of it.
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
        """Run the teacher on the masked channels; arguments and output are the teacher's."""
        if torch.compiler.is_compiling():  # the hook is compiled with the teacher
            return self.teacher(*args, **kwargs)
        self._calls = 0
        with unfused_attention(), eager():
            output = self.teacher(*args, **kwargs)
        if self._calls != 1:
            raise InputError(
                f"layer {self.layer!r} ran {self._calls} times in one forward, but exactly once was expected; choose "
                "another layer"
            )
        return output

    def _mask(self, _module: nn.Module, _args: Any, output: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            self._calls += 1
        activation = check_activation(output, self.layer)
        return apply_mask(activation, self.weights, self.means, self.channel_dim)


def masked_logits(
    teacher: nn.Module | Frozen,
    masks: Sequence[ChannelMask | None],
    pairs: Iterable[Any],
    *,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """The logits of one teacher under several masks: its trunk runs once per sample, its tail once per mask.

    Args:
        teacher: An `nn.Module`, the network that the masks were made for.
        masks: The masks, all of one layer. None stands for the teacher without a mask.
        pairs: The batches, which are read once, in order. Under torch.distributed each process passes a disjoint part
            of the data.
        device: The device to run on (default: where the teacher is).

    Returns:
        One (N, K) tensor on the CPU per mask, with the samples of all processes in order of rank. A tensor larger than
        2 GiB is memory-mapped.

    Raises:
        InputError: The masks belong to another teacher or to several layers, or there are no samples.
    """
    teacher, given = Frozen.of(teacher), [mask for mask in masks if mask is not None]
    layers = {(mask.layer, mask.channel_dim) for mask in given}
    if len(layers) > 1:
        raise InputError(
            f"masks are for layers {sorted(layers)}, but one layer was expected; evaluate one layer at a time"
        )
    for digest in {mask.fingerprint for mask in given}:
        check_fingerprint(teacher, digest, "mask")
    results, samples = [Rows() for _ in masks], 0
    split: Split | None = None
    with placed(device, teacher.network), evaluating(teacher.network):
        home = device_of(teacher.network)
        values = [
            None if mask is None else (_float32(mask.weights, home), _float32(mask.means, home)) for mask in masks
        ]
        for item in pairs:
            batch = as_batch(item, labelled=False)
            inputs = to_device(batch.teacher_input, home)
            count = num_samples(batch.teacher_input)
            with reading_samples("teacher", samples, count):
                if not given:
                    logits = as_logits(call(teacher.network, inputs)).cpu()
                else:
                    split = split or teacher.split(given[0].layer, inputs)
                    passed = split(inputs)
            samples += count
            for result, value in zip(results, values, strict=True):
                if not given:
                    result.append(logits)
                elif value is None:
                    result.append(passed.logits.cpu())
                else:
                    assert split is not None
                    activation = apply_mask(passed.activation, *value, given[0].channel_dim)
                    result.append(split.tail(activation, passed.bypass).cpu())
    if not samples:
        raise InputError("pairs has no samples; give at least one batch")
    return [share_rows(result.finish()) for result in results]


def check_fingerprint(teacher: nn.Module | Frozen, expected: str, what: str) -> None:
    """Refuse a saliency or mask of another network.

    Args:
        teacher: An `nn.Module`, the network at hand.
        expected: The fingerprint that the saliency or mask carries.
        what: What carries it, for the message: "mask", or a saliency and its path.

    Raises:
        InputError: The teacher has another fingerprint.
    """
    found = Frozen.of(teacher).fingerprint
    if found != expected:
        raise InputError(
            f"the {what} was made for another teacher (fingerprint of its weights {expected}, this teacher's is "
            f"{found}); use the teacher that was scored, or score this one"
        )


def apply_mask(activation: Tensor, weights: Tensor, means: Tensor, channel_dim: int) -> Tensor:
    """Compute means + weights * (activation - means), exact where a weight is 0 or 1.

    Args:
        activation: (N, ..., C, ...), a layer's output with channels along `channel_dim`.
        weights: (C,), the mask's weights.
        means: (C, *positions) or (C,), the mask's means.
        channel_dim: The dimension that counts channels, from 1.

    Raises:
        InputError: The activation has another number of channels or other positions than the mask.
    """
    width = activation.shape[channel_dim]
    moved = activation.movedim(channel_dim, 1)
    if width != len(weights) or (means.ndim > 1 and moved.shape[1:] != means.shape):
        raise InputError(
            f"the mask has {len(weights)} channels (means of shape {tuple(means.shape)}), but the layer's output has "
            f"{width} (shape {tuple(activation.shape)}); the mask was made for another layer or input size"
        )
    if means.ndim == 1:
        means = means.reshape(-1, *[1] * (moved.ndim - 2))
    keep = weights.reshape(-1, *[1] * (moved.ndim - 2)).to(activation)
    return torch.lerp(means.to(activation).expand_as(moved), moved, keep).movedim(1, channel_dim)


def _range(values: NDArray[np.float64]) -> str:
    return f"[{values.min():.3g}, {values.max():.3g}]" if values.size else "(empty)"


def _float32(values: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
