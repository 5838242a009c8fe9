"""Small networks trained all at once: one forward pass, one backward pass and one optimizer step for all of them.

On a CPU, a step of a small network is mostly the time of calling operations. Together, forty networks share that.
Each network has its own initial weights, data, order of samples, weights of the loss and teacher outputs, and ends as
it would alone, but for rounding. What cannot be done for several networks at once is trained alone.
"""

import functools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mfh.data.epochs import EpochBatches, MixedBatches, Reading
from mfh.data.pairs import AllPairs, PairedBatch, to_device
from mfh.errors import InputError
from mfh.networks.modes import placed, unfused_attention
from mfh.networks.precision import at_least_single
from mfh.networks.stacked import NotStackableError, Stacked, architecture, copies_needed
from mfh.parallel.distributed import world_size
from mfh.problems.losses import KDLoss, LabelLoss, WeightedCrossEntropy, kl_divergence
from mfh.problems.metrics import Tally
from mfh.problems.problem import Problem, Smoothed
from mfh.progress import doing, done_of
from mfh.training.loop import Training, made_optimizer, taken_by
from mfh.training.objectives import Alignment, Distillation, Objective, Supervised
from mfh.training.recipe import Recipe

#: Optimizers whose step treats every number on its own.
ELEMENTWISE = (SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam)
_FUSED = (SGD, Adam, AdamW)
#: Most networks at once: more share the calls no better, and leave the processor's cache.
MOST_NETWORKS = 64
#: Most multiplications of a batch, one for each sample and parameter, at which training together is worthwhile.
MOST_MULTIPLICATIONS = 2**21
#: Inputs of a group are copied once, up to this size.
_MOST_BYTES = 2**28


class Ready(NamedTuple):
    """A training that has not begun, with its data.

    Args:
        training: The training.
        train: The training data as `Training.run` takes them.
        val: The validation data likewise.
    """

    training: Training
    train: Any
    val: Any


T = TypeVar("T")


def together(
    jobs: Sequence[Callable[[], T]], *, strict: bool = False, finished: Callable[[int, T], None] | None = None
) -> list[T]:
    """Run functions that train networks, so that the trainings that several of them wait for are one.

    A function is left where it would train a network. When all have come so far or have ended, the networks are
    trained, and the function is called again and finds its network trained. So a function must come to the same place
    again, and must remember what it has made before. It may train several networks, one after the other. Trainings that
    cannot be together with others happen where they stand.

    Args:
        jobs: The functions.
        strict: Whether to train all networks together, also where that is not `is_worthwhile`, and to refuse those that
            cannot be. Methods other than `KD` are trained alone all the same.
        finished: Called as finished(number, result) for every function as soon as it has ended, so that a process that
            is killed loses only the networks it is training.

    Returns:
        What the functions return.

    Raises:
        InputError: With `strict`, a network cannot be trained together; or what the functions raise.
    """
    results: dict[int, T] = {}
    waiting: dict[int, Ready] = {}

    def call(number: int, answer: _Answer | None = None) -> None:
        taker = _Taker(answer, strict)
        token, clock = taken_by.set(taker), _elsewhere.set(0.0 if answer is None else answer.seconds)
        try:
            results[number] = jobs[number]()
        except _PostponedError as postponed:
            waiting[number] = postponed.ready
        finally:
            taken_by.reset(token)
            _elsewhere.reset(clock)
        if finished is not None and number in results:
            finished(number, results[number])

    for number in range(len(jobs)):
        call(number)
    while waiting:
        ready, waiting = waiting, {}
        if len(ready) > 1:  # one alone has said what it is
            doing(f"training {len(ready)} networks together")
        numbers, started = [*ready], time.monotonic()
        for trained, reason in _in_parts([*ready.values()]):
            share = (time.monotonic() - started) / len(trained)
            _refuse_alone(reason, strict)
            for place in trained:
                call(numbers[place], _Answer(ready[numbers[place]], share))
            started = time.monotonic()
    return [results[number] for number in range(len(jobs))]


def seconds_elsewhere() -> float:
    """Seconds that the training which a function of `together` has just found trained took, its share of them."""
    return _elsewhere.get()


class _Answer(NamedTuple):
    """A training that is done, and its share of the time."""

    ready: Ready
    seconds: float


class _PostponedError(BaseException):  # so that nothing takes it for an error of the user's code
    """A function has come to a training that can be done with others."""

    def __init__(self, ready: Ready) -> None:
        super().__init__()
        self.ready = ready


