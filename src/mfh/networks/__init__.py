"""Networks as they are: read, replace and continue from a named layer; modes, devices and fingerprints."""

from mfh.networks.cut import Split, split
from mfh.networks.layers import as_logits, capture, find_layer, replace
from mfh.networks.modes import evaluating, find_device, fingerprint, placed

__all__ = [
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
