"""Paired data: batches, epochs, rows of outputs, and teachers known only by their outputs."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    # Loaded on first use: most modules need only one of the two.
    for place in ("mfh.data.pairs", "mfh.data.epochs"):
        if not name.startswith("_") and hasattr(module := import_module(place), name):
            return getattr(module, name)
    raise AttributeError(f"module 'mfh.data' has no attribute {name!r}")
