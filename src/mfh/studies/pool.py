"""The cells of a study, measured in worker processes or in this one, with what is done so far on the terminal."""

import logging
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mfh.errors import InputError, plain
from mfh.methods.checks import warned_before
from mfh.networks.modes import find_device
from mfh.parallel.cluster import cluster_pool
from mfh.parallel.pool import Job, Pool, WorkerDiedError, run_jobs, worker_pool
from mfh.problems.scale import Scale
from mfh.progress import doing, end_status, is_live, listening, progress_bar, seldom
from mfh.studies.away import Away, Luggage, gpus_of_a_job
from mfh.studies.folder import Row, Run, SeedFolder
from mfh.studies.grid import COLUMNS, FRACTION, LINEAR, WEIGHTS, Cell
from mfh.studies.labels import with_label_fraction
from mfh.studies.networks import Trained
from mfh.studies.seed import Seed
from mfh.studies.settings import Settings
from mfh.tasks.finding import TaskSource, find_task
from mfh.tasks.task import Task
from mfh.training.together import MOST_NETWORKS, together

log = logging.getLogger("mfh")

#: How often a training says at which epoch it is.
_SECONDS_BETWEEN_NOTES = 0.3
#: Between two drawings of the display, so many times as long as one takes.
_SHARE_OF_DISPLAY = 10.0
#: Off a terminal, what goes on is written at most once in this time.
_SECONDS_BETWEEN_LINES = 30.0

#: A seed and the share of the labels that it has; None for all of them in a study that compares none.
Unit = tuple[int, float | None]


@dataclass(frozen=True)
class Plan:
    """What a study measures: all that a worker process needs to know.

    Args:
        task: The task as the user gave it.
        settings: What differs from the task's own recipe and protocol.
        grid: The cells.
        splits: The splits that students are measured on.
        folder: The run folder.
        seeds: The random seeds.
        scale: How the task's metric reads.
        select: Whether the test split is read only for what validation chooses.
        fractions: The shares of the labels to compare; empty for all labels alone.
        ensemble: Whether networks of several units and cells are trained at once: none, small ones, or all.
        methods: Methods by name that are not shipped, or not as they are shipped.
        notes: Folder where worker processes say what they are doing; None where nobody listens.
    """

    task: Any
    settings: Settings
    grid: tuple[Cell, ...]
    splits: tuple[str, ...]
    folder: Path
    seeds: range
    scale: Scale
    select: bool
    fractions: tuple[float, ...] = ()
    methods: tuple[tuple[str, Any], ...] = ()
    ensemble: Literal["off", "auto", "on"] = "off"
    notes: Path | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether every student is kept: where the user wants it, or where the test split is read for some later."""
        return self.select or self.settings.keeping.keep_students == "all"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table of measurements."""
        weights = WEIGHTS if any(cell.weights for cell in self.grid) else ()
        return (*COLUMNS, *((FRACTION,) if self.fractions else ()), *weights)

    @property
    def units(self) -> list[Unit]:
        """What is made on its own: every seed at every label fraction."""
        return [(seed, fraction) for seed in self.seeds for fraction in (self.fractions or (None,))]

    def kept(self, unit: Unit) -> SeedFolder:
        """What a unit keeps in the run folder."""
        return Run(self.folder).seed(*unit)

    def seed(self, task: Task, unit: Unit) -> Seed:
        """A unit, ready to work on."""
        seed, fraction = unit
        return Seed(
            with_label_fraction(task, fraction, seed),
            seed,
            self.settings,
            self.kept(unit),
            keep_students=self.keeps_all,
            fraction=fraction,
            methods=dict(self.methods),
        )

    def offer(self, made: Seed, cell: Cell, student: Trained, rows: Sequence[Row]) -> None:
        """Keep a student that was measured, if it is the best of its variant so far."""
        values = [row["value"] for row in rows if self.is_validation(row)]
        if self.settings.keeping.keep_students != "none" and values:
            facts = {**made.networks.origin, "validation": values[0]}
            run = Run(self.folder)
            run.offer_student(cell, made.fraction, student.network.state_dict, facts, self.scale.sign)

    def missing(self, unit: Unit) -> list[Cell]:
        """Cells of a unit that are not measured yet."""
        kept = self.kept(unit)
        return [cell for cell in self.grid if not kept.holds_rows(cell, self.splits)]

    def joined(self, unit: Unit) -> list[Cell]:
        """Missing cells whose networks are trained at once with those of others: methods other than kd are not."""
        return [cell for cell in self.missing(unit) if cell.method in (None, "kd")]

    def unrated(self, unit: Unit) -> bool:
        """Whether a unit's AUROCs are still to be written; testing what was chosen writes none."""
        return self.splits != ("test",) and not self.kept(unit).holds_rows(None, self.splits)

    def collect(self, units: Sequence[Unit]) -> list[Row]:
        """All measurements so far, by unit and in the order of the grid."""
        return [
            row
            for unit in units
            for cell in (*self.grid, None)
            for row in self.kept(unit).read_rows(cell, self.splits, self.columns)
        ]

    def is_validation(self, row: Row) -> bool:
        """Whether a row is the student's metric on the validation split."""
        return (row["split"], row["metric"]) == ("val", self.scale.name)

    def validation(self, units: Sequence[Unit]) -> dict[Cell, list[float]]:
        """The students' metric on the validation split, as far as it is measured."""
        values: dict[Cell, list[float]] = {}
        for row in self.collect(units):
            if self.is_validation(row):
                values.setdefault(Cell.of(row), []).append(float(row["value"]))
        return values


