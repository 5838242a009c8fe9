"""A task: everything a study must know about two networks and their paired data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mfh.data.pairs import Collated
from mfh.data.teacher_outputs import teacher_outputs
from mfh.errors import InputError
from mfh.problems.losses import DistillationLoss, KDLoss
from mfh.problems.problem import Problem
from mfh.saliency.permutation import Distance
from mfh.saliency.probe import StudentLayer
from mfh.saliency.scores import Fill
from mfh.tasks.splits import SPLITS
from mfh.training.recipe import Recipe


@dataclass(frozen=True)
class Protocol:
    """How channels are scored and masked and how students are distilled, unless a run says otherwise.

    Args:
        loss: of distillation, a `KDLoss` or a function of (student logits, teacher logits, target).
        ratio: fraction of channels removed, at least 0 and below 1.
        fill: what a removed channel becomes: its data-set "mean", or "zero".
        distance: of the score "distance".
        joint: whether the pair that Algorithm 1 looks at is trained jointly, its first step. False takes the networks
            trained on labels for it, as in the published VGGSound runs; "aligned" then means these.
    """

    loss: DistillationLoss = field(default_factory=KDLoss)
    ratio: float = 0.5
    fill: Fill = "mean"
    distance: Distance = "mse"
    joint: bool = True


@dataclass(frozen=True)
class Task:
    """Two networks, paired data, and where to look into the teacher.

    Args:
        name: of the task, for folders and reports.
        teacher: makes a new teacher that returns logits (N, K); called under a forked, seeded generator. None
            for a teacher known only by its outputs (`teacher_logits`).
        student: makes a new student that returns logits (N, K).
        layer: the teacher's layer to score and mask, a name from `named_modules()`; its output is meant.
        train: map-style data set of (teacher_input, student_input, target); inputs are tensors or nested
            tuples and dicts of tensors. A multimodal teacher simply has both inputs in `teacher_input`.
        val: the same, for choosing epochs (and whatever else is chosen).
        test: the same, read once at the end.
        student_layer: the student's layer that feeds the probe, or several; "input" is its input. Default: the input of
            its last parametrised leaf module.
        channel_dim: the dimension of the layer's output that counts channels.
        recipe: how teacher and students are trained.
        protocol: how channels are scored and masked and students distilled.
        teacher_checkpoint: a file of the pretrained teacher's weights; default: it is trained, once per seed.
        teacher_logits: (len(train), K) outputs in data-set order, of a teacher known only by them; or a .npy or
            .safetensors file of them, which is mapped into memory.
        problem: what logits and targets mean, and with what metric; default: one class per sample, accuracy.
        collate: makes (teacher_input, student_input, target) of a list of items, where PyTorch's default does not.
        truth: (C,) booleans, whether each channel of `layer` is modality-general, where that is known.
        facts: what else is known and belongs into a report: "description", "classes" (their names in order), counts of
            decisive features, best accuracies.

    Raises:
        InputError: a split is empty or no data set, or there is neither a teacher nor its outputs.
    """

    name: str
    teacher: Callable[[], nn.Module] | None
    student: Callable[[], nn.Module]
    layer: str
    train: Any
    val: Any
    test: Any
    student_layer: StudentLayer = None
    channel_dim: int = 1
    recipe: Recipe = field(default_factory=Recipe)
    protocol: Protocol = field(default_factory=Protocol)
    teacher_checkpoint: str | Path | None = None
    teacher_logits: Tensor | str | Path | None = None
    problem: Problem = field(default_factory=Problem.classification)
    collate: Callable[[list[Any]], Any] | None = None
    truth: NDArray[np.bool_] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in SPLITS:
            dataset = getattr(self, split)
            if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise InputError(
                    f"{split} of task {self.name!r} is a {type(dataset).__name__}; a map-style data set (with len() "
                    "and an item for each number) of (teacher_input, student_input, target) was expected"
                )
            if not len(dataset):
                raise InputError(f"task {self.name!r} has an empty {split} split; give at least one sample")
            if self.collate is not None and not isinstance(dataset, Collated):
                object.__setattr__(self, split, Collated(dataset, self.collate))
        for name in ("teacher", "student"):
            factory = getattr(self, name)
            if isinstance(factory, nn.Module) or not (factory is None or callable(factory)):
                raise InputError(
                    f"{name} of task {self.name!r} is a {type(factory).__name__}; a function that makes a new network "
                    f"was expected: {name}=lambda: MyNetwork(), and weights that exist in a checkpoint"
                )
        if self.teacher is None and self.teacher_logits is None:
            raise InputError(f"task {self.name!r} has no teacher; give teacher= or teacher_logits=")
        if self.teacher_logits is not None:
            name = f"teacher_logits of task {self.name!r}"
            outputs = teacher_outputs(self.teacher_logits, len(self.train), name)
            object.__setattr__(self, "teacher_logits", outputs)
