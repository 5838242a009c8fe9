"""A study: arms x ratios x scores x seeds on one task, kept in a run folder and resumed from it."""

import logging
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mfh.errors import InputError
from mfh.files import refuse_edited
from mfh.methods.checks import forget_warnings
from mfh.problems.scale import ACCURACY, Scale
from mfh.progress import in_notebook, status
from mfh.studies.arms import find_arms
from mfh.studies.choice import NO_KD, choose
from mfh.studies.findings import arms_frame, study_finding
from mfh.studies.folder import Row, Run
from mfh.studies.gains import draw_gains
from mfh.studies.grid import (
    CONTROLS,
    FRACTION,
    LINEAR,
    PLAIN_CONTROLS,
    TAUGHT_BY_OUTPUTS,
    WEIGHTS,
    Cell,
    cells,
    default_arms,
    method_and_focus,
)
from mfh.studies.labels import check_fractions, with_label_fraction
from mfh.studies.networks import Role
from mfh.studies.pool import Crew, Plan, Unit
from mfh.studies.provenance import environment
from mfh.studies.recommended import STARTED_IN, Recommended, Students, origins
from mfh.studies.seed import LABEL_SMOOTHING, Seed
from mfh.studies.settings import Settings
from mfh.studies.stats import Repeats
from mfh.studies.steps import refuse_torchrun, with_earlier_arguments
from mfh.studies.study_file import is_study_file, merged, read_study, study_text
from mfh.studies.summary import Summary, representatives, summarise
from mfh.tasks.checks import check_task
from mfh.tasks.finding import TaskSource, find_task
from mfh.tasks.task import Task
from mfh.training.labels import check_terms
from mfh.values import AddSeeds, NumSeeds, RandomSeed, check_fields, checked

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

log = logging.getLogger("mfh")

DEFAULT_SCORES = ("distance",)
DEFAULT_NUM_SEEDS = 5
#: Entry of a study's configuration that says which networks were trained at once, if any.
ENSEMBLE = "ensemble"