def _measure(
    plan: Plan,
    unit: Unit,
    chunk: Sequence[Cell] | None,
    made: Seed | None = None,
    tick: Callable[[], None] | None = None,
) -> None:
    """Measure some cells of one unit; with None make only what they share. `tick` is called after each."""
    with _noting(plan, unit), _threads(plan.settings.execution.threads), warned_before():
        if made is None:
            doing("reading the data")
            made = plan.seed(find_task(plan.task, plan.settings.task).make(unit[0]), unit)
        if chunk is None:
            made.prepare(plan.missing(unit))
            return
        _measure_alone(plan, unit, chunk, made, tick)


def _measure_together(
    plan: Plan,
    units: Sequence[Unit],
    make: Callable[[Unit], Seed] | None = None,
    tick: Callable[[], None] | None = None,
    *,
    others: bool = False,
) -> None:
    """Make what the cells of some units share, and measure those whose networks are trained at once; see `Plan.joined`.

    With `others`, the other cells are measured too.
    """
    strict, missing = plan.ensemble == "on", {unit: plan.missing(unit) for unit in units}
    joined = {unit: plan.joined(unit) for unit in units}
    with _noting(plan, units[0]), _threads(plan.settings.execution.threads), warned_before():
        doing("reading the data")
        if make is None:
            source = find_task(plan.task, plan.settings.task)
            seeds = {unit: plan.seed(source.make(unit[0]), unit) for unit in units}
        else:
            seeds = {unit: make(unit) for unit in units}
        together([partial(made.prepare, missing[unit]) for unit, made in seeds.items()], strict=strict)
        measured = {unit: made.measurer(joined[unit], splits=plan.splits) for unit, made in seeds.items()}

        def keep(unit: Unit, cell: Cell, student: Trained | None) -> None:
            rows = measured[unit](cell, student)
            if student is not None:
                plan.offer(seeds[unit], cell, student, rows)
            _keep(plan, unit, cell, rows, tick)

        for unit in units:
            for cell in joined[unit]:
                if cell.arm == LINEAR:
                    keep(unit, cell, None)
        makers = {(unit, cell): make for unit in units for cell, make in seeds[unit].makers(joined[unit]).items()}
        names = [*makers]
        together([*makers.values()], strict=strict, finished=lambda number, student: keep(*names[number], student))
        for unit, made in seeds.items():
            alone = [cell for cell in missing[unit] if others and cell not in joined[unit]]
            _measure_alone(plan, unit, alone, made, tick)


def _measure_alone(plan: Plan, unit: Unit, cells: Sequence[Cell], made: Seed, tick: Callable[[], None] | None) -> None:
    """Measure cells one after the other, and keep the unit's AUROCs when all its cells are measured."""
    measured = made.measure(cells, splits=plan.splits, finished=partial(plan.offer, made))
    for cell, rows in zip(cells, measured, strict=True):
        _keep(plan, unit, cell, rows, tick)
    if plan.unrated(unit) and not plan.missing(unit):
        plan.kept(unit).write_rows(None, plan.splits, plan.columns, made.score_rows(plan.grid))
    made.forget_features()


def _keep(plan: Plan, unit: Unit, cell: Cell, rows: Sequence[Row], tick: Callable[[], None] | None) -> None:
    """Keep the rows of a cell. `tick` is called after that."""
    plan.kept(unit).write_rows(cell, plan.splits, plan.columns, rows)
    if tick is not None:
        tick()