_elsewhere: ContextVar[float] = ContextVar("elsewhere", default=0.0)


@dataclass
class _Taker:
    """Answers a training that begins, or postpones it."""

    answer: _Answer | None
    strict: bool

    def __call__(self, training: Training, train: Any, val: Any) -> bool:
        """Whether the training is done now; False lets it happen.

        Raises:
            _PostponedError: It will be done with others.
        """
        if self.answer is not None:
            done, self.answer = self.answer.ready.training, None
            assert done.made_with == training.made_with, "a function trains something else when it is called again"
            training.state = done.state
            training.objective.networks.load_state_dict(done.objective.networks.state_dict())
            return True
        if type(training.objective) not in (Supervised, Alignment, Distillation):
            return False
        networks, recipe = training.objective.networks.values(), training.recipe
        if not self.strict and not all(is_worthwhile(one, recipe.batch_size, training.device) for one in networks):
            return False
        reason = obstacle(Ready(training, train, val))
        if reason is None:
            raise _PostponedError(Ready(training, train, val))
        _refuse_alone(reason, self.strict)
        return False


def _refuse_alone(reason: str | None, strict: bool) -> None:
    if strict and reason is not None:
        raise InputError(
            f"ensemble is 'on', but a network cannot be trained together with others: {reason}; {_WAY_OUT}"
        )


_WAY_OUT = "choose 'auto', which trains such networks one by one"


def train_together(ready: Sequence[Ready]) -> list[str | None]:
    """Train as `Training.run` does for each, those that can be together at once and the others alone.

    Args:
        ready: The trainings. Afterwards their networks have the weights of the last epoch, and `training.state` what
            is kept.

    Returns:
        For each why it was trained alone; None where it was not.

    Raises:
        InputError: Data, networks, optimizer or scheduler cannot be used, or a training diverged.
    """
    reasons: list[str | None] = [None] * len(ready)
    for part, reason in _in_parts(ready):
        for number in part:
            reasons[number] = reason
    return reasons


def _in_parts(ready: Sequence[Ready]) -> Iterator[tuple[list[int], str | None]]:
    """Train as `train_together` does; yields which were trained last, and why alone."""
    alone: dict[int, str] = {}
    groups: dict[Hashable, list[int]] = {}
    members: dict[int, _Member] = {}
    for number, one in enumerate(ready):
        try:
            members[number] = _Member.of(one)
        except NotStackableError as error:
            alone[number] = str(error)
        else:
            groups.setdefault(members[number].shared, []).append(number)
    for group in groups.values():
        size = _group_size([members[number] for number in group])
        for start in range(0, len(group), size):
            part = group[start : start + size]
            try:
                trained = _Group([members[number] for number in part])
            except NotStackableError as error:
                alone |= dict.fromkeys(part, str(error))
                continue
            trained.run()
            yield part, None
    for number, reason in sorted(alone.items()):
        ready[number].training.run(ready[number].train, ready[number].val)
        yield [number], reason


def obstacle(ready: Ready) -> str | None:
    """Why a training cannot be together with others, as far as that is known before; None if nothing is."""
    try:
        _Member.of(ready)
    except NotStackableError as error:
        return str(error)
    return None


def hindrance(network: nn.Module, role: str, problem: Problem, recipe: Recipe) -> str | None:
    """Why a network cannot be trained together with others of its kind, whatever its data; None if nothing is known.

    Args:
        network: The network, as it will be trained.
        role: "teacher" or "student".
        problem: What logits and targets mean.
        recipe: How it will be trained.
    """
    objective = Supervised(network, role, problem)
    try:
        _refuse_recipe(recipe)
        _terms(objective)
        architecture(network)
        _Schedule.of(objective, recipe)
    except NotStackableError as error:
        return str(error)
    return None


def is_worthwhile(network: nn.Module, batch_size: int, device: torch.device) -> bool:
    """Whether training such networks together is faster, by what was measured (docs/benchmarks.md).

    On a CPU it is where a step is mostly the time of calling operations: not for convolutions, and only below a number
    of multiplications. On a GPU it was not measured.

    Args:
        network: A network.
        batch_size: Number of samples in a batch.
        device: Device that trains it.
    """
    convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in network.modules())
    multiplications = batch_size * sum(parameter.numel() for parameter in network.parameters())
    return device.type == "cpu" and not convolves and multiplications <= MOST_MULTIPLICATIONS


