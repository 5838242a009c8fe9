"""Training in one call: `pretrain`, `align` and `distill`; and `evaluate`.

Networks are trained in place and returned. Randomness comes from `seed` alone; global state is left as it was.

Under torch.distributed all processes call the same function with the same arguments, whole data sets among them, and
all get the same result. Each has its own batches, and gradients are averaged (DistributedDataParallel).
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mfh.data.epochs import PairLoader, reads_the_same
from mfh.data.pairs import only_role, to_device
from mfh.data.teacher_outputs import check_finite, teacher_outputs
from mfh.errors import InputError
from mfh.networks.layers import as_logits
from mfh.networks.modes import device_of, evaluating, find_device, placed
from mfh.parallel.distributed import gather, part
from mfh.problems.losses import DistillationLoss
from mfh.problems.metrics import Tally
from mfh.problems.problem import Problem
from mfh.saliency.masks import masked_logits
from mfh.training.checks import check_dataset, check_role, check_splits
from mfh.training.loop import History, best_weights, load_best, seeded, train_networks
from mfh.training.objectives import Alignment, Distillation, Supervised
from mfh.training.recipe import Recipe

log = logging.getLogger("mfh")

Role = Literal["teacher", "student"]


@dataclass(frozen=True)
class Fit:
    """A trained network.

    Args:
        network: The network, with the weights of the epoch that the recipe keeps.
        best_epoch: That epoch, counted from 0.
        history: One dict for each epoch: steps so far, train_loss, <role>_val_<metric>, <role>_val_loss.
        role: Whether the network is a teacher or a student.
    """

    network: nn.Module
    best_epoch: int
    history: History
    role: Role = "student"

    @property
    def student(self) -> nn.Module:
        """The network, where it is a student.

        Raises:
            AttributeError: It is a teacher.
        """
        if self.role != "student":
            raise AttributeError("this is the fit of a teacher; use .network")
        return self.network


@dataclass(frozen=True)
class AlignedPair:
    """Teacher and student trained together.

    Args:
        teacher: The aligned teacher, with the weights of the last epoch.
        student: The aligned student, with the weights of the last epoch.
        history: One dict for each epoch: steps so far, train_loss, and metric and loss of both networks on the
            validation split.
        best_student: A copy of the aligned student with the weights of the epoch that the recipe keeps: the student to
            use, where the pair is only what is scored.
        best_epoch: That epoch, counted from 0.
    """

    teacher: nn.Module
    student: nn.Module
    history: History
    best_student: nn.Module
    best_epoch: int


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
    modality: Role | None = None,
) -> Fit:
    """Train one network on labels.

    Args:
        network: A network that returns logits (N, K); it is trained in place.
        train: Map-style data set of (teacher_input, student_input, target).
        val: Data set like `train`, to choose the epoch.
        role: Whether the network reads the teacher's or the student's input: "teacher" or "student".
        problem: What logits and targets mean (default: `Problem.classification()`).
        recipe: Epochs, batch size, optimizer and so on (default: `Recipe()`).
        seed: Random seed of the order of the data and of dropout.
        device: Where to train (default: a GPU if there is one).
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch. If it exists, training resumes from it, or, where it was
            finished, its result is returned. It stays until you remove it, which is best done once the network is
            saved.
        logger: A Lightning logger, which gets the history as it grows.
        modality: Deprecated name of `role`.

    Raises:
        InputError: Data or network cannot be used.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(40, 4), torch.randn(40, 3), torch.arange(40) % 2)
        >>> fit = pretrain(nn.Linear(3, 2), data, data, role="student", recipe=Recipe(epochs=2, keep="last"))
        >>> fit.best_epoch, [sorted(entry) for entry in fit.history][0][:2]
        (1, ['epoch', 'steps'])
    """
    role = _role(role, modality)
    recipe = recipe or Recipe()
    check_splits(train, val)
    found = train_networks(
        Supervised(network, role, problem or Problem.classification()),
        only_role(train, role),
        only_role(val, role),
        watched=role,
        recipe=recipe,
        seed=seed,
        device=device,
        progress=progress,
        checkpoint=checkpoint,
        logger=logger,
        patience=None if recipe.keep == "last" else recipe.patience,
    )
    load_best(network, role, found)
    return Fit(network, found.best_epoch, found.history, role)


def _role(role: Role | None, modality: Role | None) -> Role:
    if modality is not None:
        if role is not None:
            raise InputError(f"role is {role!r} and modality {modality!r}; modality is the old name of role: give role")
        warnings.warn("modality= is deprecated; use role=", DeprecationWarning, stacklevel=3)
    check_role(role or modality)
    return cast(Role, role or modality)


def align(
    teacher: nn.Module,
    student: nn.Module,
    train: Any,
    val: Any,
    *,
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
    student as a product is `AlignedPair.best_student`, at the epoch that the recipe keeps.

    Args:
        teacher: A network that returns logits (N, K); it is trained in place.
        student: A network that returns logits (N, K); it is trained in place.
        train: Map-style data set of (teacher_input, student_input, target).
        val: Data set like `train`, for the history and to choose the epoch of `best_student`.
        problem: What logits and targets mean (default: `Problem.classification()`).
        recipe: Epochs, batch size, optimizer and so on (default: `Recipe()`). Its patience has no effect.
        seed: Random seed of the order of the data and of dropout.
        device: Where to train (default: a GPU if there is one).
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch. If it exists, training resumes from it, or, where it was
            finished, its result is returned. It stays until you remove it, which is best done once the networks are
            saved.
        logger: A Lightning logger, which gets the history as it grows.

    Raises:
        InputError: Data or networks cannot be used.
    """
    found = train_networks(
        Alignment(teacher, student, problem or Problem.classification()),
        train,
        val,
        watched="student",
        recipe=recipe or Recipe(),
        seed=seed,
        device=device,
        progress=progress,
        checkpoint=checkpoint,
        logger=logger,
        patience=None,
    )
    return AlignedPair(teacher, student, found.history, best_weights(student, "student", found), found.best_epoch)


