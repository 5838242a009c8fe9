"""What a user may change about a task: one object from the command line to the seed. Imports no torch.

The groups are dataclasses whose fields are the options of the command line and, under the same names, keywords of
`mfh.study` and `mfh.diagnose`. Every option is written here, once.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Suppress, arg

from mfh.errors import InputError, close_names
from mfh.tasks.finding import TaskArguments
from mfh.values import Bounds, NumPermutations, check_fields, checked, whole


def _unless_unset(default: str) -> str:
    """What help says of a default: nothing where the text says it already."""
    return "" if default in ("", "None") else f"(default: {default})"


#: Options that are unset unless they are given, as the command line shows them.
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint=_unless_unset)]
Number = Annotated[float | None, arg(metavar="X", help_behavior_hint=_unless_unset)]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint=_unless_unset)]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=_unless_unset)]
Folder = Annotated[Path | None, arg(metavar="DIR", help_behavior_hint=_unless_unset)]
#: A switch, which is off unless it is given.
Flag = Annotated[bool, arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Training:
    """How networks are trained. Unset options keep the task's recipe."""

    epochs: Count = None
    """Training epochs: passes over the training pairs."""
    batch_size: Count = None
    """Batch size in samples."""
    accumulate: Count = None
    """Batches in one optimizer step (usually 1)."""
    keep: Annotated[
        Literal["best-metric", "best-loss", "last"] | None,
        arg(metavar="best-metric|best-loss|last", help_behavior_hint=""),
    ] = None
    """Epoch to keep: best by validation metric or loss, or the last."""
    labelled_share: Number = None
    """Share of labelled pairs in a batch (usually their share of all pairs)."""
    precision: Annotated[
        Literal["32-true", "bf16-mixed", "16-mixed"] | None,
        arg(metavar="32-true|bf16-mixed|16-mixed", help_behavior_hint=""),
    ] = None
    """Floating point precision (usually 32-true); 16-mixed needs a GPU."""
    class_weights: Annotated[Literal["balanced"] | None, arg(metavar="balanced", help_behavior_hint="")] = None
    """Weight classes in the label loss by inverse size (usually equally)."""
    balanced_sampling: Flag = False
    """Draw all classes equally often (single labels only)."""
    num_workers: Count = None
    """Processes that load data for each training process (usually 0)."""
    channels_last: Flag = False
    """Store convolution weights channels-last, often faster in mixed precision."""
    compile: Flag = False
    """Use torch.compile, which pays off in long training."""
    logger: Text = None
    """Lightning logger: tensorboard, csv, mlflow, wandb, ... or package.module:Class."""

    off: Annotated[frozenset[str], Suppress] = frozenset()
    """Python only: names of options that are switched off although the task switches them on."""

    def changes(self) -> dict[str, Any]:
        """Fields of a `Recipe` that differ from the task's: name -> value."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("logger", "off")]
        values = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in values.items() if value is not None and value is not False}
        return given | dict.fromkeys(self.off, False)


@dataclass(frozen=True)
class Loss:
    """Loss of kd and the paper's arms: label_weight * label loss + teacher_weight * T^2 * divergence."""

    temperature: Number = None
    """Softmax temperature T (default: the task's)."""
    label_weight: Number = None
    """Weight of the loss on labels (default: the task's)."""
    teacher_weight: Number = None
    """Weight of the divergence from the teacher (default: the task's)."""
    function: Annotated[Callable[..., Any] | None, Suppress] = None
    """Python only: a `KDLoss`, or a function of student logits, teacher logits and target, instead of the task's."""

    reduction: Annotated[str | None, Suppress] = None
    """Python only: the reduction of the divergence, see `KDLoss`."""
    label_loss: Annotated[Callable[..., Any] | None, Suppress] = None
    """Python only: the label loss, see `KDLoss`."""
    divergence: Annotated[Callable[..., Any] | None, Suppress] = None
    """Python only: the divergence from the teacher, see `KDLoss`."""

    def changes(self) -> dict[str, Any]:
        """Fields of a `KDLoss` that differ from the task's: name -> value."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "function"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Scoring:
    """How channels are scored."""

    permutations: Annotated[str | int, arg(metavar="exact|auto|N")] = "auto"
    """Permutations of Algorithm 1; auto: exact where possible, otherwise 10."""


@dataclass(frozen=True)
class Pretrained:
    """Networks made before (default: none), instead of training for every seed."""

    teacher_checkpoint: File = None
    """Teacher weights: .safetensors or a torch state_dict."""
    student_checkpoint: File = None
    """Weights of a student trained on labels (arm no-kd)."""


@dataclass(frozen=True)
class GivenFiles(Pretrained):
    """Networks and scores made before (default: none)."""

    aligned_teacher_checkpoint: File = None
    """Weights of a teacher trained jointly with a student."""
    saliency: File = None
    """Scores of that teacher's channels: a saliency of mfh or .npy array."""


@dataclass(frozen=True)
class Device:
    """Where networks run."""

    device: Text = None
    """Device, for instance cpu or cuda:1 (default: a GPU if there is one)."""

    def __post_init__(self) -> None:
        if type(self.device).__name__ == "device":  # a torch.device, and nothing here imports torch
            object.__setattr__(self, "device", str(self.device))