@dataclass(frozen=True, repr=False)
class StudyResult:
    """What a study measured. A notebook shows it as its finding and its table.

    Args:
        frame: One row for each measurement; columns arm, score, layer, ratio, seed, split, metric, value, and
            label_fraction, label_weight, teacher_weight where these were compared. Accuracies are fractions.
        data_redrawn: Whether each seed drew its own data. Otherwise it split one data set anew, or all seeds share one.
        folder: The run folder, if there is one.
        scale: How the task's metric reads.
        students: The students that the study kept.
        finding: What the study shows, in a few lines, as its report says it.
        repeats: What differs between seeds, and so what intervals cover (default: as `data_redrawn` says).
    """

    frame: "pd.DataFrame"
    data_redrawn: bool
    folder: Path | None = None
    scale: Scale = ACCURACY
    students: Students | None = field(default=None, repr=False, compare=False)
    finding: str = ""
    repeats: Repeats | None = None

    @cached_property
    def summary(self) -> Summary:
        """Every arm against no-kd, the controls and the same teacher unmasked; of several label budgets, the largest.

        Raises:
            InputError: Nothing was measured.
        """
        largest = self.frame[FRACTION].max() if FRACTION in self.frame else None
        return self._summary_at(largest)

    def _summary_at(self, fraction: float | None) -> Summary:
        rows = self.frame if fraction is None else self.frame[self.frame[FRACTION] == fraction]
        repeats = self.repeats or Repeats("redrawn" if self.data_redrawn else "fixed")
        return summarise(rows, repeats=repeats, scale=self.scale)

    @cached_property
    def table(self) -> "pd.DataFrame":
        """The arms as numbers: columns arm, mean, gain, low, high, p, and the gain over the best other control.

        Accuracies are percentages and their differences points, as on the terminal. `low` and `high` are the ends of
        the 95 % interval of `gain`, which is paired by seed; `p` is corrected for the number of arms. `over_control`,
        `over_control_low` and `over_control_high` say the same of the gain over the control that is best on validation.
        What was not measured is NaN. A study of several label fractions has the further column label_fraction.
        """
        import pandas as pd

        if FRACTION not in self.frame:
            return arms_frame(self.summary)
        fractions = sorted(self.frame[FRACTION].unique())
        frames = [arms_frame(self._summary_at(fraction)) for fraction in fractions]
        return pd.concat(
            [frame.assign(**{FRACTION: fraction}) for frame, fraction in zip(frames, fractions, strict=True)],
            ignore_index=True,
        )

    def plot(self) -> "Figure":
        """Draw what every arm gains over no-kd: a dot per seed, the mean and its 95 % interval.

        Of several label fractions, the largest is drawn.

        Returns:
            A matplotlib figure.

        Raises:
            InputError: The study has no gains, because it lacks no-kd or any other arm.
        """
        gaining = [variant for variant in self.summary.variants if variant.gain is not None]
        if not gaining:
            raise InputError("there is no gain to draw: the study needs no-kd and at least one other arm")
        return draw_gains(self.summary, representatives(self.summary, gaining))

    def __repr__(self) -> str:
        arms = ", ".join(dict.fromkeys(arm for arm in self.frame["arm"] if arm))
        place = "" if self.folder is None else f", in {self.folder}"
        return f"StudyResult({self.summary.seeds_in_words} of {arms}{place})"

    def _repr_html_(self) -> str:
        table = self.table.to_html(index=False, na_rep="", float_format="{:.3g}".format, border=0)
        return f"<p>{escape(self.finding).replace(chr(10), '<br>')}</p>\n{table}"

    @property
    def best(self) -> Recommended:
        """The student that the study recommends at its largest label fraction; see `best_at`."""
        return self.best_at(None)

    def best_at(self, label_fraction: float | None) -> Recommended:
        """The student that the study recommends: that of no-kd where no arm is preferred on validation data.

        Args:
            label_fraction: The label fraction, in a study of several; None for the largest.

        Raises:
            InputError: The study has no such label fraction, or no arm no-kd.
        """
        if self.students is None:
            raise InputError("this result belongs to no run; use the one that mfh.study returned")
        return self.students.best(label_fraction)

    def by_seed(self, split: str = "test", label_fraction: float | None = None) -> "pd.DataFrame":
        """The students' metric: a row per seed, a column per variant, for instance "general-distance-0.5-flatten".

        Args:
            split: "val" or "test".
            label_fraction: The label fraction, in a study of several (default: the largest).
        """
        chosen = self.frame[(self.frame["metric"] == self.scale.name) & (self.frame["split"] == split)]
        if FRACTION in chosen:
            largest = chosen[FRACTION].max()
            chosen = chosen[chosen[FRACTION] == (largest if label_fraction is None else label_fraction)]
        names = [Cell.of(row).name for row in chosen.to_dict("records")]  # type: ignore[arg-type]
        return chosen.assign(variant=names).pivot_table(index="seed", columns="variant", values="value", sort=False)


