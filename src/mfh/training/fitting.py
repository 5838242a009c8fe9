"""Training in one call: `pretrain`, `align` and `distill`; and `evaluate`.

Networks are trained in place and returned. Randomness comes from `seed` alone; global state is left as found.

Under torch.distributed all processes call the same function with the same arguments, whole data sets among them, and
all get the same result. Each has its own batches, and gradients are averaged (DistributedDataParallel).
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from mfh.data.epochs import PairLoader, Reading, all_targets, reads_the_same
from mfh.data.pairs import only_role
from mfh.data.teacher_outputs import check_finite, teacher_outputs
from mfh.errors import InputError
from mfh.methods.batch import Method
from mfh.methods.finding import facts_of, resolve
from mfh.methods.kd import KD
from mfh.networks.modes import check_weights, device_of, evaluating, placed
from mfh.parallel.distributed import gather, part, part_start
from mfh.problems.losses import DistillationLoss, KDLoss
from mfh.problems.metrics import Tally
from mfh.problems.problem import Problem
from mfh.saliency.masks import masked_logits
from mfh.training.by_method import Lesson, begun
from mfh.training.checks import check_network, check_role, check_split, check_training
from mfh.training.labels import Separated, check_terms, separated
from mfh.training.loop import History, Progress, Training, seeded, training_device
from mfh.training.objectives import Alignment, Distillation, Objective, Supervised
from mfh.training.recipe import Recipe
from mfh.values import Bounds, checked

log = logging.getLogger("mfh")

Role = Literal["teacher", "student"]


@dataclass(frozen=True, repr=False)
class Fit:
    """A trained network.

    Args:
        network: The network, with the weights of the epoch that the recipe keeps.
        best_epoch: That epoch, counted from 0: the best one on the validation split, or with keep="last" the last.
        history: One dict per epoch: epoch, steps so far, train_loss, <role>_val_<metric>, <role>_val_loss.
        role: Role of the network, "teacher" or "student".
        extra_parameters: Number of parameters that a method trained beside the student.
        extra_bytes: Bytes that it held beside the student: its modules, and features of the teacher.
    """

    network: nn.Module
    best_epoch: int
    history: History
    role: Role = "student"
    extra_parameters: int = 0
    extra_bytes: int = 0

    def __repr__(self) -> str:
        return f"Fit({self.role} {_named(self.network)}, {_ending(self.best_epoch, self.history)})"

    @property
    def student(self) -> nn.Module:
        """The network, by the name it has in distillation.

        Raises:
            AttributeError: The network is a teacher.
        """
        if self.role != "student":
            raise AttributeError(f"this is the fit of a {self.role}; use .network")
        return self.network


@dataclass(frozen=True, repr=False)
class AlignedPair:
    """Teacher and student trained together, with the weights of the last epoch.

    Args:
        teacher: The aligned teacher.
        student: The aligned student.
        history: One dict per epoch: epoch, steps so far, train_loss, and metric and loss of both on the validation
            split.
        best_epoch: Epoch, counted from 0, that the recipe's `keep` chooses by the student alone.
        best_weights: State of the student in that epoch.
    """

    teacher: nn.Module
    student: nn.Module
    history: History
    best_epoch: int = -1
    best_weights: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        networks = f"teacher {_named(self.teacher)}, student {_named(self.student)}"
        return f"AlignedPair({networks}, {_ending(self.best_epoch, self.history)})"

    @cached_property
    def best_student(self) -> nn.Module:
        """A copy of the student with the weights of `best_epoch`; made when it is first asked for."""
        network = copy.deepcopy(self.student)
        network.load_state_dict(self.best_weights)
        return network


def _named(network: nn.Module) -> str:
    """A network in a line: its class and size."""
    return f"{type(network).__name__} of {sum(parameter.numel() for parameter in network.parameters()):,} parameters"


def _ending(best_epoch: int, history: History) -> str:
    """Epoch that counts, and what was measured in it on the validation split."""
    kept = f"epoch {best_epoch} of 0 to {len(history) - 1}"
    if not 0 <= best_epoch < len(history):
        return kept
    values = history[best_epoch].items()
    measured = [f"{name} {value:.4g}" for name, value in values if "_val_" in name and not name.endswith("_loss")]
    return f"{kept}: {', '.join(measured)}" if measured else kept


def pretrain(
    network: nn.Module,
    train: Any,
    val: Any,
    *,
    role: Role | None = None,
    problem: Problem | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    logger: Any = None,
    label_smoothing: float = 0.0,
    epoch_size: int | None = None,
    modality: Role | None = None,
) -> Fit:
    """Train one network on labels.

    Args:
        network: Network that returns logits (N, K); it is trained in place.
        train: Map-style data set of (teacher_input, student_input, target).
        val: The same for validation, which chooses the epoch.
        role: "teacher" or "student": the input that the network reads. It must be given.
        problem: What logits and targets mean; default: `Problem.classification()`.
        recipe: Epochs, batch size, optimizer, which epoch is kept, ...; default: `Recipe()`.
        seed: Seed of the order of the data and of dropout.
        device: Device to train on; default: a GPU if there is one.
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch. If it exists, training resumes from it, or, if it was
            finished, its result is returned. It stays until you remove it, which is best done once the network is
            saved.
        logger: A Lightning logger, which gets the history as it grows.
        label_smoothing: How much of every label is spread over all classes, from 0 to 1 (Szegedy et al. 2016, section
            7). Validation data are judged by the plain label loss.
        epoch_size: Number of samples that an epoch's steps are counted by (default: len(train)). With more than there
            are, samples come around several times in an epoch; so a network takes as many steps as one that is
            distilled on labelled and unlabelled pairs.
        modality: Deprecated name of `role`.

    Raises:
        InputError: Data or network cannot be used.
    """
    role = _role(role, modality)
    problem = problem or Problem.classification()
    check_training({role: network}, {"train": train, "val": val}, problem, logger=logger)
    train = separated(train, None, problem).labelled
    if epoch_size is not None and epoch_size < len(train):
        raise InputError(f"epoch_size is {epoch_size}; choose at least the number of training samples, {len(train)}")
    problem, classes = _weighted(problem, recipe, train), _sampled(problem, recipe, train)
    train, val = only_role(train, role), only_role(val, role)
    loss = problem.smoothed(label_smoothing) if label_smoothing else None
    objective = Supervised(network, role, problem, loss)
    facts = {"labelled_pairs": len(train), "label_smoothing": label_smoothing or None, "epoch_size": epoch_size}
    training = _training(
        objective, recipe, role, seed, device, progress, checkpoint, logger,
        epoch_size=epoch_size, facts=facts, classes=classes,
    )  # fmt: skip
    return _fit(network, role, training.run(train, val))


def align(
    teacher: nn.Module,
    student: nn.Module,
    train: Any,
    val: Any,
    *,
    unlabelled: Any = None,
    problem: Problem | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    logger: Any = None,
) -> AlignedPair:
    """Train teacher and student jointly: CE(teacher) + CE(student) + MSE of their logits (Algorithm 1, step 1).

    All epochs are run and the pair keeps the last one, as published: it is a measuring instrument, not a product. The
    recipe's `patience` has no effect, and its `keep` chooses the epoch of `AlignedPair.best_student`.

    Args:
        teacher: Network that returns logits (N, K); it is trained in place.
        student: Network that returns logits (N, K); it is trained in place.
        train: Map-style data set of (teacher_input, student_input, target).
        val: The same for validation, which chooses the epoch of the best student.
        unlabelled: Map-style data set of further pairs, (teacher_input, student_input), which count in the distance
            between the logits alone.
        problem: What logits and targets mean; default: `Problem.classification()`.
        recipe: Epochs, batch size, optimizer, which epoch is kept, ...; default: `Recipe()`.
        seed: Seed of the order of the data and of dropout.
        device: Device to train on; default: a GPU if there is one.
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch. If it exists, training resumes from it, or, if it was
            finished, its result is returned. It stays until you remove it, which is best done once the network is
            saved.
        logger: A Lightning logger, which gets the history as it grows.

    Raises:
        InputError: Data or networks cannot be used.
    """
    networks = {"teacher": teacher, "student": student}
    problem = problem or Problem.classification()
    check_training(networks, {"train": train, "val": val, **_given(unlabelled)}, problem, logger=logger)
    parts = separated(train, unlabelled, problem)
    train = parts.pairs
    objective = Alignment(teacher, student, _weighted(problem, recipe, parts.labelled))
    training = _training(
        objective,
        recipe,
        "student",
        seed,
        device,
        progress,
        checkpoint,
        logger,
        early_stopping=False,
        facts=_counts(parts),
        classes=_sampled(problem, recipe, parts.labelled),
    )
    kept = training.run(train, val)
    last = {name: copy.deepcopy(value) for name, value in student.state_dict().items()} if not kept.weights else {}
    return AlignedPair(teacher, student, kept.history, kept.best_epoch, kept.weights or last)


def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Any,
    val: Any,
    *,
    unlabelled: Any = None,
    loss: DistillationLoss | None = None,
    method: Any = None,
    label_weight: float | None = None,
    teacher_weight: float | None = None,
    teacher_logits: Tensor | str | Path | None = None,
    teacher_features: Mapping[str, Tensor | str | Path] | None = None,
    channel_weights: Mapping[str, Any] | None = None,
    channel_dim: int | None = None,
    student_channel_dim: int | None = None,
    problem: Problem | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    logger: Any = None,
) -> Fit:
    """Train a student on labels and on a teacher, by a distillation method.

    The student minimises label_weight x label loss + teacher_weight x the method's loss. A frozen teacher is run once
    over the training data, in eval mode, and its logits and features are looked up by sample afterwards. Where teacher
    inputs differ when read twice (augmentation), that would be wrong: then it is run on every batch, and the log says
    so. The method's own modules (projectors, heads) are trained with the student and written into checkpoints.

    Pairs without labels are as good as labelled ones for the teacher's term. With `unlabelled`, or with targets that
    are the problem's `missing`, the label loss is the mean over the labelled pairs of a batch and the divergence the
    mean over all its pairs. An epoch is one pass over all pairs, in which every batch has its share of labelled ones;
    see `Recipe.labelled_share`.

    Args:
        teacher: Network that returns logits (N, K), for instance a focused teacher from `mask_channels`; it is left as
            it is. None if `teacher_logits` is given.
        student: Network that returns logits (N, K); it is trained in place.
        train: Map-style data set of (teacher_input, student_input, target).
        val: The same for validation, which chooses the epoch.
        unlabelled: Map-style data set of further pairs, (teacher_input, student_input), for the teacher's term alone.
        loss: Short for `method=mfh.methods.KD(loss)`: a `KDLoss`, or a function (student logits, teacher logits,
            target) -> scalar; default: `KDLoss()`, the problem's label loss + its divergence from the teacher at
            temperature 1. Unlabelled pairs need a `KDLoss`, because a function of all three has no term without labels.
        method: What the student minimises beside the label loss: the name of a shipped method
            (`mfh.methods.names.SHIPPED`), "path/to/file.py:MyMethod", "package.module:MyMethod", a
            `mfh.methods.Method`, or a function of a `mfh.methods.Batch`. Default: `loss`.
        label_weight: Weight of the label loss (default: the method's own, usually 1).
        teacher_weight: Weight of the method's loss (default: the method's own, usually 1).
        teacher_logits: Tensor (len(train) + len(unlabelled), K) of the teacher's logits in data-set order, those of
            `train` first, if they are known already; or a file of them (see `teacher_outputs`).
        teacher_features: The same for features, by teacher layer: (pairs, C, *positions), channels first. A method of
            features can then do without the teacher's network.
        channel_weights: Weights of a teacher layer's channels, (C,) by layer, for methods of features.
        channel_dim: Dimension of the teacher's layers that counts channels. By default the last one for linear layers,
            layer normalisation, embeddings and transformers, and otherwise 1. The penultimate layer, which methods
            read by default, needs none: its channels are what the last layer reads.
        student_channel_dim: The same for the student's layers.
        problem: What logits and targets mean; default: `Problem.classification()`.
        recipe: Epochs, batch size, optimizer, which epoch is kept, ...; default: `Recipe()`.
        seed: Seed of the order of the data and of dropout.
        device: Device to train on; default: a GPU if there is one.
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch. If it exists, training resumes from it, or, if it was
            finished, its result is returned. It stays until you remove it, which is best done once the network is
            saved.
        logger: A Lightning logger, which gets the history as it grows.

    Raises:
        InputError: There is neither a teacher nor its logits, or they do not fit the data or are not finite, or data
            or student cannot be used.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(40, 4), torch.randn(40, 3), torch.arange(40) % 2)
        >>> fit = distill(nn.Linear(4, 2), nn.Linear(3, 2), data, data, recipe=Recipe(epochs=2))
        >>> fit.student, len(fit.history)
        (Linear(in_features=3, out_features=2, bias=True), 2)
    """
    if teacher is None and teacher_logits is None:
        raise InputError("there is no teacher; give a network, or teacher_logits")
    if teacher is not None:
        check_network(teacher, "teacher")
        check_weights(teacher)
    chosen = _method(method, loss, label_weight, teacher_weight)
    loss = chosen.distillation_loss if isinstance(chosen, KD) else None
    splits = {"train": train, "val": val, **_given(unlabelled)}
    check_training({"student": student}, splits, problem, loss=loss, logger=logger)
    problem = problem or Problem.classification()
    parts = separated(train, unlabelled, problem)
    train = parts.pairs
    if parts.unlabelled is not None:
        check_terms(loss)
    if teacher_logits is not None:
        teacher_logits = teacher_outputs(teacher_logits, len(train))
        teacher_logits = teacher_logits if parts.order is None else teacher_logits[parts.order]
    classes = _sampled(problem, recipe, parts.labelled)
    problem = _weighted(problem, recipe, parts.labelled, loss)
    options: dict[str, Any] = {
        "classes": classes,
        "recipe": recipe,
        "seed": seed,
        "device": device,
        "progress": progress,
        "checkpoint": checkpoint,
        "logger": logger,
    }
    if not isinstance(chosen, KD):
        features = {name: teacher_outputs(of, len(train), name) for name, of in (teacher_features or {}).items()}
        if parts.order is not None:
            features = {name: of[parts.order] for name, of in features.items()}
        lesson = Lesson(
            teacher,
            teacher_logits,
            features or None,
            channel_weights,
            channel_dim,
            student_channel_dim,
            label_weight,
            teacher_weight,
        )
        return _distil_by(chosen, lesson, student, parts, val, problem, options)
    if teacher_features or channel_weights:
        raise InputError("method kd reads no features; leave teacher_features and channel_weights out")
    objective = Distillation(student, problem, loss)
    training = _training(objective, watched="student", facts=_counts(parts), **options)
    if training.finished:
        return _fit(student, "student", training.run(train, val))
    if teacher_logits is None and teacher is not None:
        with seeded(seed, training.device):
            if reads_the_same(train):
                workers = training.recipe.num_workers
                reader = PairLoader(part(only_role(train, "teacher")), num_workers=workers, split="train")
                (teacher_logits,) = masked_logits(teacher, [None], reader, device=training.device)
            else:
                log.warning("teacher inputs differ when read twice (augmented?): the teacher runs on every batch")
    if teacher_logits is not None:
        check_finite(teacher_logits, pairs=train)
        train = only_role(train, "student")
    objective.teach(teacher_logits, teacher)
    val = only_role(val, "student")
    with _frozen(None if teacher_logits is not None else teacher, training.device):
        return _fit(student, "student", training.run(train, val))


def _method(method: Any, loss: Any, label_weight: float | None, teacher_weight: float | None) -> Method:
    """The method that a training is asked for, by its own name or by that of a loss."""
    if method is not None and loss is not None:
        raise InputError("loss and method are both given; loss=... is method=mfh.methods.KD(...): leave one out")
    chosen = KD(loss) if method is None else resolve(method)
    weights = {"label_weight": label_weight, "teacher_weight": teacher_weight}
    changes: dict[str, Any] = {name: value for name, value in weights.items() if value is not None}
    for name, value in changes.items():
        checked(name, value, Annotated[float, Bounds(0, 1_000_000)])
    if isinstance(chosen, KD) and changes:
        if not isinstance(chosen.distillation_loss, KDLoss):
            raise InputError(f"{next(iter(changes))} is a part of a KDLoss, and loss is a function of its own")
        chosen = KD(replace(chosen.distillation_loss, **changes))
    return chosen


def _distil_by(
    method: Method,
    lesson: Lesson,
    student: nn.Module,
    parts: Separated,
    val: Any,
    problem: Problem,
    options: dict[str, Any],
) -> Fit:
    """A student trained by another method than `KD`."""
    train, device = parts.pairs, training_device(options["device"])
    recipe, known = options["recipe"] or Recipe(), facts_of(method)  # before the method sees the training
    how: dict[str, Any] = {"seed": options["seed"], "device": device, "num_workers": recipe.num_workers}
    with begun(method, lesson, student, train, problem, epochs=recipe.epochs, **how) as objective:
        weights = {"label_weight": objective.label_weight, "teacher_weight": objective.teacher_weight}
        facts = {**_counts(parts), "method": {**known, **weights}}
        training = _training(objective, watched="student", facts=facts, **options)
        if objective.fields == ("student_input",):
            train, val = only_role(train, "student"), only_role(val, "student")
        elif not method.trains_teacher:
            val = only_role(val, "student")
        frozen = None if objective.fields == ("student_input",) or method.trains_teacher else lesson.teacher
        with _frozen(frozen, training.device):
            kept = training.run(train, val)
        deployed = objective.kept("student")
        objective.zero_grad()
        fit = _fit(deployed, "student", kept)
        return replace(fit, extra_parameters=objective.extra_parameters, extra_bytes=objective.extra_bytes)


def evaluate(
    network: nn.Module,
    dataset: Any,
    role: Role | None = None,
    *,
    problem: Problem | None = None,
    device: torch.device | str | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    split: str = "data",
    modality: Role | None = None,
) -> float:
    """The problem's metric on a data set, for classification the accuracy.

    Every sample counts once, also where several processes share the work.

    Args:
        network: Network that returns logits (N, K).
        dataset: Map-style data set of (teacher_input, student_input, target).
        role: "teacher" or "student": the input that the network reads. It must be given.
        problem: What logits and targets mean; default: `Problem.classification()`.
        device: Device to run on; default: where the network is.
        watch: Function that is called with the logits and the target of every batch that this process reads.
        split: Name of the data set in messages.
        modality: Deprecated name of `role`.

    Raises:
        InputError: Network or data cannot be used, a target does not fit the logits, or an input, a logit or the metric
            is not a number.
    """
    role = _role(role, modality)
    check_network(network, role)
    check_split(dataset, split)
    problem = problem or Problem.classification()
    tally, not_numbers = Tally(problem.metric, f"{split} split"), torch.zeros(())
    with placed(device, network), evaluating(network):
        objective = Supervised(network, role, replace(problem, missing=None))  # what is measured needs its label
        objective.split = split
        reading = Reading(
            part(only_role(dataset, role)),
            split,
            device_of(network),
            fields=objective.fields,
            look=objective.look,
            first=part_start(len(dataset)),
        )
        objective.know(reading)
        for batch, indices in reading:
            logits = objective.logits(batch, indices, role)
            target = batch.target.to(logits.device)
            tally.add(logits, target)
            not_numbers = not_numbers.to(logits.device) + logits.isnan().any()
            if watch is not None:
                watch(logits, target)
        if any(gather(bool(not_numbers))):
            raise InputError(
                f"{split} split: the {role} returns NaN{_first_nan(objective, reading)}; check its weights"
            )
    value = tally.value(gather(tally.state()))
    if math.isnan(value):
        raise InputError(
            f"{split} split: the metric {problem.metric.name} is NaN, although every logit is a number; it cannot be "
            "computed from these targets (has every class a sample?): mend the metric or the data"
        )
    return value


def _first_nan(objective: Objective, reading: Reading) -> str:
    """The first sample for which a network returns NaN, for a message; nothing where another process has it."""
    (role,) = objective.networks
    for batch, indices in reading:
        rows = objective.logits(batch, indices, role).isnan().flatten(1).any(1).nonzero()
        if len(rows):
            return f" for sample {int(indices[int(rows[0])])}"
    return ""


def _weighted(problem: Problem, recipe: Recipe | None, train: Any, loss: DistillationLoss | None = None) -> Problem:
    """The problem with the recipe's class weights, which average 1 over the training samples."""
    weights = None if recipe is None else recipe.class_weights
    if weights is None:
        return problem
    if not (loss is None or (isinstance(loss, KDLoss) and loss.label_loss is None)):
        raise InputError("class_weights were given, and a loss with its own label loss; leave one of them out")
    problem.weighted([1.0])  # refuses other problems before targets are read
    targets = all_targets(train).long().flatten()
    counts = torch.bincount(targets[targets >= 0]).double()  # a wrong target is refused later, with its place
    if weights == "balanced":
        occurs = counts > 0
        balanced = counts.sum() / (occurs.sum() * counts.clamp_min(1))
        return problem.weighted(torch.where(occurs, balanced, 1.0).tolist(), others=1.0)
    given = torch.tensor(weights, dtype=torch.float64)
    shared = min(len(given), len(counts))
    mean = float(given[:shared] @ counts[:shared] / counts.sum())
    if not mean > 0:
        raise InputError(f"class_weights is {weights}; the classes with a weight above 0 have no training samples")
    return problem.weighted((given / mean).tolist())


