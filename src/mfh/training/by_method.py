"""Distillation by a method of `mfh.methods`: features, the method's own modules, what is deployed."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfh.data.epochs import PairLoader, generators_kept, reads_the_same
from mfh.data.pairs import AllPairs, Nested, PairedBatch, as_batch, fetch, num_samples, only_role, to_device
from mfh.data.spool import IN_MEMORY_BYTES, Rows
from mfh.data.teacher_outputs import check_finite
from mfh.errors import FOREIGN, InputError, foreign
from mfh.methods.batch import Batch, Context, Method
from mfh.methods.checks import warn_once
from mfh.methods.finding import name_of, reads_features
from mfh.networks.calling import call
from mfh.networks.cut import split
from mfh.networks.layers import as_logits
from mfh.networks.modes import device_of, evaluating, original, placed, reading_samples
from mfh.networks.precision import at_least_single
from mfh.networks.taps import Reader, Tap, find_taps
from mfh.parallel.distributed import part, share_rows
from mfh.problems.problem import Problem
from mfh.training.checks import no_loss
from mfh.training.loop import seeded
from mfh.training.objectives import Taught

log = logging.getLogger("mfh")

# Seeds of the method's own modules must not be those of anything else.
_OWN_SEED = 777_767_777


@dataclass(frozen=True)
class Lesson:
    """What a method learns from, and how it is weighed.

    Args:
        teacher: The teacher; None where only its outputs are known.
        logits: (pairs, K, ...), the teacher's logits on all training pairs, labelled ones first, if they are known.
        features: (pairs, C, *positions) by teacher layer, likewise.
        channel_weights: (C,) by teacher layer, the focus of a method of features.
        channel_dim: Dimension of the teacher's layers that counts channels; see `find_taps`.
        student_channel_dim: The same for the student's layers.
        label_weight: Weight of the label loss; None for the method's own.
        teacher_weight: Weight of the method's loss, likewise.
    """

    teacher: nn.Module | None = None
    logits: Tensor | None = None
    features: Mapping[str, Tensor] | None = None
    channel_weights: Mapping[str, Tensor] | None = None
    channel_dim: int | None = None
    student_channel_dim: int | None = None
    label_weight: float | None = None
    teacher_weight: float | None = None


class ByMethod(Taught):
    """Trains a student on labels and by a method, whose modules are trained with it.

    Args:
        student: Student to train.
        problem: What logits and targets mean.
        method: The method.
        lesson: What it learns from; its outputs are computed already, or are computed on every batch.
        readers: Readers of the student's features, and of the teacher's where they are computed on every batch.
        context: What the method begins with.
        teacher: The copy of the teacher that is trained too; None without one.
    """

    def __init__(
        self,
        student: nn.Module,
        problem: Problem,
        method: Method,
        lesson: Lesson,
        readers: Mapping[str, Reader],
        context: Context,
        teacher: nn.Module | None,
    ) -> None:
        super().__init__({"student": student} if teacher is None else {"teacher": teacher, "student": student}, problem)
        self.method, self.readers, self.context = method, readers, context
        self.computes = f"loss of the method {name_of(method)}"
        self.label_weight = method.label_weight if lesson.label_weight is None else lesson.label_weight
        self.teacher_weight = method.teacher_weight if lesson.teacher_weight is None else lesson.teacher_weight
        self._checked = False
        self.method_modules = self._begun(context)
        self.deployed = self._deployed(student)
        self._features = dict(lesson.features or {})
        self._far = sum(rows.nbytes for rows in self._features.values()) > IN_MEMORY_BYTES
        for number, rows in enumerate(self._features.values()):
            self.register_buffer(f"teacher_features_{number}", None if self._far else rows, persistent=False)
        self._weights = context.channel_weights
        self.teach(lesson.logits if teacher is None else None, lesson.teacher)

    def _begun(self, context: Context) -> nn.Module | None:
        with foreign(f"method {name_of(self.method)} cannot begin"):
            modules = self.method.begin(context)
        if modules is not None and not isinstance(modules, nn.Module):
            raise InputError(
                f"begin() of method {name_of(self.method)} returned a {type(modules).__name__}; an nn.Module or None "
                "was expected"
            )
        return modules

    def _deployed(self, student: nn.Module) -> nn.Module | None:
        """What is kept, where that is not the student itself."""
        with foreign(f"deploy() of method {name_of(self.method)} failed"):
            deployed = self.method.deploy(student, self.method_modules)
        if not isinstance(deployed, nn.Module):
            raise InputError(
                f"deploy() of method {name_of(self.method)} returned a {type(deployed).__name__}; an nn.Module was "
                "expected"
            )
        if deployed is student:
            return None
        trained = {id(parameter) for parameter in self.trained()}
        for parameter in deployed.parameters():
            if id(parameter) not in trained:  # for instance a head of the teacher
                parameter.requires_grad_(False)
        return deployed

    def kept(self, role: str) -> nn.Module:
        """The student as it is deployed."""
        return self.networks[role] if role == "teacher" or self.deployed is None else self.deployed

    def trained(self) -> list[nn.Parameter]:
        """Parameters of the networks and of the method's modules."""
        own = [] if self.method_modules is None else list(self.method_modules.parameters())
        return list(dict.fromkeys([*self.networks.parameters(), *own]))

    def normalised(self) -> nn.Module:
        """The networks, and the batch normalisation of the method's modules; queues are the method's business."""
        own = [] if self.method_modules is None else list(self.method_modules.modules())
        return nn.ModuleList([self.networks, *(module for module in own if isinstance(module, _BatchNorm))])

    def index_device(self, device: torch.device) -> torch.device:
        """Large outputs are looked up on the CPU."""
        return torch.device("cpu") if self._far else super().index_device(device)

    @property
    def extra_parameters(self) -> int:
        """Number of parameters that the method trains beside the student."""
        student = {id(parameter) for parameter in self.networks["student"].parameters()}
        return sum(p.numel() for p in self.trained() if id(p) not in student and p.requires_grad)

    @property
    def extra_bytes(self) -> int:
        """Bytes that the method holds beside the student: its modules, and cached features of the teacher."""
        modules = [*self.networks.values(), *([] if self.method_modules is None else [self.method_modules])]
        student = {id(tensor) for tensor in _tensors(self.networks["student"])}
        own = {id(tensor): tensor for module in modules for tensor in _tensors(module) if id(tensor) not in student}
        return sum(tensor.nbytes for tensor in [*own.values(), *self._features.values()])

    def loss(self, batch: PairedBatch, indices: Tensor, label_share: float = 1.0) -> Tensor:
        """label_weight x label loss over labelled pairs + teacher_weight x the method's loss."""
        reader = self.readers["student"]
        reader.clear()
        logits = self.logits(batch, indices, "student")
        student_features = reader.take(len(logits)) if reader.taps else {}
        taught, teacher_features = self._teacher(batch, indices, logits.device)
        known, method = len(batch.target), self.method
        rows = slice(0, known if method.needs_labels else len(logits))
        share = label_share if method.needs_labels else 1.0
        total: Any = None
        if not method.owns_labels and self.label_weight:
            label = self.problem.known_loss(logits[:known], batch.target) if known else logits.sum() * 0
            total = self.label_weight * label_share * label
        if rows.stop == 0:  # no labelled pair in this batch, and gradients that several processes can share
            term = sum((parameter.sum() * 0 for parameter in self.trained()), logits.sum() * 0)
        else:
            seen = Batch(
                student_logits=logits[rows],
                teacher_logits=taught[rows],
                target=_filled(batch.target, len(logits))[rows],
                labelled=torch.arange(len(logits), device=logits.device)[rows] < known,
                index=indices.to(logits.device)[rows],
                epoch=self.epoch,
                student_features={name: value[rows] for name, value in student_features.items()},
                teacher_features={name: value[rows] for name, value in teacher_features.items()},
                modules=self.method_modules,
                channel_weights=self._weights_on(logits.device),
            )
            term = method.loss(seen)
            if not self._checked or not isinstance(term, Tensor):
                self._refuse(term)
        term = self.teacher_weight * share * term
        return term if total is None else total + term

    def rehearse(self, batch: PairedBatch) -> None:
        """Compute the loss of one batch, in train mode, and forget it.

        Raises:
            InputError: There is no loss to minimise, or the method or a network fails.
        """
        self.train()
        with generators_kept(torch.device("cpu")):
            self(batch, torch.arange(num_samples(batch.student_input)))

    def _refuse(self, term: Any) -> None:
        """Refuse what cannot be minimised; asked once, because a later batch may well have nothing to say."""
        wrong = no_loss(term)
        if wrong is not None:
            raise InputError(f"the {self.computes} returned {wrong}")
        self._checked = True

    def _teacher(self, batch: PairedBatch, indices: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """The teacher's logits and features of a batch: looked up, or computed."""
        reader = self.readers.get("teacher")
        if reader is None:
            return self.taught(batch, indices, device), self._looked_up(indices, device)
        reader.clear()
        trained = "teacher" in self.networks
        taught = self.logits(batch, indices, "teacher") if trained else self.taught(batch, indices, device)
        features = reader.take(len(taught)) if reader.taps else {}
        return taught, {name: at_least_single(value.to(device)) for name, value in features.items()}

    def _weights_on(self, device: torch.device) -> dict[str, Tensor]:
        """The channels' weights, moved once and not with every batch."""
        if any(value.device != device for value in self._weights.values()):
            self._weights = {name: value.to(device) for name, value in self._weights.items()}
        return dict(self._weights)

    def _looked_up(self, indices: Tensor, device: torch.device) -> dict[str, Tensor]:
        if self._far:
            return {name: at_least_single(to_device(rows[indices], device)) for name, rows in self._features.items()}
        return {
            name: at_least_single(getattr(self, f"teacher_features_{number}").index_select(0, indices.to(device)))
            for number, name in enumerate(self._features)
        }


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _filled(target: Tensor, count: int) -> Tensor:
    """Targets of labelled pairs, and some valid ones for the unlabelled pairs behind them."""
    missing = count - len(target)
    if not missing:
        return target
    filler = target[:1] if len(target) else target.new_zeros(1, *target.shape[1:])
    return torch.cat([target, filler.expand(missing, *filler.shape[1:])])


# --- what a method begins with ----------------------------------------------------------------------------------------


@contextmanager
def begun(
    method: Method,
    lesson: Lesson,
    student: nn.Module,
    train: Any,
    problem: Problem,
    *,
    seed: int,
    device: torch.device,
    num_workers: int = 0,
    epochs: int | None = None,
) -> Iterator[ByMethod]:
    """A method that is ready to train a student, whose features are read while the block lasts.

    Args:
        method: The method.
        lesson: What it learns from. Outputs of a frozen teacher that are not known are computed here, once.
        student: The student.
        train: Training pairs, `AllPairs` where some have no label.
        problem: What logits and targets mean.
        seed: Seed of the training. What the method draws has a seed of its own, so that all arms of a seed have the
            same students and data.
        device: Device to run the teacher on.
        num_workers: Number of processes that read the data.
        epochs: Number of epochs that the training has, at most.

    Raises:
        InputError: A layer is missing, the teacher is not as the method needs it, or the method cannot work with these
            networks.
    """
    teacher, labelled = lesson.teacher, len(train.labelled) if type(train) is AllPairs else len(train)
    _refuse_unknown(method, lesson)
    warn_of_labels(method, unlabelled=labelled < len(train), weighted=lesson.label_weight is not None)
    if method.trains_teacher:
        assert teacher is not None
        teacher = copy.deepcopy(original(teacher)).requires_grad_(True)
        lesson = replace(lesson, teacher=teacher, logits=None, features=None)
    student_taps = find_taps(student, method.student_layers, "student", lesson.student_channel_dim)
    teacher_taps = () if teacher is None else find_taps(teacher, method.teacher_layers, "teacher", lesson.channel_dim)
    with generators_kept(device):
        if not method.trains_teacher:
            lesson = _computed(lesson, teacher_taps, train, device, num_workers)
            if lesson.logits is not None:
                check_finite(lesson.logits, pairs=train)
            for name, rows in (lesson.features or {}).items():
                check_finite(rows, what=f"features ({name})", pairs=train)
        few = fetch(train, range(min(2, len(train))))
        student_features, student_logits = _outputs(student, student_taps, few.student_input, "student")
        teacher_features = lesson.features
        if teacher_features is None and teacher is not None:
            teacher_features, _ = _outputs(teacher, teacher_taps, few.teacher_input, "teacher")
    own = (seed * 1_000_003 + _OWN_SEED) % 2**63
    context = Context(
        problem=problem,
        student=student,
        teacher=teacher,
        student_shapes=_shapes(student_features),
        teacher_shapes=_shapes(teacher_features or {}),
        logits_shape=tuple(student_logits.shape[1:]),
        teacher_logits=lesson.logits,
        teacher_features=lesson.features or {},
        num_labelled=labelled,
        num_pairs=len(train),
        channel_weights=_weights(lesson.channel_weights, teacher_features or {}),
        teacher_tails=_Tails(teacher, teacher_taps, few.teacher_input),
        seed=own,
        student_channel_dim=lesson.student_channel_dim,
        epochs=epochs,
    )
    readers = {"student": Reader(student, student_taps)}
    if teacher is not None and (lesson.logits is None or (teacher_taps and lesson.features is None)):
        readers["teacher"] = Reader(teacher, teacher_taps)
    with seeded(own, device):
        objective = ByMethod(
            student, problem, method, lesson, readers, context, teacher if method.trains_teacher else None
        )
    with ExitStack() as stack:
        for reader in readers.values():
            stack.enter_context(reader)
        yield objective


def warn_of_labels(method: Method, *, unlabelled: bool, weighted: bool) -> None:
    """Say once what labels have no effect on.

    Args:
        method: The method.
        unlabelled: Whether there are pairs without a label.
        weighted: Whether a weight of the label loss was given.
    """
    if method.needs_labels and unlabelled:
        warn_once(f"method {name_of(method)} needs labels: it learns nothing from the pairs without one")
    if method.owns_labels and weighted:
        warn_once(
            f"label_weight has no effect on method {name_of(method)}, which has no label loss beside its own loss"
        )


def _refuse_unknown(method: Method, lesson: Lesson) -> None:
    """Refuse a method that needs more of the teacher than is known."""
    name = name_of(method)
    if lesson.teacher is None and method.trains_teacher:
        raise InputError(
            f"method {name} trains the teacher, of which only outputs are known; give the network, or choose another "
            "method"
        )
    if lesson.teacher is None and reads_features(method) and not lesson.features:
        raise InputError(
            f"method {name} reads features of the teacher, of which only the logits are known; give the network or "
            "teacher_features, or choose a method of logits"
        )


def _computed(lesson: Lesson, taps: Sequence[Tap], train: Any, device: torch.device, num_workers: int) -> Lesson:
    """The lesson with all outputs of a frozen teacher, where they can be computed once."""
    teacher = lesson.teacher
    wants_features = bool(taps) and lesson.features is None
    if teacher is None or not (wants_features or lesson.logits is None):
        return lesson
    if not reads_the_same(train):
        log.warning("teacher inputs differ when read twice (augmented?): the teacher runs on every batch")
        return replace(lesson, logits=None, features=None)
    pairs = PairLoader(part(only_role(train, "teacher")), num_workers=num_workers, split="train")
    logits, features = teacher_features(teacher, taps if wants_features else (), pairs, device=device)
    return replace(
        lesson,
        logits=logits if lesson.logits is None else lesson.logits,
        features=features if wants_features else lesson.features,
    )


def teacher_features(
    teacher: nn.Module, taps: Sequence[Tap], pairs: Iterable[Any], *, device: torch.device | str | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """A frozen teacher's logits and features on all pairs, in one pass.

    Args:
        teacher: The teacher; it runs in eval mode and is left as it is.
        taps: Where to read features, as `find_taps` finds it.
        pairs: Batches, which are read once, in order. Under torch.distributed each process passes a disjoint part.
        device: Device to run on (default: where the teacher is).

    Returns:
        Logits (N, K), and features (N, C, *positions) by name, on the CPU, with the samples of all processes. What is
        larger than 2 GiB is memory-mapped.

    Raises:
        InputError: The teacher fails, or a layer does not run exactly once.
    """
    logits, features, samples = Rows(), {tap.name: Rows() for tap in taps}, 0
    with placed(device, teacher), evaluating(teacher), Reader(teacher, taps) as reader:
        home = device_of(teacher)
        for item in pairs:
            batch = as_batch(item, labelled=False)
            count = num_samples(batch.teacher_input)
            with reading_samples("teacher", samples, count):
                reader.clear()
                logits.append(as_logits(call(teacher, to_device(batch.teacher_input, home))).cpu())
                found = reader.take(count)
            for name, value in found.items():
                features[name].append(value.cpu())
            samples += count
    return share_rows(logits.finish()), {name: share_rows(rows.finish()) for name, rows in features.items()}


def _outputs(network: nn.Module, taps: Sequence[Tap], inputs: Nested, role: str) -> tuple[dict[str, Tensor], Tensor]:
    """Features and logits of a few samples."""
    with evaluating(network), Reader(network, taps) as reader:
        count = num_samples(inputs)
        with reading_samples(role, 0, count):
            logits = as_logits(call(network, to_device(inputs, device_of(network))))
            return reader.take(count), logits


def _shapes(features: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(rows.shape[1:]) for name, rows in features.items()}


def _weights(given: Mapping[str, Any] | None, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of channels, checked against the features that they belong to."""
    weights = {}
    for name, values in (given or {}).items():
        if name not in features:
            raise InputError(f"channel_weights has layer {name!r}, which the method does not read; {_read(features)}")
        weights[name] = torch.as_tensor(values, dtype=torch.float32)
        if weights[name].shape != features[name].shape[1:2] or not (weights[name] >= 0).all():
            raise InputError(
                f"channel_weights of layer {name!r} have shape {tuple(weights[name].shape)}; one number of at least 0 "
                f"for each of its {features[name].shape[1]} channels was expected"
            )
    return weights


def _read(features: Mapping[str, Tensor]) -> str:
    return f"it reads {', '.join(map(repr, features))}" if features else "it reads no features"


class Tail(nn.Module):
    """The rest of a teacher behind a layer, with frozen weights of its own: from features, channels first, to logits.

    It stays in eval mode, whatever trains around it.

    Args:
        rest: The rest of the network, a copy.
        tap: Where it begins.
        slots: Functions of the number of samples for what the rest takes beside the features.
    """

    def __init__(self, rest: nn.Module, tap: Tap, slots: Sequence[Callable[[int], Any]] = ()) -> None:
        super().__init__()
        self.rest, self.tap, self.slots = rest.requires_grad_(False), tap, tuple(slots)
        self.eval()

    def train(self, mode: bool = True) -> "Tail":  # noqa: ARG002
        """Stay in eval mode: the teacher is frozen."""
        return super().train(False)

    def forward(self, features: Tensor) -> Tensor:
        """The teacher's logits (N, K, ...) for features (N, C, *positions)."""
        more = [slot(len(features)) for slot in self.slots]
        return as_logits(self.rest(self.tap.back(features), *more))


class _Tails(Mapping[str, Callable[[Tensor], Tensor]]):
    """The rest of the teacher behind each of its layers, found when it is asked for: cutting takes time."""

    def __init__(self, teacher: nn.Module | None, taps: Sequence[Tap], inputs: Nested) -> None:
        self._teacher, self._taps = teacher, {tap.name: tap for tap in taps}
        self._inputs = inputs
        self._found: dict[str, Tail | None] = {}

    def __getitem__(self, name: str) -> Tail:
        if name not in self._found:
            self._found[name] = self._cut(self._taps[name])
        found = self._found[name]
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._taps if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _cut(self, tap: Tap) -> Tail | None:
        teacher = self._teacher
        assert teacher is not None
        with evaluating(teacher):
            inputs = to_device(self._inputs, device_of(teacher))
            features, logits = _outputs(teacher, [tap], inputs, "teacher")
            if tap.at == "input":
                tail = Tail(copy.deepcopy(original(teacher).get_submodule(tap.layer)), tap)
            else:
                alone = split(teacher, tap.layer, inputs).alone()
                if alone is None:
                    return None
                tail = Tail(copy.deepcopy(alone[0]), tap, alone[1])
            try:
                again = tail(features[tap.name])
            except FOREIGN:  # the last module alone is not the rest of the network
                return None
            same = again.shape == logits.shape and torch.allclose(again, logits, rtol=1e-4, atol=1e-5)
            return tail if same else None
