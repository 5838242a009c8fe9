"""The networks of one seed of a task: made once, kept in the run folder, and found again."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from mfh import files
from mfh.data.embeddings import alone
from mfh.data.pairs import AllPairs, fetch, tensors
from mfh.errors import InputError, foreign, refuse_difference
from mfh.methods.batch import Method
from mfh.methods.checks import warn_once
from mfh.methods.finding import facts_of, reads_features, resolve
from mfh.networks.frozen import Frozen
from mfh.networks.modes import find_device
from mfh.parallel.distributed import exists, gather, rank, world_size
from mfh.problems.losses import DistillationLoss, KDLoss
from mfh.problems.problem import Problem
from mfh.progress import doing
from mfh.saliency.scores import distance_name
from mfh.studies.folder import FORMAT, HistoryKey, NetworkKey, SeedFolder, refuse_other_format, safe_name
from mfh.studies.grid import WEIGHTS, Cell
from mfh.studies.settings import Settings
from mfh.tasks.splits import SPLITS
from mfh.tasks.task import Protocol, Task
from mfh.training.by_method import ByMethod, Lesson, begun, warn_of_labels
from mfh.training.fitting import align, distill, pretrain
from mfh.training.heads import EmbeddingHead, fit_head
from mfh.training.recipe import Recipe, describe
from mfh.training.together import hindrance, is_worthwhile, trained_elsewhere
from mfh.training.trackers import check_tracker, tracked

Role = Literal["teacher", "student"]
History = list[dict[str, float]]

#: The part of the identity that says which data and architecture a student belongs to.
_ORIGIN = ("task", "problem", "data", "networks")

#: Number of pairs with labels, and of pairs without, that every method is tried on before anything is trained; more for
#: a method that needs more.
_FEW = 16
#: Settings of the loss that the arms distilled by kd have alone.
_OF_KD = ("temperature", *WEIGHTS, "reduction", "divergence")

_SAME_OPTIONS = "use another --out, or the same options"


@dataclass(frozen=True)
class Trained:
    """A network that will not change any more.

    Args:
        frozen: The network, with its fingerprint and cuts.
        best_epoch: The epoch whose weights it has, counted from 0; None where that is not known.
        history: One mapping for each epoch of its training; empty where that is not known.
    """

    frozen: Frozen
    best_epoch: int | None = None
    history: History = dataclasses.field(default_factory=list)

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self.frozen.network


class Networks:
    """The networks of one seed of one task.

    Under torch.distributed all processes take the same steps together; the first one writes, all read.

    Args:
        task: The task as drawn for this seed.
        seed: Random seed of initial weights and of the order of data. It is the same for all arms, so that they can be
            compared in pairs.
        settings: What differs from the task's own recipe and protocol.
        folder: Where networks are kept and found again; None keeps them in memory.
        progress: Whether to show a progress bar for each training.
        methods: Methods by name that are not shipped, or not as they are shipped.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        settings: Settings,
        folder: SeedFolder | None = None,
        *,
        progress: bool = False,
        methods: Mapping[str, Any] | None = None,
    ) -> None:
        self._given_methods = methods or {}
        self._methods: dict[str, Method] = {}
        self.task, self.seed, self.settings, self.folder, self.progress = task, seed, settings, folder, progress
        self.recipe: Recipe = dataclasses.replace(task.recipe, **settings.training.changes())
        loss = _changed_loss(task.protocol.loss, settings.loss.function, settings.loss.changes())
        self.protocol: Protocol = dataclasses.replace(task.protocol, loss=loss)
        self.device = find_device(settings.execution.device)
        self._made: dict[Any, Trained] = {}
        if settings.training.logger is not None:
            check_tracker(settings.training.logger)
        if world_size() > 1:
            _ = self.identity  # before anything is made of data or networks that are not the same

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the networks made here, as JSON can hold it: options, data, architecture, given weights.

        Data are known by their number and by a digest of a few samples.

        Raises:
            InputError: It is not the same in all processes.
        """
        roles: list[Role] = ["student"] if self.task.teacher is None else ["teacher", "student"]
        given = {
            field.name: getattr(self.settings.files, field.name) for field in dataclasses.fields(self.settings.files)
        }
        given["teacher_checkpoint"] = given["teacher_checkpoint"] or self.task.teacher_checkpoint
        identity = {
            "format": FORMAT,
            "task": self.task.name,
            "problem": _problem_facts(self.task.problem),
            **self.recipe.facts(),
            "data": {name: _data_digest(data, name) for name, data in self._data().items()},
            "teacher_logits": None if self.task.teacher_logits is None else _digest([self.task.teacher_logits]),
            "networks": {role: Frozen(self.new(role)).fingerprint for role in roles},
            **{name: None if path is None else _given_digest(path) for name, path in given.items()},
        }
        first, *others = gather(identity)
        for process, theirs in enumerate(others, start=1):
            differing = [name for name, value in theirs.items() if value != first[name]]
            if differing:
                raise InputError(
                    f"task {self.task.name!r} has other {differing[0]} in process {process} than in process 0; "
                    "all processes need the same: let its function draw from generators with a fixed seed"
                )
        return identity

    @property
    def origin(self) -> dict[str, Any]:
        """What a student is kept with: its seed, and what decided its data and architecture."""
        return {"seed": self.seed, "made_with": {name: self.identity[name] for name in _ORIGIN}}

    def restored(self, cell: Cell, weights: dict[str, Any], facts: Mapping[str, Any], path: Path) -> nn.Module:
        """A student that was kept with `origin`, in eval mode. The task may have another name now.

        Args:
            cell: Its arm.
            weights: Its weights.
            facts: What was kept with them.
            path: Its file, for messages.

        Raises:
            InputError: The task has other data or another network now.
        """
        held, now = ({**made, "task": ""} for made in (facts["made_with"], self.origin["made_with"]))
        refuse_difference(str(path), held, now, "use the task and data that the study had")
        network = self._empty(cell)
        _load_state(network, weights, path)
        return network.eval()

    def _data(self) -> dict[str, Any]:
        """All data sets that decide networks, by name; those that a task need not have only where it has them."""
        data: dict[str, Any] = {split: getattr(self.task, split) for split in SPLITS}
        if self.task.unlabelled is not None:
            data["unlabelled"] = self.task.pairs
        if self.task.teacher_train is not None:
            data["teacher_train"] = alone(self.task.teacher_train)
        return data

    def loss(self, cell: Cell) -> DistillationLoss:
        """What an arm's student minimises: the protocol's loss, with the cell's weights if it has any."""
        if cell.weights is None:
            return self.protocol.loss
        return _changed_loss(self.protocol.loss, None, dict(zip(WEIGHTS, cell.weights, strict=True)))

    def method(self, cell: Cell) -> Method | None:
        """The method of an arm; None for arms without a teacher, and for distillation by the protocol's loss."""
        name = cell.method
        if name in (None, "kd"):
            return None
        if name not in self._methods:
            self._methods[str(name)] = resolve(self._given_methods.get(str(name), name))
        return self._methods[str(name)]

    def reads_features(self, cell: Cell) -> bool:
        """Whether an arm's method reads features of the teacher."""
        method = self.method(cell)
        return method is not None and reads_features(method)

    def is_taught_by_logits(self, cell: Cell) -> bool:
        """Whether an arm has a method that can do with a teacher's logits, without its network."""
        method = self.method(cell)
        return method is not None and not (cell.focus or reads_features(method) or method.trains_teacher)

    def weights(self, cell: Cell) -> dict[str, float]:
        """Weights of an arm's label loss and method, where a study compares some.

        Those of the settings are of the loss of kd alone, because methods have weights of other scales.
        """
        return {} if cell.weights is None else dict(zip(WEIGHTS, cell.weights, strict=True))

    def warn_of_unused(self, cells: Iterable[Cell]) -> None:
        """Say once which settings of the loss have no effect on any of the arms."""
        unused = [name for name in self.settings.loss.changes() if name in _OF_KD]
        if unused and all(cell.method != "kd" for cell in cells):
            warn_once(
                f"{', '.join(unused)}: no effect, because no arm is distilled by kd; other methods have their own "
                "options, and weights (--weights) compares weights of all"
            )

    def methods_facts(self, cells: Iterable[Cell]) -> dict[str, Any]:
        """What decides the methods of a study, by name; nothing where all arms distil by the protocol's loss."""
        found = {str(cell.method): method for cell in cells if (method := self.method(cell)) is not None}
        return {"methods": {name: facts_of(method) for name, method in found.items()}} if found else {}

    def protocol_facts(self, cell: Cell | None = None) -> dict[str, Any]:
        """How students are distilled here, or the student of one arm, as JSON can hold it."""
        method = None if cell is None else self.method(cell)
        if cell is not None and method is not None:
            loss: Any = {**facts_of(method), **self.weights(cell)}
        else:
            loss = _loss_facts(self.protocol.loss if cell is None else self.loss(cell))
        return {
            "loss": loss,
            "fill": self.protocol.fill,
            "distance": distance_name(self.protocol.distance),
            "joint": self.protocol.joint,
        }

    def alone(self, role: Role) -> str | None:
        """Why networks of a role cannot be trained together with those of other seeds; None where they can.

        Networks that are given, or fitted at once, are not trained.
        """
        task, given = self.task, self.settings.files
        if role == "teacher" and (task.teacher is None or task.teacher_embeddings is not None):
            return None
        if role == "teacher" and (given.teacher_checkpoint or task.teacher_checkpoint) and not self.protocol.joint:
            return None
        if self.settings.training.logger is not None:
            return "a logger follows it"
        return hindrance(self.new(role), role, self._training_problem, self.recipe)

    @property
    def are_small(self) -> bool:
        """Whether training students together is worthwhile."""
        return is_worthwhile(self.new("student"), self.recipe.batch_size, self.device)

    # --- making -----------------------------------------------------------------------------------------------------

    def new(self, role: Role) -> nn.Module:
        """A fresh network with this seed's initial weights."""
        factory = self.task.teacher if role == "teacher" else self.task.student
        if factory is None:
            raise InputError(
                f"task {self.task.name!r} has no teacher network, only its outputs; this needs the network"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            with foreign(f"{role}() of task {self.task.name!r} cannot make a network"):
                return factory()

    def pretrained(self, role: Role) -> Trained:
        """The network of this role trained on labels alone; for the student, this is the arm no-kd."""
        given = self.settings.files
        checkpoint: Any = given.student_checkpoint
        if role == "teacher":
            checkpoint = given.teacher_checkpoint or self.task.teacher_checkpoint
        if checkpoint is not None:
            return self._once(f"given {role}", lambda: Trained(Frozen(load_weights(self.new(role), checkpoint))))

        def train(resume: Path | None) -> _Training:
            if role == "teacher" and self.task.teacher_embeddings is not None:
                return _Training({role: self._fitted_head()}, None, [])
            with self._options(role) as options:
                if role == "teacher" and self.task.teacher_train is not None:
                    options["train"] = alone(self.task.teacher_train)
                fit = pretrain(self.new(role), role=role, checkpoint=resume, **options)
            return _Training({role: fit.network}, fit.best_epoch, fit.history)

        return self._kept_or_made([role], role, train)[role]

    def _fitted_head(self) -> nn.Module:
        """The teacher of given embeddings: a head that is fitted at once."""
        head = self.new("teacher")
        assert isinstance(head, EmbeddingHead)
        fit_head(head, self.task.train, self.task.val, self.task.problem)
        return head

    def aligned(self, role: Role) -> Trained:
        """The network of this role from the joint training (Algorithm 1, step 1), or what stands for it.

        The pair has the weights of the last epoch, as published: it is scored, not shipped.
        """
        given = self.settings.files.aligned_teacher_checkpoint
        if given is not None and role == "teacher":
            return self._once("given aligned teacher", lambda: Trained(Frozen(load_weights(self.new(role), given))))
        self._refuse_given_pair()
        if not self.protocol.joint:
            return self.pretrained(role)
        return self._pair()["aligned-teacher" if role == "teacher" else "aligned-student"]

    def aligned_student(self) -> Trained:
        """The student of the arm aligned-student: of the joint training, at the epoch that the recipe keeps."""
        self._refuse_given_pair()
        return self._pair()["aligned-best-student"] if self.protocol.joint else self.pretrained("student")

    def _refuse_given_pair(self) -> None:
        given = self.settings.files.aligned_teacher_checkpoint
        if given is not None:
            raise InputError(
                f"the aligned teacher is given ({given}), which says nothing of the student trained along with it; "
                "give its saliency too, and leave out what needs that student (arm 'aligned-student')"
            )

    def _pair(self) -> dict[NetworkKey, Trained]:
        def train(resume: Path | None) -> _Training:
            with self._options("aligned") as options:
                pair = align(
                    self.new("teacher"),
                    self.new("student"),
                    unlabelled=self.task.unlabelled,
                    checkpoint=resume,
                    **options,
                )
            networks: dict[NetworkKey, nn.Module] = {
                "aligned-teacher": pair.teacher,
                "aligned-student": pair.student,
                "aligned-best-student": pair.best_student,
            }
            return _Training(networks, pair.best_epoch, pair.history)

        return self._kept_or_made(["aligned-teacher", "aligned-student", "aligned-best-student"], "aligned", train)

    def distilled(
        self,
        cell: Cell,
        teaches: Callable[[], Lesson],
        decided_by: Mapping[str, Any] | None,
    ) -> Trained:
        """The student of an arm that has a teacher.

        Args:
            cell: The arm.
            teaches: Returns the arm's teacher, or its outputs on all training pairs; called only for a training.
            decided_by: What decides the student beside `identity`, to keep it and find it again; None keeps nothing.
        """

        def train(resume: Path | None) -> _Training:
            lesson, method = teaches(), self.method(cell)
            with self._options(cell) as options:
                if method is None:
                    how: dict[str, Any] = {"loss": self.loss(cell)}
                else:
                    how = {"method": method, **self.weights(cell), **_features_of(lesson)}
                    options["problem"] = self._with_own_label_loss(options["problem"])
                fit = distill(
                    lesson.teacher,
                    self.new("student"),
                    unlabelled=self.task.unlabelled,
                    teacher_logits=lesson.logits,
                    checkpoint=resume,
                    **how,
                    **options,
                )
            return _Training({cell: fit.network}, fit.best_epoch, fit.history, fit.extra_parameters, fit.extra_bytes)

        return self._of_arm(cell, train, decided_by)

    def _with_own_label_loss(self, problem: Problem) -> Problem:
        """The problem with the label loss of the protocol's `KDLoss`, which all arms have."""
        own = self.protocol.loss.label_loss if isinstance(self.protocol.loss, KDLoss) else None
        return problem if own is None else dataclasses.replace(problem, label_loss=own)

    def rehearse(self, cell: Cell, *, unlabelled: bool) -> None:
        """Try the method of an arm on a few pairs, with networks that are not trained.

        Args:
            cell: The arm.
            unlabelled: Whether there will be pairs without a label.

        Raises:
            InputError: The method cannot be used with these networks, or has no loss to minimise.
        """
        method = self.method(cell)
        if method is not None:
            warn_of_labels(method, unlabelled=unlabelled, weighted=cell.weights is not None)
            with self._small(method) as objective:
                pairs = self._few_pairs(method)
                objective.rehearse(fetch(pairs, range(len(pairs))))

    @contextmanager
    def _small(self, method: Method) -> Iterator[ByMethod]:
        """A method begun on a few pairs, with networks that are not trained."""
        task, pairs = self.task, self._few_pairs(method)
        lesson = Lesson(channel_dim=task.channel_dim, student_channel_dim=task.student_channel_dim)
        if task.teacher is None:
            assert isinstance(task.teacher_logits, Tensor)
            lesson = dataclasses.replace(lesson, logits=task.teacher_logits[self._few_rows(method)])
        else:
            lesson = dataclasses.replace(lesson, teacher=self.new("teacher"))
        how: dict[str, Any] = {"seed": self.seed, "device": torch.device("cpu"), "epochs": self.recipe.epochs}
        with begun(method, lesson, self.new("student"), pairs, task.problem, **how) as objective:
            yield objective

    def _few_rows(self, method: Method) -> list[int]:
        """Positions of a few training pairs with labels and a few without, enough to try a method on."""
        labelled, pairs, few = len(self.task.train), len(self.task.pairs), max(_FEW, method.least_pairs)
        return [*range(min(labelled, few)), *range(labelled, min(pairs, labelled + few))]

    def _few_pairs(self, method: Method) -> Any:
        """The pairs at `_few_rows`."""
        task, labelled, rows = self.task, len(self.task.train), self._few_rows(method)
        few = Subset(task.train, [row for row in rows if row < labelled])
        if task.unlabelled is None:
            return few
        return AllPairs(few, Subset(task.unlabelled, [row - labelled for row in rows if row >= labelled]))

    def taught_by_labels(
        self, cell: Cell, decided_by: Mapping[str, Any] | None, label_smoothing: float = 0.0
    ) -> Trained:
        """The student of a control without a teacher, which takes as many steps as the distilled ones.

        Args:
            cell: The arm.
            decided_by: As in `distilled`.
            label_smoothing: How much of every label is spread over all classes.
        """

        def train(resume: Path | None) -> _Training:
            with self._options(cell) as options:
                size = len(self.task.pairs)
                fit = pretrain(
                    self.new("student"),
                    role="student",
                    label_smoothing=label_smoothing,
                    epoch_size=size,
                    checkpoint=resume,
                    **options,
                )
            return _Training({cell: fit.network}, fit.best_epoch, fit.history)

        return self._of_arm(cell, train, decided_by)

    def _of_arm(
        self,
        cell: Cell,
        train: "Callable[[Path | None], _Training]",
        decided_by: Mapping[str, Any] | None,
    ) -> Trained:
        if decided_by is None:
            doing(_work(cell))
            made = self._timed(cell, lambda: train(None))
            return Trained(Frozen(made.networks[cell]), made.best_epoch, made.history)
        return self._kept_or_made([cell], cell, train, decided_by)[cell]

    def holds_distilled(self, cell: Cell) -> bool:
        """Whether the student of an arm is kept."""
        return self.folder is not None and exists(self.folder.network_file(cell))

    @cached_property
    def _training_problem(self) -> Problem:
        """The task's problem. Its training pairs all have a label, at least in part, so none need be looked for."""
        problem = self.task.problem
        whole = problem.missing is not None and fetch(self.task.train, [0]).target.ndim == 1
        return dataclasses.replace(problem, missing=None) if whole else problem

    @contextmanager
    def _options(self, key: HistoryKey) -> Iterator[dict[str, Any]]:
        """What all kinds of training are called with."""
        kind, folder = self.settings.training.logger, self.folder
        name = safe_name(f"distilled-{key.name}") if isinstance(key, Cell) else key
        with nullcontext() if kind is None or folder is None else tracked(kind, folder.logs(), name) as logger:
            yield {
                "logger": logger,
                "train": self.task.train,
                "val": self.task.val,
                "problem": self._training_problem,
                "recipe": self.recipe,
                "seed": self.seed,
                "device": self.device,
                "progress": self.progress,
            }

    # --- keeping ----------------------------------------------------------------------------------------------------

    def _once(self, name: str, make: Callable[[], Trained]) -> Trained:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _kept_or_made(
        self,
        keys: Sequence[NetworkKey],
        history: HistoryKey,
        train: "Callable[[Path | None], _Training]",
        decided_by: Mapping[str, Any] | None = None,
    ) -> dict[NetworkKey, Trained]:
        """Networks that are trained together: from memory, from the folder, or from a training."""
        if keys[0] not in self._made:
            made_with = {"seed": self.seed, **self.identity, **(decided_by or {})}
            self._made.update(self._found(keys, made_with) or self._trained(keys, history, train, made_with))
        return {key: self._made[key] for key in keys}

    def _found(self, keys: Sequence[NetworkKey], made_with: Mapping[str, Any]) -> dict[NetworkKey, Trained] | None:
        if self.folder is None or not self._all_kept(keys):
            return None
        found: dict[NetworkKey, Trained] = {}
        for key in keys:
            path = self.folder.network_file(key)
            weights, facts = self.folder.read_network(key)
            refuse_other_format(str(path), facts["made_with"])
            refuse_difference(str(path), facts["made_with"], made_with, _SAME_OPTIONS)
            network = self._empty(key)
            _load_state(network, weights, path)
            found[key] = Trained(Frozen(network), facts["best_epoch"], facts["history"])
        self._forget_checkpoint(keys, made_with)
        return found

    def _empty(self, key: NetworkKey) -> nn.Module:
        """A network that the kept weights fit: a fresh one, or what an arm's method deploys."""
        method = self.method(key) if isinstance(key, Cell) else None
        if method is None or getattr(method.deploy, "__func__", None) is Method.deploy:
            return self.new(_role(key))
        with self._small(method) as objective:
            return objective.kept("student")

    def _all_kept(self, keys: Sequence[NetworkKey]) -> bool:
        assert self.folder is not None
        kept = [exists(self.folder.network_file(key)) for key in keys]  # all processes ask the same questions
        return all(kept)

    def _trained(
        self,
        keys: Sequence[NetworkKey],
        history: HistoryKey,
        train: "Callable[[Path | None], _Training]",
        made_with: Mapping[str, Any],
    ) -> dict[NetworkKey, Trained]:
        doing(_work(history))
        made = self._timed(history, lambda: train(self._checkpoint(keys, made_with)))
        facts = {
            "made_with": made_with,
            "processes": world_size(),
            "best_epoch": made.best_epoch,
            "history": made.history,
        }
        for key in keys:
            if self.folder is not None and rank() == 0:
                self.folder.write_network(key, made.networks[key].state_dict(), facts)
        self._forget_checkpoint(keys, made_with)  # only now: the networks are on disk
        return {key: Trained(Frozen(made.networks[key]), made.best_epoch, made.history) for key in keys}

    def _checkpoint(self, keys: Sequence[NetworkKey], made_with: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        return self.folder.checkpoint_file(keys[0], _digest([json.dumps(made_with, sort_keys=True, default=str)]))

    def _forget_checkpoint(self, keys: Sequence[NetworkKey], made_with: Mapping[str, Any]) -> None:
        checkpoint = self._checkpoint(keys, made_with)
        if checkpoint is not None and rank() == 0:
            checkpoint.unlink(missing_ok=True)

    def _timed(self, key: HistoryKey, train: "Callable[[], _Training]") -> "_Training":
        """A training whose history and cost are kept."""
        started = time.monotonic()
        made = train()
        shared = trained_elsewhere()
        if self.folder is not None and rank() == 0:
            self.folder.write_history(key, made.history)
            seconds = time.monotonic() - started + (0 if shared is None else shared.seconds)
            networks = 1 if shared is None else shared.networks
            self.folder.write_cost(key, {"seconds": round(seconds, 3), **made.extra, "together": networks})
        return made


@dataclass(frozen=True)
class _Training:
    """What a training made."""

    networks: Mapping[NetworkKey, nn.Module]
    best_epoch: int | None
    history: History
    extra_parameters: int = 0
    extra_bytes: int = 0

    @property
    def extra(self) -> "_Extra":
        """What the training needed beside the networks."""
        return {"extra_parameters": self.extra_parameters, "extra_bytes": self.extra_bytes}


class _Extra(TypedDict):
    extra_parameters: int
    extra_bytes: int


def _features_of(lesson: Lesson) -> dict[str, Any]:
    """What `distill` is told of a teacher's features."""
    return {
        "teacher_features": lesson.features,
        "channel_weights": lesson.channel_weights,
        "channel_dim": lesson.channel_dim,
        "student_channel_dim": lesson.student_channel_dim,
    }


def _work(key: HistoryKey) -> str:
    """What a training is, in words."""
    if isinstance(key, Cell):
        return f"training student {key.name}"
    words = {"student": "training student no-kd", "aligned": "training teacher and student together"}
    return words.get(key, "training teacher")


def _role(key: NetworkKey) -> Role:
    return "teacher" if key in ("teacher", "aligned-teacher") else "student"


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint into a network: safetensors, or a torch state_dict read without running any code.

    Args:
        network: The network; its weights are replaced.
        path: The checkpoint file.

    Raises:
        InputError: There is no such file, it holds no weights, or they do not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}; give a .safetensors file or a torch state_dict")
    try:
        try:
            weights: dict[str, Any] = load_file(str(path))
        except SafetensorError:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        weights = weights.get("state_dict", weights)
    except Exception:
        raise InputError(
            f"checkpoint {path} cannot be read; a .safetensors file or a torch state_dict of plain tensors was expected"
        ) from None
    _refuse_odd_weights(network, weights, path)
    _load_state(network, weights, path)
    return network


def _refuse_odd_weights(network: nn.Module, weights: Any, path: str | Path) -> None:
    """Refuse what PyTorch would load in silence: whole numbers or complex ones for weights, NaN, infinity."""
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise InputError(f"checkpoint {path} is no state_dict; a mapping from parameter names to tensors was expected")
    expected = network.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise InputError(f"checkpoint {path}: {name} is of type {type(value).__name__}; a tensor was expected")
        if name in expected and expected[name].is_floating_point():
            if not value.is_floating_point():
                kind = str(value.dtype).removeprefix("torch.")
                raise InputError(f"checkpoint {path}: {name} is {kind}; floating point weights were expected")
            if not value.to(expected[name].dtype).isfinite().all():
                raise InputError(f"checkpoint {path}: {name} is NaN or infinite; give weights that are finite")


def _load_state(network: nn.Module, weights: dict[str, Any], path: str | Path) -> None:
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path} does not fit {type(network).__name__}: {reason}") from None


