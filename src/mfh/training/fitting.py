"""Training in one call: `pretrain`, `align` and `distill`.

Networks are trained in place and returned. Randomness comes from `seed` alone; global state is left as found.

Under torch.distributed all processes call the same function with the same arguments, whole data sets among them, and
all get the same result. Each has its own batches, and gradients are averaged (DistributedDataParallel).
"""

import logging
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mfh.data.epochs import EpochBatches, PairLoader, indexed_loader, reading_batch, reads_the_same
from mfh.data.pairs import one_modality, to_device
from mfh.data.teacher_outputs import check_finite, teacher_outputs
from mfh.errors import InputError
from mfh.networks.layers import as_logits
from mfh.networks.modes import check_one_device, check_weights, device_of, evaluating, find_device, placed
from mfh.parallel.distributed import check_uniform, exists, gather, part, rank, world_size
from mfh.parallel.torchrun import launched
from mfh.problems.losses import DistillationLoss
from mfh.problems.metrics import Tally
from mfh.problems.problem import Problem
from mfh.saliency.masks import masked_logits
from mfh.training.acceleration import prepared
from mfh.training.recipe import Recipe

if TYPE_CHECKING:
    from mfh.training.modules import Training

log = logging.getLogger("mfh")

History = list[dict[str, float]]


@dataclass(frozen=True)
class Fit:
    """A trained network.

    Args:
        network: with the weights of its best epoch.
        best_epoch: counted from 0, by the problem's metric on the validation split.
        history: one dict per epoch: steps so far, train_loss, <role>_val_<metric>, <role>_val_loss.
    """

    network: nn.Module
    best_epoch: int
    history: History

    @property
    def student(self) -> nn.Module:
        """The network, by the name it has in distillation."""
        return self.network


@dataclass(frozen=True)
class AlignedPair:
    """Teacher and student trained together, with the weights of the last epoch.

    Args:
        teacher: the aligned teacher.
        student: the aligned student.
        history: one dict per epoch: steps so far, train_loss, and metric and loss of both on the validation split.
    """

    teacher: nn.Module
    student: nn.Module
    history: History
    best_student: Any = None
    best_epoch: int = 0


