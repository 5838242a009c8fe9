"""Read, replace and continue from a named layer of any network; run networks in eval mode and on a device."""

from mfh.networks.cut import Split, split
from mfh.networks.frozen import Frozen
from mfh.networks.layers import as_logits, capture, find_layer, replace
from mfh.networks.modes import evaluating, find_device, fingerprint, placed

__all__ = [
    "Frozen",
    "Split",
    "as_logits",
    "capture",
    "evaluating",
    "find_device",
    "find_layer",
    "fingerprint",
    "placed",
    "replace",
    "split",
]