def study(
    task: str | Path | Task | Callable[..., Task],
    *,
    arms: Sequence[Any] = (),
    ratios: Sequence[float] = (),
    scores: Sequence[str] | None = None,
    layers: Sequence[str] = (),
    weights: Sequence[tuple[float, float]] = (),
    label_fractions: Sequence[float] = (),
    num_seeds: int | None = None,
    first_seed: int | None = None,
    add_seeds: int = 0,
    select: bool | None = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
    progress: bool | None = None,
    finish: Callable[[Run], object] | None = None,
    **changes: Any,
) -> StudyResult:
    """Compare ways to make a student, paired by seed.

    What a seed shares (teachers, alignment, saliencies, teacher outputs) is made once. Seeds, and the cells of a seed
    where there are more processes than seeds, run in parallel where the task can be sent to other processes: named
    by a string, or made by a function of a module. Epochs are chosen on the validation split.

    Args:
        task: A task as `find_task` accepts it. A `Task` keeps its data for all seeds; a function with a parameter
            `seed` redraws them. A file that ends in .toml holds a whole study, as every run folder keeps one; what is
            given beside it counts, keywords of the task's function (`set`) one by one.
        arms: Arms to compare (default: `ARMS` of `mfh.studies.grid`, and where there are unlabelled pairs the controls
            `longer` and `self-training`): names, METHOD or METHOD+FOCUS with a shipped method or one of your own,
            "path/to/file.py:MyMethod" or "package.module:MyMethod", and methods themselves; see
            `mfh.studies.arms.find_arms`.
        ratios: Fractions of channels removed for the arms random, specific and general (default: the ratio of the
            task's protocol).
        scores: Scores behind the masks of the arms specific and general: "distance", "agreement" or both (default:
            "distance").
        layers: Layers of the teacher to mask (default: the task's layer).
        weights: Pairs of label weight and teacher weight of the loss to compare (default: only the loss's own pair).
            results.csv then has two more columns.
        label_fractions: Shares of the training labels to compare, each above 0 and at most 1 (default: all labels). The
            other training pairs become unlabelled ones. Shares are stratified by class, or made of whole groups where
            the training split has `groups`; smaller ones lie within larger ones, and all arms of a seed have the same.
            results.csv then has the further column `label_fraction`.
        num_seeds: Number of random seeds (default: 5).
        first_seed: The first of the consecutive random seeds (default: 0).
        add_seeds: Number of seeds to add to those that the run folder holds already; then `num_seeds` does not count.
        select: Whether to choose arm, ratio, layer, score and weights by the mean metric on the validation split, and
            to read the test split only for the chosen one, for no-kd and for the same teacher unmasked (default: no).
            The choice stays when seeds are added. It recommends no-kd where the chosen one's mean validation gain over
            the best control does not exceed its standard error; see `mfh.studies.choice`. In the folder of a study that
            read the test split for all, it only chooses.
        out: Run folder, which grows cell by cell, and from which the same call resumes. None keeps everything in a
            temporary folder, which goes with the result.
        settings: Training, loss, given files, device and processes; see `Settings`.
        progress: Whether to report progress on the terminal or in the notebook (default: only in a notebook, where the
            finding is printed at the end as well).
        finish: Called with the run folder when everything is measured and before the folder is released, for instance
            `mfh.report`. Seeds that are added count as added once it has returned.
        **changes: Single settings by name, as `Settings.of` takes them: `epochs=5`, `device="cpu"`, `processes=1`.

    Returns:
        The measurements.

    Raises:
        InputError: Something is not as described, or `out` belongs to another configuration.
    """
    if progress is None:
        progress = in_notebook()
    settings = (settings or Settings()).changed(**changes)
    given = {
        "arms": _listed(arms),
        "ratios": _listed(ratios),
        "scores": _listed(scores),
        "layers": _listed(layers),
        "weights": _listed(weights),
        "label_fractions": _listed(label_fractions),
        "num_seeds": num_seeds,
        "first_seed": first_seed,
        "select": select,
    }
    if is_study_file(task):
        whole = merged(read_study(task), given, settings)  # type: ignore[arg-type]
        return study(**whole, add_seeds=add_seeds, out=out, progress=progress, finish=finish)
    num_seeds = checked("num_seeds", DEFAULT_NUM_SEEDS if num_seeds is None else num_seeds, NumSeeds)
    first_seed = checked("first_seed", 0 if first_seed is None else first_seed, RandomSeed)
    select = checked("select", False if select is None else select, bool)
    checked("add_seeds", add_seeds, AddSeeds)
    refuse_torchrun("a study starts its own processes (processes=...) and")
    checked("out", out, str | Path | None)
    found = find_arms(checked("arms", given["arms"], tuple[Any, ...]))
    for spec in (task, *found.methods.values()):
        refuse_edited(spec)
    design = _Design(
        found.names,
        given["ratios"],
        DEFAULT_SCORES if scores is None else given["scores"],
        given["layers"],
        given["weights"],
        check_fractions(checked("label_fractions", given["label_fractions"], tuple[float, ...])),
        select,
        first_seed,
        num_seeds,
        add_seeds,
        tuple(found.methods.items()),
    )
    with status("reading the data and checking the task", progress):
        result = _study_in(out, task, design, settings, progress, finish)
    if progress and in_notebook():
        print(result.finding)  # noqa: T201
    return result


