"""The training loop: epochs, validation, the kept epoch, checkpoints; on one device or several processes."""

import copy
import hashlib
import inspect
import io
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mfh.data.epochs import EpochBatches, MixedBatches, Reading, epoch_seed, generators_kept
from mfh.data.pairs import AllPairs, PairedBatch
from mfh.errors import FOREIGN, InputError, foreign, in_a_line, refuse_difference
from mfh.files import atomic_write, regular_size
from mfh.networks.modes import device_of, find_device, unfused_attention
from mfh.parallel.distributed import (
    average_buffers,
    check_uniform,
    exists,
    gather,
    part,
    part_start,
    rank,
    total,
    world_size,
)
from mfh.parallel.torchrun import launched
from mfh.problems.metrics import Tally
from mfh.progress import done_of
from mfh.training.acceleration import prepared
from mfh.training.checks import no_loss
from mfh.training.objectives import Objective
from mfh.training.recipe import Recipe

History = list[dict[str, float]]

_FORMAT = 3
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Losses stay on the device, one number each; so many are added up at a time.
_LOSSES = 1024

#: Called as taker(training, train, val) when a training is to begin; where it returns True, the training is done. See
#: `mfh.training.together`.
taken_by: ContextVar[Callable[["Training", Any, Any], bool] | None] = ContextVar("taken_by", default=None)


@dataclass
class Progress:
    """How far a training is, and the epoch it keeps; all of it goes into checkpoints.

    Args:
        epochs: Number of finished epochs.
        steps: Number of optimizer steps so far.
        history: One dict per epoch.
        best_epoch: Epoch that is kept so far; -1 before the first.
        best: What epochs are compared by, higher is better.
        weights: State of the watched network in that epoch; empty where the last epoch is kept.
    """

    epochs: int = 0
    steps: int = 0
    history: History = field(default_factory=list)
    best_epoch: int = -1
    best: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