def _changed_loss(
    loss: DistillationLoss, function: DistillationLoss | None, changes: Mapping[str, Any]
) -> DistillationLoss:
    loss = function or loss
    if not changes:
        return loss
    if not isinstance(loss, KDLoss):
        raise InputError(
            f"{next(iter(changes))} is a part of a KDLoss, but the task has a loss of its own; leave it out"
        )
    return dataclasses.replace(loss, **changes)


def _loss_facts(loss: DistillationLoss) -> Any:
    if not isinstance(loss, KDLoss):
        return describe(loss)
    return {field.name: describe(getattr(loss, field.name)) for field in dataclasses.fields(loss)}


def _problem_facts(problem: Problem) -> dict[str, Any]:
    functions = {name: describe(getattr(problem, name)) for name in ("label_loss", "divergence")}
    missing = {} if problem.missing is None else {"missing": str(problem.missing)}
    return {"name": problem.name, **functions, **missing, "metric": dataclasses.asdict(problem.metric.scale)}


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for item in parts:
        if isinstance(item, Tensor):
            digest.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(str(item).encode())
    return digest.hexdigest()[:16]


def _given_digest(path: str | Path) -> str:
    if not Path(path).is_file():
        raise InputError(
            f"there is no file {path}; weights are a .safetensors file or a torch state_dict, scores a .npy"
        )
    return files.file_digest(path)[:16]


def _data_digest(dataset: Any, split: str) -> str:
    """Number of samples, and three of them; of what differs when read twice (augmentation) only the shape."""
    parts: list[Any] = [len(dataset)]
    for position in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        with torch.random.fork_rng(devices=[]), foreign(f"{split} split, item {position}"):
            first, second = (list(tensors(fetch(dataset, [position]))) for _ in range(2))
        parts += [a if torch.equal(a, b) else a.shape for a, b in zip(first, second, strict=True)]
    return _digest(parts)