def _study_in(
    out: str | Path | None,
    task: Any,
    design: "_Design",
    settings: Settings,
    progress: bool,
    finish: Callable[[Run], object] | None,
) -> StudyResult:
    """A study in a run folder; without one, in a temporary folder that goes with the result."""
    if out is not None:
        return _study(task, design, Run(out), settings, progress, finish)
    temporary = tempfile.mkdtemp(prefix="mfh-study-")
    forget = partial(shutil.rmtree, temporary, ignore_errors=True)
    try:
        result = _study(task, design, Run(Path(temporary) / "run"), settings, progress, finish)
    except BaseException:
        forget()
        raise
    weakref.finalize(result.students, forget)  # `result.best` reads its student there
    return replace(result, folder=None)


@dataclass(frozen=True)
class _Design:
    """What a study compares."""

    arms: tuple[str, ...]
    ratios: tuple[float, ...]
    scores: tuple[str, ...]
    layers: tuple[str, ...]
    weights: tuple[tuple[float, float], ...]
    fractions: tuple[float, ...]
    select: bool
    first_seed: int
    num_seeds: int
    add_seeds: int
    methods: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def _listed(values: Any) -> Any:
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else values


def _seeds(run: Run, design: _Design) -> range:
    """The seeds of a study, as the run folder is now."""
    first_seed, num_seeds, add_seeds = design.first_seed, design.num_seeds, design.add_seeds
    if add_seeds:
        num_seeds = run.seeds_with(add_seeds)
    return range(first_seed, first_seed + num_seeds)


def _study(
    task: Any,
    design: _Design,
    run: Run,
    settings: Settings,
    progress: bool,
    finish: Callable[[Run], object] | None,
) -> StudyResult:
    seeds = _seeds(run, design)
    settings = with_earlier_arguments(settings, task, run)
    source = find_task(task, settings.task)
    first = source.make(seeds.start)
    ratios = design.ratios or (first.protocol.ratio,)
    arms = design.arms or default_arms(
        unlabelled=first.unlabelled is not None or min(design.fractions, default=1.0) < 1,
        linear=bool(first.facts.get("linear_baseline")),
    )
    grid = cells(arms, ratios, design.scores, design.layers or [first.layer], design.weights, dict(design.methods))
    layers = dict.fromkeys(cell.layer for cell in grid if cell.layer)
    check_task(first, layers, source.origin, whole=["test"])
    select = design.select and not _tested_all(run)
    splits = ("val",) if select else ("val", "test")
    scale = first.problem.metric.scale
    plan = Plan(task, settings, tuple(grid), splits, run.folder, seeds, scale, select, design.fractions, design.methods)
    made = plan.seed(first, plan.units[0])
    _check(design, grid, first, settings, made)
    plan = replace(plan, ensemble=_ensemble(made, run))
    config = _config(plan, first, made, source, sorted(set(ratios)), design)
    run.refuse_foreign()
    with run.locked():
        run.refresh()
        if _seeds(run, design) != seeds:
            raise InputError(f"{run.folder} was changed by another process meanwhile; give the command again")
        if design.add_seeds:
            run.begin_addition(design.add_seeds, len(seeds))
        run.claim(config)
        run.write_study(_study_text(plan, design, settings))
        result = _measured(plan, run, source, made, progress)
        if design.select and not select:
            _choose(plan, run)
        if finish is not None:
            finish(run)
        run.end_addition()
    return result


