"""A task: everything a study must know about two networks and their paired data."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from mfh.data.embeddings import embedded
from mfh.data.pairs import AllPairs, Collated, fetch, in_split
from mfh.data.teacher_outputs import teacher_outputs
from mfh.errors import InputError, foreign, shown
from mfh.networks.calling import call
from mfh.networks.layers import as_logits
from mfh.networks.modes import evaluating
from mfh.problems.losses import DistillationLoss, KDLoss
from mfh.problems.problem import Problem
from mfh.saliency.permutation import Distance
from mfh.saliency.probe import StudentLayer
from mfh.saliency.scores import Fill
from mfh.tasks.splits import SPLITS, Seeds
from mfh.training.checks import check_map_style, check_problem, check_split, num_items
from mfh.training.heads import EmbeddingHead
from mfh.training.labels import separated
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


def _called(factory: Any) -> str:
    """What a function that makes a network is called."""
    while isinstance(factory, partial):
        factory = factory.func
    name = str(getattr(factory, "__name__", type(factory).__name__))
    return "a function without a name" if name == "<lambda>" else name


@dataclass(frozen=True, repr=False)
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
        test: Test split, of the same form. It is measured once, at the end; a study only checks its items before.
        unlabelled: Further training pairs without labels: a map-style data set of (teacher_input, student_input). After
            the task is made it also holds the pairs of `train` without a label; see `missing_target`.
        missing_target: Number that stands for "no label" in the targets of `train`, for instance -1 for classes or
            NaN for numbers. In targets of several entries, some of them may be missing. None where every pair of
            `train` has its label.
        student_layer: Name of the student's layer whose output feeds the probe, or several names; "input" is the
            student's input (default: the input of its last leaf module with parameters).
        channel_dim: Dimension of the layer's output that counts channels.
        recipe: How teacher and students are trained.
        protocol: How channels are scored and masked, and how students are distilled.
        teacher_checkpoint: File with the weights of a pretrained teacher (default: the teacher is trained, once per
            seed).
        teacher_logits: Outputs of a teacher of which only these are known, (len(train) + len(unlabelled), K), in
            data-set order: a tensor, or a .npy or .safetensors file, which is mapped into memory.
        teacher_train: What the teacher learns from instead of `train`: a map-style data set of (teacher_input,
            target), which needs no partner in the student's modality.
        teacher_embeddings: Outputs of a frozen model that stand in the place of the teacher's inputs, by split
            ("train", "val", "test", and "unlabelled" where there are such pairs): (samples, D) tensors, arrays, or
            .npy or .safetensors files. The teacher is then a linear head, which is fitted in closed form or by
            logistic regression, with the layer "embedding"; leave `teacher` None.
        problem: What logits and targets mean, and the metric (default: one class per sample, accuracy).
        collate: Function that makes the batch (teacher_input, student_input, target) from a list of items, for items
            that PyTorch's default cannot put into a batch.
        truth: Whether each channel of `layer` is modality-general, (C,) booleans; None where that is not known.
        resplit: Function from a random seed to this task with another split of the same data, so that each seed of a
            study has a split of its own (default: all seeds share the splits).
        facts: Further facts for the report: "description", "classes" (names in order), counts of decisive features,
            best accuracies. Where splits are made of whole groups, "groups" counts them, for instance
            {"unit": "people", "train": 6, "val": 2, "test": 2}.
        seeds: What another seed of the task's function changes: "redrawn" (the data), "resplit" (which pairs of one
            data set are in which split) or "fixed" (neither). Intervals follow it, see `mfh.studies.stats.Repeats`.
        student_channel_dim: Dimension that counts channels in the student's layers, which methods of features read
            (default: the last one for linear layers, layer normalisation, embeddings and transformers, otherwise 1).

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
    unlabelled: Any = None
    missing_target: Any = None  # a number, which may be NaN
    student_layer: StudentLayer = None
    channel_dim: Annotated[int, Bounds(-64, 64)] = 1
    recipe: Recipe = field(default_factory=Recipe)
    protocol: Protocol = field(default_factory=Protocol)
    teacher_checkpoint: str | Path | None = None
    teacher_logits: Tensor | str | Path | None = None
    teacher_train: Any = None
    teacher_embeddings: Mapping[str, Any] | None = None
    problem: Problem = field(default_factory=Problem.classification)
    collate: Callable[[list[Any]], Any] | None = None
    truth: NDArray[np.bool_] | None = None
    resplit: "Callable[[int], Task] | None" = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    seeds: Seeds = "redrawn"
    student_channel_dim: Annotated[int | None, Bounds(-64, 64)] = None

    @classmethod
    def from_arrays(
        cls,
        *,
        teacher: Any,
        student: Any,
        target: Any,
        groups: Any = None,
        split: Any = None,
        problem: Problem | None = None,
        seed: int = 0,
        **options: Any,
    ) -> "Task":
        """A task from paired arrays: splits by seed, and small networks that standardise their inputs themselves.

        Rows whose target is -1 (classes), NaN, None or an empty text are pairs without a label. They serve training
        only. So do rows of which some entries are missing, -1 (whole numbers) or NaN: the label loss counts the others.

        Args:
            teacher: The teacher's inputs: vectors (N, features), series (N, channels, time) or images (N, channels,
                height, width); an array, a tensor, a pandas table or nested lists of finite numbers.
            student: The student's inputs, likewise; row i belongs to row i of `teacher`.
            target: Whole numbers or text (N,) are classes. Floating point numbers (N,) or (N, K) are regression; the
                default networks' outputs have their scale. Zeros and ones (N, K) are multi-label. Whole numbers as
                floating point, which may be either, need `problem`.
            groups: Group of each pair (N,), for instance its person or recording, as numbers or text. No group is then
                in two splits.
            split: Split of each pair (N,): "train", "val" or "test" (default: drawn by seed, stratified by class or by
                group).
            problem: What the targets mean (default: as above, with the usual loss and metric). Its `missing` is a
                further mark of a missing label. `Problem.dense()` takes a class for each place (N, ...), and networks
                of your own.
            seed: Seed of the split. A study takes each of its own seeds instead (`Task.resplit`).
            **options: Fields of `mfh.tasks.arrays.ArrayOptions`: `name`, `labels` (number of labelled training pairs),
                `unlabelled` (whether the other training pairs are used), `val` and `test` (shares or numbers, 0.2
                each), `teacher_network`, `student_network`, `layer`, `recipe`, `unit` (what a group is), `facts`.

        Raises:
            InputError: The arrays cannot be used; the message names the array and the first row that is wrong.

        Example:
            >>> generator = np.random.default_rng(0)
            >>> sound, movement = generator.normal(size=(60, 12)), generator.normal(size=(60, 3, 50))
            >>> task = Task.from_arrays(teacher=sound, student=movement, target=["still", "walk", "run"] * 20)
            >>> len(task.train), len(task.val), len(task.test), task.facts["classes"]
            (36, 12, 12, ['run', 'still', 'walk'])
        """
        from mfh.tasks.arrays import from_arrays

        return from_arrays(teacher, student, target, groups, split, problem=problem, seed=seed, **options)

    def cross_validated(self) -> "Task":
        """The same task, of which every seed draws other validation pairs from training and validation together.

        The test split stays as it is. Where both splits have `groups`, as many whole groups are drawn as validation
        has, and no other pair of these groups serves training, with or without labels. Otherwise as many pairs are
        drawn, stratified by class; one pair of each class stays in training. The mean over seeds is then that of
        repeated random sub-sampling (Monte Carlo cross-validation), and `result.best` does not rest on one small
        validation split. Intervals on the test split, which all seeds share, cover training and the choice of
        validation pairs only, not new data.
        A pair is read by its own data set, so training inputs should not be varied at random.

        Raises:
            InputError: The task re-splits its data already, its teacher is given and knows the training pairs, or no
                draw leaves every class in training.

        Example:
            >>> x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
            >>> split = np.repeat(["train", "val", "test"], 20)
            >>> fixed = Task.from_arrays(teacher=x, student=x, target=y, split=split)
            >>> anew = fixed.cross_validated()
            >>> fixed.resplit is None, len(anew.resplit(3).train), len(anew.resplit(3).val)
            (True, 20, 20)
        """
        from mfh.tasks.cross_validation import cross_validated

        return cross_validated(self)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"the name of a task is {shown(self.name)}; text was expected")
        check_problem(self.problem)
        self._check_factories()
        check_fields(self, of=f" of task {self.name!r}")
        for split in (*SPLITS, "unlabelled", "teacher_train"):
            dataset = getattr(self, split)
            if dataset is None and split not in SPLITS:
                continue
            try:
                check_map_style(dataset, split)
                if split == "unlabelled" and not num_items(dataset, split):
                    continue
                check_split(dataset, split)
            except InputError as error:
                raise InputError(f"task {self.name!r}: {error}") from None
            if self.collate is not None and not isinstance(dataset, Collated):
                object.__setattr__(self, split, Collated(dataset, self.collate))
        given = ("unlabelled",) if self.unlabelled is not None and len(self.unlabelled) else ()
        if self.missing_target is not None:
            if isinstance(self.missing_target, bool) or not isinstance(self.missing_target, Real):
                raise InputError(f"missing_target of task {self.name!r} is {shown(self.missing_target)}; give a number")
            object.__setattr__(self, "problem", replace(self.problem, missing=float(self.missing_target)))
        if self.teacher_embeddings is not None:
            self._embed(self.teacher_embeddings, given)
        if self.teacher is None and self.teacher_logits is None:
            raise InputError(f"task {self.name!r} has no teacher; give teacher= or teacher_logits=")
        try:
            parts = separated(self.train, self.unlabelled, self.problem)
        except InputError as error:
            raise InputError(f"task {self.name!r}: {error}") from None
        object.__setattr__(self, "train", parts.labelled)
        object.__setattr__(self, "unlabelled", parts.unlabelled)
        if self.teacher_logits is not None:
            name = f"teacher_logits of task {self.name!r}"
            outputs = teacher_outputs(self.teacher_logits, len(parts.pairs), name)
            object.__setattr__(self, "teacher_logits", outputs if parts.order is None else outputs[parts.order])

    def __repr__(self) -> str:
        """Name, problem, numbers of pairs and networks, in three lines; nothing is read, and no network is made."""
        names = self.class_names
        classes = f", {len(names)} classes {shown(list(names))}" if names else ""
        counts = {"training": self.train, "unlabelled": self.unlabelled, "validation": self.val, "test": self.test}
        held = ", ".join(f"{len(data)} {split}" for split, data in counts.items() if data is not None and len(data))
        teacher = "its outputs" if self.teacher is None else f"{_called(self.teacher)}, layer {self.layer!r}"
        return (
            f"Task {self.name!r}: {self.problem.name}{classes}\n"
            f"  pairs: {held}\n"
            f"  teacher: {teacher}; student: {_called(self.student)}"
        )

    @property
    def pairs(self) -> Any:
        """All training pairs, labelled ones first: `train`, or `AllPairs` where there are unlabelled ones."""
        return self.train if self.unlabelled is None else AllPairs(self.train, self.unlabelled)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in order, as the facts give them; empty where they do not."""
        names = self.facts.get("classes")
        return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()

    def with_labels(self, rows: Sequence[int]) -> "Task":
        """The same task with fewer labels: the other pairs of `train` join the unlabelled ones.

        Args:
            rows: Positions in `train` of the pairs that keep their labels.
        """
        kept, count = sorted(rows), len(self.train)
        others = sorted(set(range(count)) - set(kept))
        if not others:
            return self
        rest = in_split(Subset(self.train, others), "train")
        unlabelled = rest if self.unlabelled is None else ConcatDataset([rest, self.unlabelled])
        changed: dict[str, Any] = {
            "train": in_split(Subset(self.train, kept), "train"),
            "unlabelled": unlabelled,
        }
        if isinstance(self.teacher_logits, Tensor):
            order = [*kept, *others, *range(count, len(self.teacher_logits))]
            changed["teacher_logits"] = self.teacher_logits[order]
        task = copy.copy(self)
        for name, value in changed.items():
            object.__setattr__(task, name, value)
        return task

    def _check_factories(self) -> None:
        for name in ("teacher", "student"):
            factory = getattr(self, name)
            if isinstance(factory, nn.Module) or not (factory is None or callable(factory)):
                raise InputError(
                    f"{name} of task {self.name!r} is a {type(factory).__name__}; a function that makes a new network "
                    f"was expected: {name}=lambda: MyNetwork(), and weights that exist in a checkpoint"
                )

    def _embed(self, embeddings: Mapping[str, Any], given: tuple[str, ...]) -> None:
        """Put embeddings in the place of the teacher's inputs, and a linear head in that of the teacher."""
        if isinstance(self.teacher, partial) and self.teacher.func is EmbeddingHead:
            return  # a copy of a task that has them
        if self.teacher_train is not None:
            raise InputError(
                f"task {self.name!r} has teacher_train= and teacher_embeddings=; the head is fitted to the embeddings "
                "of train, so leave teacher_train out"
            )
        if self.teacher is not None:
            raise InputError(
                f"task {self.name!r} has teacher= and teacher_embeddings=; the head on the embeddings is the teacher, "
                "so leave teacher None"
            )
        splits = (*SPLITS, *given)
        if set(embeddings) != set(splits):
            raise InputError(
                f"teacher_embeddings of task {self.name!r} are for {', '.join(map(str, embeddings))}; an entry for "
                f"each of {', '.join(splits)} was expected"
            )
        widths = set()
        for split in splits:
            rows = teacher_outputs(embeddings[split], len(getattr(self, split)), f"teacher_embeddings[{split!r}]")
            widths.add(tuple(rows.shape[1:]))
            object.__setattr__(self, split, embedded(getattr(self, split), rows))
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise InputError(
                f"teacher_embeddings of task {self.name!r} have rows of shape {', '.join(map(str, sorted(widths)))}; "
                "vectors of one length were expected in all splits"
            )
        object.__setattr__(self, "teacher", partial(EmbeddingHead, widths.pop()[0], self._outputs()))

    def _outputs(self) -> int:
        """How many numbers the student returns for a sample."""
        item = fetch(self.train, [0])
        with foreign(f"student() of task {self.name!r} cannot make a network that reads student_input"):
            with torch.random.fork_rng(devices=[]):
                network = self.student()
            with evaluating(network), torch.no_grad():
                return int(as_logits(call(network, item.student_input)).shape[1])
