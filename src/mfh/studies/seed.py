"""One seed of one task: saliencies, masks and measurements, made of the seed's networks.

The steps of the command line, a diagnosis and the cells of a study go through here, so they share what they make.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfh import files
from mfh.data.cache import OutputCache, teacher_inputs_digest
from mfh.data.epochs import PairLoader, reads_the_same
from mfh.data.pairs import fetch, only_role, to_device
from mfh.data.spool import Rows
from mfh.data.teacher_outputs import check_finite
from mfh.errors import InputError, foreign
from mfh.methods.code import digest_of
from mfh.networks.calling import call
from mfh.networks.frozen import Frozen
from mfh.networks.layers import as_logits
from mfh.networks.modes import device_of, evaluating, original_layer, placed
from mfh.networks.taps import Tap, find_taps, layer_at
from mfh.parallel.distributed import exists, gather, part, rank, share_rows, world_size
from mfh.problems.metrics import confusion
from mfh.progress import doing
from mfh.saliency.masks import ChannelMask, check_fingerprint, mask_channels, masked_logits
from mfh.saliency.permutation import AUTO_PERMUTATIONS
from mfh.saliency.probe import layer_names
from mfh.saliency.scores import ChannelSaliency, Score, channel_saliency, distance_name
from mfh.studies.folder import Row, SeedFolder
from mfh.studies.grid import FRACTION, LINEAR, MASKED_BY_RATIO, TAUGHT_BY_OUTPUTS, WEIGHTS, Cell
from mfh.studies.networks import Networks, Role, Trained
from mfh.studies.settings import Settings
from mfh.tasks.task import Task
from mfh.training.by_method import Lesson, teacher_features
from mfh.training.fitting import evaluate

#: How much of a label the arm "label-smoothing" spreads over all classes.
LABEL_SMOOTHING = 0.1


class Seed:
    """One seed of one task.

    Under torch.distributed all processes take the same steps together; the first one writes, all read.

    Args:
        task: The task as drawn for this seed.
        seed: Random seed of initial weights, order of data, permutations and random masks. It is the same for all arms,
            so that they can be compared in pairs.
        settings: What differs from the task's own recipe and protocol.
        folder: Where everything is kept and found again; None keeps it in memory.
        progress: Whether to show progress bars.
        keep_students: Whether to keep every arm's student in the folder, not only networks that others are made from.
        fraction: Share of the labels that the task has, in a study that compares several.
        methods: Methods by name that are not shipped, or not as they are shipped.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        settings: Settings | None = None,
        folder: SeedFolder | None = None,
        *,
        progress: bool = False,
        keep_students: bool = False,
        fraction: float | None = None,
        methods: Mapping[str, Any] | None = None,
    ) -> None:
        self.fraction = fraction
        self.settings = settings or Settings()
        self.task, self.seed, self.folder = task, seed, folder
        self.progress, self.keep_students = progress, keep_students
        self.networks = Networks(task, seed, self.settings, folder, progress=progress, methods=methods)
        self.recipe, self.protocol, self.device = self.networks.recipe, self.networks.protocol, self.networks.device
        self._saliencies: dict[tuple[Score, str], ChannelSaliency] = {}
        self._read_targets: dict[str, Tensor] = {}
        self._read_features: dict[Any, dict[str, Tensor]] = {}
        cache = self.settings.execution.cache
        self._cache = None if cache is None else OutputCache(cache)
        self._inputs_digests: dict[str, str | None] = {}
        self._teacher_digests: dict[str, str] = {}

    # --- saliencies and masks ---------------------------------------------------------------------------------------

    def saliency(self, score: Score, layer: str = "") -> ChannelSaliency:
        """Scores on all training pairs: of the aligned pair, or for "probe" of the networks trained on labels.

        Args:
            score: "distance", "agreement" or "probe".
            layer: The teacher's layer (default: the task's).
        """
        key = (score, layer or self.task.layer)
        if key not in self._saliencies:
            self._saliencies[key] = self._make_saliency(*key)
        return self._saliencies[key]

    def _make_saliency(self, score: Score, layer: str) -> ChannelSaliency:
        base = self.networks.pretrained if score == "probe" else self.networks.aligned
        pairs = PairLoader(part(self.task.pairs), num_workers=self.recipe.num_workers, split="train")
        given = self.settings.files.saliency
        if given is not None and score != "probe":
            return self._given_saliency(given, score, layer, base("teacher").frozen, pairs)
        path = None if self.folder is None else self.folder.saliency_file(score, self._other_layer(layer))
        if path is not None and exists(path):
            saliency = ChannelSaliency.load(path)
            self._check_saliency(path, saliency, layer, base("teacher").frozen)
            return saliency
        teacher, student = base("teacher").frozen, base("student").frozen
        doing(f"scoring channels of layer {layer} by {score}")
        saliency = channel_saliency(
            teacher,
            student,
            pairs,
            layer=layer,
            channel_dim=self.task.channel_dim,
            student_layer=self.task.student_layer,
            score=score,
            distance=self.protocol.distance if score == "distance" else "mse",
            permutations="auto" if score == "probe" else self.settings.scoring.permutations,  # type: ignore[arg-type]
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
        saliency = gather(saliency)[0]  # masks must be the same to the last bit
        if path is not None and self.folder is not None and rank() == 0:
            self.folder.write_saliency(path, saliency)
            if self.task.truth is not None:
                self.folder.write_truth(self.task.truth)
        return saliency

    def _other_layer(self, layer: str) -> str:
        """A layer's name, if it is not the task's own."""
        return "" if layer == self.task.layer else layer

    def saliency_files(self, score: Score, layer: str = "") -> tuple[Path, Path]:
        """Where a saliency and its picture are kept.

        Raises:
            InputError: The seed has no folder.
        """
        if self.folder is None:
            raise InputError("this seed keeps nothing; give a run folder")
        other = self._other_layer(layer)
        return self.folder.saliency_file(score, other), self.folder.saliency_picture(score, other)

    def _given_saliency(
        self, path: Path, score: Score, layer: str, teacher: Frozen, pairs: PairLoader
    ) -> ChannelSaliency:
        if not str(path).endswith(".npy"):
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

    def _check_saliency(self, path: Path, saliency: ChannelSaliency, layer: str, teacher: Frozen) -> None:
        check_fingerprint(teacher, saliency.fingerprint, f"saliency {path}")
        if saliency.layer != original_layer(layer):
            raise InputError(f"saliency {path} is of layer {saliency.layer!r}, now it is {layer!r}: use another --out")
        networks = self.networks
        student = networks.pretrained("student") if saliency.score == "probe" else networks.aligned("student")
        if saliency.student_fingerprint != student.frozen.fingerprint:
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
        wanted = self.settings.scoring.permutations
        fits = ("exact", AUTO_PERMUTATIONS) if wanted == "auto" else (wanted,)
        if saliency.permutations is not None and saliency.permutations not in fits:
            raise InputError(
                f"{path} was made with permutations {saliency.permutations!r}, now it is {wanted!r}: "
                "use another --out, or the same options"
            )

    def mask(self, cell: Cell) -> ChannelMask | None:
        """The mask of an arm; None for arms without one. It is kept where students are."""
        if not cell.masked or self.networks.reads_features(cell):
            return None
        mask = self._mask(cell, cell.layer)
        if self.folder is not None and self.keep_students and rank() == 0:
            self.folder.write_mask(cell, mask)
        return mask

    def _mask(self, cell: Cell, layer: str) -> ChannelMask:
        if cell.focus in MASKED_BY_RATIO:
            score: Any = cell.score or "distance"
            kind: Any = cell.focus
            return self.saliency(score, layer).mask(kind, cell.ratio, fill=self.protocol.fill, seed=self.seed)
        mask = self.saliency("probe", layer).mask("soft")
        if cell.arm == "soft-shuffled":
            order = np.random.default_rng(self.seed % 2**63).permutation(len(mask.weights))
            mask = dataclasses.replace(mask, weights=mask.weights[order], kind="soft-shuffled")
        return mask

    def channel_weights(self, cell: Cell) -> dict[str, Tensor] | None:
        """Weights of the channels that a method of features reads, of mean 1; None without a focus.

        They are the weights of the mask of this focus, made from scores at the layer that the method reads. Where the
        mask keeps nothing (no channel can be predicted), they are all 0.
        """
        if not cell.masked or not self.networks.reads_features(cell):
            return None
        weights = {}
        for tap in self._teacher_taps(cell):
            mask = torch.from_numpy(self._mask(cell, self._scored_layer(cell, tap)).weights).float()
            mean = mask.mean()
            weights[tap.name] = mask / mean if mean > 0 else mask
        return weights

    def _teacher_taps(self, cell: Cell) -> tuple[Tap, ...]:
        """Where an arm's method reads the teacher."""
        method = self.networks.method(cell)
        assert method is not None
        return find_taps(self.teacher(cell).network, method.teacher_layers, "teacher", self.task.channel_dim)

    def _scored_layer(self, cell: Cell, tap: Tap, network: nn.Module | None = None) -> str:
        """The layer whose channels a method of features reads at a tap."""
        network = self.teacher(cell).network if network is None else network
        pairs = only_role(self.task.pairs, "teacher")
        with evaluating(network), foreign(f"arm {cell.arm!r}: the teacher cannot be read"):
            few = fetch(pairs, range(min(2, len(pairs)))).teacher_input
            inputs = to_device(few, device_of(network))
            return layer_at(network, tap, inputs, original_layer(self.task.layer))

    def rehearse(self, cells: Sequence[Cell], *, unlabelled: bool) -> None:
        """Try every method on a few pairs, with networks that are not trained, and say what has no effect.

        Args:
            cells: The arms.
            unlabelled: Whether there will be pairs without a label.

        Raises:
            InputError: A method cannot be used with these networks, has no loss to minimise, or reads what cannot be
                scored.
        """
        self.networks.warn_of_unused(cells)
        for cell in {cell.method: cell for cell in cells}.values():
            self.networks.rehearse(cell, unlabelled=unlabelled)
        for cell in cells:
            if cell.masked and self.networks.reads_features(cell):
                network, method = self.networks.new("teacher"), self.networks.method(cell)
                assert method is not None
                for tap in find_taps(network, method.teacher_layers, "teacher", self.task.channel_dim):
                    self._scored_layer(cell, tap, network)

    def auroc(self, score: Score) -> float | None:
        """Area under the ROC curve of a score against the task's truth; None where that is unknown or one-sided."""
        truth = self.task.truth
        if truth is None or truth.all() or not truth.any():
            return None
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(truth, self.saliency(score).scores))

    # --- teachers and students --------------------------------------------------------------------------------------

    def teacher(self, cell: Cell) -> Frozen:
        """The unmasked teacher of an arm."""
        base = self.networks.aligned if cell.teacher == "aligned" else self.networks.pretrained
        return base("teacher").frozen

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make what several cells share: networks and saliencies."""
        for cell in cells:
            if cell.teacher == "student":
                self.networks.pretrained("student")
            elif cell.teacher is not None and self.task.teacher is not None:
                self.teacher(cell)
                self.mask(cell)
                self.channel_weights(cell)
            elif cell.arm in ("no-kd", "aligned-student"):
                self.student(cell)  # the others are not shared

    def student(self, cell: Cell, teacher_logits: Tensor | None = None) -> Trained:
        """The student of an arm.

        Args:
            cell: Any arm.
            teacher_logits: Outputs of the arm's masked teacher on all training pairs, if they are known.
        """
        networks, decided_by = self.networks, None
        if cell.arm == "no-kd" or (cell.arm == "longer" and self.task.unlabelled is None):
            return networks.pretrained("student")  # without further pairs, `longer` takes as many steps
        if cell.arm == "aligned-student":
            return networks.aligned_student()
        if cell.arm == LINEAR:
            raise InputError("arm 'linear' is a linear model of scikit-learn, which leaves no network")
        if self.keep_students:
            decided_by = {**networks.protocol_facts(cell), "permutations": self.settings.scoring.permutations}
        if cell.teacher is None:
            return networks.taught_by_labels(cell, decided_by, 0.0 if cell.arm == "longer" else LABEL_SMOOTHING)

        def teaches() -> Lesson:
            if not self._cacheable and cell.teacher != "student":
                return self._with_features(Lesson(self._masked_teacher(cell)), cell)
            logits = self._outputs([cell], "train")[cell] if teacher_logits is None else teacher_logits
            return self._with_features(Lesson(None, logits), cell)

        return networks.distilled(cell, teaches, decided_by)

    def _with_features(self, lesson: Lesson, cell: Cell) -> Lesson:
        """A lesson with what the arm's method reads beside the teacher's logits."""
        method = self.networks.method(cell)
        if method is None or not (self.networks.reads_features(cell) or method.trains_teacher):
            return lesson
        teacher = self.teacher(cell).network
        lesson = dataclasses.replace(
            lesson,
            teacher=teacher,
            channel_weights=self.channel_weights(cell),
            channel_dim=self.task.channel_dim,
            student_channel_dim=self.task.student_channel_dim,
        )
        if method.trains_teacher or not self._cacheable:
            return lesson
        key = (cell.teacher, method.teacher_layers)
        if key not in self._read_features:  # all arms that read the same layers share them
            self._read_features[key] = self._features(self.teacher(cell), self._teacher_taps(cell))
        return dataclasses.replace(lesson, features=self._read_features[key])

    def forget_features(self) -> None:
        """Let go of the features of teachers, which are large and can be read again."""
        self._read_features.clear()

    @cached_property
    def _cacheable(self) -> bool:
        """Whether the teacher's outputs can be computed once: not for inputs that are augmented anew each time."""
        return self.task.teacher is None or reads_the_same(self.task.pairs)

    def _masked_teacher(self, cell: Cell) -> nn.Module:
        if cell.arm in ("tempered", "teacher-shuffled"):
            raise InputError(
                f"arm {cell.arm!r} needs outputs that are computed once, but teacher inputs differ when read twice "
                "(augmented); leave the arm out"
            )
        mask, teacher = self.mask(cell), self.teacher(cell)
        return teacher.network if mask is None else mask_channels(teacher, mask)

    def _outputs(self, cells: Sequence[Cell], split: str) -> dict[Cell, Tensor]:
        """Logits of every arm's teacher on one split; "train" means all training pairs."""
        of_student = [cell for cell in cells if cell.teacher == "student"]
        if of_student:
            own = dict.fromkeys(of_student, self._predictions(split))
            return own | self._outputs([cell for cell in cells if cell not in own], split)
        if not cells:
            return {}
        if self.task.teacher is None:
            return self._known_outputs(cells) if split == "train" else {}
        if any(cell.arm == "tempered" for cell in cells) and not self.task.problem.categorical:
            raise InputError(
                f"arm 'tempered' softens a softmax over classes, which {self.task.problem.name} has not; leave it out"
            )
        dataset = part(only_role(self._dataset(split), "teacher"))
        loader = PairLoader(dataset, num_workers=self.recipe.num_workers, split=split)
        outputs: dict[Cell, Tensor] = {}
        groups: dict[tuple[str | None, str], list[Cell]] = {}
        for cell in dict.fromkeys(cell.unweighted for cell in cells):
            groups.setdefault((cell.teacher, cell.layer), []).append(cell)
        for group in groups.values():
            plain, *rest = self._masked_logits(group, split, loader)
            for cell, logits in zip(group, rest, strict=True):
                if cell.arm == "tempered":
                    logits = plain / matching_temperature(plain, logits)
                outputs[cell] = self._shuffled(logits) if cell.arm == "teacher-shuffled" else logits
        return {cell: outputs[cell.unweighted] for cell in cells}

    def _masked_logits(self, group: Sequence[Cell], split: str, loader: PairLoader) -> list[Tensor]:
        """Logits on one split of the unmasked teacher that some arms share, then of every arm's masked teacher."""
        teacher = self.teacher(group[0])
        masks: list[ChannelMask | None] = [None, *(self.mask(cell) for cell in group)]
        source = self._source(teacher, split)
        if self._cache is None or source is None:
            return masked_logits(teacher, masks, loader, device=self.device)
        # Beside masks the network runs cut in two, so its plain logits may differ in rounding from those alone.
        cut = next((mask for mask in masks if mask is not None), None)
        names = [f"logits {None if cut is None else cut.layer} {_mask_digest(mask)}" for mask in masks]
        named = dict(zip(names, masks, strict=True))

        def compute(missing: list[str]) -> list[Tensor]:
            wanted = [named[name] for name in missing]
            return masked_logits(teacher, [*wanted, cut], loader, device=self.device)[: len(wanted)]

        return self._cache.rows(source, names, compute)

    def _features(self, teacher: Frozen, taps: Sequence[Tap]) -> dict[str, Tensor]:
        """Features of a teacher on all training pairs."""
        pairs = PairLoader(
            part(only_role(self.task.pairs, "teacher")), num_workers=self.recipe.num_workers, split="train"
        )
        source = self._source(teacher, "train")
        if self._cache is None or source is None:
            return teacher_features(teacher.network, taps, pairs, device=self.device)[1]
        named = {f"features {tap}": tap for tap in taps}

        def compute(missing: list[str]) -> list[Tensor]:
            wanted = [named[name] for name in missing]
            _, features = teacher_features(teacher.network, wanted, pairs, device=self.device)
            return [features[tap.name] for tap in wanted]

        rows = self._cache.rows(source, list(named), compute)
        return {tap.name: values for tap, values in zip(taps, rows, strict=True)}

    def _source(self, teacher: Frozen, split: str) -> str | None:
        """What a teacher's outputs on a split depend on; None where they are computed without a cache.

        Processes of torchrun compute their parts without it, and so it is with data that differ when read twice.
        """
        if self._cache is None or world_size() > 1:
            return None
        if split not in self._inputs_digests:
            dataset = self._dataset(split)
            same = reads_the_same(dataset)
            self._inputs_digests[split] = teacher_inputs_digest(dataset, self.recipe.num_workers) if same else None
        data = self._inputs_digests[split]
        if data is None:
            return None
        if teacher.fingerprint not in self._teacher_digests:
            self._teacher_digests[teacher.fingerprint] = digest_of(teacher.network)
        code = self._teacher_digests[teacher.fingerprint]
        # Sums in another order differ in the last bits: another device or number of threads has outputs of its own.
        return f"{teacher.fingerprint} {code} {data} {self.device.type} {torch.get_num_threads()} {torch.__version__}"

    def _dataset(self, split: str) -> Any:
        return self.task.pairs if split == "train" else getattr(self.task, split)

    def _known_outputs(self, cells: Sequence[Cell]) -> dict[Cell, Tensor]:
        """What arms learn from where the teacher's outputs are given and there is no network."""
        known = self.task.teacher_logits
        assert isinstance(known, Tensor)
        for cell in cells:
            if cell.arm not in TAUGHT_BY_OUTPUTS and not self.networks.is_taught_by_logits(cell):
                raise InputError(
                    f"arm {cell.arm!r} needs the teacher network, but task {self.task.name!r} has only its outputs; "
                    f"choose from {', '.join(TAUGHT_BY_OUTPUTS)}"
                )
        return {cell: self._shuffled(known) if cell.arm == "teacher-shuffled" else known for cell in cells}

    def _shuffled(self, logits: Tensor) -> Tensor:
        """The outputs of a teacher dealt out to other samples."""
        order = np.random.default_rng([self.seed % 2**63, len(logits)]).permutation(len(logits))
        return logits[torch.from_numpy(order)]

    def _predictions(self, split: str) -> Tensor:
        """Logits of the student that was trained on labels alone."""
        student = self.networks.pretrained("student").network
        rows = Rows()
        dataset = part(only_role(self._dataset(split), "student"))
        with placed(self.device, student), evaluating(student):
            for batch in PairLoader(dataset, num_workers=self.recipe.num_workers):
                rows.append(as_logits(call(student, to_device(batch.student_input, device_of(student)))).cpu())
        return share_rows(rows.finish())

    # --- measurements -----------------------------------------------------------------------------------------------

    def makers(self, cells: Sequence[Cell]) -> dict[Cell, Callable[[], Trained]]:
        """Functions that make the students of cells that `prepare` has seen; see `mfh.training.together`."""
        trained = [cell for cell in cells if cell.arm != LINEAR]
        outputs = self._train_outputs(trained)
        return {cell: partial(self.student, cell, outputs.get(cell)) for cell in trained}

    def _train_outputs(self, cells: Sequence[Cell]) -> dict[Cell, Tensor]:
        """Outputs on all training pairs of the teachers of cells whose students are not kept."""
        taught = [cell for cell in cells if cell.teacher is not None]
        untrained = [cell for cell in taught if not (self.keep_students and self.networks.holds_distilled(cell))]
        return self._outputs(untrained, "train") if self._cacheable else {}

    def measure(
        self,
        cells: Sequence[Cell],
        *,
        splits: Sequence[str] = ("val", "test"),
        finished: Callable[[Cell, Trained, list[Row]], None] | None = None,
    ) -> Iterator[list[Row]]:
        """Train and measure one student after the other; yields the rows of one cell at a time.

        All teachers' outputs are computed first: one trunk pass per teacher, layer and split serves all masks.

        Args:
            cells: The arms.
            splits: The splits to measure on.
            finished: Called with each student and its rows before they are yielded.
        """
        train_outputs = self._train_outputs(cells)
        measured = self.measurer(cells, splits=splits)
        for cell in cells:
            student = None if cell.arm == LINEAR else self.student(cell, train_outputs.get(cell))
            rows = measured(cell, student)
            if finished is not None and student is not None:
                finished(cell, student, rows)
            yield rows

    def measurer(
        self, cells: Sequence[Cell], *, splits: Sequence[str] = ("val", "test")
    ) -> Callable[[Cell, Trained | None], list[Row]]:
        """A function of one of these cells and its student, None for the linear model, that returns the cell's rows.

        Args:
            cells: The arms. The outputs of all their teachers are computed now, see `measure`.
            splits: The splits to measure on.
        """
        taught = [cell for cell in cells if cell.teacher is not None]
        outputs = {split: self._outputs(taught, split) for split in splits}
        metric = self.task.problem.metric

        def measured(cell: Cell, student: Trained | None) -> list[Row]:
            if student is None:
                return [self._row(cell, split, metric.name, value) for split, value in self._linear(splits).items()]
            rows = []
            if student.best_epoch is not None and "val" in splits:
                rows.append(self._row(cell, "val", "best_epoch", float(student.best_epoch)))
            for split in splits:
                counts: list[Tensor] = []
                value = self.evaluate(student.network, split, "student", counts)
                rows.append(self._row(cell, split, metric.name, value))
                if counts and self.folder is not None:
                    self.folder.write_counts(cell, split, counts[0].numpy())
                if cell in outputs[split]:
                    value = self._teacher_value(cell, split, outputs[split][cell])
                    rows.append(self._row(cell, split, f"teacher_{metric.name}", value))
            return rows

        return measured

    def _linear(self, splits: Sequence[Any]) -> dict[Any, float]:
        """The metric of a linear model on some splits."""
        from mfh.tasks.baseline import linear_baselines

        return linear_baselines(self.task, splits, self.seed)

    def _targets(self, split: str) -> Tensor:
        """Targets of a split, read once for all arms."""
        if split not in self._read_targets:
            dataset = only_role(getattr(self.task, split), "teacher")
            self._read_targets[split] = torch.cat([batch.target for batch in PairLoader(dataset, split=split)])
        return self._read_targets[split]

    def _teacher_value(self, cell: Cell, split: str, logits: Tensor) -> float:
        """The metric of an arm's teacher on a split.

        Raises:
            InputError: It is not a number.
        """
        metric = self.task.problem.metric
        check_finite(logits, f"{split} split, sample")
        value = metric.of(logits, self._targets(split))
        if math.isnan(value):
            raise InputError(f"{split} split: {metric.name} of the teacher of arm {cell.arm!r} is NaN; mend the metric")
        return value

    def evaluate(self, network: nn.Module, split: str, role: Role, counts: list[Tensor] | None = None) -> float:
        """The problem's metric of a network on a split.

        Args:
            network: The network to measure.
            split: "train", "val" or "test".
            role: Which input the network reads: the teacher's or the student's.
            counts: An empty list that gets the confusion matrix, where there is one class per sample.
        """
        problem = self.task.problem

        def watch(logits: Tensor, target: Tensor) -> None:
            if counts is not None and problem.categorical and target.ndim == 1:
                counts[:] = [sum(counts, confusion(logits, target).cpu())]

        return evaluate(
            network, getattr(self.task, split), role, problem=problem, device=self.device, watch=watch, split=split
        )

    def score_rows(self, cells: Iterable[Cell]) -> list[Row]:
        """AUROC of every score that the cells use at the task's layer, where the truth is known."""
        scores: Any = dict.fromkeys(cell.score for cell in cells if cell.score and self._is_scored_at_own_layer(cell))
        values = {score: self.auroc(score) for score in scores}
        return [
            self._row(Cell("", score, layer=self.task.layer), "train", "auroc", value)
            for score, value in values.items()
            if value is not None
        ]

    def _is_scored_at_own_layer(self, cell: Cell) -> bool:
        """Whether an arm uses scores of the task's layer, which a method of features may read."""
        if self.task.truth is None or not self.networks.reads_features(cell):
            return cell.layer == self.task.layer
        layers = (self._scored_layer(cell, tap) for tap in self._teacher_taps(cell))
        return original_layer(self.task.layer) in map(original_layer, layers)

    def _row(self, cell: Cell, split: str, metric: str, value: float) -> Row:
        return {
            "arm": cell.arm,
            "score": cell.score,
            "layer": cell.layer,
            "ratio": "" if cell.ratio is None else cell.ratio,
            **({} if self.fraction is None else {FRACTION: self.fraction}),
            **({} if cell.weights is None else dict(zip(WEIGHTS, cell.weights, strict=True))),
            "seed": self.seed,
            "split": split,
            "metric": metric,
            "value": value,
        }


def _mask_digest(mask: ChannelMask | None) -> str:
    """What a mask does to a network, whatever it was made from."""
    return "" if mask is None else digest_of((mask.layer, mask.channel_dim, mask.weights, mask.means))


def matching_temperature(logits: Tensor, softer: Tensor) -> float:
    """The temperature at which `logits` have the mean entropy of `softer`, by bisection.

    Args:
        logits: (N, K, ...) logits to be tempered.
        softer: (N, K, ...) logits whose entropy is matched.
    """

    def entropy(values: Tensor) -> float:
        log_p = values.double().log_softmax(1)
        return float(-(log_p.exp() * log_p).sum(1).mean())

    wanted, low, high = entropy(softer), -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(logits / 2**middle) < wanted else (low, middle)
    return float(2**low)