def _study_text(plan: Plan, design: _Design, settings: Settings) -> str:
    """The content of the file that repeats a study."""
    made_from = origins(plan.task, dict(plan.methods))
    own = made_from.get("methods", {})
    lost = [] if "source" in made_from else ["the task, an object of Python; add task = ..."]
    arms = []
    for name in dict.fromkeys(cell.arm for cell in plan.grid):
        method, focus = method_and_focus(name)
        if method in dict(plan.methods) and method not in own:
            lost.append(f"the arm {name}, an object of Python")
            continue
        spec = _anywhere(own[method]) if method in own else method
        arms.append(f"{spec}+{focus}" if focus else spec)
    held = {
        "task": _anywhere(made_from.get("source", "")),
        "arms": arms,
        "ratios": design.ratios,
        "scores": () if design.scores == DEFAULT_SCORES else design.scores,
        "layers": design.layers,
        "weights": design.weights,
        "label_fractions": design.fractions,
        "num_seeds": len(plan.seeds),
        "first_seed": plan.seeds.start,
        "select": design.select,
    }
    return study_text(held, settings, lost)


def _anywhere(spec: str) -> str:
    """What names a task or a method, with the path of a file in full."""
    place, colon, name = spec.partition(":")
    return f"{Path(place).resolve()}{colon}{name}" if Path(place).is_file() else spec


def _tested_all(run: Run) -> bool:
    """Whether the folder holds a study whose test split was read for all arms."""
    return bool(run.holds_config and run.num_cells and run.command == "study" and not run.config.get("select"))


def _check(design: _Design, grid: Sequence[Cell], task: Task, settings: Settings, made: Seed) -> None:
    weighted = [name for name in WEIGHTS if name in settings.loss.changes()]
    if design.weights and weighted:
        given = settings.loss.changes()[weighted[0]]
        raise InputError(f"{weighted[0]} is {given}, and weights are to be compared; put it into weights' pairs")
    if design.select and design.fractions:
        raise InputError("select chooses at one label budget; give label_fractions or select, not both")
    compared = [cell for cell in grid if cell.arm not in ("no-kd", *CONTROLS)]
    if design.select and (all(cell.arm != "no-kd" for cell in grid) or not compared):
        raise InputError("select compares with no-kd; add it, and at least one other arm that is no control, to arms")
    if any(cell.arm == "label-smoothing" for cell in grid):
        task.problem.smoothed(LABEL_SMOOTHING)  # says what is wrong with it
    unlabelled = task.unlabelled is not None or min(design.fractions, default=1.0) < 1
    for cell in grid:
        loss = made.networks.loss(cell)  # says what is wrong with the weights
        if unlabelled and cell.teacher is not None:
            check_terms(loss)
    known = ("no-kd", "longer", "label-smoothing", LINEAR, *TAUGHT_BY_OUTPUTS)
    without = [cell for cell in grid if cell.arm not in known and not made.networks.is_taught_by_logits(cell)]
    if task.teacher is None and without:
        raise InputError(
            f"task {task.name!r} has only its teacher's outputs; choose arms from {', '.join(known)}, or methods of "
            f"logits, not {without[0].arm}"
        )
    if all(cell.arm != NO_KD.arm for cell in grid):
        log.warning("without the arm no-kd there is nothing to compare with, and the study can recommend no student")
    forget_warnings()
    made.rehearse(grid, unlabelled=unlabelled)


def _ensemble(made: Seed, run: Run) -> Literal["off", "auto", "on"]:
    """Which networks of several seeds and arms are trained at once; a run that is resumed goes on as it began.

    Raises:
        InputError: All are wanted, and they cannot be stacked.
    """
    wanted, networks = made.settings.execution.ensemble, made.networks
    if wanted == "auto" and run.holds_config and run.num_cells:
        return run.config.get(ENSEMBLE, "off")  # type: ignore[no-any-return]
    if wanted == "off" or (wanted == "auto" and not networks.are_small):
        return "off"
    roles: tuple[Role, ...] = ("student", "teacher")
    for role in roles:
        reason = networks.alone(role)
        if reason is None:
            continue
        if wanted == "on":
            raise InputError(
                f"ensemble is 'on', but the {role} cannot be trained together with those of other seeds: {reason}; "
                "choose 'auto', which trains such networks one by one"
            )
        log.warning("the %ss of all seeds are trained one by one, not together: %s", role, reason)
        if role == "student":
            return "off"
    return wanted


