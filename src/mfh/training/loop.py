"""The training loop: the only one. Plain PyTorch, on one device or in several processes (DistributedDataParallel).

What is trained and what is minimised is an `Objective`; how, is a `Recipe`. The loop owns epochs, optimizer steps,
validation, the choice of the epoch, checkpoints, and the state of the world around it, which it leaves as it was.
"""

import copy
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mfh.data.epochs import EpochBatches, epoch_seed, indexed_loader, reading_batch
from mfh.data.pairs import PairedBatch, fetch, to_device
from mfh.errors import InputError
from mfh.files import atomic_write
from mfh.networks.modes import device_of, find_device
from mfh.parallel.distributed import average_buffers, check_uniform, exists, gather, part, rank, total, world_size
from mfh.parallel.torchrun import launched
from mfh.problems.metrics import Tally
from mfh.progress import bars
from mfh.training.acceleration import prepared
from mfh.training.checks import check_networks, check_splits
from mfh.training.objectives import Objective
from mfh.training.recipe import Keep, Recipe

History = list[dict[str, float]]

#: Counts up when checkpoints of an earlier version cannot be resumed from.
_FORMAT = 2


@dataclass
class Progress:
    """How far a training is: what a checkpoint keeps beside weights and optimizer.

    Args:
        history: One mapping for each finished epoch.
        best_epoch: The epoch that is kept, counted from 0; -1 before the first.
        best: What it was chosen by; larger is better.
        weights: The networks' weights at that epoch; empty where the last epoch is kept.
    """

    history: History = field(default_factory=list)
    best_epoch: int = -1
    best: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


def train_networks(
    objective: Objective,
    train: Any,
    val: Any,
    *,
    watched: str,
    recipe: Recipe,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
    checkpoint: str | Path | None,
    logger: Any,
    patience: int | None,
) -> Progress:
    """Train an objective's networks in place; they end with the weights of the last epoch, where they were before.

    Args:
        objective: The networks and their loss.
        train: The training split.
        val: The validation split.
        watched: The role whose validation metric or loss chooses the epoch.
        recipe: How to train.
        seed: Random seed of the order of data and of whatever the networks draw.
        device: Where to train (default: a GPU if there is one).
        progress: Whether to show a progress bar.
        checkpoint: File that is written after every epoch, and resumed from if it exists.
        logger: A Lightning logger, or None.
        patience: Number of epochs without a better one after which training stops; None trains all.

    Returns:
        The history, and the weights of the epoch that `recipe.keep` chooses.
    """
    check_splits(train, val)
    check_networks(objective.networks)  # type: ignore[arg-type]
    target = _target(device)
    homes = {role: device_of(network) for role, network in objective.networks.items()}
    modes = [(module, module.training) for module in objective.networks.modules()]
    try:
        with seeded(seed, target), prepared(objective.networks, recipe, target):
            for network in objective.networks.values():
                network.to(target)
            loop = _Loop(objective, train, val, watched, recipe, seed, target, patience)
            loop.run(Path(checkpoint) if checkpoint is not None else None, logger, progress)
        return loop.progress
    except RuntimeError as error:
        if "find_unused_parameters" not in str(error):
            raise
        raise InputError(
            "some parameters take no part in the loss, which several processes cannot train; freeze them "
            "(requires_grad_(False)), or leave them out"
        ) from error
    finally:
        objective.networks.zero_grad()
        for role, network in objective.networks.items():
            network.to(homes[role])
        for module, mode in modes:
            module.training = mode


def _target(device: torch.device | str | None) -> torch.device:
    if world_size() == 1:
        if launched() > 1:
            raise InputError(
                f"torchrun started {launched()} processes, but they would train apart; call "
                "torch.distributed.init_process_group() first"
            )
    else:
        check_uniform()
    return find_device(device)


