"""A network whose weights no longer change: its fingerprint and its cuts are made once."""

from functools import cached_property

from torch import nn

from mfh.data.pairs import Nested
from mfh.networks.cut import Split, split
from mfh.networks.modes import fingerprint, original


class Frozen:
    """A network whose weights no longer change, so that what is expensive to find out is found out once.

    Functions that score, mask or run a network take a `Frozen` wherever they take the network itself.

    Args:
        network: The network; nothing may change its weights from now on.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._splits: dict[str, Split] = {}

    @classmethod
    def of(cls, network: "nn.Module | Frozen") -> "Frozen":
        """The argument itself if it is a `Frozen`, otherwise a new one around it."""
        return network if isinstance(network, Frozen) else cls(network)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all weights and buffers, see `mfh.networks.fingerprint`."""
        return fingerprint(self.network)

    def split(self, layer: str, inputs: Nested) -> Split:
        """The network cut at a layer; found and verified at the first call, on that call's batch of real data.

        Args:
            layer: A name from `named_modules()`.
            inputs: A batch of the network's inputs.
        """
        if layer not in self._splits:
            self._splits[layer] = split(original(self.network), layer, inputs)
        return self._splits[layer]