def _counts(task: Task) -> dict[str, int]:
    """How many pairs there are of each kind."""
    unlabelled = 0 if task.unlabelled is None else len(task.unlabelled)
    return {"labelled": len(task.train), "unlabelled": unlabelled, "val": len(task.val), "test": len(task.test)}


def _config(
    plan: Plan, first: Task, made: Seed, source: TaskSource, ratios: Sequence[float], design: _Design
) -> dict[str, Any]:
    """Everything that decides the results, and what a report says of the run."""
    return {
        "command": "study",
        "task": made.task.name,
        "arms": list(dict.fromkeys(cell.arm for cell in plan.grid)),
        "ratios": list(ratios),
        "scores": list(dict.fromkeys(design.scores)),
        "layers": list(dict.fromkeys(cell.layer for cell in plan.grid if cell.layer)) or [made.task.layer],
        **made.networks.methods_facts(plan.grid),
        "weights": list(dict.fromkeys(cell.weights for cell in plan.grid if cell.weights)) or None,
        "select": plan.select,
        **({"label_fractions": list(design.fractions)} if design.fractions else {}),
        "pairs": [_counts(with_label_fraction(first, fraction, made.seed)) for fraction in design.fractions or (None,)],
        **plan.settings.task.facts(),
        "epochs": made.recipe.epochs,
        "batch_size": made.recipe.batch_size,
        "permutations": plan.settings.scoring.permutations,
        **asdict(plan.settings.files),
        **made.networks.protocol_facts(),
        "threads": plan.settings.execution.threads,
        **({} if plan.ensemble == "off" else {ENSEMBLE: plan.ensemble}),
        **_repeats(made.task, source),
        "metric": asdict(plan.scale),
        "facts": dict(made.task.facts),
        "identity": made.networks.identity,
        "first_seed": plan.seeds.start,
        "num_seeds": len(plan.seeds),
    }


def _repeats(task: Task, source: TaskSource) -> dict[str, Any]:
    """What differs between seeds, as `Run.repeats` reads it."""
    repeats = Repeats.of(task, source.redrawn)
    # Folders of earlier studies, which may go on, know no same_test.
    left_out = {"seeds"} if repeats.same_test else {"seeds", "same_test"}
    sizes = {name: value for name, value in vars(repeats).items() if name not in left_out}
    return {"data_redrawn": repeats.seeds == "redrawn"} | ({"resplit": sizes} if repeats.seeds == "resplit" else {})


def _measured(plan: Plan, run: Run, source: TaskSource, first: Seed, progress: bool) -> StudyResult:
    started, cached = time.monotonic(), run.num_cells
    with Crew(plan, source, first, progress=progress) as crew:
        crew.run(plan)
        rows = plan.collect(plan.units)
        _keep_students(plan, rows, run, crew)
        if plan.select:
            chosen = replace(plan, grid=tuple(_choose(plan, run)), splits=("test",))
            crew.run(chosen)
            rows += chosen.collect(plan.units)
    run.write_results(plan.columns, rows)
    if run.num_cells > cached:
        run.forget_exported()
    made_from = origins(plan.task, dict(plan.methods)) | {STARTED_IN: str(Path().absolute())}
    if run.num_cells > cached or not run.environment:
        # More seeds, or the rest after an interruption, add to the time.
        seconds = time.monotonic() - started + float(run.environment.get("seconds", 0))
        run.write_environment(environment(seconds=round(seconds, 1), **made_from))
    elif any(run.environment.get(name) != value for name, value in made_from.items()):
        run.write_environment(run.environment | made_from)
    redrawn = run.repeats.seeds == "redrawn"
    students = Students(run, source, plan.settings, dict(plan.methods))
    frame = _frame(rows, plan.columns)
    return StudyResult(frame, redrawn, run.folder, plan.scale, students, study_finding(run), run.repeats)


