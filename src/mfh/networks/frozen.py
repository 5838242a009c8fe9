"""A network whose weights no longer change: it is hashed once and cut once per layer."""

from functools import cached_property
from typing import Any

from torch import nn

from mfh.data.pairs import Nested
from mfh.networks.cut import Split, input_signature, split
from mfh.networks.modes import devices_of, evaluating, fingerprint, original


class Frozen:
    """A network whose weights no longer change, together with what was found out about it.

    The functions of `mfh.saliency`, which score and mask networks, also take a `Frozen` in a network's place. A caller
    who passes the same `Frozen` to several of them has the network hashed and cut only once.

    Args:
        network: The network. Its weights must not change from now on; its mode and its device may. Of a network that
            `torch.compile` made, the one it was made from is kept.

    Example:
        >>> import torch
        >>> teacher = Frozen(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> teacher.split("0", torch.randn(8, 4)) is teacher.split("0", torch.randn(5, 4))
        True
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = original(network)
        self._splits: list[tuple[Any, Split]] = []

    def __reduce__(self) -> tuple[type["Frozen"], tuple[nn.Module]]:
        # Copies and other processes get the network alone: a cut is neither copied nor pickled.
        return Frozen, (self.network,)

    @classmethod
    def of(cls, network: "nn.Module | Frozen") -> "Frozen":
        """The argument itself if it is a `Frozen`, otherwise a new one around it."""
        return network if isinstance(network, Frozen) else cls(network)

    @cached_property
    def fingerprint(self) -> str:
        """The digest of all weights and buffers, see `mfh.networks.fingerprint`."""
        return fingerprint(self.network)

    def split(self, layer: str, inputs: Nested) -> Split:
        """The network cut at a layer, in eval mode; see `mfh.networks.split`.

        The cut is kept and returned again for the same layer, device and kind of inputs, whatever their number. Other
        devices and other kinds of inputs get a cut of their own: tracing writes devices and shapes into it.

        Args:
            layer: A name from `named_modules()`.
            inputs: A batch of the network's real inputs, on its device. The first one is used to verify the cut.

        Raises:
            InputError: There is no such layer, it does not run exactly once, or its output is not a tensor.
        """
        key = layer, devices_of(self.network), input_signature(inputs)
        for known, found in self._splits:
            if known == key:
                return found
        with evaluating(self.network):
            found = split(self.network, layer, inputs)
        self._splits.append((key, found))
        return found