def pretrain(
    network: nn.Module,
    train: Any,
    val: Any,
    *,
    role: Literal["teacher", "student"] = "student",
    modality: Any = None,
    problem: Problem | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    logger: Any = None,
) -> Fit:
    """Train one network on labels.

    Args:
        network: returns logits (N, K); trained in place.
        train: map-style data set of (teacher_input, student_input, target).
        val: the same, to choose the epoch.
        modality: whether the network reads the teacher's or the student's input.
        problem: what logits and targets mean; default `Problem.classification()`.
        recipe: epochs, batch size, optimizer, ...; default `Recipe()`.
        seed: of the order of the data and of dropout.
        device: where to train; default: a GPU if there is one.
        progress: show a progress bar.
        checkpoint: a file written after every epoch. If it exists, training resumes from it, or, where it was finished,
            its result is returned. It stays until you remove it, which is best done once the network is saved.
        logger: a Lightning logger, which gets the history as it grows.

    Raises:
        InputError: data or network cannot be used.
    """
    from mfh.training.modules import Supervised

    recipe = recipe or Recipe()
    modality = modality or role
    train, val = one_modality(train, modality), one_modality(val, modality)
    module = Supervised(network, modality, recipe, problem or Problem.classification())
    history, best_epoch = _run(module, modality, True, train, val, seed, device, progress, checkpoint, logger)
    return Fit(network, best_epoch, history)


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

    All epochs are run and the last one is kept, as published: the pair is a measuring instrument, not a product.

    Args:
        teacher: returns logits (N, K); trained in place.
        student: returns logits (N, K); trained in place.
        train: map-style data set of (teacher_input, student_input, target).
        val: the same, for the history.
        problem: what logits and targets mean; default `Problem.classification()`.
        recipe: epochs, batch size, optimizer, ...; default `Recipe()`.
        seed: of the order of the data and of dropout.
        device: where to train; default: a GPU if there is one.
        progress: show a progress bar.
        checkpoint: a file written after every epoch. If it exists, training resumes from it, or, where it was finished,
            its result is returned. It stays until you remove it, which is best done once the network is saved.
        logger: a Lightning logger, which gets the history as it grows.

    Raises:
        InputError: data or networks cannot be used.
    """
    from mfh.training.modules import Alignment

    module = Alignment(teacher, student, recipe or Recipe(), problem or Problem.classification())
    history, _ = _run(module, "student", False, train, val, seed, device, progress, checkpoint, logger)
    return AlignedPair(teacher, student, history, student, len(history) - 1)


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
        teacher: returns logits (N, K), for instance a focused teacher from `mask_channels`; left as it is. May be
            None if `teacher_logits` is given.
        student: returns logits (N, K); trained in place.
        train: map-style data set of (teacher_input, student_input, target).
        val: the same, to choose the epoch.
        loss: a `KDLoss`, or a function (student logits, teacher logits, target) -> scalar; default `KDLoss()`, the
            problem's label loss + its divergence from the teacher at temperature 1.
        teacher_logits: (len(train), K) in data-set order, if they are known already; or a file of them (see
            `teacher_outputs`).
        problem: what logits and targets mean; default `Problem.classification()`.
        recipe: epochs, batch size, optimizer, ...; default `Recipe()`.
        seed: of the order of the data and of dropout.
        device: where to train; default: a GPU if there is one.
        progress: show a progress bar.
        checkpoint: a file written after every epoch. If it exists, training resumes from it, or, where it was finished,
            its result is returned. It stays until you remove it, which is best done once the network is saved.
        logger: a Lightning logger, which gets the history as it grows.

    Raises:
        InputError: there is neither a teacher nor its logits, or they do not fit the data or are not finite.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(40, 4), torch.randn(40, 3), torch.arange(40) % 2)
        >>> fit = distill(nn.Linear(4, 2), nn.Linear(3, 2), data, data, recipe=Recipe(epochs=2))
        >>> fit.student, len(fit.history)
        (Linear(in_features=3, out_features=2, bias=True), 2)
    """
    from mfh.training.modules import Distillation

    recipe = recipe or Recipe()
    if teacher is None and teacher_logits is None:
        raise InputError("there is no teacher; give a network, or teacher_logits")
    _check_splits(train, val)
    if teacher_logits is None and teacher is not None:
        with _seeded(seed, device):
            if reads_the_same(train):
                reader = PairLoader(part(one_modality(train, "teacher")), num_workers=recipe.num_workers)
                (teacher_logits,) = masked_logits(teacher, [None], reader, device=find_device(device))
            else:
                log.warning("teacher inputs differ when read twice (augmented?): the teacher runs on every batch")
    if teacher_logits is not None:
        teacher_logits = teacher_outputs(teacher_logits, len(train))
        check_finite(teacher_logits)
        train = one_modality(train, "student")
    module = Distillation(student, recipe, problem or Problem.classification(), loss, teacher_logits, teacher)
    val = one_modality(val, "student")
    with _frozen(None if teacher_logits is not None else teacher, find_device(device)):
        history, best_epoch = _run(module, "student", True, train, val, seed, device, progress, checkpoint, logger)
    return Fit(student, best_epoch, history)


