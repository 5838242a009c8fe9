"""A forecast of what plain distillation will gain, in units of the task's metric, before any network is trained.

The last hidden layers of networks with random weights are good features of their inputs, and a regression on them that
almost interpolates its training pairs stands in for a trained network. So distillation is rehearsed by regressions: a
teacher is fitted to the labels, a student to the labels, and another student to the labels and to what that teacher
says of all training pairs. The forecast is the difference between both students on held-out pairs, times a factor
fitted to measured gains. The interval says how far such forecasts were from measured gains. `research/verdict` holds
these measurements, and the forecasts of data that were not used to fit anything.

In dense prediction the samples are positions, a few of each item. What is drawn and held out are whole items, because
positions of one item are alike.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from mfh.data.epochs import PairLoader, all_targets
from mfh.data.pairs import Nested, PairedBatch, only_role, tensors, to_device
from mfh.errors import InputError
from mfh.networks.modes import evaluating, placed
from mfh.networks.precision import at_least_single
from mfh.problems.losses import KDLoss
from mfh.problems.problem import Problem
from mfh.saliency.masks import masked_logits
from mfh.saliency.probe import read_features
from mfh.studies import positions
from mfh.studies.criteria import HALF_WIDTH, Measure, sampled_rows
from mfh.studies.networks import Networks, Role
from mfh.tasks.resplit import within_classes

#: Features to collect over networks with other random weights, and networks at most.
_FEATURES, _NETWORKS = 2048, 32
#: Bytes of inputs that are kept in memory rather than read again for every network.
_MEMORY = 2**28
#: Labelled, other and held-out pairs to read at most.
_LABELLED, _OTHERS, _HELD_OUT = 1000, 1500, 1000
#: Penalty of the regressions, relative to the mean square of the features: they almost interpolate, as networks do.
PENALTY = 1e-5
#: A trained teacher is surer than a regression: the power of its probabilities.
SHARPNESS = 4
#: How often the labelled pairs are drawn anew.
DRAWS = 5
#: Measured gain over rehearsed gain, and the standard deviation of the rest in points, fitted in research/verdict.
SLOPE, SPREAD = 1.14, 2.9
#: The standard deviation where a teacher has learned from the very pairs that it labels, and there are no others: 0.34
#: points in the six settings of all labels, rounded up because settings with fewer labels were not among them.
SPREAD_LABELLED = 1.0
#: What a soft mask changed of the gain in 78 real settings, in points: mean and 90 % interval over settings. No
#: criterion told its size in a setting better than this mean (research/verdict/focus.py).
MASKED = Measure(-0.35, -1.8, 1.1)


@dataclass(frozen=True)
class Forecast:
    """What plain distillation (the arm `regular`) is expected to gain over the same training without a teacher.

    Args:
        gain: Expected gain with all training pairs, in units of the metric (points of accuracy), above 0 where the
            student gets better, with a 90 % interval.
        labelled_only: The same without the unlabelled pairs.
        lead: How far the rehearsed teacher is ahead of the rehearsed student, in the same units.
        masked: What a soft mask may add to the gain of plain distillation, in points: the mean and the interval of real
            settings, the same for all tasks of classification.
        shift: How well a regression on the student's input tells labelled from unlabelled pairs, as an AUROC: near 0.5
            where both are alike, 1 where they are of different kinds.
    """

    gain: Measure
    labelled_only: Measure
    lead: Measure
    masked: Measure
    shift: Measure


def forecast(networks: Networks, *, draws: int = DRAWS) -> Forecast:
    """Rehearse distillation on features of untrained networks. The test split is not read.

    No network is trained, unless the teacher learns from data of its own (`Task.teacher_train`).

    Labelled pairs are drawn from the training and validation splits together, as many as the training split has, and
    the rest is held out. Splits that are made of groups stay as they are. So do those of a task whose teacher is given
    or learns from data of its own; that teacher's outputs are used then.

    Args:
        networks: The networks of one seed, with their task and settings.
        draws: How often the labelled pairs are drawn.

    Returns:
        The forecast.

    Raises:
        InputError: Features of a network are not finite or, in dense prediction, have no positions.
    """
    task = networks.task
    rows = _Rows.of(networks)
    student = _gram(_features(networks, "student", rows))
    given = _teacher_is_given(networks)
    fitted = len(rows.train) + len(rows.val)  # a teacher is fitted to pairs with labels
    teacher = _outputs_of_teacher(networks, rows) if given else _gram(_features(networks, "teacher", rows), fitted)
    fixed = given or "groups" in task.facts
    found = []
    for draw in range(1 if fixed else draws):
        labelled, held_out = (rows.train, rows.val) if fixed else rows.drawn(networks.seed + draw)
        found.append(_rehearse(networks, rows, student, teacher, given, labelled, held_out))
    gains = torch.tensor(found, dtype=torch.float64)
    labelled_spread = SPREAD if given else SPREAD_LABELLED
    spreads = (SPREAD if len(rows.others) else labelled_spread, labelled_spread)
    gain, labelled_only = (_measure(gains[:, place], spreads[place], task.problem) for place in range(2))
    measured = task.problem.name == "classification" and task.problem.metric.percent
    masked = MASKED if measured else Measure(None, note="measured for classes and metrics in percent only")
    lead = Measure(float(gains[:, 2].mean()))
    return Forecast(gain, labelled_only, lead, masked, _shift(student, rows, networks.seed))


def _measure(values: Tensor, spread: float, problem: Problem) -> Measure:
    """Rehearsed gains as a forecast."""
    value = float(values.mean())
    if problem.name == "dense prediction":
        return Measure(value, note="rehearsed only: the size is not confirmed for dense prediction")
    if not problem.metric.percent:
        return Measure(value, note="rehearsed only: measured gains are known for metrics in percent")
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    half_width = HALF_WIDTH * math.hypot(spread, SLOPE * error)
    return Measure(SLOPE * value, SLOPE * value - half_width, SLOPE * value + half_width)


@dataclass(frozen=True)
class _Rows:
    """Samples that are read, in one list of labelled, validation and other training pairs.

    A pair is one row; in dense prediction it is several rows in turn, one for each of its places.

    Args:
        parts: Data sets and positions in them, in the order of the list.
        train: Rows of the labelled training pairs, (n,).
        val: Rows of the validation pairs.
        others: Rows of the other training pairs.
        each_labelled: How many pairs each labelled pair stands for.
        each: How many pairs each other pair stands for.
        targets: Targets as numbers (N, K), of the labelled and validation rows; zeros elsewhere.
        raw: The same as the metric takes them.
        places: Where in each pair its rows are, (pairs, rows of a pair, dimensions), see `positions`; None where a pair
            is one row.
        all_count: Whether every position of the labelled pairs has a class that counts.
    """

    parts: tuple[tuple[object, list[int]], ...]
    train: Tensor
    val: Tensor
    others: Tensor
    each_labelled: float
    each: float
    targets: Tensor
    raw: Tensor
    places: Tensor | None = None
    all_count: bool = True

    @staticmethod
    def of(networks: Networks) -> "_Rows":
        task, seed, problem = networks.task, networks.seed, networks.task.problem
        dense = problem.name == "dense prediction"
        per_pair = positions.PER_ITEM if dense else 1
        target, val_target = all_targets(task.train), all_targets(task.val)
        usable = _usable(problem, target)
        train, val = (
            complete[sampled_rows(len(complete), most // per_pair, seed)].tolist()
            for complete, most in ((usable, _LABELLED), (_usable(problem, val_target), _HELD_OUT))
        )
        count = len(task.pairs) - len(task.train)
        others = sampled_rows(count, _OTHERS // per_pair, seed)
        labelled, places = [target[train], val_target[val]], None
        if dense:
            found = [positions.labelled_places(problem, part, seed) for part in labelled]
            labelled = [classes for classes, _ in found]
            places = torch.cat(
                [*(where for _, where in found), positions.any_places(len(others), target.ndim - 1, seed)]
            )
        raw = torch.cat(labelled)
        starts = (per_pair * len(train), len(raw))
        place = torch.arange(starts[1] + per_pair * len(others))
        return _Rows(
            ((task.train, train), (task.val, val), (task.pairs, [len(task.train) + row for row in others])),
            place[: starts[0]],
            place[starts[0] : starts[1]],
            place[starts[1] :],
            len(usable) / len(train),
            count / max(1, len(others)),
            _numbers(problem, raw),
            raw,
            places,
            not dense or bool(positions.has_class(problem, target[train]).all()),
        )

    def drawn(self, seed: int) -> tuple[Tensor, Tensor]:
        """Labelled and held-out rows: of other pairs, as many, and with the same share of each class."""
        order = self.shuffled(torch.cat([self.train, self.val]), seed)
        if self.raw.ndim == 1 and not self.raw.is_floating_point() and self.places is None:
            before, size = within_classes(self.raw.numpy(), order.numpy())
            order = order[torch.from_numpy((before + 0.5) / size).argsort(stable=True)]
        return order[: len(self.train)], order[len(self.train) :]

    def shuffled(self, rows: Tensor, seed: int) -> Tensor:
        """These rows in another order, those of a pair together."""
        pairs = rows.reshape(-1, 1 if self.places is None else self.places.shape[1])
        return pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))].flatten()

    def features(self, network: nn.Module, layer: str | None, inputs: "_Inputs", device: torch.device) -> Tensor:
        """(rows, F) features of a network on the inputs of all pairs in turn."""
        if self.places is None:
            return read_features(network, layer, inputs, device)
        with placed(device, network), evaluating(network):
            maps = (positions.feature_map(network, layer, to_device(part, device)).cpu() for part in inputs)
            try:
                return self.at_places(maps, f"the {inputs.role}'s features")
            except InputError as error:
                if inputs.role == "teacher":
                    raise
                raise InputError(f"{error}; name a layer that keeps the positions as student_layer") from None

    def at_places(self, maps: Iterable[Tensor], what: str) -> Tensor:
        """(rows, C) what maps of all pairs in turn show at the places of their rows."""
        assert self.places is not None
        found, start = list[Tensor](), 0
        for part in maps:
            found.append(positions.at_places(part, self.places[start : start + len(part)], what))
            start += len(part)
        return torch.cat(found)

    def batches(self, role: Role, workers: int) -> Iterator[PairedBatch]:
        """The pairs in the order of the rows, read for one role."""
        for dataset, chosen in self.parts:
            if chosen:
                yield from PairLoader(Subset(only_role(dataset, role), chosen), num_workers=workers)


def _usable(problem: Problem, target: Tensor) -> Tensor:
    """Which pairs have all of their labels; in dense prediction, at least one."""
    if problem.name == "dense prediction":
        return positions.has_class(problem, target).flatten(1).any(1).nonzero()[:, 0]
    known = problem.known(target)
    return (known.flatten(1).all(1) if target.ndim > 1 else known).nonzero()[:, 0]


def _numbers(problem: Problem, target: Tensor) -> Tensor:
    """Targets as numbers (N, K) to regress on."""
    if problem.categorical:
        return nn.functional.one_hot(target.long()).double()
    return target.double().flatten(1) if target.ndim > 1 else target.double()[:, None]


def _gram(features: Tensor, columns: int | None = None) -> Tensor:
    """(N, columns) products of centred features with the first ones, scaled so that the mean square is 1."""
    square = features.square().sum(1).double().mean().clamp_min(1e-300)
    return (features @ features[:columns].T).double() / square


def _features(networks: Networks, role: Role, rows: _Rows) -> Tensor:
    """(N, F) features of all pairs by untrained networks, one after the other, centred."""
    factory: Callable[[], nn.Module] | None = networks.task.teacher if role == "teacher" else networks.task.student
    assert factory is not None
    layer = networks.task.student_layer if role == "student" and isinstance(networks.task.student_layer, str) else None
    inputs = _Inputs(rows, role, networks.recipe.num_workers)
    found, wanted = list[Tensor](), 1
    while len(found) < wanted:
        with torch.random.fork_rng():
            torch.manual_seed(1000 * networks.seed + len(found) + (0 if role == "teacher" else 500))
            network = factory()
        features = rows.features(network, layer, inputs, networks.device)
        if not found:
            wanted = min(_NETWORKS, math.ceil(_FEATURES / features.shape[1]))
        elif len(found) == 1 and torch.equal(found[0], features):
            break  # the network comes with its weights
        found.append(finite(at_least_single(features), f"untrained {role}"))
    features = torch.cat(found, 1)
    return features - features.mean(0)


def finite(features: Tensor, whose: str) -> Tensor:
    """The features of a network.

    Raises:
        InputError: They are not finite.
    """
    if not torch.isfinite(features).all():
        raise InputError(
            f"features of the {whose} are not finite; check the network and its inputs (`mfh check TASK` lists bad "
            "items)"
        )
    return features


class _Inputs:
    """Inputs of one role, batch by batch, as often as they are wanted: from memory where they are small.

    Args:
        rows: The pairs.
        role: Whose inputs to read.
        workers: Number of processes that read.
    """

    def __init__(self, rows: _Rows, role: Role, workers: int) -> None:
        self.role, self._rows, self._workers = role, rows, workers
        self._kept: list[Nested] | None = None

    def __iter__(self) -> Iterator[Nested]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, size = list[Nested](), 0
        for batch in self._rows.batches(self.role, self._workers):
            inputs = batch.teacher_input if self.role == "teacher" else batch.student_input
            size += sum(part.nbytes for part in tensors(inputs))
            if size <= _MEMORY:
                kept.append(inputs)
            else:
                kept.clear()
            yield inputs
        self._kept = kept if size <= _MEMORY else None


def _teacher_is_given(networks: Networks) -> bool:
    task = networks.task
    checkpoint = networks.settings.files.teacher_checkpoint or task.teacher_checkpoint
    return checkpoint is not None or task.teacher_train is not None


def _outputs_of_teacher(networks: Networks, rows: _Rows) -> Tensor:
    """(N, K) what the teacher that exists says, as probabilities or numbers."""
    teacher, batches = networks.pretrained("teacher").frozen, rows.batches("teacher", networks.recipe.num_workers)
    if rows.places is None:
        logits = masked_logits(teacher, [None], batches, device=networks.device)[0].double()
    else:
        maps = (masked_logits(teacher, [None], [batch], device=networks.device)[0] for batch in batches)
        logits = rows.at_places(maps, "the teacher's logits").double()
    if networks.task.problem.categorical:
        return logits.softmax(1)[:, : rows.targets.shape[1]]
    return logits.sigmoid() if networks.task.problem.name == "multi-label classification" else logits.flatten(1)


def _rehearse(
    networks: Networks,
    rows: _Rows,
    student: Tensor,
    teacher: Tensor,
    given: bool,
    labelled: Tensor,
    held_out: Tensor,
) -> tuple[float, float, float]:
    """Gain with all pairs, gain with the labelled ones alone, and the teacher's lead, in shown units."""
    problem, targets = networks.task.problem, rows.targets
    loss = networks.protocol.loss if isinstance(networks.protocol.loss, KDLoss) else KDLoss()
    known, pairs = targets[labelled], torch.cat([labelled, rows.others])
    if given:
        says, judged = teacher[pairs], teacher[held_out]
    else:
        equal = torch.full((len(labelled),), 1.0 / len(labelled), dtype=torch.float64)
        says, judged = _regression(teacher, labelled, known, equal, (pairs, held_out))
        says = _sharpened(problem, says)
        says[: len(labelled)] = known  # a trained network knows its own training pairs by heart

    def student_of(number: int) -> Tensor:
        """What the student says of held-out pairs after distillation on the first pairs; 0: without a teacher."""
        rows_of = pairs[: number or len(labelled)]
        stands_for = torch.full((len(rows_of),), rows.each_labelled, dtype=torch.float64)
        stands_for[len(labelled) :] = rows.each
        taught = (loss.teacher_weight if number else 0.0) * stands_for / stands_for.sum()
        told = torch.zeros_like(taught)
        told[: len(labelled)] = (loss.label_weight if number else 1.0) / len(labelled)
        weights = taught + told
        wanted = says[: len(rows_of)] * taught[:, None]
        wanted[: len(labelled)] += known * told[: len(labelled), None]
        (found,) = _regression(student, rows_of, wanted / weights[:, None], weights / weights.sum(), (held_out,))
        return found

    def metric(outputs: Tensor) -> float:
        scale = problem.metric.scale
        shaped = outputs.float() if rows.raw.ndim > 1 or problem.categorical else outputs[:, 0].float()
        return scale.sign * scale.factor * problem.metric.of(shaped, rows.raw[held_out])

    alone = metric(student_of(0))
    # A teacher that repeats the labels of its own training pairs changes nothing there.
    on_labelled = metric(student_of(len(labelled))) - alone if given else 0.0
    gain = metric(student_of(len(pairs))) - alone if len(rows.others) else on_labelled
    return gain, on_labelled, metric(judged) - alone


