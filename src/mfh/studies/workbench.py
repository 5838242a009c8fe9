"""Everything one seed of one task needs, made once: teachers, students, saliencies, masks, measurements.

The steps of the command line and the cells of a study go through here, so they share what they make. With a folder,
what is made is kept there and found again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mfh import files
from mfh.data.epochs import PairLoader, reads_the_same
from mfh.data.pairs import fetch, one_modality, tensors
from mfh.errors import InputError
from mfh.networks.modes import find_device, fingerprint, original_layer
from mfh.parallel.distributed import exists, gather, part, rank, world_size
from mfh.problems.losses import DistillationLoss, KDLoss
from mfh.problems.metrics import confusion
from mfh.problems.problem import Problem
from mfh.saliency.masks import ChannelMask, check_fingerprint, mask_channels, masked_logits
from mfh.saliency.permutation import AUTO_PERMUTATIONS, Permutations
from mfh.saliency.probe import layer_names
from mfh.saliency.scores import ChannelSaliency, Score, channel_saliency, distance_name
from mfh.studies.grid import MASKED_BY_RATIO, UNMASKED, WEIGHTS, Cell
from mfh.studies.records import write_counts, write_history
from mfh.tasks.task import Protocol, Task
from mfh.training.fitting import align, distill, evaluate, pretrain
from mfh.training.recipe import Recipe, describe
from mfh.training.trackers import check_tracker, tracked

Role = Literal["teacher", "student"]
Row = dict[str, Any]

#: Files a user may give instead of having something made.
CHECKPOINTS = ("teacher_checkpoint", "student_checkpoint", "aligned_teacher_checkpoint", "saliency")


@dataclass(frozen=True)
class Settings:
    """What the user may change about a task.

    Args:
        epochs: instead of the recipe's, as all that follow up to compile.
        batch_size: see `Recipe`.
        accumulate: see `Recipe`.
        precision: see `Recipe`.
        num_workers: see `Recipe`.
        channels_last: see `Recipe`.
        compile: see `Recipe`.
        device: where to run; default: a GPU if there is one.
        permutations: for saliencies, see `channel_saliency`.
        loss: of distillation, or some fields of a KDLoss to change in the protocol's.
        teacher_checkpoint: weights of a pretrained teacher, instead of training one.
        student_checkpoint: weights of a student trained on labels, instead of training one.
        aligned_teacher_checkpoint: weights of a jointly trained teacher, instead of training a pair.
        saliency: a file of scores of that teacher's channels, instead of computing them: a saliency saved by mfh, or
            a .npy of one number per channel.
        logger: a Lightning logger by name, to follow training; see `mfh.training.trackers`.
        progress: show progress bars.
        keep_students: keep every arm's student in the folder, not only those that others are made from.
    """

    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    precision: str | None = None
    num_workers: int | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    device: str | None = None
    permutations: Permutations = "auto"
    loss: DistillationLoss | Mapping[str, Any] | None = None
    teacher_checkpoint: str | None = None
    student_checkpoint: str | None = None
    aligned_teacher_checkpoint: str | None = None
    saliency: str | None = None
    logger: str | None = None
    progress: bool = False
    keep_students: bool = False

    def facts(self) -> dict[str, Any]:
        """What decides the results, as JSON can hold it."""
        names = ("epochs", "batch_size", "permutations", *CHECKPOINTS)
        return {name: getattr(self, name) for name in names}


_RECIPE = ("epochs", "batch_size", "accumulate", "precision", "num_workers", "channels_last", "compile")


class Workbench:
    """One seed of one task.

    Under torch.distributed all processes take the same steps together; the first one writes, all read.

    Args:
        task: as drawn for this seed.
        seed: of initial weights, order of data, permutations and random masks; the same for all arms, so that they
            can be compared in pairs.
        settings: what differs from the task's own.
        folder: where to keep what is made; None keeps it in memory.
    """

    def __init__(self, task: Task, seed: int, settings: Settings, folder: Path | None = None) -> None:
        changes = {name: value for name in _RECIPE if (value := getattr(settings, name)) is not None}
        self.task, self.seed, self.settings, self.folder = task, seed, settings, folder
        self.recipe: Recipe = dataclasses.replace(task.recipe, **changes)
        loss = _changed_loss(task.protocol.loss, settings.loss)
        self.protocol: Protocol = dataclasses.replace(task.protocol, loss=loss)
        self.device = find_device(settings.device)
        self._made: dict[str, Any] = {}
        if settings.logger is not None:
            check_tracker(settings.logger)
        if world_size() > 1:
            _ = self.identity  # before anything is made of data or networks that are not the same

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the networks made here, as JSON can hold it: options, data, architecture, given weights.

        Data are known by their number and by a digest of a few samples.

        Raises:
            InputError: it is not the same in all processes.
        """
        roles: list[Role] = ["student"] if self.task.teacher is None else ["teacher", "student"]
        given = {name: getattr(self.settings, name) for name in CHECKPOINTS}
        given["teacher_checkpoint"] = given["teacher_checkpoint"] or self.task.teacher_checkpoint
        identity = {
            "task": self.task.name,
            "problem": _problem_facts(self.task.problem),
            **self.recipe.facts(),
            "data": {split: _data_digest(getattr(self.task, split)) for split in ("train", "val", "test")},
            "teacher_logits": None if self.task.teacher_logits is None else _digest([self.task.teacher_logits]),
            "networks": {role: fingerprint(self.new(role)) for role in roles},
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

    def loss(self, cell: Cell) -> DistillationLoss:
        """What an arm's student minimises: the protocol's loss, with the cell's weights if it has any."""
        if cell.weights is None:
            return self.protocol.loss
        return _changed_loss(self.protocol.loss, dict(zip(WEIGHTS, cell.weights, strict=True)))

    def protocol_facts(self) -> dict[str, Any]:
        """How students are distilled here, as JSON can hold it."""
        protocol = self.protocol
        distance = distance_name(protocol.distance)
        return {
            "loss": _loss_facts(protocol.loss),
            "fill": protocol.fill,
            "distance": distance,
            "joint": protocol.joint,
        }

    # --- networks -------------------------------------------------------------------------------------------------

    def new(self, role: Role) -> nn.Module:
        """A fresh network with this seed's initial weights."""
        factory = self.task.teacher if role == "teacher" else self.task.student
        if factory is None:
            raise InputError(
                f"task {self.task.name!r} has no teacher network, only its outputs; this needs the network"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return factory()

    def pretrained(self, role: Role) -> nn.Module:
        """The network of this role trained on labels alone; for the student, this is the arm no-kd."""
        checkpoint = self.settings.teacher_checkpoint or self.task.teacher_checkpoint
        if role == "student":
            checkpoint = self.settings.student_checkpoint
        if checkpoint is not None:
            given: nn.Module = self._once(f"given-{role}", lambda: load_weights(self.new(role), checkpoint))
            return given
        return self._networks([role], self._pretrain)[0]

    def _pretrain(self, networks: list[nn.Module], names: list[str], resume: Path | None) -> dict[str, Any]:
        role: Role = "teacher" if names[0] == "teacher" else "student"
        with self._training(names[0]) as options:
            fit = pretrain(networks[0], role=role, checkpoint=resume, **options)
        return {"best_epoch": fit.best_epoch, "history": fit.history}

    def aligned(self, role: Role) -> nn.Module:
        """The network of this role from the joint training (Algorithm 1, step 1), or what stands for it."""
        given = self.settings.aligned_teacher_checkpoint
        if given is not None:
            if role == "student":
                raise InputError(
                    f"the aligned teacher is given ({given}), which says nothing of the student trained along with it; "
                    "give its saliency too, and leave out what needs that student (arm 'aligned-student')"
                )
            teacher: nn.Module = self._once("given-aligned-teacher", lambda: load_weights(self.new("teacher"), given))
            return teacher
        if not self.protocol.joint:
            return self.pretrained(role)
        both = self._networks(["aligned-teacher", "aligned-student"], self._align)
        return both[0] if role == "teacher" else both[1]

    def _align(self, networks: list[nn.Module], _names: list[str], resume: Path | None) -> dict[str, Any]:
        with self._training("aligned") as options:
            pair = align(*networks, checkpoint=resume, **options)
        return {"best_epoch": self.recipe.epochs - 1, "history": pair.history}

    def teacher(self, cell: Cell) -> nn.Module:
        """The unmasked teacher of an arm."""
        return self.aligned("teacher") if cell.teacher == "aligned" else self.pretrained("teacher")

    @contextmanager
    def _training(self, name: str) -> Iterator[dict[str, Any]]:
        """Options of the training of a network."""
        kind, folder = self.settings.logger, self.folder
        with nullcontext() if kind is None or folder is None else tracked(kind, folder / "logs", name) as logger:
            yield {
                "logger": logger,
                "train": self.task.train,
                "val": self.task.val,
                "problem": self.task.problem,
                "recipe": self.recipe,
                "seed": self.seed,
                "device": self.device,
                "progress": self.settings.progress,
            }

    def _networks(
        self,
        names: list[str],
        train: Callable[[list[nn.Module], list[str], Path | None], dict[str, Any]],
        decided_by: dict[str, Any] | None = None,
    ) -> list[nn.Module]:
        made_with = {"seed": self.seed, **self.identity, **(decided_by or {})}

        def make() -> list[nn.Module]:
            networks = [self.new("teacher" if name in ("teacher", "aligned-teacher") else "student") for name in names]
            paths = [self._path(f"{name}.safetensors") for name in names]
            kept = [path is not None and exists(path) for path in paths]
            # Named after what decides it, so that training never resumes from another one's checkpoint.
            resume = self._path(f"{names[0]}-{_digest([json.dumps(made_with, sort_keys=True)])[:8]}.ckpt")
            if all(kept):
                for network, path in zip(networks, paths, strict=True):
                    assert path is not None
                    weights, facts = files.load_tensors(path, "network")
                    _check_made_with(path, facts["made_with"], made_with)
                    _load_state(network, weights, path)
                    self._made[f"{path.stem} facts"] = facts
            else:
                facts = {"made_with": made_with, "processes": world_size(), **train(networks, names, resume)}
                self._keep_history("aligned" if len(names) > 1 else names[0], facts["history"])
                for name, network, path in zip(names, networks, paths, strict=True):
                    self._made[f"{name} facts"] = facts
                    if path is not None and rank() == 0:
                        files.save_tensors(path, "network", network.state_dict(), facts)
            if resume is not None and rank() == 0:
                resume.unlink(missing_ok=True)  # only now: the networks are on disk
            return networks

        return self._once("+".join(names), make)  # type: ignore[no-any-return]

    def facts(self, name: str) -> dict[str, Any]:
        """best_epoch and history of a network made here, by its file's name."""
        return dict(self._made[f"{name} facts"])

    def _keep_history(self, name: str, history: list[dict[str, float]]) -> None:
        if self.folder is not None and rank() == 0:
            write_history(self.folder, name, history)

    # --- saliency and masks ---------------------------------------------------------------------------------------

    def saliency(self, score: Score, layer: str = "") -> ChannelSaliency:
        """Scores on the training split: of the aligned pair, or for "probe" of the networks trained on labels.

        Args:
            score: "distance", "agreement" or "probe".
            layer: of the teacher; default: the task's.
        """
        layer = layer or self.task.layer
        name = self.saliency_name(score, layer)
        path = self._path(f"{name}.safetensors")

        def make() -> ChannelSaliency:
            base = self.pretrained if score == "probe" else self.aligned
            pairs = PairLoader(part(self.task.train), num_workers=self.recipe.num_workers)
            if self.settings.saliency is not None and score != "probe":
                return self._given_saliency(self.settings.saliency, score, layer, base("teacher"), pairs)
            if path is not None and exists(path):
                saliency = ChannelSaliency.load(path)
                self._check_saliency(path, saliency, layer, base("teacher"))
                return saliency
            saliency = channel_saliency(
                base("teacher"),
                base("student"),
                pairs,
                layer=layer,
                channel_dim=self.task.channel_dim,
                student_layer=self.task.student_layer,
                score=score,
                distance=self.protocol.distance if score == "distance" else "mse",
                permutations="auto" if score == "probe" else self.settings.permutations,
                seed=self.seed,
                device=self.device,
                progress=self.settings.progress,
            )
            saliency = gather(saliency)[0]  # masks must be the same to the last bit
            if path is not None and rank() == 0:
                saliency.save(path)
                if self.task.truth is not None:
                    files.write_json(path.parent / "truth.json", {"general": np.asarray(self.task.truth).tolist()})
            return saliency

        return self._once(name, make)  # type: ignore[no-any-return]

    def _given_saliency(
        self, path: str, score: Score, layer: str, teacher: nn.Module, pairs: PairLoader
    ) -> ChannelSaliency:
        if not path.endswith(".npy"):
            saliency = ChannelSaliency.load(path)
            check_fingerprint(teacher, saliency.fingerprint, f"saliency {path}")
            if (saliency.layer, saliency.score) != (original_layer(layer), score):
                raise InputError(
                    f"saliency {path} holds score {saliency.score!r} of layer {saliency.layer!r}, now {score!r} of "
                    f"{layer!r} is needed"
                )
            return saliency
        return ChannelSaliency.from_scores(
            files.load_array(path),
            teacher,
            pairs,
            layer=layer,
            channel_dim=self.task.channel_dim,
            score=score,
            device=self.device,
        )

    def saliency_name(self, score: Score, layer: str = "") -> str:
        """Name of a saliency's file, without its ending."""
        return f"saliency-{score}" + (f"-{layer}" if layer and layer != self.task.layer else "")

    def _check_saliency(self, path: Path, saliency: ChannelSaliency, layer: str, teacher: nn.Module) -> None:
        check_fingerprint(teacher, saliency.fingerprint, f"saliency {path}")
        if saliency.layer != original_layer(layer):
            raise InputError(f"saliency {path} is of layer {saliency.layer!r}, now it is {layer!r}: use another --out")
        student = self.pretrained("student") if saliency.score == "probe" else self.aligned("student")
        if saliency.student_fingerprint != fingerprint(student):
            raise InputError(f"saliency {path} was made with another student: use another --out, or the same options")
        read = ", ".join(layer_names(self.task.student_layer))
        if saliency.score == "probe" and saliency.student_layer != read:
            raise InputError(
                f"{path} was made from the student's layer {saliency.student_layer or '(default)'}, now it is "
                f"{read or '(default)'}: use another --out"
            )
        distance = distance_name(self.protocol.distance)
        if saliency.score == "distance" and saliency.distance != distance:
            raise InputError(
                f"{path} was made with distance {saliency.distance!r}, now it is {distance!r}: "
                "use another --out, or the same options"
            )
        wanted = self.settings.permutations
        fits = ("exact", AUTO_PERMUTATIONS) if wanted == "auto" else (wanted,)
        if saliency.permutations is not None and saliency.permutations not in fits:
            raise InputError(
                f"{path} was made with permutations {saliency.permutations!r}, now it is {wanted!r}: "
                "use another --out, or the same options"
            )

    def mask(self, cell: Cell) -> ChannelMask | None:
        """The mask of an arm; None for arms without one. Kept where students are."""
        if cell.arm not in UNMASKED:
            return None
        if cell.arm in MASKED_BY_RATIO:
            score: Any = cell.score or "distance"
            kind: Any = cell.arm
            mask = self.saliency(score, cell.layer).mask(kind, cell.ratio, fill=self.protocol.fill, seed=self.seed)
        else:
            mask = self.saliency("probe", cell.layer).mask("soft")
            if cell.arm == "soft-shuffled":
                order = np.random.default_rng(self.seed % 2**63).permutation(len(mask.weights))
                mask = dataclasses.replace(mask, weights=mask.weights[order], kind="soft-shuffled")
        path = self._path(f"mask-{cell.unweighted.name}.safetensors")
        if path is not None and self.settings.keep_students and rank() == 0 and not path.exists():
            mask.save(path)
        return mask

    def auroc(self, score: Score) -> float | None:
        """Area under the ROC curve of a score against the task's truth; None where that is unknown or one-sided."""
        truth = self.task.truth
        if truth is None or truth.all() or not truth.any():
            return None
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(truth, self.saliency(score).scores))

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make what several cells share: networks and saliencies."""
        for cell in cells:
            if cell.teacher is not None and self.task.teacher is not None:
                self.teacher(cell)
                self.mask(cell)
            elif cell.arm == "no-kd":
                self.pretrained("student")
            elif cell.arm == "aligned-student":
                self.aligned("student")

    # --- measurements ---------------------------------------------------------------------------------------------

    def measure(self, cells: Sequence[Cell], *, splits: Sequence[str] = ("val", "test")) -> Iterator[list[Row]]:
        """Train and measure one student after the other; yields the rows of one cell at a time.

        All teachers' outputs are computed first: one trunk pass per teacher, layer and split serves all masks.
        """
        untaught = [cell for cell in cells if cell.teacher is not None and not self._kept_student(cell)]
        train_outputs = self._outputs(untaught, "train") if self._cacheable else {}
        outputs = {
            split: self._outputs([cell for cell in cells if cell.teacher is not None], split) for split in splits
        }
        for cell in cells:
            student, best_epoch = self.student(cell, train_outputs.get(cell))
            epoch_known = best_epoch is not None and "val" in splits
            rows = [self._row(cell, "val", "best_epoch", float(best_epoch or 0))] if epoch_known else []
            metric = self.task.problem.metric
            for split in splits:
                counts: list[Tensor] = []
                rows.append(self._row(cell, split, metric.name, self.evaluate(student, split, "student", counts)))
                if counts and self.folder is not None:
                    write_counts(self.folder, f"{cell.name}-{split}", counts[0].numpy())
                if cell in outputs[split]:
                    value = metric.of(outputs[split][cell], _targets(getattr(self.task, split)))
                    rows.append(self._row(cell, split, f"teacher_{metric.name}", value))
            yield rows

    def evaluate(self, network: nn.Module, split: str, role: Role, counts: list[Tensor] | None = None) -> float:
        """The problem's metric of a network on a split.

        Args:
            network: to measure.
            split: "train", "val" or "test".
            role: which input it reads.
            counts: an empty list that gets the confusion matrix, where there is one class per sample.
        """

        def watch(logits: Tensor, target: Tensor) -> None:
            if counts is not None and self.task.problem.categorical and target.ndim == 1:
                counts[:] = [sum(counts, confusion(logits, target).cpu())]

        problem = self.task.problem
        return evaluate(network, getattr(self.task, split), role, problem=problem, device=self.device, watch=watch)

    def score_rows(self, cells: Iterable[Cell]) -> list[Row]:
        """AUROC of every score that the cells use at the task's layer, where the truth is known."""
        scores: Any = dict.fromkeys(cell.score for cell in cells if cell.score and cell.layer == self.task.layer)
        values = {score: self.auroc(score) for score in scores}
        return [
            self._row(Cell("", score, layer=self.task.layer), "train", "auroc", value)
            for score, value in values.items()
            if value is not None
        ]

    def student(self, cell: Cell, teacher_logits: Tensor | None = None) -> tuple[nn.Module, int | None]:
        """The student of an arm, and its best epoch (None where that is not known).

        Args:
            cell: any arm.
            teacher_logits: of the arm's masked teacher on the training split, if known.
        """
        if cell.arm == "no-kd" or (cell.arm == "aligned-student" and not self.protocol.joint):
            return self.pretrained("student"), self._made.get("student facts", {}).get("best_epoch")
        if cell.arm == "aligned-student":
            return self.aligned("student"), self.recipe.epochs - 1

        def train(networks: list[nn.Module], _names: list[str], resume: Path | None) -> dict[str, Any]:
            teacher, logits = None, teacher_logits
            if not self._cacheable:
                teacher = self._masked_teacher(cell)
            elif logits is None:
                logits = self._outputs([cell], "train")[cell]
            loss = self.loss(cell)
            with self._training(name) as options:
                fit = distill(teacher, networks[0], loss=loss, teacher_logits=logits, checkpoint=resume, **options)
            return {"best_epoch": fit.best_epoch, "history": fit.history}

        name = f"distilled-{cell.name}"
        if not self.settings.keep_students:
            student = self.new("student")
            facts = train([student], [name], None)
            self._keep_history(name, facts["history"])
            return student, facts["best_epoch"]
        decided_by = {
            **self.protocol_facts(),
            "loss": _loss_facts(self.loss(cell)),
            "permutations": self.settings.permutations,
        }
        return self._networks([name], train, decided_by)[0], self.facts(name)["best_epoch"]

    @cached_property
    def _cacheable(self) -> bool:
        """Whether the teacher's outputs can be computed once: not for inputs that are augmented anew each time."""
        return self.task.teacher is None or reads_the_same(self.task.train)

    def _masked_teacher(self, cell: Cell) -> nn.Module:
        if cell.arm == "tempered":
            raise InputError(
                "arm 'tempered' matches a temperature to outputs computed once, but teacher inputs differ "
                "when read twice (augmented); leave the arm out"
            )
        mask = self.mask(cell)
        return self.teacher(cell) if mask is None else mask_channels(self.teacher(cell), mask)

    def _kept_student(self, cell: Cell) -> bool:
        path = self._path(f"distilled-{cell.name}.safetensors")
        return path is not None and exists(path)

    def _outputs(self, cells: Sequence[Cell], split: str) -> dict[Cell, Tensor]:
        """Logits of every arm's teacher on one split."""
        known = self.task.teacher_logits
        if self.task.teacher is None:
            masked = [cell for cell in cells if cell.arm != "regular"]
            if masked:
                raise InputError(
                    f"arm {masked[0].arm!r} needs the teacher network, but task {self.task.name!r} has only its "
                    "outputs; choose from no-kd and regular"
                )
            assert isinstance(known, Tensor)
            return dict.fromkeys(cells, known) if split == "train" else {}
        dataset = part(one_modality(getattr(self.task, split), "teacher"))
        loader = PairLoader(dataset, num_workers=self.recipe.num_workers)
        outputs: dict[Cell, Tensor] = {}
        groups: dict[tuple[str | None, str], list[Cell]] = {}
        for cell in dict.fromkeys(cell.unweighted for cell in cells):
            groups.setdefault((cell.teacher, cell.layer), []).append(cell)
        if any(cell.arm == "tempered" for cell in cells) and not self.task.problem.categorical:
            raise InputError(
                f"arm 'tempered' softens a softmax over classes, which {self.task.problem.name} has not; leave it out"
            )
        for group in groups.values():
            wanted = [None, *(self.mask(cell) for cell in group)]
            plain, *rest = masked_logits(self.teacher(group[0]), wanted, loader, device=self.device)
            for cell, logits in zip(group, rest, strict=True):
                outputs[cell] = plain / matching_temperature(plain, logits) if cell.arm == "tempered" else logits
        return {cell: outputs[cell.unweighted] for cell in cells}

    def _row(self, cell: Cell, split: str, metric: str, value: float) -> Row:
        return {
            "arm": cell.arm,
            "score": cell.score,
            "layer": cell.layer,
            "ratio": "" if cell.ratio is None else cell.ratio,
            **({} if cell.weights is None else dict(zip(WEIGHTS, cell.weights, strict=True))),
            "seed": self.seed,
            "split": split,
            "metric": metric,
            "value": value,
        }

    # --- keeping --------------------------------------------------------------------------------------------------

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name


def _check_made_with(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, now in wanted.items():
        if found.get(name) != now:
            raise InputError(
                f"{path} was made with {name} {json.dumps(found.get(name))}, now it is {json.dumps(now)}: "
                "use another --out, or the same options"
            )


def matching_temperature(logits: Tensor, softer: Tensor) -> float:
    """The temperature at which `logits` have the mean entropy of `softer`, by bisection.

    Args:
        logits: (N, K, ...) to be tempered.
        softer: (N, K, ...) whose entropy is matched.
    """

    def entropy(values: Tensor) -> float:
        log_p = values.double().log_softmax(1)
        return float(-(log_p.exp() * log_p).sum(1).mean())

    wanted, low, high = entropy(softer), -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(logits / 2**middle) < wanted else (low, middle)
    return float(2**low)


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint into a network: safetensors, or a torch state_dict read without running any code.

    Raises:
        InputError: there is no such file, it holds no weights, or they do not fit the network.
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
    _load_state(network, weights, path)
    return network


def _load_state(network: nn.Module, weights: dict[str, Any], path: str | Path) -> None:
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path} does not fit {type(network).__name__}: {reason}") from None


def _changed_loss(loss: DistillationLoss, changes: DistillationLoss | Mapping[str, Any] | None) -> DistillationLoss:
    if callable(changes):
        return changes
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
    return {f.name: describe(getattr(loss, f.name)) for f in dataclasses.fields(loss)}


def _problem_facts(problem: Problem) -> dict[str, Any]:
    functions = {name: describe(getattr(problem, name)) for name in ("label_loss", "divergence")}
    return {"name": problem.name, **functions, "metric": dataclasses.asdict(problem.metric.scale)}


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


def _data_digest(dataset: Any) -> str:
    """Number of samples, and three of them; of what differs when read twice (augmentation) only the shape."""
    parts: list[Any] = [len(dataset)]
    for position in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        with torch.random.fork_rng(devices=[]):
            first, second = (list(tensors(fetch(dataset, [position]))) for _ in range(2))
        parts += [a if torch.equal(a, b) else a.shape for a, b in zip(first, second, strict=True)]
    return _digest(parts)


def _targets(dataset: Any) -> Tensor:
    return torch.cat([batch.target for batch in PairLoader(one_modality(dataset, "teacher"))])