class Training:
    """One training of an objective's networks, which may go on where a checkpoint ended.

    Args:
        objective: What a step computes, with the networks to train.
        recipe: How to train.
        watched: Role of the network whose validation decides which epoch is kept.
        seed: Seed of the order of the data and of everything else that is random.
        device: Device to train on, see `training_device`.
        early_stopping: Whether the recipe's patience holds.
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch and resumed from; None writes none.
        logger: A Lightning logger, or several; None logs nothing.
        epoch_size: Number of samples that an epoch's steps are counted by; the training samples come around several
            times, if there are fewer. None is their number.
        facts: What else a checkpoint must have been made with, by name; None is left out.
        classes: (N,), the class of each labelled training sample, where classes come equally often; None draws all
            samples alike.

    Raises:
        InputError: The checkpoint belongs to another training, or is none.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        *,
        watched: str,
        seed: int,
        device: torch.device,
        early_stopping: bool = True,
        progress: bool = False,
        checkpoint: str | Path | None = None,
        logger: Any = None,
        epoch_size: int | None = None,
        facts: Mapping[str, Any] | None = None,
        classes: Tensor | None = None,
    ) -> None:
        self.epoch_size, self.classes = epoch_size, classes
        self.objective, self.recipe, self.watched, self.seed, self.device = objective, recipe, watched, seed, device
        self.patience = recipe.patience if early_stopping and recipe.keep != "last" else None
        self.shows_progress = progress and rank() == 0
        self.loggers = [one for one in (logger if isinstance(logger, (list, tuple)) else [logger]) if one is not None]
        more = {name: value for name, value in (facts or {}).items() if value is not None}
        self.made_with = {"seed": seed, **recipe.facts(), "processes": world_size(), **more}
        self.state = Progress()
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self._resumed: dict[str, Any] = {}
        if self.checkpoint is not None and exists(self.checkpoint):
            self._resumed = self._read_checkpoint(self.checkpoint)
            self.state = Progress(**self._resumed["progress"])

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left to train."""
        state = self.state
        out_of_patience = self.patience is not None and state.epochs - 1 - state.best_epoch >= self.patience
        return state.epochs >= self.recipe.epochs or (state.epochs > 0 and out_of_patience)

    def run(self, train: Any, val: Any) -> Progress:
        """Train until finished.

        The networks then have the weights of the last epoch; those of the kept one are in the result. Their devices
        and modes are as before, and so is all global state; gradients are cleared.

        Args:
            train: Map-style data set of (teacher_input, student_input, target); not read if the training is finished.
            val: The same for validation.

        Raises:
            InputError: Data, networks, optimizer or scheduler cannot be used, or the training diverged.
        """
        objective = self.objective
        if self.finished:
            objective.load_state_dict(self._resumed["objective"])
            self.check_kept()
            return self.state
        _check_processes()
        taker = taken_by.get()
        if taker is not None and taker(self, train, val):
            return self.state
        others = [module for module in objective.children() if module is not objective.networks]
        modules = [*objective.networks.values(), *others]  # each goes back to its own device
        homes = [device_of(module) for module in modules]
        modes = [(module, module.training) for module in objective.modules()]
        try:
            with (
                seeded(self.seed, self.device),
                torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext(),
                prepared(objective.networks, self.recipe, self.device),
            ):
                objective.to(self.device)
                objective.zero_grad()
                self._fit(train, val)
        except RuntimeError as error:
            if "find_unused_parameters" not in str(error):
                raise
            raise InputError(
                "some parameters take no part in the loss, which several processes cannot train; freeze them "
                "(requires_grad_(False)), or leave them out"
            ) from error
        finally:
            objective.zero_grad()
            for module, home in zip(modules, homes, strict=True):
                module.to(home)
            for submodule, mode in modes:
                submodule.training = mode
        return self.state

    def _fit(self, train: Any, val: Any) -> None:
        objective, recipe, device = self.objective, self.recipe, self.device
        optimizer = made_optimizer(recipe, objective)
        scheduler = self._scheduler(optimizer)
        scaler = torch.amp.GradScaler(device.type) if recipe.precision == "16-mixed" else None
        if self._resumed:
            objective.load_state_dict(self._resumed["objective"])
            for name, stateful in (("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)):
                if stateful is not None:
                    with foreign(f"{self.checkpoint} cannot be resumed from, delete it to start afresh: {name}"):
                        stateful.load_state_dict(self._resumed[name])
            self._resumed = {}
        batches = self.batches(train)
        how: dict[str, Any] = {
            "fields": objective.fields,
            "index_device": objective.index_device(device),
            "num_workers": recipe.num_workers,
            "look": objective.look,
        }
        training = Reading(train, "train", device, batches=batches, **how)
        validation = Reading(part(val), "val", device, least=recipe.batch_size, first=part_start(len(val)), **how)
        objective.know(training)
        objective.know(validation)
        epoch = _Epoch(objective, recipe, device, batches, optimizer, scaler)
        with ExitStack() as stack:
            bar = stack.enter_context(self._bar(len(batches))) if self.shows_progress else None
            stack.enter_context(self._logging())
            while not self.finished:
                self._epoch(epoch, training, validation, scheduler, bar)
                if self.checkpoint is not None and rank() == 0:
                    self._write_checkpoint(self.checkpoint, optimizer, scheduler, scaler)
        self.check_kept()

    def batches(self, train: Any) -> EpochBatches:
        """The batches of an epoch, for this process."""
        recipe = self.recipe
        how: dict[str, Any] = {"accumulate": recipe.accumulate, "processes": world_size(), "rank": rank()}
        how["classes"] = self.classes
        # Batch normalisation needs two samples.
        how["least"] = 2 if any(isinstance(module, _BatchNorm) for module in self.objective.modules()) else 1
        if type(train) is AllPairs:
            counts = len(train.labelled), len(train.unlabelled)
            return MixedBatches(*counts, recipe.batch_size, self.seed, labelled_share=recipe.labelled_share, **how)
        if self.epoch_size is not None and self.epoch_size != len(train):
            more = self.epoch_size - len(train)
            return MixedBatches(len(train), more, recipe.batch_size, self.seed, labelled_share=1.0, **how)
        return EpochBatches(len(train), recipe.batch_size, self.seed, **how)

    def _epoch(
        self, epoch: "_Epoch", training: Reading, validation: Reading, scheduler: Any, bar: "_Bar | None"
    ) -> None:
        """One pass over the training data and one over the validation data."""
        state, number = self.state, self.state.epochs
        seed_generators(epoch_seed(self.seed, number, rank()), self.device)
        epoch.batches.sampler.set_epoch(number)
        self.objective.epoch = number
        loss = epoch.train(training if bar is None else bar.follow(training, number))
        state.steps += len(epoch.batches) // self.recipe.accumulate
        average_buffers(self.objective.normalised())  # the same network in all processes
        self.note(epoch.validate(validation), loss)
        with foreign(
            f"the scheduler, {type(scheduler).__name__}, failed in epoch {number} of {self.recipe.epochs} (it steps "
            "once per epoch)"
        ):
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(state.history[-1][self._compared[0]])
            elif scheduler is not None:
                scheduler.step()
        state.epochs += 1
        done_of(state.epochs, self.recipe.epochs, "epoch")

    def note(
        self, values: Mapping[str, float], loss: float, weights: Callable[[], Mapping[str, Tensor]] | None = None
    ) -> None:
        """Write down an epoch that is trained, and keep its weights if it is the best so far.

        Args:
            values: Metric and loss of every network on the validation data, by name.
            loss: Mean training loss.
            weights: Returns the watched network's state (default: of the network as it is).

        Raises:
            InputError: The training diverged, or a logger failed.
        """
        state, number = self.state, self.state.epochs
        state.history.append({"epoch": float(number), "steps": float(state.steps), **values, "train_loss": loss})
        self._keep(number, values, weights)
        if rank() == 0:
            for logger in self.loggers:
                with foreign(f"the logger, {type(logger).__name__}, failed"):
                    logger.log_metrics({**values, "train_loss": loss, "epoch": number}, step=state.steps - 1)
                    _call(logger, "save")
        if not math.isfinite(loss):
            raise InputError(
                f"training of the {' and the '.join(self.objective.networks)} diverged: the loss is {loss} in epoch "
                f"{number}; lower the learning rate, or check the inputs"
            )

    # --- the kept epoch -------------------------------------------------------------------------------------------

    @property
    def _compared(self) -> tuple[str, bool]:
        """The value in the history that epochs are compared by, and whether higher is better."""
        metric = self.objective.problem.metric
        if self.recipe.keep == "best-loss":
            return f"{self.watched}_val_loss", False
        return f"{self.watched}_val_{metric.name}", metric.higher_is_better

    def _keep(
        self, number: int, values: Mapping[str, float], weights: Callable[[], Mapping[str, Tensor]] | None
    ) -> None:
        """Note the epoch, with its weights, if it is to be kept."""
        state = self.state
        if self.recipe.keep == "last":
            state.best_epoch = number
            return
        name, higher = self._compared
        found = [values[name] if higher else -values[name], -values[f"{self.watched}_val_loss"]]
        found = [-math.inf if math.isnan(value) else value for value in found]  # what is no number never wins
        if state.best_epoch < 0 or found > state.best:
            state.best, state.best_epoch = found, number
            now = self.objective.kept(self.watched).state_dict if weights is None else weights
            state.weights = {key: _copied(value) for key, value in now().items()}

    def check_kept(self) -> None:
        """Refuse a training of which no epoch could be judged."""
        name, _ = self._compared
        if self.recipe.keep != "last" and all(math.isnan(epoch[name]) for epoch in self.state.history):
            raise InputError(
                f"val split: {name} is not a number in any epoch, so none can be chosen; mend the metric or the "
                "validation data, or give keep='last'"
            )

    def _scheduler(self, optimizer: Optimizer) -> Any:
        if self.recipe.scheduler is None:
            return None
        with foreign("the scheduler cannot be made"):
            scheduler = self.recipe.scheduler(optimizer)
        if not callable(getattr(scheduler, "step", None)):
            raise InputError(
                f"scheduler made a {type(scheduler).__name__}; a scheduler of torch.optim.lr_scheduler was expected"
            )
        if isinstance(scheduler, ReduceLROnPlateau):
            name, higher = self._compared
            wanted = "max" if higher else "min"
            if scheduler.mode != wanted:
                raise InputError(
                    f"ReduceLROnPlateau has mode {scheduler.mode!r}, but it gets {name}, of which a "
                    f"{'higher' if higher else 'lower'} value is better; give mode={wanted!r}"
                )
        return scheduler

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _write_checkpoint(self, path: Path, optimizer: Optimizer, scheduler: Any, scaler: Any) -> None:
        content = {
            "made_with": self.made_with,
            "progress": {name: getattr(self.state, name) for name in Progress.__dataclass_fields__},
            "objective": self.objective.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        packed = io.BytesIO()
        torch.save(content, packed)
        # Neither zip files nor torch.load notice a flipped bit.
        sealed = torch.frombuffer(packed.getbuffer(), dtype=torch.uint8)
        with atomic_write(path, "wb") as file:
            torch.save({"mfh": _FORMAT, "content": sealed, "checksum": _checksum(sealed)}, file)

    def _read_checkpoint(self, path: Path) -> dict[str, Any]:
        try:
            regular_size(path)
            file: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if file.get("mfh") != _FORMAT:
                raise ValueError("another version of mfh, or another program, has made it")
            if _checksum(file["content"]) != file["checksum"]:
                raise ValueError("it was changed after it was written: its checksum differs")
            packed = io.BytesIO(file["content"].numpy().tobytes())
            kept: dict[str, Any] = torch.load(packed, map_location="cpu", weights_only=True)
            found, made_with = _shapes(kept["objective"]), dict(kept["made_with"])
            Progress(**kept["progress"])
        except FOREIGN as error:  # whatever the file is, it is no checkpoint
            reason = str(error).split("\n")[0]
            raise InputError(f"{path} cannot be resumed from ({reason}); delete it to start afresh") from None
        if found != _shapes(self.objective.state_dict()):
            raise InputError(f"{path} is of other networks than the ones given; delete it to start afresh")
        refuse_difference(str(path), made_with, self.made_with, "delete it to start afresh")
        return kept

    # --- who follows it -------------------------------------------------------------------------------------------

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Tell loggers how the training ended, so that their files are complete."""
        status = "failed"
        try:
            yield
            status = "success"
        finally:
            if rank() == 0:
                for logger in self.loggers:
                    _call(logger, "finalize", status)

    @contextmanager
    def _bar(self, batches: int) -> Iterator["_Bar"]:
        from rich.console import Console

        from mfh.progress import progress_bar

        with progress_bar(Console(stderr=True)) as bar:
            yield _Bar(bar, " and ".join(self.objective.networks), batches, self.recipe.epochs, self.state.epochs)


class _Epoch:
    """What happens in an epoch, with everything that is the same in all of them found out once."""

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        device: torch.device,
        batches: EpochBatches,
        optimizer: Optimizer,
        scaler: Any,
    ) -> None:
        self.objective, self.device, self.batches, self.optimizer = objective, device, batches, optimizer
        self.scaler, self.accumulate = scaler, recipe.accumulate
        self.autocast = _AUTOCAST.get(recipe.precision)
        self.parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.counts = [batches.count(index) for index in range(len(batches))]
        weights = [batches.weights(index) for index in range(len(batches))]
        self.factors = [everything / recipe.accumulate for _, everything in weights]
        #: How much more a batch's labelled pairs count than its pairs; they are seldom shared out differently.
        self.label_shares = [label / everything if everything else 1.0 for label, everything in weights]
        self.together: DistributedDataParallel | None = None
        self.forward: Callable[..., Tensor] = objective.forward
        if world_size() > 1:
            # Buffers are averaged once per epoch. Sent around at every step they would cost as much as gradients, and
            # in validation, where processes have different numbers of batches, wait for ever.
            # PyTorch 2.13 has a new name for the option.
            known = inspect.signature(DistributedDataParallel).parameters
            unsent = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            options: dict[str, Any] = {"gradient_as_bucket_view": True, unsent: False}
            self.together = DistributedDataParallel(objective, **options)
            self.forward = self.together
        step = inspect.signature(optimizer.step).parameters.get("closure")
        self.asks_again = step is not None and step.default is inspect.Parameter.empty
        if self.asks_again and (recipe.accumulate > 1 or scaler is not None or world_size() > 1):
            raise InputError(
                f"{type(optimizer).__name__} computes the loss several times per step, which works with accumulate=1, "
                "one process and no 16-mixed precision; choose another optimizer, or these"
            )

    def train(self, reading: Any) -> float:
        """Take the steps of an epoch; returns the mean loss of its samples, over all processes."""
        objective, together, accumulate = self.objective, self.together, self.accumulate
        backward, step, parameters = self._backward, self._step, self.parameters
        objective.split = "train"
        objective.train()
        losses: list[Tensor] = []
        mean = _Mean(self.counts)
        batch = None
        try:
            for number, (batch, indices) in enumerate(reading):
                last = accumulate == 1 or number % accumulate == accumulate - 1
                if self.asks_again:
                    losses.append(self._closed_step(batch, indices, number))
                    continue
                if last or together is None:
                    losses.append(backward(batch, indices, number))
                else:
                    with together.no_sync():
                        losses.append(backward(batch, indices, number))
                if not last:
                    continue
                step()
                for parameter in parameters:
                    parameter.grad = None
                if len(losses) >= _LOSSES:
                    mean.add(losses)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"train split: {in_a_line(error)}; choose a smaller batch_size, with accumulate for equal steps"
            ) from error
        except (IndexError, RuntimeError, ValueError):
            if batch is not None:  # a target that no loss understands is the user's to hear of
                objective.check_targets(batch, indices)
            raise
        mean.add(losses)
        return mean.value(self.device)

    def _backward(self, batch: PairedBatch, indices: Tensor, number: int) -> Tensor:
        """Compute the loss of a batch and add its gradients; no step of a small network has time for more."""
        factor, label_share = self.factors[number], self.label_shares[number]
        if self.autocast is None:
            loss = self.forward(batch, indices, label_share)
        else:
            with torch.autocast(self.device.type, self.autocast):
                loss = self.forward(batch, indices, label_share)
        try:
            counted = loss if factor == 1 else loss * factor
            (counted if self.scaler is None else self.scaler.scale(counted)).backward()
            return loss.detach()
        except (AttributeError, RuntimeError, TypeError) as error:
            wrong = no_loss(loss)
            if wrong is None:
                raise
            raise InputError(f"the {self.objective.computes} returned {wrong}") from error

    def _step(self) -> None:
        """A step of the optimizer, which may be the user's own."""
        try:
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
        except torch.OutOfMemoryError:
            raise
        except FOREIGN as error:
            raise InputError(f"the optimizer, {type(self.optimizer).__name__}, failed: {in_a_line(error)}") from error

    def _closed_step(self, batch: PairedBatch, indices: Tensor, number: int) -> Tensor:
        """A step of an optimizer that asks for the loss again and again."""
        seen: list[Tensor] = []

        def closure() -> Tensor:
            for parameter in self.parameters:
                parameter.grad = None
            seen.append(self._backward(batch, indices, number))
            return seen[-1]

        self.optimizer.step(closure)  # type: ignore[arg-type]  # as all optimizers take it
        return seen[0]

    def validate(self, reading: Reading) -> dict[str, float]:
        """Metric and loss of every network over the validation data of all processes."""
        objective, problem = self.objective, self.objective.problem
        roles = list(objective.networks)
        tallies = {role: Tally(problem.metric, "val split") for role in roles}
        not_numbers: dict[str, Any] = dict.fromkeys(roles, False)
        losses: dict[str, Any] = dict.fromkeys(roles, 0.0)
        count = 0
        objective.split = "val"
        objective.eval()
        mixed: AbstractContextManager[Any] = nullcontext()
        if self.autocast is not None:
            mixed = torch.autocast(self.device.type, self.autocast)
        batch = None
        try:
            with torch.no_grad(), unfused_attention(), mixed:
                for batch, indices in reading:
                    target = batch.target
                    for role in roles:
                        logits = objective.logits(batch, indices, role).float()
                        losses[role] = losses[role] + objective.label_loss(logits, batch, indices) * len(target)
                        tallies[role].add(logits, target)
                        not_numbers[role] = not_numbers[role] | logits.isnan().any()
                    count += len(target)
        except (IndexError, RuntimeError, ValueError):
            if batch is not None:
                objective.check_targets(batch, indices)
            raise
        values = {}
        for role in roles:
            # Once: processes may have different numbers of batches.
            sums = torch.tensor([float(losses[role]), count], dtype=torch.float64)
            loss, samples = (total(sums.to(self.device)) if world_size() > 1 else sums).tolist()
            value = tallies[role].value(gather(tallies[role].state()))
            # A metric may count NaN as any class.
            unknown = any(gather(bool(not_numbers[role])))
            values[f"{role}_val_{problem.metric.name}"] = math.nan if unknown else value
            values[f"{role}_val_loss"] = loss / samples
        return values


class _Mean:
    """Adds up losses by the samples of their batches, a block at a time, without asking the device for each."""

    def __init__(self, counts: list[int]) -> None:
        self.counts, self.done = counts, 0
        self.sums: list[Tensor] = []

    def add(self, losses: list[Tensor]) -> None:
        """Add the losses of the next batches, and empty the list."""
        if losses:
            counts = torch.tensor(self.counts[self.done : self.done + len(losses)], dtype=torch.float32)
            stacked = torch.stack(losses).float()
            self.sums.append(stacked.flatten() @ counts.to(stacked.device, non_blocking=True))
            self.done += len(losses)
            losses.clear()

    def value(self, device: torch.device) -> float:
        """The mean over the samples of all processes."""
        sums = torch.tensor([sum(float(part) for part in self.sums), sum(self.counts)], dtype=torch.float64)
        loss, count = (total(sums.to(device)) if world_size() > 1 else sums).tolist()
        return float(loss / count)


class _Bar:
    """Shows the batches of all epochs, redrawn a few times per second at most."""

    def __init__(self, bar: Any, networks: str, batches: int, epochs: int, done: int) -> None:
        self.bar, self.networks, self.batches, self.epochs = bar, networks, batches, epochs
        self.task = bar.add_task(self._words(done), total=batches * epochs, completed=done * batches)

    def _words(self, number: int) -> str:
        return f"batches, {self.networks}: epoch {number + 1} of {self.epochs},"

    def follow(self, reading: Any, number: int) -> Iterator[Any]:
        """The batches of an epoch, counted as they are asked for."""
        self.bar.update(self.task, completed=number * self.batches, description=self._words(number))
        shown = time.monotonic()
        for index, item in enumerate(reading):
            if time.monotonic() - shown > 0.1:
                shown = time.monotonic()
                self.bar.update(self.task, completed=number * self.batches + index)
            yield item
        self.bar.update(self.task, completed=(number + 1) * self.batches)


# --- the surroundings -------------------------------------------------------------------------------------------------


def training_device(device: torch.device | str | None) -> torch.device:
    """Where this process trains: the given device, or a GPU if there is one, its own among several processes.

    Raises:
        InputError: There is no such device.
    """
    found = find_device(device)
    if found.type == "cuda" and found.index is None and world_size() > 1 and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return found


def _check_processes() -> None:
    if world_size() > 1:
        check_uniform()
    elif launched() > 1:
        raise InputError(
            f"torchrun started {launched()} processes, but they would train apart; call "
            "torch.distributed.init_process_group() first"
        )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all global generators, and leave them as they were.

    Args:
        seed: Seed of all generators.
        device: Device whose generator is meant, beside the CPU's.
    """
    with generators_kept(device):
        seed_generators(seed, device)
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch (CPU and device), NumPy and random, so that a resumed run draws what it would have drawn.

    That holds for what is drawn in this process; reading processes (`num_workers`) have generators of their own.
    """
    # torch.manual_seed writes down the call stack for every kind of GPU that is not in use, in each epoch.
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def made_optimizer(recipe: Recipe, objective: Objective) -> Optimizer:
    """The recipe's optimizer of an objective's parameters.

    Raises:
        InputError: It cannot be made, or is none.
    """
    with foreign("the optimizer cannot be made"):
        made = recipe.optimizer(objective.trained())
    if not isinstance(made, Optimizer):
        raise InputError(f"optimizer made a {type(made).__name__}; a torch.optim.Optimizer was expected")
    return made


def _call(thing: Any, name: str, *arguments: Any) -> None:
    """Call a method that a logger may lack."""
    method = getattr(thing, name, None)
    if callable(method):
        method(*arguments)


def _copied(value: Any) -> Any:
    """A copy of one entry of a network's state, on the CPU."""
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _checksum(content: Tensor) -> str:
    return hashlib.sha256(content.numpy().data).hexdigest()


def _shapes(state: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}
