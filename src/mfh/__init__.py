"""Cross-modal knowledge distillation: what can cross between modalities, and whether it helps the student."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mfh.data.epochs import PairLoader as PairLoader
    from mfh.data.pairs import PairedBatch as PairedBatch
    from mfh.errors import InputError as InputError
    from mfh.problems.losses import KDLoss as KDLoss
    from mfh.problems.metrics import Metric as Metric
    from mfh.problems.problem import Problem as Problem
    from mfh.reporting import report as report
    from mfh.saliency.masks import ChannelMask as ChannelMask
    from mfh.saliency.masks import mask_channels as mask_channels
    from mfh.saliency.scores import ChannelSaliency as ChannelSaliency
    from mfh.saliency.scores import channel_saliency as channel_saliency
    from mfh.studies.diagnosis import Diagnosis as Diagnosis
    from mfh.studies.diagnosis import diagnose as diagnose
    from mfh.studies.running import StudyResult as StudyResult
    from mfh.studies.running import study as study
    from mfh.studies.settings import Settings as Settings
    from mfh.tasks.items import check as check
    from mfh.tasks.task import Protocol as Protocol
    from mfh.tasks.task import Task as Task
    from mfh.training.fitting import align as align
    from mfh.training.fitting import distill as distill
    from mfh.training.fitting import evaluate as evaluate
    from mfh.training.fitting import pretrain as pretrain
    from mfh.training.recipe import Recipe as Recipe
    from mfh.venn import ModalityVenn as ModalityVenn

# Public name -> module. Modules are loaded on first use, so that `import mfh` and `mfh --help` stay instant.
_EXPORTS = {
    "ChannelMask": "mfh.saliency.masks",
    "ChannelSaliency": "mfh.saliency.scores",
    "Diagnosis": "mfh.studies.diagnosis",
    "InputError": "mfh.errors",
    "KDLoss": "mfh.problems.losses",
    "Metric": "mfh.problems.metrics",
    "ModalityVenn": "mfh.venn",
    "PairLoader": "mfh.data.epochs",
    "PairedBatch": "mfh.data.pairs",
    "Problem": "mfh.problems.problem",
    "Protocol": "mfh.tasks.task",
    "Recipe": "mfh.training.recipe",
    "Settings": "mfh.studies.settings",
    "StudyResult": "mfh.studies.running",
    "Task": "mfh.tasks.task",
    "align": "mfh.training.fitting",
    "channel_saliency": "mfh.saliency.scores",
    "check": "mfh.tasks.items",
    "diagnose": "mfh.studies.diagnosis",
    "distill": "mfh.training.fitting",
    "evaluate": "mfh.training.fitting",
    "mask_channels": "mfh.saliency.masks",
    "pretrain": "mfh.training.fitting",
    "report": "mfh.reporting",
    "study": "mfh.studies.running",
}

# Documented modules of version 0.1 -> where they are now. `mfh.metrics` and `from mfh.losses import ...` keep working.
_MODULES = {
    "arms": "mfh.studies.grid",
    "channels": "mfh.networks",
    "checking": "mfh.tasks.checks",
    "diagnosis": "mfh.studies.diagnosis",
    "distributed": "mfh.parallel.distributed",
    "losses": "mfh.problems.losses",
    "masking": "mfh.saliency.masks",
    "metrics": "mfh.problems.metrics",
    "outputs": "mfh.data.teacher_outputs",
    "pairs": "mfh.data",
    "stats": "mfh.studies.stats",
    "task": "mfh.tasks.task",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    else:
        try:  # a wing, whatever was imported before
            value = import_module(f"mfh.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"mfh.{name}":  # something that the wing needs is missing
                raise
            raise AttributeError(f"module 'mfh' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_MODULES})


class _Moved:
    """Finder and loader that import a module of version 0.1 from its new place."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for the old name of a module; None for any other name."""
        package, _, module = name.rpartition(".")
        return ModuleSpec(name, _Moved) if package == "mfh" and module in _MODULES else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(_spec: ModuleSpec) -> None:
        """Leave it to Python to create an empty module, which `exec_module` replaces."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Put the module from its new place under the old name."""
        sys.modules[module.__name__] = import_module(_MODULES[module.__name__.rpartition(".")[2]])


sys.meta_path.append(_Moved)
