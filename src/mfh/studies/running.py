"""A study: arms x ratios x scores x seeds on one task, kept in a run folder and resumed from it."""

import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

import torch

from mfh import files
from mfh.errors import InputError
from mfh.networks.modes import find_device
from mfh.parallel.distributed import world_size
from mfh.parallel.pool import start_workers, stop_workers
from mfh.problems.losses import DistillationLoss
from mfh.problems.scale import ACCURACY, Scale
from mfh.progress import progress_bar
from mfh.saliency.permutation import Permutations
from mfh.studies.grid import ARMS, COLUMNS, WEIGHTS, Cell, cells
from mfh.studies.provenance import environment
from mfh.studies.workbench import Row, Settings, Workbench
from mfh.tasks.checks import check_task
from mfh.tasks.finding import Handed, TaskSource, find_task
from mfh.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_SCORES = ("distance",)


@dataclass(frozen=True)
class StudyResult:
    """What a study measured.

    Args:
        frame: one row per measurement; columns arm, score, layer, ratio, seed, split, metric, value, and label_weight,
            teacher_weight where these were compared. Accuracies are fractions.
        data_redrawn: whether data were redrawn per seed; otherwise intervals cover training randomness only.
        folder: the run folder, if there is one.
        scale: how the task's metric reads.
    """

    frame: "pd.DataFrame"
    data_redrawn: bool
    folder: Path | None = None
    scale: Scale = ACCURACY

    def by_seed(self, split: str = "test") -> "pd.DataFrame":
        """The students' metric: a row per seed, a column per variant, for instance "general-distance-0.5-flatten"."""
        chosen = self.frame[(self.frame["metric"] == self.scale.name) & (self.frame["split"] == split)]
        names = [Cell.of(row).name for row in chosen.to_dict("records")]  # type: ignore[arg-type]
        return chosen.assign(variant=names).pivot_table(index="seed", columns="variant", values="value", sort=False)