def _sampled(problem: Problem, recipe: Recipe | None, train: Any) -> Tensor | None:
    """(N,), the classes by which labelled samples are drawn; None where the recipe draws all alike."""
    if recipe is None or not recipe.balanced_sampling:
        return None
    if problem.name != "classification":
        raise InputError(
            f"balanced_sampling was given for the problem {problem.name}; it draws the classes of "
            "Problem.classification() equally often: leave it out"
        )
    targets = all_targets(train)
    if targets.ndim != 1 or targets.is_floating_point():
        raise InputError(
            f"balanced_sampling needs one class index for each sample, and the targets of the train split are "
            f"{targets.dtype} of shape {tuple(targets.shape)}; give class indices (N,), or leave it out"
        )
    return targets


def _role(role: Any, modality: Any) -> Role:
    """The role, which may have been given by its old name."""
    if modality is not None:
        if role is not None:
            raise InputError("role and modality are both given; modality is the old name of role: leave it out")
        warnings.warn("modality= is now called role=", DeprecationWarning, stacklevel=3)
        role = modality
    found: Role = check_role(role)
    return found


def _training(
    objective: Objective,
    recipe: Recipe | None,
    watched: str,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
    checkpoint: str | Path | None,
    logger: Any,
    *,
    early_stopping: bool = True,
    epoch_size: int | None = None,
    facts: Mapping[str, Any],
    classes: Tensor | None,
) -> Training:
    return Training(
        objective,
        recipe or Recipe(),
        watched=watched,
        seed=seed,
        device=training_device(device),
        early_stopping=early_stopping,
        epoch_size=epoch_size,
        facts=facts,
        classes=classes,
        progress=progress,
        checkpoint=checkpoint,
        logger=logger,
    )


def _counts(parts: Separated) -> dict[str, int | None]:
    """The numbers of pairs, which a resumed training must have too."""
    more = None if parts.unlabelled is None else len(parts.unlabelled)
    return {"labelled_pairs": len(parts.labelled), "unlabelled_pairs": more}


def _given(unlabelled: Any) -> dict[str, Any]:
    """The unlabelled pairs by name, if there are any."""
    none = unlabelled is None or (hasattr(unlabelled, "__len__") and not len(unlabelled))
    return {} if none else {"unlabelled": unlabelled}


def _fit(network: nn.Module, role: Role, kept: Progress) -> Fit:
    """The network with the weights of the epoch that is kept."""
    if kept.weights:
        network.load_state_dict(kept.weights)
    return Fit(network, kept.best_epoch, kept.history, role)


@contextmanager
def _frozen(teacher: nn.Module | None, device: torch.device) -> Iterator[None]:
    if teacher is None:
        yield
        return
    modes = [(module, module.training) for module in teacher.modules()]
    try:
        with placed(device, teacher):
            teacher.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
