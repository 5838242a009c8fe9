"""Cross-modal knowledge distillation: what can cross, the teacher that teaches best, and whether it helped."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mfh.diagnosis import Diagnosis as Diagnosis
    from mfh.diagnosis import diagnose as diagnose
    from mfh.errors import InputError as InputError
    from mfh.losses import KDLoss as KDLoss
    from mfh.masking import ChannelMask as ChannelMask
    from mfh.masking import mask_channels as mask_channels
    from mfh.metrics import Metric as Metric
    from mfh.pairs import PairedBatch as PairedBatch
    from mfh.pairs import PairLoader as PairLoader
    from mfh.problems import Problem as Problem
    from mfh.reporting import report as report
    from mfh.saliency import ChannelSaliency as ChannelSaliency
    from mfh.saliency import channel_saliency as channel_saliency
    from mfh.studies import StudyResult as StudyResult
    from mfh.studies import study as study
    from mfh.task import Protocol as Protocol
    from mfh.task import Task as Task
    from mfh.training import Recipe as Recipe
    from mfh.training import align as align
    from mfh.training import distill as distill
    from mfh.training import evaluate as evaluate
    from mfh.training import pretrain as pretrain
    from mfh.venn import ModalityVenn as ModalityVenn

# Public name -> module. Loaded on first use, so that `import mfh` and `mfh --help` stay instant.
_EXPORTS = {
    "ChannelMask": "mfh.masking",
    "ChannelSaliency": "mfh.saliency",
    "Diagnosis": "mfh.diagnosis",
    "InputError": "mfh.errors",
    "KDLoss": "mfh.losses",
    "Metric": "mfh.metrics",
    "ModalityVenn": "mfh.venn",
    "PairLoader": "mfh.pairs",
    "PairedBatch": "mfh.pairs",
    "Problem": "mfh.problems",
    "Protocol": "mfh.task",
    "Recipe": "mfh.training",
    "StudyResult": "mfh.studies",
    "Task": "mfh.task",
    "align": "mfh.training",
    "channel_saliency": "mfh.saliency",
    "diagnose": "mfh.diagnosis",
    "distill": "mfh.training",
    "evaluate": "mfh.training",
    "mask_channels": "mfh.masking",
    "pretrain": "mfh.training",
    "report": "mfh.reporting",
    "study": "mfh.studies",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mfh' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