def _regression(
    gram: Tensor,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    wanted: tuple[Tensor, ...],
    *,
    penalty: float = PENALTY,
) -> list[Tensor]:
    """Predictions of a kernel regression, fitted with weights that add to 1, for several sets of rows."""
    level = (weights[:, None] * targets).sum(0)
    system = gram[rows][:, rows].clone()
    system.diagonal().add_(penalty / weights)
    solved = torch.cholesky_solve(targets - level, torch.linalg.cholesky(system))
    return [gram[some][:, rows] @ solved + level for some in wanted]


def _shift(student: Tensor, rows: _Rows, seed: int) -> Measure:
    """AUROC of labelled against other training pairs, fitted on one half of the pairs and judged on the other."""
    if not len(rows.others):
        return Measure(None, note="there are no unlabelled pairs")
    if not rows.all_count:
        return Measure(None, note="not compared, because positions without a class are only among the unlabelled ones")
    pairs = rows.shuffled(torch.cat([rows.train, rows.others]), seed)
    told = (pairs < len(rows.train)).double()
    half = len(pairs) // 2
    if rows.places is not None:
        half -= half % rows.places.shape[1]  # no pair is on both sides
    fitting, judged = pairs[:half], pairs[half:]
    if not 0 < told[half:].sum() < len(judged):
        return Measure(None, note="there are too few pairs to compare")
    weights = torch.full((len(fitting),), 1.0 / len(fitting), dtype=torch.float64)
    (says,) = _regression(student, fitting, told[:half, None], weights, (judged,), penalty=1e-2)
    ranks, known = says[:, 0].argsort().argsort().double() + 1, told[half:] == 1
    positive = int(known.sum())
    above = float(ranks[known].sum()) - positive * (positive + 1) / 2
    return Measure(above / (positive * (len(judged) - positive)))


def _sharpened(problem: Problem, says: Tensor) -> Tensor:
    """What a regression says as a trained network would: probabilities that are surer."""
    if problem.categorical:
        powers = says.clamp_min(1e-6) ** SHARPNESS
        return powers / powers.sum(1, keepdim=True)
    if problem.name == "multi-label classification":
        sure = says.clamp(1e-6, 1 - 1e-6)
        return sure**SHARPNESS / (sure**SHARPNESS + (1 - sure) ** SHARPNESS)
    return says
