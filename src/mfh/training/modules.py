"""Lightning modules: what one step of each kind of training computes.

Batches are (PairedBatch, indices); every module trains `self.networks` and reports the metric of each of them on the
validation split.
"""

import math
import random
import signal
import threading
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from mfh.data.epochs import EpochBatches, epoch_seed
from mfh.data.pairs import PairedBatch, to_device
from mfh.data.spool import IN_MEMORY_BYTES
from mfh.errors import InputError
from mfh.files import atomic_write
from mfh.networks.layers import as_logits
from mfh.networks.modes import device_of
from mfh.networks.precision import at_least_single
from mfh.parallel.distributed import average_buffers, gather, rank, total
from mfh.problems.losses import DistillationLoss, alignment_loss
from mfh.problems.metrics import Tally
from mfh.problems.problem import Problem
from mfh.training.recipe import Recipe

Batch = tuple[PairedBatch, Tensor]


class Training(L.LightningModule):
    """What all kinds share: optimizer, validation, and the history of losses and metrics.

    Args:
        networks: role ("teacher", "student") -> network to train.
        recipe: how.
        problem: what logits and targets mean.
    """

    batches: EpochBatches  # given before training: how much each batch counts

    def __init__(self, networks: Mapping[str, nn.Module], recipe: Recipe, problem: Problem) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.recipe, self.problem = recipe, problem
        self.made_with: dict[str, Any] = {}
        self._shapes: dict[tuple[str, str], torch.Size] = {}

    def inputs(self, batch: PairedBatch, role: str) -> Any:
        """What the network of this role reads."""
        return batch.teacher_input if role == "teacher" else batch.student_input

    def logits(self, batch: PairedBatch, indices: Tensor, role: str) -> Tensor:
        """Logits of the network of this role; a split's first are looked at together with their targets."""
        logits = as_logits(self.networks[role](self.inputs(batch, role)))
        if (self._split, role) not in self._shapes:
            self.problem.check(logits, batch.target, f"{self._split} split", indices.tolist())
            self._shapes[self._split, role] = logits.shape[1:]
        return logits

    @property
    def _split(self) -> str:
        return "train" if self.training else "val"

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """On a GPU a target out of range is no exception but the end of the process: look before it gets there."""
        if self.device.type != "cpu":
            self._check_target(batch)
        return batch

    def _check_target(self, batch: Batch) -> None:
        pairs, indices = batch
        for (split, _), shape in self._shapes.items():
            if split == self._split:
                logits = torch.empty((len(pairs.target), *shape), device="meta")
                self.problem.check(logits, pairs.target, f"{split} split", indices.tolist())

    def loss(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The scalar to minimise."""
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        """Start adding up losses."""
        self._train_loss = torch.zeros((), device=self.device)
        self._seen = 0

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch's loss, added up here: logging every step costs a small network as much as training it."""
        try:
            loss: Tensor = self.loss(*batch)
        except (IndexError, RuntimeError, ValueError):
            self._check_target(batch)  # a target that no loss understands is the user's to hear of
            raise
        count, weight = self.batches.count(index), self.batches.weight(index)
        self._train_loss += loss.detach() * count
        self._seen += count
        return loss if weight == 1 else loss * weight

    def train_loss(self) -> float:
        """Mean loss over the epoch's samples so far, of all processes."""
        loss, seen = total(torch.stack([self._train_loss, torch.full_like(self._train_loss, self._seen)])).tolist()
        return float(loss / seen)

    def on_validation_epoch_start(self) -> None:
        """Start counting, with the same network in all processes."""
        average_buffers(self.networks)
        self._tallies = {role: Tally(self.problem.metric) for role in self.networks}
        self._losses = {role: torch.zeros(2, device=self.device) for role in self.networks}

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Add up metrics and losses, without asking the device for them."""
        target = batch[0].target
        for role in self.networks:
            logits = self.logits(*batch, role).float()
            try:
                loss = self.problem.label_loss(logits, target)
            except (IndexError, RuntimeError, ValueError):
                self._check_target(batch)
                raise
            self._tallies[role].add(logits, target)
            self._losses[role] += torch.stack([loss * len(target), torch.full_like(loss, len(target))])

    def on_validation_epoch_end(self) -> None:
        """Log the metric and the loss of every network, over all processes."""
        for role in self.networks:
            tally = self._tallies[role]
            loss, count = total(self._losses[role])  # once: processes may have different numbers of batches
            self.log(f"{role}_val_{self.problem.metric.name}", tally.value(gather(tally.state())))
            self.log(f"{role}_val_loss", loss / count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what decides the result, so that a run with other options does not take it for its own."""
        checkpoint["made_with"] = self.made_with

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer and scheduler, for the networks' parameters."""
        optimizer = self.recipe.optimizer(self.networks.parameters())
        if self.recipe.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.recipe.scheduler(optimizer)}


