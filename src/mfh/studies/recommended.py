"""The student that a study recommends, or that of any arm: found, loaded, described and exported."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfh.errors import InputError, close_names
from mfh.problems.scale import Scale
from mfh.studies.choice import NO_KD, choose
from mfh.studies.findings import alone_in_words
from mfh.studies.folder import Run
from mfh.studies.grid import FRACTION, LINEAR, Cell
from mfh.studies.settings import Settings
from mfh.studies.stats import Comparison, mean_interval
from mfh.studies.steps import with_earlier_arguments
from mfh.studies.summary import Summary, Variant, interval_in_words, summarise
from mfh.tasks.finding import TaskSource, find_task

if TYPE_CHECKING:
    from torch import nn

    from mfh.export.exporting import Exported
    from mfh.export.formats import Format
    from mfh.studies.seed import Seed

#: Entry of a run's environment: the folder in which the study was started, from which relative paths count.
STARTED_IN = "started_in"
#: Number of test samples that an exported student is compared on.
_SAMPLES = 256
#: How a recommendation and a finding can differ.
PREFERRED = (
    "It is preferred on validation data, as its gain there exceeds its standard error; the finding asks for more, an "
    "interval above zero on the test split, so an arm can be recommended whose gain is not shown there."
)


@dataclass(frozen=True, eq=False)
class Students:
    """The students that a study keeps.

    Args:
        run: Its run folder.
        source: Makes its task.
        settings: What differs from the task's own recipe and protocol.
        methods: Methods by name that are not shipped, or not as they are shipped.
    """

    run: Run
    source: TaskSource
    settings: Settings
    methods: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: str | Path | Run, task: str | None = None) -> "Students":
        """The students in a run folder.

        Args:
            run: The folder of a study.
            task: The task as `find_task` accepts it (default: the one that the run folder names).

        Raises:
            InputError: The folder holds no finished study, or its task cannot be found.
        """
        opened = Run.open(run)
        if opened.command != "study":
            raise InputError(f"{opened.described} keeps no student to export; give the folder of a study")
        started_in = str(opened.environment.get(STARTED_IN, ""))
        source = opened.environment.get("source")
        spec = task or (None if source is None else _found_again(source, started_in))
        if spec is None:
            raise InputError(
                f"{opened.folder} does not say where its task comes from, as the task was a Python object or the run "
                "is old; give --task, or use result.best.export in Python"
            )
        settings = with_earlier_arguments(Settings(), spec, opened)
        if settings.task.data is not None:
            data = _path_again(settings.task.data, started_in)
            settings = replace(settings, task=replace(settings.task, data=data))
        try:
            found = find_task(spec, settings.task)
        except InputError as error:
            raise InputError(
                f"the task of {opened.folder} is needed: {error}; or say with --task where it is"
            ) from None
        methods = opened.environment.get("methods", {})
        return cls(opened, found, settings, {name: _found_again(one, started_in) for name, one in methods.items()})

    def best(self, fraction: float | None = None) -> "Recommended":
        """The student of the arm that is preferred on validation data, or of no-kd where none is.

        The arm is the best by validation. Its mean gain over the best control must exceed the gain's standard error;
        see `mfh.studies.choice`.
        Controls are no-kd and the other arms without a teacher's knowledge. What `select` chose before stays chosen.

        Args:
            fraction: The label fraction, in a study of several (default: the largest).

        Raises:
            InputError: The study has no such fraction, or no arm no-kd.
        """
        fraction = self._fraction(fraction)
        validation, held = self._validation(fraction), self.run.selection
        values = {variant.cell: variant.student for variant in validation.variants}
        if NO_KD not in values:
            arm = next((one.arm for one in validation.variants if one.arm != LINEAR), "NAME")
            raise InputError(
                "the study has no arm no-kd to compare with, so it recommends none; choose an arm: "
                f"result.students.of_arm({arm!r}) in Python, mfh export RUN --arm {arm} on the command line"
            )
        before = None if held is None else Cell.chosen(held)
        choice = choose(
            values, validation.scale, self.run.repeats, self.run.num_val, before if before in values else None
        )
        if choice is None:
            return Recommended(self, NO_KD, fraction, "No arm was compared with no-kd.")
        names = {variant.cell: variant.label for variant in validation.variants}
        shown = f"{choice.gain:+.{validation.digits}f}".replace("-", "\u2212")
        unit = f" {validation.scale.unit}" if validation.scale.unit else ""
        error = (
            "no standard error, as there is one seed"
            if math.isinf(choice.error)
            else f"a standard error of {choice.error:.2g}"
        )
        why = (
            f"{names[choice.best]} is the best by validation: {shown}{unit} against {names[choice.control]}, the best "
            f"control, with {error}."
        )
        why = f"{why} {PREFERRED}" if choice.helps else f"No arm is preferred on validation data. {why}"
        return Recommended(self, choice.best if choice.helps else NO_KD, fraction, why)

    def of_arm(self, arm: str, fraction: float | None = None) -> "Recommended":
        """The student of an arm, at its best variant by validation.

        Args:
            arm: Name of an arm, or of a variant such as "general-distance-0.5-flatten".
            fraction: The label fraction, in a study of several (default: the largest).

        Raises:
            InputError: The arm was not run, or it leaves no network.
        """
        fraction = self._fraction(fraction)
        validation = self._validation(fraction)
        named = {variant.cell.name: variant for variant in validation.variants}
        chosen = named.get(arm) or validation.chosen(arm)
        if chosen is None:
            known = list(dict.fromkeys([*(variant.arm for variant in validation.variants), *named]))
            raise InputError(f"arm {arm!r} was not run in {self.run.folder}; {close_names(arm, known, limit=8)}")
        if chosen.arm == LINEAR:
            raise InputError("arm 'linear' is a linear model of scikit-learn, which leaves no network to export")
        return Recommended(self, chosen.cell, fraction, f"{chosen.label} was asked for.")

    def _fraction(self, fraction: float | None) -> float | None:
        known = self.run.measured_fractions
        if fraction is None:
            return max(known, default=None)
        if fraction not in known:
            listed = ", ".join(f"{one:g}" for one in known) or "no others: it used all labels"
            raise InputError(f"label fraction is {fraction:g}; {self.run.folder} has {listed}")
        return float(fraction)

    def _validation(self, fraction: float | None) -> Summary:
        """The study as the validation split shows it."""
        rows = self.run.results
        rows = rows if fraction is None else rows[rows[FRACTION] == fraction]
        return summarise(rows[rows["split"] == "val"], scale=self.run.scale)

    def seed(self, seed: int, fraction: float | None) -> "Seed":
        """A seed of the study, ready to load networks."""
        from mfh.studies.labels import with_label_fraction
        from mfh.studies.seed import Seed

        task = with_label_fraction(self.source.make(seed), fraction, seed)
        folder = self.run.seed(seed, fraction)
        return Seed(task, seed, self.settings, folder, fraction=fraction, methods=self.methods)


@dataclass(frozen=True, eq=False)
class Recommended:
    """A student that a study kept: the best one of its variant by validation, of equal ones that of the lowest seed.

    Args:
        students: The students of the study.
        cell: The variant.
        fraction: The label fraction, in a study of several.
        why: Why it is this variant, in a sentence.
    """

    students: Students
    cell: Cell
    fraction: float | None
    why: str

    def __repr__(self) -> str:
        return f"Recommended(arm={self.arm!r})"

    @property
    def arm(self) -> str:
        """Name of the arm; "no-kd" where none is preferred on validation data."""
        return self.cell.arm

    @cached_property
    def seed(self) -> int:
        """Seed of the student.

        Raises:
            InputError: The study kept no student of this variant.
        """
        return int(self._facts["seed"])

    @cached_property
    def student(self) -> "nn.Module":
        """The student, with its weights, in eval mode on the CPU.

        Raises:
            InputError: The study kept no student of this variant, or its task has changed since.
        """
        _ = self._facts
        run = self.students.run
        weights, facts = run.read_student(self.cell, self.fraction)
        try:
            return self._made.networks.restored(self.cell, weights, facts, run.student_file(self.cell, self.fraction))
        except InputError:
            if self._method_changed:
                raise InputError(
                    f"{run.folder} made {self.cell.name} by a method with other options than "
                    f"{self.cell.method} has here, given as an object of Python; export it there: "
                    f"result.students.of_arm({self.arm!r}).export(...)"
                ) from None
            raise

    @property
    def gain(self) -> Comparison | None:
        """The arm's gain over no-kd, paired by seed, on the test split where it was read; None for no-kd itself."""
        variant = self._variant
        return None if variant is None else variant.gain

    def report(self) -> str:
        """The arm, why it is recommended, and what its student reaches, in a few sentences."""
        sentences = [f"The student is that of seed {self.seed} of {self.cell.name}{self._share}.", self.why]
        if self._variant is not None and self._variant.gain is not None:
            gains = self._summary.says(self._variant.label, self._variant.gain)
            alone = alone_in_words(self._summary, self._variant)
            sentences.append(f"On the {self._summary.split} split, against no-kd, {gains}{alone}.")
        return " ".join([*sentences, self._metric])

    def export(
        self,
        path: str | Path | None = None,
        *,
        format: "Format | None" = None,  # noqa: A002 (the word users know)
        int8: bool = False,
    ) -> "Exported":
        """Write the student as a file that runs without `mfh`, and a model card beside it.

        Args:
            path: The file (default: `student` with the ending of the format, in the run folder).
            format: "pt2" (`torch.export`), "onnx" (extra `export`) or "safetensors" (weights alone) (default: by the
                ending of `path`, or pt2).
            int8: Whether to write a variant of an .onnx file with 8-bit weights too.

        Raises:
            InputError: There is no student, the file cannot be written there, the network cannot be exported so, or
                file and network disagree on test samples.
        """
        from mfh.data.pairs import fetch, only_role
        from mfh.export.exporting import check_place, export_network
        from mfh.export.formats import format_of

        run = self.students.run
        exporter = format_of(None if path is None else Path(path), format)
        place = run.export_file(exporter.suffix) if path is None else Path(path)
        check_place(place)
        task, student = self._made.task, self.student
        rows = range(min(_SAMPLES, len(task.test)))
        made = export_network(
            student,
            fetch(only_role(task.test, "student"), rows).student_input,
            place,
            about=self._about(),
            classes=task.class_names,
            categorical=task.problem.categorical,
            int8=int8,
        )
        with run.locked():
            run.write_exported(made.path, self.arm, [self.report(), *made.lines])
        return made

    # --- what is known of it ----------------------------------------------------------------------------------------

    @cached_property
    def _facts(self) -> dict[str, Any]:
        run = self.students.run
        facts = run.student_facts(self.cell, self.fraction)
        if facts is None:
            what = f"of {self.cell.name}" if run.holds_students else ""
            raise InputError(
                " ".join(f"{run.folder} kept no student {what}".split())
                + "; give the command of the run again with --keep-students best, which trains what is missing"
            )
        return facts

    @property
    def _method_changed(self) -> bool:
        """Whether the arm's method is not as it was in the study, which knows its options but not always its code."""
        before = self.students.run.config.get("methods", {})
        now = self._made.networks.methods_facts([self.cell]).get("methods", {})
        return bool(before != json.loads(json.dumps(before | now, default=str)))

    @cached_property
    def _made(self) -> "Seed":
        return self.students.seed(self.seed, self.fraction)

    @cached_property
    def _summary(self) -> Summary:
        return self.students.run.summary_at(self.fraction)

    @cached_property
    def _variant(self) -> Variant | None:
        """The variant as the study measured it; None where the test split was read for others only."""
        return next((variant for variant in self._summary.variants if variant.cell == self.cell), None)

    @property
    def _title(self) -> str:
        return f"{self.cell.name}, the student of seed {self.seed}{self._share}"

    @property
    def _share(self) -> str:
        return "" if self.fraction is None else f" with {100 * self.fraction:g} % of the labels"

    @property
    def _metric(self) -> str:
        """What this student reaches, and what the arm reaches over seeds."""
        scale: Scale = self.students.run.scale
        if self._variant is None or self.seed not in self._variant.student.index:
            value = float(self._facts["validation"])
            return f"This student: validation {scale.words} {scale.show(value)}; the test split was not read for it."
        values, summary = self._variant.student, self._summary
        mean, low, high = mean_interval(values.to_numpy(), test_to_train=summary.test_to_train)
        percent = " %" if scale.percent else ""
        digits = summary.digits
        own = f"{float(values.loc[self.seed]):.{digits}f}{percent}"
        text = f"This student: {summary.split} {scale.words} {own}."
        if len(values) > 1:
            interval = interval_in_words(mean, *scale.within(mean, low, high), digits=digits)
            text += f" All {len(values)} seeds of the arm: mean {interval}{percent}, with a 95 % interval."
        return text

    def _about(self) -> dict[str, str]:
        """What the model card and the exported file say of the student."""
        import mfh

        run, task = self.students.run, self._made.task
        digests = self._facts["made_with"]["data"]
        facts = {
            "What it is": f"{self._title}, trained by `mfh` on the task {task.name!r}.",
            "Task": task.name,
            "Description": " ".join(str(task.facts.get("description") or task.problem.name).split()),
            "Data": ", ".join(f"{split} {digest}" for split, digest in digests.items())
            + " (number of samples and three of them, as a digest)",
            "Arm": self.cell.name,
            "Chosen because": self.why,
            "Seed": str(self.seed),
            "Metric": self._metric,
            "Teacher": self._teacher,
            "mfh version": mfh.__version__,
        }
        if run.environment.get("repeat"):
            facts["Made by"] = f"`{run.environment['repeat']}`"
        return facts

    @property
    def _teacher(self) -> str:
        """What the student learned from beside the labels."""
        cell = self.cell
        if cell.arm == "aligned-student":
            return "one that was trained jointly with the student"
        if cell.teacher is None:
            return "none; the student learned from labels"
        if cell.teacher == "student":
            return "the student trained on labels alone"
        mask = ", its outputs shuffled over all pairs" if cell.arm == "teacher-shuffled" else ""
        mask += f", masked at the layer {cell.layer} ({cell.arm})" if cell.layer else ""
        metric = ""
        if self._variant is not None and len(self._variant.teacher):
            scale = self.students.run.scale
            metric = f"; {self._summary.split} {scale.words} {self._summary.number(self._variant.teacher)}"
            metric += " %" if scale.percent else ""
        return f"the {cell.teacher} teacher{mask}{metric}"


def _found_again(spec: str, started_in: str) -> str:
    """What names a task or a method, with a path that leads to its file from here."""
    place, colon, name = spec.partition(":")
    return f"{_path_again(place, started_in)}{colon}{name}" if Path(place).suffix else spec


def _path_again(path: str, started_in: str) -> str:
    """A path that a study was given: as given if it leads somewhere from here, else from the folder of the study."""
    there = Path(started_in, path)
    return str(there) if started_in and not Path(path).exists() and there.exists() else path


def origins(task: Any, methods: Mapping[str, Any]) -> dict[str, Any]:
    """Where a study's task and methods come from, so that they can be found again; objects of Python are left out."""
    found = {name: spec for name, method in methods.items() if (spec := _spec_of(method))}
    source = _spec_of(task)
    return ({"source": source} if source else {}) | ({"methods": found} if found else {})


def _spec_of(given: Any) -> str:
    if isinstance(given, str | Path):
        return str(given)
    module, name = getattr(given, "__module__", "__main__"), getattr(given, "__qualname__", "")
    return f"{module}:{name}" if module != "__main__" and name.isidentifier() else ""
