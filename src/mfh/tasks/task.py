"""A task: everything a study must know about two networks and their paired data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mfh.data.pairs import Collated
from mfh.data.teacher_outputs import teacher_outputs
from mfh.errors import InputError, shown
from mfh.problems.losses import DistillationLoss, KDLoss
from mfh.problems.problem import Problem
from mfh.saliency.permutation import Distance
from mfh.saliency.probe import StudentLayer
from mfh.saliency.scores import Fill
from mfh.tasks.splits import SPLITS
from mfh.training.checks import check_problem, check_split
from mfh.training.recipe import Recipe
from mfh.values import Bounds, check_fields


@dataclass(frozen=True)
class Protocol:
    """How channels are scored and masked, and how students are distilled, unless a run says otherwise.

    Args:
        loss: Distillation loss: a `KDLoss`, or a function of (student logits, teacher logits, target).
        ratio: Fraction of channels to remove, at least 0 and below 1.
        fill: Value of a removed channel: "mean" (its mean over the data set) or "zero".
        distance: Distance between logits behind the score "distance".
        joint: Whether the pair that Algorithm 1 scores is trained jointly, which is its first step. With False the
            networks trained on labels alone take the place of that pair, as in the published VGGSound runs; the arm
            "aligned" then distils from the pretrained teacher.

    Raises:
        InputError: A value has the wrong type or is out of range.
    """

    loss: DistillationLoss = field(default_factory=KDLoss)
    ratio: Annotated[float, Bounds(0, 1, below=True)] = 0.5
    fill: Fill = "mean"
    distance: Distance = "mse"
    joint: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Task:
    """Two networks, paired data, and where to look into the teacher.

    Args:
        name: Name of the task, for folders and reports.
        teacher: Function that makes a new teacher, which returns logits (N, K). It is called under a forked, seeded
            generator. None for a teacher of which only the outputs are known (`teacher_logits`).
        student: Function that makes a new student, which returns logits (N, K).
        layer: Name of the teacher's layer to score and mask, from `named_modules()`. Its output is meant.
        train: Training split: a map-style data set of (teacher_input, student_input, target). Inputs are tensors, or
            nested tuples and dicts of tensors. A multimodal teacher has both inputs in `teacher_input`.
        val: Validation split, of the same form. Epochs, and everything else that is chosen, are chosen on it.
        test: Test split, of the same form. It is read once, at the end.
        student_layer: Name of the student's layer whose output feeds the probe, or several names; "input" is the
            student's input (default: the input of its last leaf module with parameters).
        channel_dim: Dimension of the layer's output that counts channels.
        recipe: How teacher and students are trained.
        protocol: How channels are scored and masked, and how students are distilled.
        teacher_checkpoint: File with the weights of a pretrained teacher (default: the teacher is trained, once per
            seed).
        teacher_logits: Outputs of a teacher of which only these are known, (len(train), K), in data-set order: a
            tensor, or a .npy or .safetensors file, which is mapped into memory.
        problem: What logits and targets mean, and the metric (default: one class per sample, accuracy).
        collate: Function that makes the batch (teacher_input, student_input, target) from a list of items, for items
            that PyTorch's default cannot put into a batch.
        truth: Whether each channel of `layer` is modality-general, (C,) booleans; None where that is not known.
        facts: Further facts for the report: "description", "classes" (names in order), counts of decisive features,
            best accuracies.

    Raises:
        InputError: A split is empty or not a data set, there is neither a teacher nor its outputs, or a field has
            another type than declared.
    """

    name: str
    teacher: Callable[[], nn.Module] | None
    student: Callable[[], nn.Module]
    layer: str
    train: Any
    val: Any
    test: Any
    student_layer: StudentLayer = None
    channel_dim: Annotated[int, Bounds(-64, 64)] = 1
    recipe: Recipe = field(default_factory=Recipe)
    protocol: Protocol = field(default_factory=Protocol)
    teacher_checkpoint: str | Path | None = None
    teacher_logits: Tensor | str | Path | None = None
    problem: Problem = field(default_factory=Problem.classification)
    collate: Callable[[list[Any]], Any] | None = None
    truth: NDArray[np.bool_] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"the name of a task is {shown(self.name)}; text was expected")
        check_problem(self.problem)
        for split in SPLITS:
            dataset = getattr(self, split)
            try:
                check_split(dataset, split)
            except InputError as error:
                raise InputError(f"task {self.name!r}: {error}") from None
            if self.collate is not None and not isinstance(dataset, Collated):
                object.__setattr__(self, split, Collated(dataset, self.collate))
        for name in ("teacher", "student"):
            factory = getattr(self, name)
            if isinstance(factory, nn.Module) or not (factory is None or callable(factory)):
                raise InputError(
                    f"{name} of task {self.name!r} is a {type(factory).__name__}; a function that makes a new network "
                    f"was expected: {name}=lambda: MyNetwork(), and weights that exist in a checkpoint"
                )
        check_fields(self, of=f" of task {self.name!r}")
        if self.teacher is None and self.teacher_logits is None:
            raise InputError(f"task {self.name!r} has no teacher; give teacher= or teacher_logits=")
        if self.teacher_logits is not None:
            name = f"teacher_logits of task {self.name!r}"
            outputs = teacher_outputs(self.teacher_logits, len(self.train), name)
            object.__setattr__(self, "teacher_logits", outputs)