class Supervised(Training):
    """Trains one network on labels.

    Args:
        network: to train.
        role: "teacher" or "student": which input it reads.
        recipe: how.
        problem: what logits and targets mean.
    """

    def __init__(self, network: nn.Module, role: str, recipe: Recipe, problem: Problem) -> None:
        super().__init__({role: network}, recipe, problem)
        self.role = role

    def loss(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The label loss."""
        return self.problem.label_loss(self.logits(batch, indices, self.role), batch.target)


class Alignment(Training):
    """Trains teacher and student together (Algorithm 1, step 1)."""

    def __init__(self, teacher: nn.Module, student: nn.Module, recipe: Recipe, problem: Problem) -> None:
        super().__init__({"teacher": teacher, "student": student}, recipe, problem)

    def loss(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The label losses of both and the mean squared error between their logits."""
        teacher_logits, student_logits = (self.logits(batch, indices, role) for role in ("teacher", "student"))
        return alignment_loss(teacher_logits, student_logits, batch.target, label_loss=self.problem.label_loss)


class Distillation(Training):
    """Trains a student on labels and a frozen teacher's outputs.

    Args:
        student: to train.
        recipe: how.
        problem: what logits and targets mean.
        loss: of (student logits, teacher logits, target); what it leaves open is the problem's.
        teacher_logits: (training samples, ...), looked up by index; None to run `teacher` on every batch.
        teacher: frozen, in eval mode; needed only without `teacher_logits`.
    """

    def __init__(
        self,
        student: nn.Module,
        recipe: Recipe,
        problem: Problem,
        loss: DistillationLoss | None,
        teacher_logits: Tensor | None,
        teacher: nn.Module | None,
    ) -> None:
        super().__init__({"student": student}, recipe, problem)
        self.distillation_loss = problem.complete(loss)
        # Outputs that fill memory (a map of a file) stay where they are, and only the batch's rows travel.
        large = teacher_logits is not None and teacher_logits.nbytes > IN_MEMORY_BYTES
        self.register_buffer("teacher_logits", None if large else teacher_logits, persistent=False)
        # In a list, so that the teacher is not a submodule: it is neither trained, nor moved, nor saved.
        self._aside = [teacher, teacher_logits if large else None]

    def loss(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The distillation loss against cached or fresh teacher logits."""
        logits = self.logits(batch, indices, "student")
        return self.distillation_loss(logits, self._taught(batch, indices).to(logits.device), batch.target)

    def _taught(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """What the teacher says of a batch, in single precision at least."""
        teacher, kept = self._aside
        if isinstance(self.teacher_logits, Tensor):
            logits = self.teacher_logits[indices]
        elif isinstance(kept, Tensor):
            logits = kept[indices.cpu()]
        else:
            assert isinstance(teacher, nn.Module)
            with torch.no_grad():
                logits = as_logits(teacher(to_device(batch.teacher_input, device_of(teacher))))
        return at_least_single(logits)


class EpochSeed(L.Callback):
    """Seeds all global generators before every epoch, so that a resumed run draws what it would have drawn.

    Each process draws its own numbers.

    That holds for what is drawn in the training process; reading processes (`num_workers`) have generators of their
    own.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Seed torch (all devices), NumPy and random."""
        seed = epoch_seed(self.seed, trainer.current_epoch, rank())
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)


class OwnSignals(L.Callback):
    """Lets the process end at once when it is told to, as without Lightning.

    Lightning would send word to the other processes first, which waits for ever where one of them is gone. Nothing is
    lost: every finished epoch is on disk.
    """

    def __init__(self) -> None:
        self.found = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Undo what Lightning has just set up."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.found)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints written beside their place: Lightning copies them from a temporary folder, which can be cut short."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write one file, whole or not at all."""
        with atomic_write(path, "wb") as file:
            torch.save(checkpoint, file)


class History(L.Callback):
    """Losses and metrics of every epoch, and the weights of the best one.

    Args:
        watched: the role whose metric on the validation split decides; ties go to the lower validation loss, then to
            the earlier epoch.
        keep_best: whether to keep the best epoch's weights; otherwise the last ones stay.
        patience: epochs without a better one after which training stops.
    """

    def __init__(self, watched: str, keep_best: bool, patience: int | None) -> None:
        self.watched, self.keep_best, self.patience = watched, keep_best, patience
        self.epochs: list[dict[str, float]] = []
        self.best_epoch = -1
        self.best: tuple[float, float] = (-1.0, 0.0)
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the epoch, keep it if it is the best so far, stop if it is time to."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if "val" in k}
        self.epochs.append({"epoch": float(trainer.current_epoch), "steps": float(trainer.global_step), **values})
        assert isinstance(pl_module, Training)
        metric = pl_module.problem.metric
        rank = (metric.scale.sign * values[f"{self.watched}_val_{metric.name}"], -values[f"{self.watched}_val_loss"])
        if self.best_epoch < 0 or rank > self.best:
            self.best, self.best_epoch = rank, trainer.current_epoch
            if self.keep_best:
                networks = pl_module.networks.state_dict()
                self.weights = {name: tensor.detach().cpu().clone() for name, tensor in networks.items()}
        self._stop_in_time(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Train no further where a resumed run had run out of patience."""
        self._stop_in_time(trainer)

    def _stop_in_time(self, trainer: L.Trainer) -> None:
        if self.epochs and self.patience is not None and self.epochs[-1]["epoch"] - self.best_epoch >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The training loss is known only after the validation of the same epoch."""
        assert isinstance(pl_module, Training)
        loss = self.epochs[-1]["train_loss"] = pl_module.train_loss()
        for logger in trainer.loggers:  # validation is logged by Lightning
            logger.log_metrics({"train_loss": loss}, step=trainer.global_step - 1)
        if not math.isfinite(loss):
            raise InputError(
                f"training of the {' and the '.join(pl_module.networks)} diverged: the loss is {loss} in epoch "
                f"{trainer.current_epoch}; lower the learning rate, or check the inputs"
            )

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: an interrupted run finds its best epoch again."""
        return {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "best": list(self.best),
            "weights": self.weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.epochs, self.best_epoch = state_dict["epochs"], state_dict["best_epoch"]
        self.best, self.weights = (state_dict["best"][0], state_dict["best"][1]), state_dict["weights"]
