"""Distillation methods: what a student minimises beside the loss of its labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mfh.methods.names import SHIPPED

if TYPE_CHECKING:
    from mfh.methods.batch import Batch as Batch
    from mfh.methods.batch import Context as Context
    from mfh.methods.batch import Method as Method
    from mfh.methods.finding import FunctionMethod as FunctionMethod
    from mfh.methods.finding import resolve as resolve
    from mfh.methods.fitnets import FitNets as FitNets
    from mfh.methods.kd import KD as KD

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