def study(
    task: str | Path | Task | Callable[..., Task],
    *,
    arms: Sequence[str] = ARMS,
    ratios: Sequence[float] = (),
    scores: Sequence[str] = DEFAULT_SCORES,
    layers: Sequence[str] = (),
    weights: Sequence[tuple[float, float]] = (),
    num_seeds: int = 5,
    first_seed: int = 0,
    add_seeds: int = 0,
    select: bool = False,
    out: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    precision: str | None = None,
    num_workers: int | None = None,
    channels_last: bool | None = None,
    compile: bool | None = None,  # noqa: A002 (the word users know)
    logger: str | None = None,
    loss: DistillationLoss | Mapping[str, Any] | None = None,
    permutations: Permutations = "auto",
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    data: str | Path | None = None,
    preset: str | None = None,
    augment: bool = False,
    teacher_checkpoint: str | None = None,
    student_checkpoint: str | None = None,
    aligned_teacher_checkpoint: str | None = None,
    saliency: str | None = None,
    progress: bool = False,
) -> StudyResult:
    """Compare ways to make a student, paired by seed.

    What a seed shares (teachers, alignment, saliencies, teacher outputs) is made once. Seeds, and the cells of a seed
    where there are more processes than seeds, run in parallel where the task can be sent to other processes: named
    by a string, or made by a function of a module. Epochs are chosen on the validation split.

    Args:
        task: what `find_task` accepts; a Task keeps its data for all seeds, a function with a parameter `seed`
            redraws them.
        arms: ways to make a student; see `mfh.studies.grid`.
        ratios: fractions of channels removed, for random, specific and general; default: the task's protocol's.
        scores: "distance" and/or "agreement", for specific and general.
        layers: of the teacher, to mask; default: the task's.
        weights: (label weight, teacher weight) of the loss, to compare; default: only the loss's own. results.csv then
            has two more columns.
        num_seeds: how many seeds.
        first_seed: of consecutive ones.
        add_seeds: so many more than the run folder holds already; then `num_seeds` does not count.
        select: choose arm, ratio, layer, score and weights by the mean metric on the validation split, and read the
            test split only for the chosen one, no-kd and the same teacher unmasked. The choice stays when seeds are
            added.
            `selection.json` recommends no-kd where the chosen one's mean validation gain does not exceed its standard
            error over seeds.
        out: run folder, which grows cell by cell, and from which the same call resumes. None keeps nothing.
        epochs: instead of the recipe's.
        batch_size: instead of the recipe's, as the five that follow; see `Recipe`.
        accumulate: batches per step.
        precision: of training.
        num_workers: processes that read the data, per training process.
        channels_last: layout of convolutions' weights.
        compile: use `torch.compile`.
        logger: a Lightning logger by name ("tensorboard", ...), to follow the training of every network.
        loss: of distillation, a `KDLoss` or a function of (student logits, teacher logits, target); or some fields of
            a `KDLoss` to change in the one of the task's protocol.
        permutations: for Algorithm 1; see `channel_saliency`.
        device: where to run; default: a GPU if there is one, otherwise the CPU.
        processes: at a time; default: the number of processors, on a GPU 1.
        threads: per process on the CPU. Results do not depend on `processes`, but another number of threads adds up
            in another order.
        data: handed to the task's function.
        preset: handed to the task's function.
        augment: handed to the task's function, if true.
        teacher_checkpoint: a pretrained teacher's weights, instead of training one per seed.
        student_checkpoint: weights of a student trained on labels, instead of training one per seed.
        aligned_teacher_checkpoint: weights of a jointly trained teacher, instead of training a pair per seed.
        saliency: a file of scores of that teacher's channels (saved by mfh, or .npy), instead of computing them.
        progress: report progress on the terminal.

    Raises:
        InputError: something is not as described, or `out` belongs to another configuration.
    """
    if world_size() > 1:
        raise InputError("a study runs in one process and starts its own (processes=...); call it without torchrun")
    if out is None:
        arguments = dict(locals())
        with tempfile.TemporaryDirectory(prefix="mfh-study-") as temporary:
            return replace(study(**arguments | {"out": Path(temporary) / "run"}), folder=None)
    folder = Path(out)
    num_seeds = _num_seeds(folder, num_seeds, add_seeds)
    find_device(device)
    if (processes is not None and processes < 1) or threads < 1:
        raise InputError(f"processes is {processes} and threads {threads}; both must be at least 1")
    handed = Handed(data, preset, augment)
    source = find_task(task, handed)
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=precision,
        num_workers=num_workers,
        channels_last=channels_last,
        compile=compile,
        logger=logger,
        device=device,
        permutations=permutations,
        loss=loss,
        teacher_checkpoint=teacher_checkpoint,
        student_checkpoint=student_checkpoint,
        aligned_teacher_checkpoint=aligned_teacher_checkpoint,
        saliency=saliency,
        keep_students=select,
    )
    first = source.make(first_seed)
    ratios = ratios or [first.protocol.ratio]
    grid = cells(arms, ratios, scores, layers or [first.layer], weights)
    check_task(first, dict.fromkeys(cell.layer for cell in grid if cell.layer), source.origin)
    if weights and isinstance(loss, Mapping) and set(WEIGHTS) & set(loss):
        given = next(name for name in WEIGHTS if name in loss)
        raise InputError(f"{given} is {loss[given]}, and weights are to be compared; put it into weights' pairs")
    bench = Workbench(first, first_seed, settings)
    for cell in grid:
        bench.loss(cell)  # says what is wrong with the weights
    splits = ("val",) if select else ("val", "test")
    seeds = range(first_seed, first_seed + num_seeds)
    scale = first.problem.metric.scale
    plan = _Plan(task, handed, tuple(grid), splits, settings, folder, threads, seeds, scale)
    if select and ("no-kd" not in arms or len(grid) < 2):
        raise InputError("select compares with no-kd; add it, and at least one other arm, to arms")
    if first.teacher is None and any(cell.arm not in ("no-kd", "regular") for cell in grid):
        raise InputError(f"task {first.name!r} has only its teacher's outputs; choose arms from no-kd and regular")
    config = _config(plan, bench, source, ratios, scores, select)
    _refuse_foreign(folder)
    with files.claimed(folder):
        return _measured(plan, config, source, processes, progress, select)


def _measured(
    plan: "_Plan", config: dict[str, Any], source: TaskSource, processes: int | None, progress: bool, select: bool
) -> StudyResult:
    folder, seeds = plan.folder, plan.seeds
    _claim(folder, config)
    started, cached = time.monotonic(), len(list(folder.glob("seed-*/cells/*.csv")))
    with _Crew(plan, source, processes, _Reporter(plan, progress)) as crew:
        crew.run(plan)
        rows = _collect(plan, seeds)
        if select:
            chosen = replace(plan, grid=tuple(_choose(plan)), splits=("test",))
            crew.run(chosen)
            rows += _collect(chosen, seeds)
    files.write_table(folder / "results.csv", plan.columns, rows)
    if len(list(folder.glob("seed-*/cells/*.csv"))) > cached or not (folder / "environment.json").exists():
        seconds = time.monotonic() - started
        if (folder / "environment.json").exists():  # more seeds, or the rest after an interrupt
            seconds += float(files.read_json(folder / "environment.json").get("seconds", 0))
        files.write_json(folder / "environment.json", environment(seconds=round(seconds, 1)))
    return StudyResult(_frame(rows, plan.columns), source.redrawn, folder, plan.scale)


