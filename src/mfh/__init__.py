"""Cross-modal knowledge distillation: what can cross, the teacher that teaches best, and whether it helped."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mfh.errors import InputError as InputError
    from mfh.losses import KDLoss as KDLoss
    from mfh.venn import ModalityVenn as ModalityVenn

# Public name -> module. Loaded on first use, so that `import mfh` and `mfh --help` stay instant.
_EXPORTS = {
    "InputError": "mfh.errors",
    "KDLoss": "mfh.losses",
    "ModalityVenn": "mfh.venn",
}

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mfh' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
