"""Distillation methods: what a student minimises beside the loss of its labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mfh.methods.names import SHIPPED

if TYPE_CHECKING:
    from mfh.methods.attainable import Attainable as Attainable
    from mfh.methods.batch import Batch as Batch
    from mfh.methods.batch import Context as Context
    from mfh.methods.batch import Method as Method
    from mfh.methods.c2kd import C2KD as C2KD
    from mfh.methods.crd import CRD as CRD
    from mfh.methods.dist import DIST as DIST
    from mfh.methods.dkd import DKD as DKD
    from mfh.methods.fd_cmkd import FDCMKD as FDCMKD
    from mfh.methods.finding import FunctionMethod as FunctionMethod
    from mfh.methods.finding import resolve as resolve
    from mfh.methods.fitnets import FitNets as FitNets
    from mfh.methods.kd import KD as KD
    from mfh.methods.mad import MAD as MAD
    from mfh.methods.queue import Queue as Queue
    from mfh.methods.rkd import RKD as RKD
    from mfh.methods.simkd import SimKD as SimKD
    from mfh.methods.sp import SP as SP
    from mfh.methods.vid import VID as VID

# Public name -> module, loaded on first use: the command line's help needs the names alone, and no torch.
_EXPORTS = {
    "Batch": "batch",
    "Context": "batch",
    "FunctionMethod": "finding",
    "Method": "batch",
    "resolve": "finding",
    **{place.split(":")[1]: place.split(":")[0] for place in SHIPPED.values()},
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mfh.methods' has no attribute {name!r}")
    return getattr(import_module(f"mfh.methods.{_EXPORTS[name]}"), name)