@dataclass(frozen=True)
class Processes:
    """How many processes work side by side."""

    processes: Annotated[Count, Bounds(1, 1024)] = None
    """Worker processes (default: one per processor; on a GPU, one)."""


@dataclass(frozen=True)
class Execution(Processes, Device):
    """Where and how work runs; results change by rounding at most."""

    threads: Annotated[int, Bounds(1, 1024)] = 1
    """CPU threads in each process."""
    ensemble: Literal["auto", "on", "off"] = "auto"
    """Train networks together: auto does so with small ones that can be stacked."""
    engine: Literal["processes", "ray"] = "processes"
    """Run on this machine, or on a Ray cluster (extra cluster)."""
    address: Annotated[Text, arg(metavar="HOST:PORT")] = None
    """Head of the Ray cluster (default: RAY_ADDRESS, or port 6379 of this machine)."""
    gpus: Annotated[Number, Bounds(0, 64)] = None
    """GPUs for each Ray job; 0.5 lets two share one (default: 1; on the CPU, 0)."""
    cache: Folder = None
    """Folder for teacher outputs, which other runs read again (default: none)."""


#: Students that a study keeps.
Keep = Literal["best", "all", "none"]


@dataclass(frozen=True)
class Keeping:
    """What a study keeps."""

    keep_students: Keep = "best"
    """Students to keep: the best of each variant by validation, all or none."""


@dataclass(frozen=True)
class Settings:
    """Everything a user may change about a task, in groups.

    `Settings.of` takes the same settings by name, without the groups.

    Args:
        task: Optional arguments for the task's function. `set` may also be a mapping.
        training: How networks are trained.
        loss: The distillation loss.
        scoring: How channels are scored.
        files: Files of networks and scores that were made before.
        execution: Device, processes and threads.
        keeping: Students that a study keeps.

    Raises:
        InputError: A setting has the wrong type or is out of range.

    Example:
        >>> Settings.of(epochs=5, device="cpu") == Settings(training=Training(epochs=5), execution=Execution("cpu"))
        True
    """

    task: TaskArguments = field(default_factory=TaskArguments)
    training: Training = field(default_factory=Training)
    loss: Loss = field(default_factory=Loss)
    scoring: Scoring = field(default_factory=Scoring)
    files: GivenFiles = field(default_factory=GivenFiles)
    execution: Execution = field(default_factory=Execution)
    keeping: Keeping = field(default_factory=Keeping)

    def __post_init__(self) -> None:
        for group in dataclasses.fields(self):
            check_fields(getattr(self, group.name))
        object.__setattr__(self, "scoring", Scoring(permutations_of(self.scoring.permutations)))

    @classmethod
    def of(cls, **settings: Any) -> "Settings":
        """Settings by name, whatever group they belong to.

        Args:
            **settings: Names of options with `_`, for instance `epochs=5`. `loss` is a `KDLoss`, a function of student
                logits, teacher logits and target, or a mapping of some fields of a `KDLoss`.

        Raises:
            InputError: There is no such setting, or its value cannot be used.
        """
        return cls().changed(**settings)

    def changed(self, **settings: Any) -> "Settings":
        """A copy with some settings changed, by name as in `of`; None leaves a setting as it is."""
        loss, homes = settings.pop("loss", None), self._homes()
        if isinstance(loss, Mapping):
            known = [name for name, group in homes.items() if group == "loss" and name != "function"]
            for name in loss:
                if name not in known:
                    raise InputError(f"loss has no field {name!r}; {close_names(str(name), known)}")
            settings = {**loss, **settings}
        elif loss is not None:
            settings["function"] = loss
        changes: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            if name not in homes:
                raise InputError(f"there is no setting {name!r}; {close_names(name, [*homes, 'loss'])}")
            if value is not None:
                changes.setdefault(homes[name], {})[name] = value
        if "training" in changes:
            switched = {name: value for name, value in changes["training"].items() if isinstance(value, bool)}
            off = {name for name, value in switched.items() if not value}
            changes["training"]["off"] = (self.training.off - set(switched)) | off
        groups = {group: dataclasses.replace(getattr(self, group), **values) for group, values in changes.items()}
        changed = dataclasses.replace(self, **groups)
        # No field: settings that were given are equal to those that are so by default.
        object.__setattr__(changed, "_given", self.given.union(*changes.values()))
        return changed

    @property
    def given(self) -> frozenset[str]:
        """Names of settings that were given by name, to `of` or `changed`, even where the value is the default."""
        return getattr(self, "_given", frozenset())

    @classmethod
    def _homes(cls) -> dict[str, str]:
        """Setting -> the group it belongs to."""
        groups = {group.name: group.default_factory() for group in dataclasses.fields(cls)}  # type: ignore[operator]
        return {item.name: name for name, group in groups.items() for item in dataclasses.fields(group)}


def permutations_of(value: str | int) -> str | int:
    """A number of permutations, "exact" or "auto", as given on the command line or in Python.

    Args:
        value: "exact", "auto", or a whole number from 1 to 1,000,000, which may be given as text.

    Raises:
        InputError: It is something else.
    """
    number = whole(value) if isinstance(value, str) else None
    found: str | int = checked(
        "permutations", value if number is None else number, NumPermutations | Literal["auto", "exact"]
    )
    return found