class _Loop:
    """One training from its first or a later epoch to its end."""

    def __init__(
        self,
        objective: Objective,
        train: Any,
        val: Any,
        watched: str,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        patience: int | None,
    ) -> None:
        self.objective, self.watched, self.recipe, self.seed, self.device = objective, watched, recipe, seed, device
        self.train, self.val, self.patience = train, part(val), patience
        self.progress, self.steps, self.first = Progress(), 0, 0
        self.batches = EpochBatches(
            len(train), recipe.batch_size, seed, accumulate=recipe.accumulate, processes=world_size(), rank=rank()
        )
        places = range(len(self.batches))
        self.counts = [self.batches.count(place) for place in places]
        # Gradients add up over accumulated batches.
        self.weights = [self.batches.weight(place) / recipe.accumulate for place in places]
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = recipe.optimizer(self.parameters)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise InputError(
                f"the recipe's optimizer function returned a {type(self.optimizer).__name__}; a torch.optim.Optimizer "
                "was expected"
            )
        self.scheduler: Any = recipe.scheduler(self.optimizer) if recipe.scheduler else None
        self.scaler = torch.amp.GradScaler(device.type) if recipe.precision == "16-mixed" else None
        self.wrapped: nn.Module = objective
        if world_size() > 1:
            # Buffers are averaged once per epoch. Sent around at every step they would cost as much as gradients, and
            # in validation, where processes have different numbers of batches, wait for ever.
            self.wrapped = DistributedDataParallel(
                objective,
                device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self._readers: dict[str, Any] = {}
        _check_plateau(self.scheduler, recipe.keep, objective.problem.metric.scale.sign)

    def run(self, checkpoint: Path | None, logger: Any, progress: bool) -> None:
        """Train until the last epoch, or until patience runs out."""
        made_with = {"seed": self.seed, **self.recipe.facts(), "processes": world_size()}
        if checkpoint is not None and exists(checkpoint):
            self._resume(checkpoint, made_with)
        name = f"training {' and '.join(self.objective.networks)}, epochs"
        with bars(progress and rank() == 0) as show:
            show(name, self.first, self.recipe.epochs)
            for epoch in range(self.first, self.recipe.epochs):
                if self._out_of_patience():
                    break
                seed_everything(epoch_seed(self.seed, epoch, rank()), self.device)
                loss = self._train_epoch(epoch)
                values = {"epoch": float(epoch), "steps": float(self.steps), **self._validate()}
                _log(logger, values, self.steps)
                self._choose(epoch, values)
                values["train_loss"] = loss
                _log(logger, {"train_loss": loss}, self.steps)
                if not math.isfinite(loss):
                    raise InputError(
                        f"training of the {' and the '.join(self.objective.networks)} diverged: the loss is {loss} in "
                        f"epoch {epoch}; lower the learning rate, or check the inputs"
                    )
                self._schedule(values)
                if checkpoint is not None and rank() == 0:
                    self._save(checkpoint, epoch, made_with)
                show(name, epoch + 1, self.recipe.epochs)
        if logger is not None and rank() == 0:
            logger.finalize("success")
        if self.recipe.keep == "last":
            self.progress.best_epoch = len(self.progress.history) - 1

    # --- one epoch --------------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> float:
        """Take all steps of an epoch; returns the mean loss over its samples, of all processes."""
        self.objective.train()
        self.objective.checking = epoch == self.first
        accumulate, losses = self.recipe.accumulate, []
        self.optimizer.zero_grad(set_to_none=True)
        for index, (batch, indices) in enumerate(self._read_train(epoch)):
            closes = (index + 1) % accumulate == 0
            weight = self.weights[index]
            with self._gathering(closes):
                loss = self._loss(batch, indices)
                losses.append(loss.detach())
                loss = loss if weight == 1 else loss * weight
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
            if closes:
                self._step()
                self.optimizer.zero_grad(set_to_none=True)
                self.steps += 1
        self.objective.checking = False
        means = torch.stack(losses).tolist()  # the only time that an epoch waits for the device
        loss_sum = sum(mean * count for mean, count in zip(means, self.counts, strict=True))
        loss_sum, seen = total(torch.tensor([loss_sum, sum(self.counts)], device=self.device)).tolist()
        return float(loss_sum / seen)

    def _gathering(self, closes: bool) -> Any:
        """Gradients travel between processes once a step, with its last batch."""
        if closes or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()

    def _step(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _loss(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        try:
            with self._autocast():
                loss: Tensor = self.wrapped(batch, indices)
        except (IndexError, RuntimeError, ValueError) as error:
            if not isinstance(error, InputError):
                self.objective.check_target(batch.target, indices)  # a target that no loss understands
            raise
        if loss.ndim:
            raise InputError(f"the loss has shape {tuple(loss.shape)}; a scalar, the mean over samples, was expected")
        return loss

    def _validate(self) -> dict[str, float]:
        """Metric and loss of every network on the validation split, over all processes."""
        objective, problem = self.objective, self.objective.problem
        average_buffers(objective.networks)
        objective.eval()
        objective.checking = not self.progress.history or len(self.progress.history) == self.first
        tallies = {role: Tally(problem.metric) for role in objective.networks}
        losses = {role: torch.zeros(2, device=self.device) for role in objective.networks}
        with torch.no_grad(), self._autocast():
            for batch, indices in self._read_val():
                for role in objective.networks:
                    logits = objective.logits(batch, indices, role).float()
                    try:
                        loss = problem.label_loss(logits, batch.target)
                    except (IndexError, RuntimeError, ValueError):
                        objective.check_target(batch.target, indices)
                        raise
                    tallies[role].add(logits, batch.target)
                    losses[role] += torch.stack([loss * len(batch.target), torch.full_like(loss, len(batch.target))])
        objective.checking = False
        values: dict[str, float] = {}
        for role, tally in tallies.items():
            loss_sum, count = total(losses[role]).tolist()  # once: processes may have different numbers of batches
            values[f"{role}_val_{problem.metric.name}"] = float(tally.value(gather(tally.state())))
            values[f"{role}_val_loss"] = loss_sum / count
        return values

    def _autocast(self) -> Any:
        if self.recipe.precision == "32-true":
            return nullcontext()
        dtype = torch.bfloat16 if self.recipe.precision == "bf16-mixed" else torch.float16
        return torch.autocast(self.device.type, dtype)

    # --- data -------------------------------------------------------------------------------------------------------

    def _read_train(self, epoch: int) -> Iterator[tuple[PairedBatch, Tensor]]:
        self.batches.sampler.set_epoch(epoch)
        if not self.recipe.num_workers:
            return self._placed((fetch(self.train, rows), rows) for rows in self.batches.rows())
        return self._placed(self._reader("train", self.train, batches=self.batches))

    def _read_val(self) -> Iterator[tuple[PairedBatch, Tensor]]:
        size, count = max(self.recipe.batch_size, reading_batch(self.val)), len(self.val)
        if not self.recipe.num_workers:
            return self._placed((fetch(self.val, rows), rows) for rows in torch.split(torch.arange(count), size))
        return self._placed(self._reader("val", self.val, batch_size=size))

    def _reader(self, name: str, dataset: Any, **how: Any) -> Any:
        """A loader with reading processes, which live as long as the training."""
        if name not in self._readers:
            pin = self.device.type == "cuda"
            self._readers[name] = indexed_loader(dataset, **how, num_workers=self.recipe.num_workers, pin=pin)
        return self._readers[name]

    def _placed(self, batches: Iterable[tuple[PairedBatch, Tensor]]) -> Iterator[tuple[PairedBatch, Tensor]]:
        if self.device.type == "cpu":
            yield from batches
            return
        for batch, indices in batches:
            self.objective.check_target(batch.target, indices)
            yield to_device(batch, self.device), indices

    # --- choosing and keeping ---------------------------------------------------------------------------------------

    def _choose(self, epoch: int, values: dict[str, float]) -> None:
        """Note an epoch, and keep it if it is the best so far."""
        self.progress.history.append(values)
        metric = self.objective.problem.metric
        gain = metric.scale.sign * values[f"{self.watched}_val_{metric.name}"]
        score = [gain, -values[f"{self.watched}_val_loss"]]
        if self.recipe.keep == "best-loss":
            score.reverse()
        score = [-math.inf if math.isnan(value) else value for value in score]  # what is not a number never wins
        if self.progress.best_epoch < 0 or score > self.progress.best:
            self.progress.best, self.progress.best_epoch = score, epoch
            if self.recipe.keep != "last":
                state = self.objective.networks.state_dict()
                self.progress.weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _out_of_patience(self) -> bool:
        waited = len(self.progress.history) - 1 - self.progress.best_epoch
        return bool(self.progress.history) and self.patience is not None and waited >= self.patience

    def _schedule(self, values: dict[str, float]) -> None:
        if self.scheduler is None:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(values[f"{self.watched}_val_{_plateau_of(self.recipe.keep, self.objective)}"])
        else:
            self.scheduler.step()

    def _save(self, checkpoint: Path, epoch: int, made_with: dict[str, Any]) -> None:
        content = {
            "mfh": _FORMAT,
            "made_with": made_with,
            "epoch": epoch,
            "steps": self.steps,
            "networks": self.objective.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "progress": vars(self.progress),
        }
        with atomic_write(checkpoint, "wb") as file:
            torch.save(content, file)

    def _resume(self, checkpoint: Path, made_with: dict[str, Any]) -> None:
        content = _read_checkpoint(checkpoint)
        ours = {name: tensor.shape for name, tensor in self.objective.networks.state_dict().items()}
        if {name: tensor.shape for name, tensor in content["networks"].items()} != ours:
            raise InputError(f"{checkpoint} is of other networks than the ones given; delete it to start afresh")
        for name, now in made_with.items():
            before = content["made_with"].get(name)
            if before != now:
                raise InputError(
                    f"{checkpoint} was made with {name} {before!r}, now it is {now!r}; delete it to start afresh"
                )
        self.objective.networks.load_state_dict(content["networks"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(content["scaler"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        self.progress, self.steps, self.first = Progress(**content["progress"]), content["steps"], content["epoch"] + 1


def _read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the file is, it is no checkpoint
        reason = str(error).split("\n")[0]
        raise InputError(f"{checkpoint} cannot be resumed from ({reason}); delete it to start afresh") from None
    if not isinstance(content, dict) or content.get("mfh") != _FORMAT:
        raise InputError(
            f"{checkpoint} cannot be resumed from (another version of mfh made it); delete it to start afresh"
        )
    return content


def _plateau_of(keep: Keep, objective: Objective) -> str:
    """What a `ReduceLROnPlateau` watches: the metric, or the loss where that chooses the epoch."""
    return "loss" if keep == "best-loss" else objective.problem.metric.name


def _check_plateau(scheduler: Any, keep: Keep, sign: int) -> None:
    """A plateau in the wrong direction would lower the learning rate while training gets better.

    Raises:
        InputError: The scheduler's mode is the wrong one.
    """
    wanted = "min" if keep == "best-loss" or sign < 0 else "max"
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != wanted:
        what = "the validation loss, which falls" if keep == "best-loss" else "the validation metric"
        raise InputError(
            f"ReduceLROnPlateau has mode {scheduler.mode!r}, but it is given {what}; give it mode={wanted!r}"
        )


def _log(logger: Any, values: dict[str, float], steps: int) -> None:
    if logger is not None and rank() == 0:
        logger.log_metrics({name: value for name, value in values.items() if name != "steps"}, step=steps - 1)


def best_weights(network: nn.Module, role: str, progress: Progress) -> nn.Module:
    """A copy of a trained network with the weights of the epoch that was kept."""
    copied = copy.deepcopy(network)
    load_best(copied, role, progress)
    return copied


def load_best(network: nn.Module, role: str, progress: Progress) -> None:
    """Give a trained network the weights of the epoch that was kept; nothing changes where that is the last."""
    if progress.weights:
        prefix = f"{role}."
        state = {name[len(prefix) :]: value for name, value in progress.weights.items() if name.startswith(prefix)}
        network.load_state_dict(state)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch (on the CPU and on `device`), NumPy and random."""
    # torch.manual_seed notes the whole call stack for devices that are not in use: a tenth of a millisecond each time.
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device | str | None) -> Iterator[None]:
    """Seed all global generators, and leave them as they were."""
    target = find_device(device)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        try:
            seed_everything(seed, target)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