def _keep_students(plan: Plan, rows: Sequence[Row], run: Run, crew: Crew) -> None:
    """Train students again that are to be kept and are not, because a study before kept none or files were removed.

    Students were kept while they were measured, so there is usually nothing to do. Here it is decided which one is the
    best, whatever order the cells were measured in.
    """
    if plan.settings.keeping.keep_students == "none":
        return
    values: dict[tuple[float | None, Cell], list[tuple[float, int]]] = {}
    for row in rows:
        if (row["split"], row["metric"]) == ("val", plan.scale.name):
            fraction = float(row[FRACTION]) if plan.fractions else None
            values.setdefault((fraction, Cell.of(row)), []).append((float(row["value"]), int(row["seed"])))
    wanted: list[tuple[Unit, Cell]] = []
    best_values: list[float] = []
    for (fraction, cell), found in values.items():
        if cell.arm == LINEAR:
            continue
        value, best = max(found, key=lambda one: (plan.scale.sign * one[0], -one[1]))
        held = run.student_facts(cell, fraction)
        if held is None or held["seed"] != best:
            wanted.append(((best, fraction), cell))
            best_values.append(value)
    for (unit, cell), value, (made, student) in zip(wanted, best_values, crew.students(plan, wanted), strict=True):
        facts = {**made.networks.origin, "validation": value}
        run.write_student(cell, unit[1], student.network.state_dict(), facts)


def _frame(rows: list[Row], columns: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame([{**row} for row in rows], columns=list(columns))
    names = [name for name in ("ratio", FRACTION, *WEIGHTS, "seed", "value") if name in frame]
    numbers = {name: pd.to_numeric(frame[name].replace("", None)) for name in names}
    return frame.assign(**numbers)


def _choose(plan: Plan, run: Run) -> list[Cell]:
    """The variant with the best mean on the validation split, and what it is compared with.

    The run folder keeps it, and it stays when seeds are added: the test split is read for one choice only.
    """
    values, held = plan.validation(plan.units), run.selection
    means = {cell: sum(v) / len(v) for cell, v in values.items()}
    if held is not None:
        best = Cell.chosen(held)
        if best not in plan.grid:
            raise InputError(f"{run.selection_file} names no variant of this study; remove it to choose again")
        return [*_references(plan, best, means), best]
    import pandas as pd

    factor = plan.scale.factor
    shown = {cell: factor * pd.Series(list(found), dtype=float) for cell, found in values.items()}
    choice = choose(shown, plan.scale, run.repeats, run.num_val)
    assert choice is not None  # `_check` has seen that there are candidates
    run.write_selection(
        {
            **vars(choice.best),
            f"validation_{plan.scale.name}": means[choice.best],
            "control": choice.control.name,
            "validation_gain": choice.gain / factor,
            "standard_error": None if math.isinf(choice.error) else choice.error / factor,
            "recommended": (choice.best if choice.helps else NO_KD).name,
            "candidates": choice.candidates,
            "num_seeds": len(plan.seeds),
        }
    )
    return [*_references(plan, choice.best, means), choice.best]


def _references(plan: Plan, best: Cell, means: Mapping[Cell, float]) -> list[Cell]:
    """What the chosen variant is compared with: no-kd, the same teacher unmasked, the best control by validation."""
    controls = [cell for cell in means if cell.arm in PLAIN_CONTROLS]
    control = max(controls, key=lambda cell: plan.scale.sign * means[cell], default=None)
    return [cell for cell in plan.grid if cell.arm == "no-kd" or cell in (best.unmasked, control)]