def evaluate(
    network: nn.Module,
    dataset: Any,
    modality: Literal["teacher", "student"],
    *,
    problem: Problem | None = None,
    device: torch.device | str | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> float:
    """The problem's metric on a data set, for classification the accuracy.

    Every sample counts once, also where several processes share the work.

    Args:
        network: returns logits (N, K).
        dataset: map-style data set of (teacher_input, student_input, target).
        modality: whether the network reads the teacher's or the student's input.
        problem: what logits and targets mean; default `Problem.classification()`.
        device: where to run; default: where the network is.
        watch: called with the logits and the target of every batch that this process reads.

    Raises:
        InputError: a target does not fit the logits.
    """
    problem = problem or Problem.classification()
    tally = Tally(problem.metric)
    with placed(device, network), evaluating(network):
        home = device_of(network)
        for batch in PairLoader(part(one_modality(dataset, modality))):
            inputs = batch.teacher_input if modality == "teacher" else batch.student_input
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


def _run(
    module: "Training",
    watched: str,
    keep_best: bool,
    train: Any,
    val: Any,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
    checkpoint: str | Path | None,
    logger: Any,
) -> tuple[History, int]:
    """Run Lightning's Trainer; afterwards the networks carry the chosen weights, on the device they came from."""
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    from mfh.training.modules import EpochSeed, OwnSignals
    from mfh.training.modules import History as HistoryCallback

    _check_splits(train, val)
    for role, network in module.networks.items():
        check_weights(network)
        check_one_device(network, role)
    recipe, target = module.recipe, find_device(device)
    home = {role: device_of(network) for role, network in module.networks.items()}
    modes = [(m, m.training) for m in module.networks.modules()]
    # Without a best epoch to keep there is nothing to be patient about: the last epoch is the result.
    history = HistoryCallback(watched, keep_best, recipe.patience if keep_best else None)
    module.made_with = {"seed": seed, **recipe.facts(), "processes": world_size()}
    module.batches = EpochBatches(
        len(train), recipe.batch_size, seed, accumulate=recipe.accumulate, processes=world_size(), rank=rank()
    )
    callbacks: list[Any] = [EpochSeed(seed), OwnSignals(), history]
    resume: Path | None = None
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        callbacks.append(
            ModelCheckpoint(
                dirpath=checkpoint.parent,
                filename=checkpoint.stem,
                save_on_train_epoch_end=True,  # not after validation, when the epoch's training loss is not yet known
                enable_version_counter=False,
            )
        )
        callbacks[-1].FILE_EXTENSION = checkpoint.suffix
        if exists(checkpoint):
            resume = checkpoint
            _check_resumable(module, checkpoint)
    readers: dict[str, Any] = {
        "num_workers": recipe.num_workers,
        "pin": target.type == "cuda" and recipe.num_workers > 0,
    }
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with _quiet(), _seeded(seed, target), prepared(module.networks, recipe, target):
            trainer = L.Trainer(
                **_place(target),
                accumulate_grad_batches=recipe.accumulate,
                max_epochs=recipe.epochs,
                precision=recipe.precision,
                callbacks=callbacks,
                logger=logger or False,
                enable_checkpointing=checkpoint is not None,
                enable_progress_bar=progress,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
            assert trainer.world_size == world_size()  # otherwise processes would train apart
            module.networks.train()
            trainer.fit(
                module,
                indexed_loader(train, batches=module.batches, **readers),
                indexed_loader(part(val), max(recipe.batch_size, reading_batch(val)), **readers),
                ckpt_path=resume,
                weights_only=True,
            )
        if keep_best and history.weights:
            module.networks.load_state_dict(history.weights)
    except RuntimeError as error:
        if "find_unused_parameters" not in str(error):
            raise
        raise InputError(
            "some parameters take no part in the loss, which several processes cannot train; freeze them "
            "(requires_grad_(False)), or leave them out"
        ) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl+C into an exit and then ignores it
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None
        raise
    finally:
        module.networks.zero_grad()
        for role, network in module.networks.items():
            network.to(home[role])
        for submodule, mode in modes:
            submodule.training = mode
    return history.epochs, history.best_epoch


def _place(device: torch.device) -> dict[str, Any]:
    """Where Lightning trains: on one device, or in every process that torchrun started."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from mfh.training.modules import AtomicCheckpoints

    accelerator = "gpu" if device.type == "cuda" else device.type
    if world_size() == 1:
        if launched() > 1:
            raise InputError(
                f"torchrun started {launched()} processes, but they would train apart; call "
                "torch.distributed.init_process_group() first"
            )
        devices: Any = [device.index] if device.type == "cuda" and device.index is not None else 1
        # Named, because Lightning would look for a cluster around it, and find one where torchrun or SLURM runs.
        return {
            "accelerator": accelerator,
            "devices": devices,
            "plugins": [LightningEnvironment(), AtomicCheckpoints()],
        }
    on_each, machines = check_uniform()
    return {
        "accelerator": accelerator,
        "devices": on_each,
        "num_nodes": machines,
        # Buffers are averaged once per epoch. Sent around at every step they would cost as much as gradients, and
        # in validation, where processes have different numbers of batches, wait for ever.
        "strategy": DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
        "plugins": [TorchElasticEnvironment(), AtomicCheckpoints()],
    }


def _check_splits(train: Any, val: Any) -> None:
    for name, split in (("train", train), ("val", val)):
        if not len(split):
            raise InputError(f"the {name} split is empty; give at least one sample")
        if len(split) < world_size():
            raise InputError(f"the {name} split has {len(split)} samples for {world_size()} processes; start fewer")


def _check_resumable(module: "Training", checkpoint: Path) -> None:
    try:
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
        found = {name: tensor.shape for name, tensor in kept["state_dict"].items()}
    except Exception as error:  # whatever the file is, it is no checkpoint
        reason = str(error).split("\n")[0]
        raise InputError(f"{checkpoint} cannot be resumed from ({reason}); delete it to start afresh") from None
    if found != {name: tensor.shape for name, tensor in module.state_dict().items()}:
        raise InputError(f"{checkpoint} is of other networks than the ones given; delete it to start afresh")
    for name, now in module.made_with.items():
        before = kept.get("made_with", {}).get(name)
        if before != now:
            raise InputError(
                f"{checkpoint} was made with {name} {before!r}, now it is {now!r}; delete it to start afresh"
            )


@contextmanager
def _seeded(seed: int, device: torch.device | str | None) -> Iterator[None]:
    """Seed all global generators, and leave them as they were."""
    target = find_device(device)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's hints (hardware found, workers, tips) are not news to our users."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