@contextmanager
def _noting(plan: Plan, unit: Unit) -> Iterator[None]:
    """Keep what this process is doing in a file that the study's own process shows.

    A file needs no lock: a process that dies in the middle of a note stops nobody.
    """
    if plan.notes is None:
        yield
        return
    file = plan.notes / f"{plan.units.index(unit)}-{os.getpid()}"

    def note(work: str) -> None:
        with suppress(OSError):  # the study goes on without its notes
            file.write_text(work, encoding="utf-8")

    with listening(seldom(note, _SECONDS_BETWEEN_NOTES)):
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure_joined(plan: Plan, units: Sequence[Unit], _: None = None) -> None:
    """Measure the cells of some units whose networks are trained at once, in a worker."""
    _measure_together(plan, units)


def _measure_units(plan: Plan, units: Sequence[Unit], cells: Sequence[Cell] | None) -> None:
    """Measure some cells of some units one after the other, in a worker."""
    for unit in units:
        _measure(plan, unit, cells)


class Crew:
    """Measures cells in worker processes or on a cluster, as the settings say.

    It measures in this process where a task cannot travel to other processes, or where there is little to do.

    Args:
        plan: What to measure.
        source: Makes the task in this process.
        first: The first seed, if this process has made it already.
        progress: Whether to report on the terminal.
    """

    def __init__(self, plan: Plan, source: TaskSource, first: Seed, *, progress: bool) -> None:
        self.plan = plan
        self.source, self.first, self.reporter = source, first, _Reporter(plan, progress)
        self.away: Away | None = None
        self.workers = 1
        self._stack = ExitStack()
        self._pool: Pool | None = None

    def __enter__(self) -> "Crew":
        with ExitStack() as stack:
            self._find_workers(stack)
            stack.enter_context(self.reporter)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _find_workers(self, stack: ExitStack) -> None:
        execution, plan = self.plan.settings.execution, self.plan
        if execution.engine == "processes":
            on_gpu = find_device(execution.device).type == "cuda"
            wanted = execution.processes or (1 if on_gpu else (os.cpu_count() or 1))
            self.workers = wanted if _can_travel(plan) else 1
            return
        if not any(plan.missing(unit) or plan.unrated(unit) for unit in plan.units):
            return
        luggage = Luggage.of(plan)
        gpus = gpus_of_a_job(execution)
        pool = stack.enter_context(cluster_pool(execution.address, cpus=execution.threads, gpus=gpus))
        self._pool, self.workers, self.away = pool, pool.slots, Away(pool, luggage)
        log.info("Ray cluster: %d node(s), %d job(s) at once", pool.num_nodes, pool.slots)

    def run(self, plan: Plan) -> None:
        """Measure all cells that are missing.

        Raises:
            InputError: A worker process ended before its work.
        """
        plan = replace(plan, notes=self.reporter.notes)
        todo = [unit for unit in plan.units if plan.missing(unit) or plan.unrated(unit)]
        if plan.ensemble != "off":
            self._run_together(plan, todo)
            todo = [unit for unit in todo if plan.missing(unit) or plan.unrated(unit)]
        few = self.workers == 1 or sum(len(plan.missing(unit)) for unit in todo) < 2
        if few and self.away is None:
            for unit in todo:
                _measure(plan, unit, plan.missing(unit), self.seed(plan, unit), self.reporter.tick)
                self.reporter.finished(unit)
            return
        # With more processes than units, what a unit's cells share is made first, and then the cells are shared out.
        # On a cluster every cell is a job, because only what a finished job returns is kept.
        parts = len(plan.grid) if self.away else max(1, self.workers // max(1, len(todo)))
        first_shared = bool(self.away) or parts > 1
        left = dict.fromkeys(todo, 1)

        def finished(units: Sequence[Unit], chunk: Sequence[Cell] | None) -> list[Job[Any]]:
            (unit,) = units
            more: list[Job[Any]] = []
            if chunk is None:
                cells = plan.missing(unit)
                more = [self._job(plan, units, cells[start::parts]) for start in range(min(parts, max(1, len(cells))))]
            left[unit] += len(more) - 1
            if not left[unit] and chunk and plan.unrated(unit):
                # On a cluster no job knows of the unit's other cells, so none has made its AUROCs.
                more, left[unit] = [self._job(plan, units, [])], 1
            if not left[unit]:
                self.reporter.finished(unit)
            return more

        jobs = [self._job(plan, [unit], None if first_shared else plan.missing(unit)) for unit in todo]
        self._run_jobs(plan, jobs, finished)

    def _run_together(self, plan: Plan, todo: Sequence[Unit]) -> None:
        """Measure units in parts whose networks are trained at once, every worker a part at a time.

        With several workers, cells whose networks are not trained at once are left; what they share is made.
        """
        cells = max((len(plan.missing(unit)) for unit in todo), default=1)
        size = max(1, min(-(-len(todo) // self.workers), MOST_NETWORKS // max(1, cells)))
        parts = [todo[start : start + size] for start in range(0, len(todo), size)]

        def finished(units: Sequence[Unit], _: Sequence[Cell] | None) -> None:
            for unit in units:
                if not plan.missing(unit):
                    self.reporter.finished(unit)

        if self.away is None and (self.workers == 1 or len(parts) == 1):
            for units in parts:
                others = self.workers == 1
                _measure_together(plan, units, partial(self.seed, plan), self.reporter.tick, others=others)
                finished(units, None)
            return
        self._run_jobs(plan, [self._job(plan, units, None, _measure_joined) for units in parts], finished)

    def _job(
        self,
        plan: Plan,
        units: Sequence[Unit],
        cells: Sequence[Cell] | None,
        measure: Callable[..., None] = _measure_units,
    ) -> Job[Any]:
        """A job whose key says what it measures."""
        if self.away is not None:
            return self.away.job(measure, plan, units, cells)
        return Job((units, cells), measure, (plan, units, cells))

    def _run_jobs(
        self, plan: Plan, jobs: Sequence[Job[Any]], finished: Callable[[Sequence[Unit], Any], list[Job[Any]] | None]
    ) -> None:
        """Run jobs in the workers, which start with the first.

        Raises:
            InputError: A worker process ended before its work.
        """
        away = self.away
        if self._pool is None:
            self._pool = self._stack.enter_context(worker_pool(self.workers))

        def on_result(job: Job[Any], found: Any) -> list[Job[Any]] | None:
            if away is not None:
                away.keep(plan, job.key[0], found)
            return finished(*job.key)

        def on_idle() -> None:
            if away is not None and plan.notes is not None:
                away.write_notes(plan.notes)
            self.reporter.tick()

        try:
            run_jobs(self._pool, jobs, on_result, on_idle)
        except WorkerDiedError as error:
            if away is not None:
                raise InputError(
                    f"a job on the Ray cluster ended again and again before its work ({error}); what was finished is "
                    "kept, and the same command goes on"
                ) from None
            raise InputError(
                "a worker process ended before its work: out of memory, or the script that calls study() does not "
                'guard it with `if __name__ == "__main__":`; what was finished is kept, and processes=1 needs no '
                "workers"
            ) from None

    def students(self, plan: Plan, wanted: Sequence[tuple[Unit, Cell]]) -> list[tuple[Seed, Trained]]:
        """Students of some units, trained in this process as the study trains them, each with its seed."""
        seeds = {unit: self.seed(plan, unit) for unit in dict.fromkeys(unit for unit, _ in wanted)}
        jobs = [partial(seeds[unit].student, cell) for unit, cell in wanted]
        with _threads(plan.settings.execution.threads), warned_before():
            if plan.ensemble == "off":
                trained = [job() for job in jobs]
            else:
                trained = together(jobs, strict=plan.ensemble == "on")
        return [(seeds[unit], student) for (unit, _), student in zip(wanted, trained, strict=True)]

    def seed(self, plan: Plan, unit: Unit) -> Seed:
        """A unit, ready to work on in this process."""
        if unit == (self.first.seed, self.first.fraction):
            return self.first
        return plan.seed(self.source.make(unit[0]), unit)


def _can_travel(plan: Plan) -> bool:
    if getattr(plan.task, "__module__", None) == "__main__":  # workers do not run the caller's script or notebook
        return False
    try:
        return b"__main__" not in pickle.dumps(plan)  # factories of a Task may come from there too
    except Exception:
        return False


class _Reporter:
    """What is done so far and what goes on: live with the time left on a terminal, in lines elsewhere."""

    def __init__(self, plan: Plan, progress: bool) -> None:
        self.plan, self.progress = plan, progress
        self.live: Any = None
        self.told: set[Unit] = set()
        #: Where worker processes, and this one, say what they are doing.
        self.notes: Path | None = None
        self._stack = ExitStack()
        self._wrote = -_SECONDS_BETWEEN_LINES
        self._known: dict[tuple[Unit, Cell], float | None] = {}
        self._redrew, self._took = 0.0, 0.0

    def __enter__(self) -> "_Reporter":
        if self.progress:
            from rich.console import Console
            from rich.live import Live

            end_status()
            self.console = Console(stderr=True)
            self.notes = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mfh-notes-")))
            if is_live(self.console):
                self.bar = progress_bar()
                self.line = self.bar.add_task(
                    "students", total=len(self.plan.units) * len(self.plan.grid), completed=self.done()
                )
                self.live = Live(self.table(), console=self.console, transient=True, auto_refresh=False)
                self.live.start()
            # In this process there is nobody to wait for the others, so trainings redraw the display themselves.
            self._stack.enter_context(listening(self._heard))
            self.tick()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live is not None:
            self.live.stop()
        self._stack.close()

    def done(self) -> int:
        """Finished cells."""
        return len(self._look())

    def _look(self) -> dict[tuple[Unit, Cell], float | None]:
        """The metric on the validation split of every finished cell; each is read once, because cells do not change."""
        for unit in self.plan.units:
            kept = self.plan.kept(unit)
            for cell in self.plan.grid:
                if (unit, cell) not in self._known and kept.holds_rows(cell, self.plan.splits):
                    rows = kept.read_rows(cell, self.plan.splits, self.plan.columns)
                    values = [row["value"] for row in rows if self.plan.is_validation(row)]
                    self._known[unit, cell] = float(values[0]) if values else None
        return self._known

    def table(self) -> Any:
        """Mean of the metric on the validation split for every variant so far, what goes on, and the bar."""
        from rich.console import Group
        from rich.table import Column, Table
        from rich.text import Text

        scale, units = self.plan.scale, self.plan.units
        done = "Runs done" if self.plan.fractions else "Seeds done"
        table = Table("Variant", done, Column(header=Text(plain(f"Mean validation {scale.words}"))))
        found: dict[Cell, list[float]] = {}
        for (_, cell), value in self._look().items():
            if value is not None:
                found.setdefault(cell, []).append(value)
        for cell in self.plan.grid:
            values = found.get(cell, [])
            mean = scale.show(sum(values) / len(values)) if values else ""
            table.add_row(Text(plain(cell.name)), f"{len(values)} of {len(units)}", mean)
        going_on = Text(plain("\n".join(self.going_on()) or "starting worker processes"), overflow="ellipsis")
        return Group(table, going_on, self.bar)

    def going_on(self) -> list[str]:
        """What every process is doing, for instance "training teacher, epoch 12 of 60, seed 1 of 5"."""
        lines = []
        notes = {} if self.notes is None else {file: int(file.name.split("-")[0]) for file in self.notes.iterdir()}
        for file, place in sorted(notes.items(), key=lambda note: note[1]):
            with suppress(OSError, UnicodeDecodeError):  # a worker has just finished, or is writing
                work = file.read_text(encoding="utf-8")
                if work:
                    lines.append(f"{work}, {self._named(self.plan.units[place])}")
        return lines

    def _named(self, unit: Unit) -> str:
        seed, fraction = unit
        place = f"seed {self.plan.seeds.index(seed) + 1} of {len(self.plan.seeds)}"
        return place if fraction is None else f"{place}, {100 * fraction:g} % of the labels"

    def _heard(self, work: str) -> None:
        """This process trains itself."""
        if ", epoch " not in work or time.monotonic() - self._wrote > _SECONDS_BETWEEN_NOTES or self.live is None:
            self.tick()

    def tick(self) -> None:
        """Show what the workers have kept, and what they are doing."""
        if self.live is not None:
            if time.monotonic() - self._redrew >= _SHARE_OF_DISPLAY * self._took:
                self._draw()
        elif self.progress and time.monotonic() - self._wrote > _SECONDS_BETWEEN_LINES:
            going_on = self.going_on()
            if going_on:
                self._wrote = time.monotonic()
                done = f"{self.done()} of {len(self.plan.units) * len(self.plan.grid)} students; "
                self._print(done + "; ".join(going_on))

    def _draw(self) -> None:
        """Draw the live display."""
        self._wrote = time.monotonic()
        self.bar.update(self.line, completed=self.done())
        self.live.update(self.table(), refresh=True)
        self._redrew = time.monotonic()
        self._took = self._redrew - self._wrote

    def _print(self, line: str) -> None:
        self.console.print(plain(line), highlight=False, soft_wrap=True, markup=False)

    def finished(self, unit: Unit) -> None:
        """A unit is complete."""
        if self.live is not None:
            self._draw()
        if self.progress and self.live is None and unit not in self.told:
            self.told.add(unit)
            scale, values = self.plan.scale, self.plan.validation([unit])
            shown = ", ".join(
                f"{cell.name} {scale.show(value[0]).removesuffix(' %')}" for cell, value in values.items()
            )
            self._print(f"{self._named(unit)} done, validation: {shown}")
