"""Small networks trained all at once: one forward pass, one backward pass and one optimizer step for all of them.

On a CPU, a step of a small network is mostly the time of calling operations. Together, forty networks share that.
Each network has its own initial weights, data, order of samples, weights of the loss and teacher outputs, and ends as
it would alone, but for rounding. What cannot be done for several networks at once is trained alone.
"""

import functools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import ConcatDataset, Subset

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
#: Most bytes of a group's inputs, and of what it learns of them.
_MOST_BYTES = 2**28
#: How many tensors of a number for each class and pair of an epoch a network has at most: of labels, of the teacher,
#: the weighted sum of both for the steps of an epoch, and two while that is made.
_TARGET_TENSORS = 5


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
            cannot be. Methods other than `KD`, and trainings that go on from a checkpoint, happen alone all the same.
        finished: Called as finished(number, result) for every function as soon as it has ended, so that a process that
            is killed loses only the networks it is training.

    Returns:
        What the functions return.

    Raises:
        InputError: With `strict`, a network cannot be trained together; or what the functions raise.
    """
    results: dict[int, T] = {}
    waiting: dict[int, _Member] = {}
    read: _Read = {}

    def call(number: int, answer: _Answer | None = None) -> None:
        token = taken_by.set(_Taker(answer, strict, read))
        try:
            results[number] = jobs[number]()
        except _PostponedError as postponed:
            waiting[number] = postponed.member
        finally:
            taken_by.reset(token)
        if finished is not None and number in results:
            finished(number, results[number])

    for number in range(len(jobs)):
        call(number)
    while waiting:
        members, waiting, read = waiting, {}, {}
        if len(members) > 1:  # one alone has said what it is
            doing(f"training {len(members)} networks together")
        numbers = [*members]
        for part, ended in _trained([*members.values()]):
            _refuse_alone(ended.reason, strict)
            for number in (numbers[place] for place in part):
                call(number, _Answer(members[number].training, ended.took))
    return [results[number] for number in range(len(jobs))]


class Elsewhere(NamedTuple):
    """What a training took that happened with others.

    Args:
        seconds: Its share of the seconds.
        networks: Number of trainings that shared them, itself included.
    """

    seconds: float
    networks: int


def trained_elsewhere() -> Elsewhere | None:
    """What the training took that a function of `together` has just found done.

    Returns:
        What it took; None where the function found none done since it was asked last.
    """
    taker = taken_by.get()
    if not isinstance(taker, _Taker):
        return None
    found, taker.found = taker.found, None
    return found


class _Answer(NamedTuple):
    """A training that is done, and what it took."""

    training: Training
    took: Elsewhere


class _PostponedError(BaseException):  # so that nothing takes it for an error of the user's code
    """A function has come to a training that can be done with others."""

    def __init__(self, member: "_Member") -> None:
        super().__init__()
        self.member = member


@dataclass
class _Taker:
    """Answers a training that begins, or postpones it."""

    answer: _Answer | None
    strict: bool
    #: What is read of the data so far, for all functions.
    read: "_Read"
    #: What the training took that was answered last, until somebody asks.
    found: Elsewhere | None = None

    def __call__(self, training: Training, train: Any, val: Any) -> bool:
        """Whether the training is done now; False lets it happen.

        Raises:
            _PostponedError: It will be done with others.
        """
        if self.answer is not None:
            (done, self.found), self.answer = self.answer, None
            assert done.made_with == training.made_with, "a function trains something else when it is called again"
            training.state = done.state
            training.objective.networks.load_state_dict(done.objective.networks.state_dict())
            return True
        if type(training.objective) not in (Supervised, Alignment, Distillation) or training.state.epochs:
            return False
        networks, recipe = training.objective.networks.values(), training.recipe
        if not self.strict and not all(is_worthwhile(one, recipe.batch_size, training.device) for one in networks):
            return False
        try:
            member = _Member.of(Ready(training, train, val), self.read)
        except NotStackableError as error:
            _refuse_alone(str(error), self.strict)
            return False
        raise _PostponedError(member)


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
    reasons: dict[int, str | None] = {}
    members: dict[int, _Member] = {}
    read: _Read = {}
    for number, one in enumerate(ready):
        try:
            members[number] = _Member.of(one, read)
        except NotStackableError as error:
            reasons[number] = str(error)
    alone, numbers = [*reasons], [*members]
    for part, ended in _trained([*members.values()]):
        reasons |= {numbers[place]: ended.reason for place in part}
    for number in alone:
        ready[number].training.run(ready[number].train, ready[number].val)
    return [reasons[number] for number in range(len(ready))]


class _Ended(NamedTuple):
    """How a training went: why it was alone, None where it was not; and what it took."""

    reason: str | None
    took: Elsewhere


def _trained(members: Sequence["_Member"]) -> Iterator[tuple[list[int], _Ended]]:
    """Train those that have all in common at once, and alone what turns out to be impossible at once.

    Yields:
        Positions of trainings that have just ended, and how each of them went.
    """
    for part in _parts(members):
        started = time.monotonic()
        try:
            group = _Group([members[number] for number in part])
        except NotStackableError as error:
            for number in part:
                started, ready = time.monotonic(), members[number].ready
                ready.training.run(ready.train, ready.val)
                yield [number], _Ended(str(error), Elsewhere(time.monotonic() - started, 1))
            continue
        group.run()
        del group  # its inputs are large
        yield part, _Ended(None, Elsewhere((time.monotonic() - started) / len(part), len(part)))


def _parts(members: Sequence["_Member"]) -> Iterator[list[int]]:
    """Positions of trainings that have all in common, as many at once as there is room for."""
    groups: dict[Hashable, list[int]] = {}
    for number, member in enumerate(members):
        groups.setdefault(member.shared, []).append(number)
    for group in groups.values():
        part: list[int] = []
        sources: set[Hashable] = set()
        size = 0
        for number in group:
            own, shared = members[number].own_bytes, members[number].shared_bytes
            more = own + (0 if members[number].sources in sources else shared)
            if part and (len(part) == MOST_NETWORKS or size + more > _MOST_BYTES):
                yield part
                part, sources, size, more = [], set(), 0, own + shared
            part.append(number)
            size += more
            sources.add(members[number].sources)
        yield part


def obstacle(ready: Ready) -> str | None:
    """Why a training cannot be together with others, as far as that is known before; None if nothing is."""
    try:
        _Member.of(ready, {})
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


# --- what networks must have in common --------------------------------------------------------------------------------


class _Terms(NamedTuple):
    """What a step minimises: weights of its terms.

    Attributes:
        label_weight: Weight of the cross-entropy with the labels.
        weighted: The cross-entropy that weights classes; None weights all equally.
        smoothing: How much of the label is spread over all classes.
        teacher_weight: Weight of the divergence from the teacher, with the factor T^2.
        temperature: Temperature T.
        per_class: Whether the divergence is averaged over classes too.
        teacher_logits: (N, K) teacher outputs on all training pairs; None without a teacher.
    """

    label_weight: float = 1.0
    weighted: WeightedCrossEntropy | None = None
    smoothing: float = 0.0
    teacher_weight: float = 0.0
    temperature: float = 1.0
    per_class: bool = False
    teacher_logits: Tensor | None = None


@dataclass(frozen=True)
class _Member:
    """One training, with what is found out about it before it starts."""

    ready: Ready
    batches: EpochBatches
    train: PairedBatch
    val: PairedBatch
    #: Which data sets these are, so that trainings on the same ones share them.
    sources: tuple[Hashable, Hashable]
    num_classes: int
    terms: _Terms
    #: Options of the optimizer in each epoch, by group of parameters.
    schedule: "_Schedule"
    #: What all networks of a group have in common.
    shared: Hashable

    @classmethod
    def of(cls, ready: Ready, read: "_Read") -> "_Member":
        """Look at a training.

        Args:
            ready: The training.
            read: What is read of data sets so far, to which its own are added.

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
            _held(objective, data, split, read) for data, split in ((ready.train, "train"), (ready.val, "val"))
        )
        logits = [_alone(training, train, role, "train", min(2, len(train.target))) for role in objective.networks]
        if any(each.ndim != 2 for each in logits):
            raise NotStackableError("a sample has more than one prediction")
        num_classes = logits[0].shape[1]
        fields = [_inputs(train, role) for role in objective.networks] + [
            _inputs(val, role) for role in objective.networks
        ]
        shapes = [(field.shape[1:], field.dtype) for field in fields]
        shared = (
            isinstance(objective, Alignment),  # the terms say all that is special to the others
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
        return cls(ready, batches, train, val, sources, num_classes, terms, schedule, shared)

    @property
    def training(self) -> Training:
        """The training itself."""
        return self.ready.training

    @property
    def shared_bytes(self) -> int:
        """Size of its inputs, which it shares with trainings on the same data."""
        roles = self.training.objective.networks
        return sum(_inputs(part, role).nbytes for part in (self.train, self.val) for role in roles)

    @property
    def own_bytes(self) -> int:
        """Size of what it alone needs: validation inputs beside those of others, and what is to be learnt of pairs."""
        roles = self.training.objective.networks
        pairs = sum(map(self.batches.count, range(len(self.batches))))
        number = next(self.training.objective.networks.parameters()).itemsize
        return (
            sum(_inputs(self.val, role).nbytes for role in roles) + _TARGET_TENSORS * pairs * self.num_classes * number
        )


def _inputs(batch: PairedBatch, role: str) -> Tensor:
    inputs: Tensor = batch.student_input if role == "student" else batch.teacher_input
    return inputs


def _source(data: Any) -> Hashable:
    """What tells whether two data sets hold the same, as long as both exist."""
    if type(data) is AllPairs:
        return "all", _source(data.labelled), _source(data.unlabelled)
    if type(data) is Subset:
        return "part", _source(data.dataset), id(data.indices)
    if type(data) is ConcatDataset:
        return "joined", *map(_source, data.datasets)
    return id(data)


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
        return _Terms(weighted=loss)
    if loss is not F.cross_entropy:
        raise NotStackableError("the label loss is not the cross-entropy")
    return _Terms()


#: Data sets as they are read, by what they hold and what of it is needed: parts of data sets are copies, and shared.
_Read = dict[Hashable, Reading]


def _held(objective: Objective, data: Any, split: str, read: _Read) -> PairedBatch:
    """A split in memory, whose inputs are checked."""
    key = _source(data), split, objective.fields
    if key not in read:
        read[key] = Reading(data, split, torch.device("cpu"), fields=objective.fields)
    reading = read[key]
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
        width: Rows N.
    """

    def __init__(self, members: Sequence[_Member], copies: int) -> None:
        keys = [_order(member.batches) for member in members]
        self.orders = {key: member.batches for key, member in zip(keys, members, strict=True)}
        known = [*self.orders]
        self._which = torch.tensor([*map(known.index, keys), *[0] * copies])
        cuts = [_side_by_side(batches.cut(torch.arange(len(batches.stream())))) for batches in self.orders.values()]
        self.width = max(cut.shape[1] for cut in cuts)
        cuts = [F.pad(cut, (0, self.width - cut.shape[1]), value=-1) for cut in cuts]
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
        self.layout = _Layout(members, self.copies)
        logits = self._check()
        self.dtype, self.num_classes = logits.dtype, logits.shape[-1]
        self.temperature = self._of_all([one.terms.temperature for one in members], 1.0).reshape(-1, 1, 1)
        self.labels, self.taught, self.entropy = self._targets()
        self.label_share, self.share = (
            part.to(self.device, self.dtype) for part in (self.layout.label_share, self.layout.share)
        )

    def _of_all(self, values: Sequence[float], of_copies: float) -> Tensor:
        """(R + copies,) a number for each network."""
        return torch.tensor([*values, *[of_copies] * self.copies], dtype=self.dtype, device=self.device)

    def _check(self) -> Tensor:
        """Compare with each network on its own.

        Batches are filled up, and validation is one batch, so what a network makes of a sample must not depend on the
        others in its batch. Here, the second half of a batch are samples that the network alone does not see.

        Raises:
            NotStackableError: A network does not do the same.
        """
        of_splits = (
            ("train", self.train_inputs, self.layout.width),
            ("val", self.val_inputs, len(self.members[0].val.target)),
        )
        for split, inputs, width in of_splits:
            for role, stack in self.stacks.items():
                known = min((width + 1) // 2, *inputs[role].counts)
                rows = torch.arange(width)
                rows[known:] = 0
                stack.training = split == "train"
                with torch.set_grad_enabled(stack.training), unfused_attention():
                    found = stack(inputs[role].rows(rows, self.copies)).detach()
                for number, one in enumerate(self.members):
                    alone = _alone(one.training, getattr(one, split), role, split, known)
                    if found.shape[1:] != (width, *alone.shape[1:]):
                        raise NotStackableError(f"the {role} returns other shapes for several networks at once")
                    largest = float(alone.abs().nan_to_num(posinf=0).max())
                    here = found[number, :known].cpu()
                    if not torch.allclose(here, alone, rtol=1e-3, atol=1e-4 * largest, equal_nan=True):
                        raise NotStackableError(
                            f"the {role} returns something else for several networks at once, or what it returns for a "
                            "sample depends on the others in the batch"
                        )
        return found

    def _targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """What each network is to learn of each of its training pairs.

        Returns:
            (T, K) of labels, times their weight; (T, K) of teachers, times theirs; (T,) sum of p log p of the latter,
            times their weight. T counts the training pairs of all networks, one network after the other.
        """
        counts = self.train_inputs[self.roles[0]].counts
        labels, taught = (torch.zeros(sum(counts), self.num_classes, dtype=self.dtype) for _ in range(2))
        entropy, first = torch.zeros(sum(counts), dtype=self.dtype), 0
        for one, count in zip(self.members, counts, strict=True):
            terms, target = one.terms, one.train.target
            weights = torch.ones(self.num_classes, dtype=self.dtype)
            if terms.weighted is not None:
                weights = terms.weighted.of_classes(self.num_classes, target.device).to(self.dtype)
            known = labels[first : first + len(target)]
            known.scatter_(1, target.unsqueeze(1), weights[target].unsqueeze(1))
            known.mul_(1 - terms.smoothing).add_(terms.smoothing / self.num_classes).mul_(terms.label_weight)
            if terms.teacher_logits is not None and terms.teacher_weight:
                rows = slice(first, first + count)
                logs = (terms.teacher_logits.cpu().to(self.dtype) / terms.temperature).log_softmax(1)
                weight = terms.teacher_weight / (self.num_classes if terms.per_class else 1)
                torch.exp(logs, out=taught[rows]).mul_(weight)
                entropy[rows] = logs.mul_(taught[rows]).sum(1)
            first += count
        return labels.to(self.device), taught.to(self.device), entropy.to(self.device)

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
            return found.mul_(share.unsqueeze(-1)).transpose(2, 3).contiguous()

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

    def rows(self, rows: Tensor, copies: int) -> Tensor:
        """(R + copies, N, ...) inputs of each network at positions (N,) in its data."""
        return self.all[(self.starts(copies) + rows).to(self.all.device)]

    def of_all(self, copies: int) -> Tensor:
        """(R + copies, N, ...) all inputs of each network, which all have as many."""
        if self._stacked is None:
            self._stacked = self.rows(torch.arange(self.counts[0]), copies)
        return self._stacked


def _alone(training: Training, held: PairedBatch, role: str, split: str, count: int) -> Tensor:
    """Logits (count, K) of one network on its own, whose first call checks all targets of the split.

    Raises:
        NotStackableError: A forward pass changes the network.
        InputError: A target is wrong, or the network cannot be used.
    """
    objective = training.objective
    objective.split = split
    network = objective.networks[role]
    modes = [(module, module.training) for module in network.modules()]
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    batch, rows = PairedBatch(*(part[:count] for part in held)), torch.arange(count)
    try:
        network.train(split == "train")
        with torch.no_grad(), unfused_attention(), placed(training.device, network):
            logits = objective.logits(to_device(batch, training.device), rows, role).cpu()
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