def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    train: Any,
    val: Any,
    *,
    loss: DistillationLoss | None = None,
    teacher_logits: Tensor | str | Path | None = None,
    problem: Problem | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    logger: Any = None,
) -> Fit:
    """Train a student on labels and on a frozen teacher's outputs.

    The teacher is run once over the training data, in eval mode, and its logits are looked up by sample afterwards.
    Where teacher inputs differ when read twice (augmentation), that would be wrong: then it is run on every batch,
    and the log says so.

    Args:
        teacher: A network that returns logits (N, K), for instance a focused teacher from `mask_channels`; it is left
            as it is. May be None if `teacher_logits` is given.
        student: A network that returns logits (N, K); it is trained in place.
        train: Map-style data set of (teacher_input, student_input, target).
        val: Data set like `train`, to choose the epoch.
        loss: A `KDLoss`, or a function of student logits, teacher logits and target that returns a scalar (default:
            `KDLoss()`, the problem's label loss plus its divergence from the teacher at temperature 1).
        teacher_logits: (len(train), K) Outputs of the teacher in data-set order, if they are known already; or a file
            of them (see `teacher_outputs`).
        problem: What logits and targets mean (default: `Problem.classification()`).
        recipe: Epochs, batch size, optimizer and so on (default: `Recipe()`).
        seed: Random seed of the order of the data and of dropout.
        device: Where to train (default: a GPU if there is one).
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch. If it exists, training resumes from it, or, where it was
            finished, its result is returned. It stays until you remove it, which is best done once the network is
            saved.
        logger: A Lightning logger, which gets the history as it grows.

    Raises:
        InputError: There is neither a teacher nor its logits, or they do not fit the data or are not finite.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(40, 4), torch.randn(40, 3), torch.arange(40) % 2)
        >>> fit = distill(nn.Linear(4, 2), nn.Linear(3, 2), data, data, recipe=Recipe(epochs=2))
        >>> fit.student, len(fit.history)
        (Linear(in_features=3, out_features=2, bias=True), 2)
    """
    recipe, target = recipe or Recipe(), find_device(device)
    if teacher is None and teacher_logits is None:
        raise InputError("there is no teacher; give a network, or teacher_logits")
    check_splits(train, val)
    if teacher_logits is None and teacher is not None:
        with seeded(seed, device):
            if reads_the_same(train):
                reader = PairLoader(part(only_role(train, "teacher")), num_workers=recipe.num_workers)
                (teacher_logits,) = masked_logits(teacher, [None], reader, device=target)
            else:
                log.warning("teacher inputs differ when read twice (augmented?): the teacher runs on every batch")
    if teacher_logits is not None:
        teacher_logits = teacher_outputs(teacher_logits, len(train))
        check_finite(teacher_logits)
        train = only_role(train, "student")
    problem = problem or Problem.classification()
    with _frozen(None if teacher_logits is not None else teacher, target):
        found = train_networks(
            Distillation(student, problem, loss, teacher_logits, teacher, target),
            train,
            only_role(val, "student"),
            watched="student",
            recipe=recipe,
            seed=seed,
            device=device,
            progress=progress,
            checkpoint=checkpoint,
            logger=logger,
            patience=None if recipe.keep == "last" else recipe.patience,
        )
    load_best(student, "student", found)
    return Fit(student, found.best_epoch, found.history)


def evaluate(
    network: nn.Module,
    dataset: Any,
    role: Role | None = None,
    *,
    problem: Problem | None = None,
    device: torch.device | str | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    modality: Role | None = None,
) -> float:
    """The problem's metric on a data set, for classification the accuracy.

    Every sample counts once, also where several processes share the work.

    Args:
        network: A network that returns logits (N, K).
        dataset: Map-style data set of (teacher_input, student_input, target).
        role: Whether the network reads the teacher's or the student's input: "teacher" or "student".
        problem: What logits and targets mean (default: `Problem.classification()`).
        device: Where to run (default: where the network is).
        watch: Function that is called with the logits and the target of every batch that this process reads.
        modality: Deprecated name of `role`.

    Raises:
        InputError: A target does not fit the logits, or the data cannot be used.
    """
    role = _role(role, modality)
    problem = problem or Problem.classification()
    check_dataset(dataset, "dataset")
    tally = Tally(problem.metric)
    with placed(device, network), evaluating(network):
        home = device_of(network)
        for batch in PairLoader(part(only_role(dataset, role))):
            inputs = batch.teacher_input if role == "teacher" else batch.student_input
            logits = as_logits(network(to_device(inputs, home)))
            problem.check(logits, batch.target)
            target = batch.target.to(logits.device)
            tally.add(logits, target)
            if watch is not None:
                watch(logits, target)
    return tally.value(gather(tally.state()))


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