def _group_size(members: Sequence["_Member"]) -> int:
    """How many networks to train at once."""
    largest = max(member.num_bytes for member in members)
    return max(1, min(MOST_NETWORKS, _MOST_BYTES // max(1, largest)))


# --- what networks must have in common --------------------------------------------------------------------------------


class _Terms(NamedTuple):
    """What a step minimises: weights of its terms.

    Attributes:
        label_weight: Weight of the cross-entropy with the labels.
        class_weights: Its weight for each class, (K,) or fewer; None weights all equally.
        others: Weight of further classes.
        smoothing: How much of the label is spread over all classes.
        teacher_weight: Weight of the divergence from the teacher, with the factor T^2.
        temperature: Temperature T.
        per_class: Whether the divergence is averaged over classes too.
        teacher_logits: (N, K) teacher outputs on all training pairs; None without a teacher.
    """

    label_weight: float = 1.0
    class_weights: Tensor | None = None
    others: float = 0.0
    smoothing: float = 0.0
    teacher_weight: float = 0.0
    temperature: float = 1.0
    per_class: bool = False
    teacher_logits: Tensor | None = None


@dataclass(frozen=True)
class _Member:
    """One training, with what is found out about it before it starts."""

    training: Training
    batches: EpochBatches
    train: PairedBatch
    val: PairedBatch
    #: Which data sets these are, so that trainings on the same ones share them.
    sources: tuple[Hashable, Hashable]
    terms: _Terms
    #: Options of the optimizer in each epoch, by group of parameters.
    schedule: "_Schedule"
    #: What all networks of a group have in common.
    shared: Hashable

    @classmethod
    def of(cls, ready: Ready) -> "_Member":
        """Look at a training.

        Raises:
            NotStackableError: It cannot be together with others.
            InputError: Its data cannot be used.
        """
        training, objective, recipe = ready.training, ready.training.objective, ready.training.recipe
        _refuse_training(training)
        terms = _terms(objective)
        kinds = {role: architecture(network) for role, network in objective.networks.items()}
        schedule = _Schedule.of(objective, recipe)
        batches = training.batches(ready.train)
        train, val = (
            _held(training, data, split, batches if split == "train" else None)
            for data, split in ((ready.train, "train"), (ready.val, "val"))
        )
        fields = [_inputs(train, role) for role in objective.networks] + [
            _inputs(val, role) for role in objective.networks
        ]
        shapes = [(field.shape[1:], field.dtype) for field in fields]
        shared = (
            type(objective),
            tuple(kinds.items()),
            tuple(shapes),
            len(val.target),
            val.target.shape[1:],
            (recipe.epochs, recipe.batch_size, recipe.keep, len(batches)),
            schedule.key,
            str(training.device),
            terms.temperature == 1,
        )
        sources = _source(ready.train), _source(ready.val)
        return cls(training, batches, train, val, sources, terms, schedule, shared)

    @property
    def num_bytes(self) -> int:
        """Size of its inputs."""
        roles = self.training.objective.networks
        return sum(_inputs(part, role).nbytes for part in (self.train, self.val) for role in roles)


def _inputs(batch: PairedBatch, role: str) -> Tensor:
    inputs: Tensor = batch.student_input if role == "student" else batch.teacher_input
    return inputs


def _source(data: Any) -> Hashable:
    return (id(data.labelled), id(data.unlabelled)) if type(data) is AllPairs else id(data)


def _refuse_training(training: Training) -> None:
    _refuse_recipe(training.recipe)
    _refuse(
        {
            "several processes train it": world_size() > 1,
            "it goes on from a checkpoint": training.state.epochs > 0,
            "a logger follows it": bool(training.loggers),
            "it shows its progress": training.shows_progress,
        }
    )


def _refuse_recipe(recipe: Recipe) -> None:
    _refuse(
        {
            f"precision is {recipe.precision}": recipe.precision != "32-true",
            "it accumulates batches": recipe.accumulate > 1,
            "it is compiled": recipe.compile,
            "weights are laid out channels-last": recipe.channels_last,
        }
    )


def _refuse(reasons: Mapping[str, bool]) -> None:
    for reason, holds in reasons.items():
        if holds:
            raise NotStackableError(reason)


def _terms(objective: Objective) -> _Terms:
    """The weights of what an objective minimises."""
    problem = objective.problem
    if problem.name != "classification":
        raise NotStackableError(f"the problem is {problem.name}, not single-label classification")
    if type(objective) is Supervised:
        return _label_terms(objective.minimised)
    if type(objective) is Alignment:
        return _label_terms(problem.known_loss)
    if type(objective) is Distillation:
        loss = objective.distillation_loss
        if not isinstance(loss, KDLoss) or loss.divergence is not kl_divergence:
            raise NotStackableError("the distillation loss is not a KDLoss with its own divergence")
        if objective.teacher_logits is None:
            raise NotStackableError("the teacher's outputs are not in memory")
        assert loss.label_loss is not None
        return _label_terms(loss.label_loss)._replace(
            label_weight=loss.label_weight,
            teacher_weight=loss.teacher_weight * loss.temperature**2,
            temperature=loss.temperature,
            per_class=loss.reduction == "mean",
            teacher_logits=at_least_single(objective.teacher_logits),
        )
    raise NotStackableError(f"the method is {type(objective).__name__}")


def _label_terms(loss: LabelLoss) -> _Terms:
    """The terms of a label loss, which may count known entries only: with one label per sample that is all of them."""
    if isinstance(loss, functools.partial) and getattr(loss.func, "__func__", None) is Problem._over_known:
        return _label_terms(loss.args[0])
    if getattr(loss, "__func__", None) is Problem.known_loss:
        return _label_terms(loss.__self__.label_loss)  # type: ignore[attr-defined]
    if isinstance(loss, Smoothed):
        return _label_terms(loss.problem.known_loss)._replace(smoothing=loss.amount)
    if isinstance(loss, WeightedCrossEntropy):
        return _Terms(class_weights=loss.weights, others=loss.others or 0.0)
    if loss is not F.cross_entropy:
        raise NotStackableError("the label loss is not the cross-entropy")
    return _Terms()


def _held(training: Training, data: Any, split: str, batches: EpochBatches | None) -> PairedBatch:
    """A split in memory, whose inputs are checked."""
    objective = training.objective
    reading = Reading(data, split, torch.device("cpu"), batches=batches, fields=objective.fields)
    if reading.held is None:
        raise NotStackableError(f"the items of the {split} split are read one by one")
    objective.know(reading)
    return reading.held


@dataclass(frozen=True)
class _Schedule:
    """An optimizer and its options in every epoch.

    Args:
        kind: Class of the optimizer.
        names: Names of the parameters in each of its groups.
        options: For every epoch, the options of each group.
    """

    kind: type[Optimizer]
    names: tuple[tuple[str, ...], ...]
    options: tuple[tuple[tuple[tuple[str, Any], ...], ...], ...]

    @property
    def key(self) -> Hashable:
        """What decides equality."""
        return self.kind, self.names, self.options

    @classmethod
    def of(cls, objective: Objective, recipe: Recipe) -> "_Schedule":
        """Find out by making the optimizer and the scheduler, and stepping them through the epochs.

        Raises:
            NotStackableError: The optimizer is not elementwise, or the scheduler looks at the training.
        """
        optimizer = made_optimizer(recipe, objective)
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        if type(optimizer) not in ELEMENTWISE or hooks:
            raise NotStackableError(f"the optimizer is {type(optimizer).__name__}, which may look at whole tensors")
        places = {
            id(parameter): f"{role}.{name}"
            for role, network in objective.networks.items()
            for name, parameter in network.named_parameters()
        }
        groups = optimizer.param_groups
        if not all(id(parameter) in places for group in groups for parameter in group["params"]):
            raise NotStackableError("the optimizer has parameters that are no network's")
        names = tuple(tuple(places[id(parameter)] for parameter in group["params"]) for group in groups)
        if recipe.scheduler is None:
            return cls(type(optimizer), names, (_options(optimizer),) * recipe.epochs)
        try:
            scheduler = recipe.scheduler(optimizer)
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
                raise NotStackableError(f"the scheduler is {type(scheduler).__name__}, which looks at the training")
            options = []
            for _ in range(recipe.epochs):
                options.append(_options(optimizer))
                optimizer.step()
                scheduler.step()
        except NotStackableError:
            raise
        except Exception as error:  # alone, it is told when it happens
            raise NotStackableError("the scheduler fails") from error
        return cls(type(optimizer), names, tuple(options))

    def made(self, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        """An optimizer of these parameters."""
        groups = [
            {**dict(options), "params": [parameters[name] for name in names]}
            for names, options in zip(self.names, self.options[0], strict=True)
        ]
        for group in groups:
            given = (group.get(name) for name in ("foreach", "fused", "capturable", "differentiable"))
            if self.kind in _FUSED and not any(given):
                group.update(foreach=False, fused=True)
        return self.kind(groups)  # type: ignore[call-arg]  # as all of them take it

    def begin(self, epoch: int, optimizer: Optimizer) -> None:
        """Give an optimizer its options in an epoch."""
        if epoch and self.options[epoch] != self.options[epoch - 1]:
            for group, options in zip(optimizer.param_groups, self.options[epoch], strict=True):
                group.update({name: value for name, value in options if name not in ("foreach", "fused")})


def _options(optimizer: Optimizer) -> tuple[tuple[tuple[str, Any], ...], ...]:
    return tuple(
        tuple((name, _plain(value)) for name, value in group.items() if name not in ("params", "initial_lr"))
        for group in optimizer.param_groups
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return float(value)
    return tuple(value) if isinstance(value, list) else value


# --- the loop ---------------------------------------------------------------------------------------------------------


class _Epoch(NamedTuple):
    """The samples of an epoch and what is to be learnt of them: S steps of N rows for each of R networks.

    Attributes:
        rows: Role -> (S, R * N) positions in the inputs of all networks.
        wanted: (S, R, K, N) distribution over classes, times its weight in the loss.
        softened: The same of the teachers, where they have temperatures; None where all temperatures are 1.
        constant: (S, R) the part of the loss that does not depend on the network.
    """

    rows: Mapping[str, Tensor]
    wanted: Tensor
    softened: Tensor | None
    constant: Tensor


class _Layout:
    """Where the samples of an epoch go, which is the same in all epochs: S steps of N rows for each of R networks.

    A step of fewer samples has rows that count nothing.

    Args:
        members: The trainings.
        copies: Number of copies behind the networks.

    Attributes:
        label_share: (S, R, N) share of a row in the mean label loss of its batch.
        share: (S, R, N) share of a row in the mean over its batch.
        counts: (S, R) samples in a batch.
    """

    def __init__(self, members: Sequence[_Member], copies: int) -> None:
        keys = [_order(member.batches) for member in members]
        self.orders = {key: member.batches for key, member in zip(keys, members, strict=True)}
        known = [*self.orders]
        self._which = torch.tensor([*map(known.index, keys), *[0] * copies])
        cuts = [_side_by_side(batches.cut(torch.arange(len(batches.stream())))) for batches in self.orders.values()]
        width = max(cut.shape[1] for cut in cuts)
        cuts = [F.pad(cut, (0, width - cut.shape[1]), value=-1) for cut in cuts]
        self._cuts = [cut.clamp_min(0) for cut in cuts]
        shares = [_shares(batches, cut) for batches, cut in zip(self.orders.values(), cuts, strict=True)]
        label_share, share = (torch.stack(part, 1)[:, self._which] for part in zip(*shares, strict=True))
        for part in (label_share, share):
            part[:, len(members) :] = 0
        self.label_share, self.share, self.counts = label_share, share, (share > 0).sum(2)

    def rows(self, epoch: int) -> Tensor:
        """(S, R, N) positions of the epoch's samples in the training data of each network."""
        found = []
        for batches, cut in zip(self.orders.values(), self._cuts, strict=True):
            batches.sampler.set_epoch(epoch)
            found.append(batches.stream()[cut])
        return torch.stack(found, 1)[:, self._which]


class _Group:
    """Trainings that go through all steps together.

    Args:
        members: The trainings, which have all in common that must be.

    Raises:
        NotStackableError: The networks cannot run as one; nothing has happened then.
    """

    def __init__(self, members: Sequence[_Member]) -> None:
        self.members, first = members, members[0].training
        self.device, self.recipe = first.device, first.recipe
        self.roles = list(first.objective.networks)
        self.aligned = isinstance(first.objective, Alignment)
        networks = {role: [one.training.objective.networks[role] for one in members] for role in self.roles}
        self.copies = max(copies_needed(len(members), each[0]) for each in networks.values())
        self.stacks = {role: Stacked(each, self.device, self.copies) for role, each in networks.items()}
        weights = {f"{role}.{name}": value for role in self.roles for name, value in self.stacks[role].weights.items()}
        self.parameters = list(weights.values())
        self.schedule = members[0].schedule
        self.optimizer = self.schedule.made(weights)
        self.train_inputs = {role: _Inputs(members, role, "train", self.device) for role in self.roles}
        self.val_inputs = {role: _Inputs(members, role, "val", self.device) for role in self.roles}
        logits = self._check()
        self.dtype, self.num_classes = logits.dtype, logits.shape[-1]
        self.temperature = self._of_all([one.terms.temperature for one in members], 1.0).reshape(-1, 1, 1)
        self.labels, self.taught, self.entropy = self._targets()
        self.layout = _Layout(members, self.copies)
        self.label_share, self.share = (
            part.to(self.device, self.dtype) for part in (self.layout.label_share, self.layout.share)
        )

    def _of_all(self, values: Sequence[float], of_copies: float) -> Tensor:
        """(R + copies,) a number for each network."""
        return torch.tensor([*values, *[of_copies] * self.copies], dtype=self.dtype, device=self.device)

    def _check(self) -> Tensor:
        """Compare with each network on its own, and check all targets.

        Raises:
            NotStackableError: A network does not do the same.
            InputError: A target is wrong, or a network cannot be used.
        """
        for split, inputs in (("train", self.train_inputs), ("val", self.val_inputs)):
            for role, stack in self.stacks.items():
                stack.training = split == "train"
                count = min(len(getattr(one, split).target) for one in self.members)
                count = min(count, self.recipe.batch_size) if stack.training else count
                with torch.set_grad_enabled(stack.training), unfused_attention():
                    found = stack(inputs[role].first(count, self.copies)).detach()
                for number, one in enumerate(self.members):
                    alone = _alone(one, role, split, count)
                    if found.shape[1:] != alone.shape:
                        raise NotStackableError(f"the {role} returns other shapes for several networks at once")
                    close = torch.allclose(found[number].cpu(), alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
                    if not close and alone.isfinite().all():
                        raise NotStackableError(f"the {role} returns something else for several networks at once")
        return found

    def _targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """What each network is to learn of each of its training pairs.

        Returns:
            (T, K) of labels, times their weight; (T, K) of teachers, times theirs; (T,) sum of p log p of the latter,
            times their weight. T counts the training pairs of all networks, one network after the other.
        """
        labels, taught, entropy = [], [], []
        for one, count in zip(self.members, self.train_inputs[self.roles[0]].counts, strict=True):
            terms, target = one.terms, one.train.target
            weights = torch.ones(self.num_classes, dtype=self.dtype)
            if terms.class_weights is not None:
                weights[:] = terms.others
                weights[: len(terms.class_weights)] = terms.class_weights.to(self.dtype)
            wanted = torch.zeros(count, self.num_classes, dtype=self.dtype)
            known = F.one_hot(target, self.num_classes) * weights[target].unsqueeze(1)
            wanted[: len(target)] = (1 - terms.smoothing) * known + terms.smoothing / self.num_classes
            labels.append(terms.label_weight * wanted)
            likely = torch.zeros(count, self.num_classes, dtype=self.dtype)
            if terms.teacher_logits is not None and terms.teacher_weight:
                logs = (terms.teacher_logits.cpu().to(self.dtype) / terms.temperature).log_softmax(1)
                weight = terms.teacher_weight / (self.num_classes if terms.per_class else 1)
                likely = weight * logs.exp()
                entropy.append((likely * logs).sum(1))
            else:
                entropy.append(torch.zeros(count, dtype=self.dtype))
            taught.append(likely)
        parts = (torch.cat(part).to(self.device) for part in (labels, taught, entropy))
        return next(parts), next(parts), next(parts)

    # --- an epoch -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until all have finished.

        Raises:
            InputError: A training diverged, or no epoch can be judged.
        """
        active = list(enumerate(self.members))
        while active:
            number = active[0][1].training.state.epochs
            self.schedule.begin(number, self.optimizer)
            losses = self._train(self._epoch(number))
            values = self._validate([place for place, _ in active])
            for place, member in active:
                training = member.training
                training.state.steps += len(member.batches)
                watched = self.stacks[training.watched]
                training.note(values[place], losses[place], functools.partial(watched.state, place))
                training.state.epochs += 1
                if training.finished:
                    for role, network in training.objective.networks.items():
                        self.stacks[role].write(place, network)
                    training.check_kept()
            done_of(number + 1, self.members[0].training.recipe.epochs, "epoch")
            active = [(place, member) for place, member in active if not member.training.finished]

    def _epoch(self, number: int) -> _Epoch:
        """The samples of an epoch, in the order in which each training sees them alone."""
        rows = self.layout.rows(number)
        own = (rows + self.train_inputs[self.roles[0]].own_starts(self.copies)).flatten().to(self.device)

        def gathered(each: Tensor, share: Tensor) -> Tensor:
            found = each.index_select(0, own).view(*rows.shape, self.num_classes)
            return (found * share.unsqueeze(-1)).transpose(2, 3).contiguous()

        wanted, softened = gathered(self.labels, self.label_share), None
        if self.temperature.ne(1).any():
            softened = gathered(self.taught, self.share)
        elif self.taught.any():
            wanted += gathered(self.taught, self.share)
        constant = (self.entropy.index_select(0, own).view(rows.shape) * self.share).sum(2)
        places = {
            role: (rows + inputs.starts(self.copies)).flatten(1).to(self.device)
            for role, inputs in self.train_inputs.items()
        }
        return _Epoch(places, wanted, softened, constant)

    def _train(self, epoch: _Epoch) -> list[float]:
        """Take the steps of an epoch; returns the mean loss of each network's samples."""
        for stack in self.stacks.values():
            stack.training = True
        losses = []
        for step in range(len(epoch.wanted)):
            logits = [self._logits(role, epoch.rows[role][step]) for role in self.roles]
            loss, slopes = self._loss([each.detach().transpose(1, 2) for each in logits], epoch, step)
            torch.autograd.backward(logits, [slope.transpose(1, 2) for slope in slopes])
            self.optimizer.step()
            for parameter in self.parameters:
                parameter.grad = None
            losses.append(loss)
        counts = self.layout.counts.to(self.device, self.dtype)
        total = ((torch.stack(losses) + epoch.constant) * counts).sum(0) / counts.sum(0)
        return total[: len(self.members)].tolist()

    def _logits(self, role: str, rows: Tensor) -> Tensor:
        """(R + copies, N, K) of one step."""
        inputs = self.train_inputs[role].all.index_select(0, rows)
        return self.stacks[role](inputs.view(*self.share.shape[1:], *inputs.shape[1:]))

    def _loss(self, logits: Sequence[Tensor], epoch: _Epoch, step: int) -> tuple[Tensor, list[Tensor]]:
        """The loss of each network, and its derivatives.

        Cross-entropy and divergence are both - sum_k q_k log p_k with a fixed q. The derivative is p sum_k q_k - q. It
        is written out because softmax and its derivative over a few classes cost as much as a layer; with classes
        before rows, they cost a fifth.

        Args:
            logits: (R + copies, K, N) of each role.
            epoch: The epoch.
            step: Number of the step in it.

        Returns:
            (R + copies,), without the constant; and a tensor like each of the logits.
        """
        loss, slopes = _cross_entropy(logits[0], epoch.wanted[step])
        if epoch.softened is not None:
            more, slope = _cross_entropy(logits[0] / self.temperature, epoch.softened[step])
            loss, slopes = loss + more, slopes + slope / self.temperature
        if not self.aligned:
            return loss, [slopes]
        of_other, other = _cross_entropy(logits[1], epoch.wanted[step])
        difference = logits[0] - logits[1]
        pulled = difference * (self.share[step] / self.num_classes).unsqueeze(1)
        loss = loss + of_other + (pulled * difference).sum((1, 2))
        return loss, [slopes + 2 * pulled, other - 2 * pulled]

    def _validate(self, places: Sequence[int]) -> dict[int, dict[str, float]]:
        """Metric and loss of the networks at these places on their validation data."""
        values: dict[int, dict[str, float]] = {place: {} for place in places}
        for role, stack in self.stacks.items():
            stack.training = False
            inputs = self.val_inputs[role]
            with torch.no_grad(), unfused_attention():
                logits = stack(inputs.of_all(self.copies)).float()
            for place in places:
                member = self.members[place]
                problem, target = member.training.objective.problem, member.val.target.to(self.device)
                tally = Tally(problem.metric, "val split")
                tally.add(logits[place], target)
                value = math.nan if logits[place].isnan().any() else tally.value()
                values[place][f"{role}_val_{problem.metric.name}"] = value
                values[place][f"{role}_val_loss"] = float(problem.label_loss(logits[place], target))
        return values


class _Inputs:
    """The inputs of one role and split of all networks in one tensor; networks with the same data share them."""

    def __init__(self, members: Sequence[_Member], role: str, split: str, device: torch.device) -> None:
        parts: dict[Hashable, Tensor] = {}
        for member in members:
            parts.setdefault(member.sources[split == "val"], _inputs(getattr(member, split), role))
        firsts, first = {}, 0
        for source, part in parts.items():
            firsts[source], first = first, first + len(part)
        self._starts = [firsts[member.sources[split == "val"]] for member in members]
        #: Number of pairs of each network.
        self.counts = [len(parts[member.sources[split == "val"]]) for member in members]
        self.all = torch.cat([*parts.values()]).to(device)
        self._stacked: Tensor | None = None

    def starts(self, copies: int) -> Tensor:
        """(R + copies, 1) where each network's inputs begin."""
        return torch.tensor([*self._starts, *[0] * copies]).unsqueeze(1)

    def own_starts(self, copies: int) -> Tensor:
        """The same if every network had inputs of its own."""
        ends = torch.tensor(self.counts).cumsum(0)
        return F.pad(ends - torch.tensor(self.counts), (0, copies)).unsqueeze(1)

    def first(self, count: int, copies: int) -> Tensor:
        """(R + copies, count, ...) the first inputs of each network."""
        rows = self.starts(copies) + torch.arange(count)
        return self.all[rows.to(self.all.device)]

    def of_all(self, copies: int) -> Tensor:
        """(R + copies, N, ...) all inputs of each network, which all have as many."""
        if self._stacked is None:
            self._stacked = self.first(self.counts[0], copies)
        return self._stacked


def _alone(member: _Member, role: str, split: str, count: int) -> Tensor:
    """Logits (count, K) of one network on its own, whose first call checks all targets of the split."""
    objective, held = member.training.objective, getattr(member, split)
    objective.split = split
    network = objective.networks[role]
    modes = [(module, module.training) for module in network.modules()]
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    batch, rows = PairedBatch(*(part[:count] for part in held)), torch.arange(count)
    try:
        network.train(split == "train")
        with torch.no_grad(), unfused_attention(), placed(member.training.device, network):
            logits = objective.logits(to_device(batch, member.training.device), rows, role).cpu()
    finally:
        for module, mode in modes:
            module.training = mode
    for name, buffer in network.named_buffers():
        if not torch.equal(buffer, before[name]):
            buffer.copy_(before[name])
            raise NotStackableError(f"buffer {name!r} changes in a forward pass")
    return logits


def _order(batches: EpochBatches) -> Hashable:
    """What decides the order of samples."""
    own = tuple((name, value) for name, value in vars(batches).items() if name != "sampler")
    sampler = batches.sampler
    classes = None if sampler.classes is None else tuple(sampler.classes.tolist())
    return type(batches), own, sampler.num_samples, sampler.seed, classes


def _cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """- sum of wanted * log_softmax(logits) for each network, and its derivative by the logits; all (R, K, N)."""
    logs = logits.contiguous().log_softmax(1)
    return -(wanted * logs).sum((1, 2)), logs.exp_().mul_(wanted.sum(1, keepdim=True)).sub_(wanted)


def _side_by_side(batches: Sequence[Tensor]) -> Tensor:
    """(S, N) batches as rows, filled up with -1."""
    return torch.nn.utils.rnn.pad_sequence([*batches], batch_first=True, padding_value=-1)


def _shares(batches: EpochBatches, cut: Tensor) -> tuple[Tensor, Tensor]:
    """(S, N) shares of samples in the mean label loss of their batch and in its mean, 0 without a sample.

    Args:
        batches: The batches.
        cut: (S, N) where the samples lie in the stream of an epoch, -1 without a sample.
    """
    weights = torch.tensor([batches.weights(index) for index in range(len(cut))], dtype=torch.float64)
    there, labelled = cut >= 0, cut >= 0
    if isinstance(batches, MixedBatches):
        counts = torch.tensor([batches.labelled(index) for index in range(len(cut))])
        labelled = there & (torch.arange(cut.shape[1]) < counts.unsqueeze(1))  # they come first
    every = [counted.double() / counted.sum(1, keepdim=True).clamp_min(1) for counted in (labelled, there)]
    return every[0] * weights[:, :1], every[1] * weights[:, 1:]