# --- the work -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What a worker process needs to know."""

    task: Any
    handed: Handed
    grid: tuple[Cell, ...]
    splits: tuple[str, ...]
    settings: Settings
    folder: Path
    threads: int
    seeds: range
    scale: Scale

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table."""
        return (*COLUMNS, *WEIGHTS) if any(cell.weights for cell in self.grid) else COLUMNS

    def place(self, seed: int, cell: Cell | None) -> Path:
        """The file of one cell's rows, or with None of the seed's AUROCs; it exists once they are whole."""
        name = "scores" if cell is None else cell.name
        return self.folder / f"seed-{seed}" / "cells" / f"{name}-{'-'.join(self.splits)}.csv"

    def missing(self, seed: int) -> list[Cell]:
        """Cells of a seed that are still to be done."""
        return [cell for cell in self.grid if not self.place(seed, cell).exists()]

    def unrated(self, seed: int) -> bool:
        """Whether a seed's AUROCs are still to be written; testing what was chosen writes none."""
        return self.splits != ("test",) and not self.place(seed, None).exists()


def _work(
    plan: _Plan,
    seed: int,
    chunk: Sequence[Cell] | None,
    task: Task | None = None,
    tick: Callable[[], None] | None = None,
) -> None:
    """Do some cells of one seed; with None only what they share. `tick` is called after each."""
    task = task or find_task(plan.task, plan.handed).make(seed)
    with _threads(plan.threads):
        bench = Workbench(task, seed, plan.settings, plan.folder / f"seed-{seed}")
        if chunk is None:
            bench.prepare(plan.missing(seed))
            return
        for cell, rows in zip(chunk, bench.measure(chunk, splits=plan.splits), strict=True):
            files.write_table(plan.place(seed, cell), plan.columns, rows)
            if tick is not None:
                tick()
        if plan.unrated(seed) and not plan.missing(seed):
            files.write_table(plan.place(seed, None), plan.columns, bench.score_rows(plan.grid))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Crew:
    """Worker processes, or this process where the task cannot travel or there is little to do."""

    def __init__(self, plan: _Plan, source: TaskSource, processes: int | None, reporter: "_Reporter") -> None:
        on_gpu = find_device(plan.settings.device).type == "cuda"
        self.workers = (processes or (1 if on_gpu else (os.cpu_count() or 1))) if _can_travel(plan) else 1
        self.source, self.reporter = source, reporter
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Crew":
        self.reporter.__enter__()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.reporter.__exit__()
        if self.pool is not None:
            stop_workers(self.pool, at_once=kind is not None)

    def run(self, plan: _Plan) -> None:
        """Do all missing cells."""
        todo = [seed for seed in plan.seeds if plan.missing(seed) or plan.unrated(seed)]
        if self.workers == 1 or sum(len(plan.missing(seed)) for seed in todo) < 2:
            for seed in todo:
                _work(plan, seed, plan.missing(seed), self.source.make(seed), self.reporter.tick)
                self.reporter.finished(seed)
            return
        self.pool = self.pool or start_workers(self.workers)
        parts = max(1, self.workers // len(todo))
        jobs: dict[Future[None], tuple[int, bool]] = {}
        for seed in todo:
            jobs[self.pool.submit(_work, plan, seed, None if parts > 1 else plan.missing(seed))] = (seed, parts > 1)
        left = dict.fromkeys(todo, 0 if parts > 1 else 1)
        while jobs:
            for future in wait(jobs, timeout=0.5, return_when=FIRST_COMPLETED).done:
                seed, prepared = jobs.pop(future)
                try:
                    future.result()
                except BrokenProcessPool:
                    raise InputError(
                        "a worker process ended before its work: out of memory, or the script that calls study() does "
                        'not guard it with `if __name__ == "__main__":`; what was finished is kept, and processes=1 '
                        "needs no workers"
                    ) from None
                if prepared:
                    cells_left = plan.missing(seed)
                    for chunk in (cells_left[i::parts] for i in range(min(parts, max(1, len(cells_left))))):
                        jobs[self.pool.submit(_work, plan, seed, chunk)] = (seed, False)
                        left[seed] += 1
                    continue
                left[seed] -= 1
                if not left[seed]:
                    self.reporter.finished(seed)
            self.reporter.tick()


def _can_travel(plan: _Plan) -> bool:
    if getattr(plan.task, "__module__", None) == "__main__":  # workers do not run the caller's script or notebook
        return False
    try:
        return b"__main__" not in pickle.dumps(plan)  # factories of a Task may come from there too
    except Exception:
        return False


class _Reporter:
    """What is done so far: a live table with the time left on a terminal, a line per seed elsewhere."""

    def __init__(self, plan: _Plan, progress: bool) -> None:
        self.plan, self.progress = plan, progress
        self.live: Any = None
        self.told: set[int] = set()

    def __enter__(self) -> "_Reporter":
        if self.progress:
            from rich.console import Console
            from rich.live import Live

            self.console = Console(stderr=True)
            if self.console.is_terminal:
                self.bar = progress_bar()
                self.line = self.bar.add_task(
                    "cells", total=len(self.plan.seeds) * len(self.plan.grid), completed=self.done()
                )
                self.live = Live(self.table(), console=self.console, transient=True, auto_refresh=False)
                self.live.start()
                self.tick()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live is not None:
            self.live.stop()

    def done(self) -> int:
        """Finished cells."""
        return sum(len(self.plan.grid) - len(self.plan.missing(seed)) for seed in self.plan.seeds)

    def table(self) -> Any:
        """Mean of the metric on the validation split for every variant so far, and the bar."""
        from rich.console import Group
        from rich.table import Table

        scale = self.plan.scale
        table = Table("Variant", "Seeds done", f"Mean validation {scale.words}")
        for cell, values in _validation(self.plan, self.plan.seeds).items():
            mean = scale.show(sum(values) / len(values))
            table.add_row(cell.name, f"{len(values)} of {len(self.plan.seeds)}", mean)
        return Group(table, self.bar)

    def tick(self) -> None:
        """Show what the workers have kept."""
        if self.live is not None:
            self.bar.update(self.line, completed=self.done())
            self.live.update(self.table(), refresh=True)

    def finished(self, seed: int) -> None:
        """A seed is complete."""
        self.tick()
        if self.progress and self.live is None and seed not in self.told:
            self.told.add(seed)
            scale, values = self.plan.scale, _validation(self.plan, [seed])
            shown = ", ".join(
                f"{cell.name} {scale.show(value[0]).removesuffix(' %')}" for cell, value in values.items()
            )
            self.console.print(f"seed {seed} done, validation: {shown}", highlight=False, soft_wrap=True)


# --- choosing -------------------------------------------------------------------------------------------------------


def _choose(plan: _Plan) -> list[Cell]:
    """The variant with the best mean on the validation split, and what it is compared with.

    It is noted in selection.json and stays when seeds are added: the test split is read for one choice only.
    """
    path = plan.folder / "selection.json"
    if path.exists():
        best = Cell.chosen(files.read_json(path))
        if best not in plan.grid:
            raise InputError(f"{path} names no variant of this study; remove it to choose again")
        return [*_references(plan, best), best]
    values = _validation(plan, plan.seeds)
    means = {cell: sum(v) / len(v) for cell, v in values.items()}
    candidates = {cell: mean for cell, mean in means.items() if cell.arm != "no-kd"}
    best = max(candidates, key=lambda cell: plan.scale.sign * candidates[cell])
    none = next(cell for cell in values if cell.arm == "no-kd")
    gains = [plan.scale.sign * (taught - alone) for taught, alone in zip(values[best], values[none], strict=True)]
    gain, error = sum(gains) / len(gains), stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else 0.0
    # The best of many is flattered: below one standard error of its gain the plain student is the better bet
    # (benchmarks/reports, worlds).
    chosen_on = {
        f"validation_{plan.scale.name}": means[best],
        "validation_gain": gain,
        "standard_error": error,
        "recommended": best.name if gain > error else "no-kd",
        "candidates": len(candidates),
        "num_seeds": len(plan.seeds),
    }
    files.write_json(path, {**vars(best), **chosen_on})
    return [*_references(plan, best), best]


def _references(plan: _Plan, best: Cell) -> list[Cell]:
    return [cell for cell in plan.grid if cell.arm == "no-kd" or cell == best.unmasked()]


def _validation(plan: _Plan, seeds: Sequence[int]) -> dict[Cell, list[float]]:
    """The students' metric on the validation split, as far as it is measured."""
    values: dict[Cell, list[float]] = {}
    for row in _collect(plan, seeds):
        if (row["split"], row["metric"]) == ("val", plan.scale.name):
            values.setdefault(Cell.of(row), []).append(float(row["value"]))
    return values


# --- the run folder -------------------------------------------------------------------------------------------------


def _num_seeds(folder: Path, num_seeds: int, add_seeds: int) -> int:
    if add_seeds < 0:
        raise InputError(f"add_seeds is {add_seeds}; it must be at least 0")
    if add_seeds:
        if not (folder / "config.json").exists():
            raise InputError(f"add_seeds is {add_seeds}, but {folder} holds no study to add to; use num_seeds")
        asked = int(files.read_json(folder / "config.json").get("num_seeds", 0))
        # An interrupted addition is finished, not repeated: results.csv is written when all seeds are there.
        results = folder / "results.csv"
        done = len({row["seed"] for row in _read_rows(results, None)}) if results.exists() else 0
        return asked if 0 < done < asked else asked + add_seeds
    if num_seeds < 1:
        raise InputError(f"num_seeds is {num_seeds}; at least 1 is needed")
    return num_seeds


def _config(
    plan: _Plan,
    bench: Workbench,
    source: TaskSource,
    ratios: Sequence[float],
    scores: Sequence[str],
    select: bool,
) -> dict[str, Any]:
    first, settings = bench.task, plan.settings.facts()
    settings["epochs"] = first.recipe.epochs if settings["epochs"] is None else settings["epochs"]
    settings["batch_size"] = first.recipe.batch_size if settings["batch_size"] is None else settings["batch_size"]
    return {
        "command": "study",
        "task": first.name,
        "arms": list(dict.fromkeys(cell.arm for cell in plan.grid)),
        "ratios": sorted(set(ratios)),
        "scores": list(dict.fromkeys(scores)),
        "layers": list(dict.fromkeys(cell.layer for cell in plan.grid if cell.layer)) or [first.layer],
        "weights": list(dict.fromkeys(cell.weights for cell in plan.grid if cell.weights)) or None,
        "select": select,
        **plan.handed.facts(),
        **settings,
        **bench.protocol_facts(),
        "threads": plan.threads,
        "data_redrawn": source.redrawn,
        "metric": asdict(plan.scale),
        "facts": dict(first.facts),
        "identity": bench.identity,
        "first_seed": plan.seeds.start,
        "num_seeds": len(plan.seeds),
    }


def _refuse_foreign(folder: Path) -> None:
    """A folder with anything but our own in it is left alone; steps may have left networks of some seed."""
    if folder.exists() and not (folder / "config.json").exists():
        ours = ("seed-", ".in-use", ".config.json.", "diagnosis.json", ".diagnosis.json.", "report.html", "figures")
        strange = [item.name for item in folder.iterdir() if not item.name.startswith(ours)]
        if strange:
            raise InputError(f"{folder} is not empty ({strange[0]!r}) and no run of mfh; choose another --out")


def _claim(folder: Path, config: dict[str, Any]) -> None:
    """Make the run folder, or check that it belongs to this configuration; only seeds may be added."""
    path = folder / "config.json"
    if path.exists() and any(folder.glob("seed-*/cells/*.csv")):
        found, wanted = files.read_json(path), json.loads(json.dumps(config, default=str))
        for name in sorted({*found, *wanted} - {"num_seeds"}):
            if found.get(name) != wanted.get(name):
                raise InputError(
                    f"{folder} holds a {found.get('command', 'run')} with {name} {json.dumps(found.get(name))}, "
                    f"now it is {json.dumps(wanted.get(name))}; choose another --out, or the same options to resume"
                )
        if found["num_seeds"] > config["num_seeds"]:
            raise InputError(
                f"{folder} holds {found['num_seeds']} seeds, now num_seeds is {config['num_seeds']}; "
                "ask for at least as many, or choose another --out"
            )
    files.write_json(path, config)


def _collect(plan: _Plan, seeds: Sequence[int]) -> list[Row]:
    """All rows kept so far, by seed and in the order of the grid."""
    rows: list[Row] = []
    for seed in seeds:
        for cell in (*plan.grid, None):
            path = plan.place(seed, cell)
            rows += _read_rows(path, plan.columns) if path.exists() else []
    return rows


def _read_rows(path: Path, columns: Sequence[str] | None) -> list[Row]:
    return [{**row} for row in files.read_table(path, columns, "remove it to measure this cell again")]


def _frame(rows: list[Row], columns: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame([{**row} for row in rows], columns=list(columns))
    names = [name for name in ("ratio", *WEIGHTS, "seed", "value") if name in frame]
    numbers = {name: pd.to_numeric(frame[name].replace("", None)) for name in names}
    return frame.assign(**numbers)
