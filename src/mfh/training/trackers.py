"""Lightning loggers by name: where training is followed while it runs."""

import importlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfh.errors import InputError, close_names


def check_tracker(name: str) -> type:
    """The class of a Lightning logger.

    Args:
        name: Name of the logger: "tensorboard", "csv", "mlflow", "wandb", ... (a class of `lightning.pytorch.loggers`,
            without "Logger"); or "package.module:Class".

    Raises:
        InputError: There is no logger of this name, or what it needs is not installed.
    """
    loggers = _loggers(name)
    module, _, named = name.partition(":")
    if named:
        try:
            found = getattr(importlib.import_module(module), named, None)
        except (ImportError, ValueError, TypeError) as error:
            raise InputError(f"logger is {name!r}, and {module} cannot be imported ({error})") from None
    else:
        known = {key.removesuffix("Logger").lower(): key for key in loggers.__all__ if key != "Logger"}
        if name not in known:
            raise InputError(f"logger is {name!r}; {close_names(name, list(known), limit=len(known))}")
        found = getattr(loggers, known[name])
    if not (isinstance(found, type) and issubclass(found, loggers.Logger)):
        raise InputError(f"logger is {name!r}, which is no Lightning logger")
    return found


def _loggers(name: str) -> Any:
    """Lightning's loggers, which come with the extra `track`."""
    try:
        return importlib.import_module("lightning.pytorch.loggers")
    except ImportError as error:
        raise InputError(
            f"logger is {name!r}, and loggers need a package that is not installed ({error}); "
            "pip install 'lightning>=2.6', or mfh with its extra: pip install 'mfh[track]'"
        ) from None


@contextmanager
def tracked(name: str, folder: str | Path, network: str) -> Iterator[Any]:
    """A logger for the training of one network, as `find_tracker` makes it, whose run ends with the training.

    Weights & Biases and Comet would go on with the run that is open, so that networks share one.
    """
    tracker = find_tracker(name, folder, network)
    yield tracker
    experiment = getattr(tracker, "experiment", None)
    for end in ("finish", "end"):  # as the former and the latter call it
        if callable(getattr(experiment, end, None)):
            getattr(experiment, end)()


def find_tracker(name: str, folder: str | Path, network: str) -> Any:
    """A Lightning logger for the training of one network.

    Args:
        name: Name of the logger, as `check_tracker` takes it.
        folder: Folder that the logger may write to.
        network: Name of what is trained.

    Raises:
        InputError: There is no logger of this name, or what it needs is not installed.
    """
    kind, loggers = check_tracker(name), _loggers(name)
    offered: dict[str, Any] = {"save_dir": str(folder), "name": network, "run_name": network}
    if issubclass(kind, loggers.CSVLogger | loggers.TensorBoardLogger):
        offered["version"] = ""  # no folders version_0, version_1, ... below the network's
    if issubclass(kind, loggers.TensorBoardLogger):
        offered["default_hp_metric"] = False
    if issubclass(kind, loggers.MLFlowLogger):
        # Without MLFLOW_TRACKING_URI, runs are files in the folder, which MLflow 3 must be told to write.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    takes = inspect.signature(kind).parameters
    try:
        return kind(**{option: value for option, value in offered.items() if option in takes})
    except ModuleNotFoundError as error:
        raise InputError(f"logger {name!r} needs a package that is not installed ({error})") from None
