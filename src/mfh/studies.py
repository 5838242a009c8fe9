"""A study: arms x ratios x scores x seeds on one task, kept in a run folder and resumed from it."""

import csv
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mfh import files
from mfh.arms import ARMS, COLUMNS, Cell, cells
from mfh.errors import InputError
from mfh.losses import KDLoss
from mfh.permutation import Permutations
from mfh.task import Task
from mfh.tasks import TaskSource, find_task
from mfh.workbench import Row, Settings, Workbench

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_RATIOS = (0.5,)
DEFAULT_SCORES = ("distance",)


@dataclass(frozen=True)
class StudyResult:
    """What a study measured.

    Args:
        frame: one row per measurement; columns arm, score, layer, ratio, seed, split, metric, value. Accuracies are
            fractions.
        data_redrawn: whether data were redrawn per seed; otherwise intervals cover training randomness only.
        folder: the run folder, if there is one.
    """

    frame: "pd.DataFrame"
    data_redrawn: bool
    folder: Path | None = None

    def accuracies(self, split: str = "test") -> "pd.DataFrame":
        """Student accuracies: one row per seed, one column per variant, for instance "general-distance-0.5"."""
        chosen = self.frame[(self.frame["metric"] == "accuracy") & (self.frame["split"] == split)]
        names = [Cell(arm, score, ratio).name for arm, score, ratio in _keys(chosen)]
        return chosen.assign(variant=names).pivot_table(index="seed", columns="variant", values="value", sort=False)


def _keys(frame: "pd.DataFrame") -> Iterator[tuple[str, str, float | None]]:
    for arm, score, ratio in zip(frame["arm"], frame["score"], frame["ratio"], strict=True):
        yield str(arm), str(score), None if ratio != ratio else float(ratio)  # NaN: no ratio


def study(
    task: str | Path | Task | Callable[..., Task],
    *,
    arms: Sequence[str] = ARMS,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    scores: Sequence[str] = DEFAULT_SCORES,
    num_seeds: int = 5,
    out: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    layer: str | None = None,
    loss: KDLoss | None = None,
    permutations: Permutations = "auto",
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    data: str | Path | None = None,
    preset: str | None = None,
    teacher_checkpoint: str | None = None,
    student_checkpoint: str | None = None,
    progress: bool = False,
) -> StudyResult:
    """Compare ways to make a student, paired by seed.

    Seeds run in parallel processes where the task can be sent to them: named by a string, or made by a function of a
    module. What a seed shares (teachers, alignment, saliencies, teacher outputs) is made once. Choices of epochs are
    made on the validation split.

    Args:
        task: what `find_task` accepts; a Task keeps its data for all seeds, a function with a parameter `seed`
            redraws them.
        arms: ways to make a student; see `mfh.arms`.
        ratios: fractions of channels removed, for random, specific and general.
        scores: "distance" and/or "agreement", for specific and general.
        num_seeds: seeds 0 to num_seeds - 1.
        out: run folder; results.csv there grows cell by cell, and the same call again resumes. None keeps results
            in memory.
        epochs: instead of the recipe's.
        batch_size: instead of the recipe's.
        layer: instead of the task's.
        loss: of distillation; default `KDLoss()`.
        permutations: for Algorithm 1; see `channel_saliency`.
        device: where to run; default: a GPU if there is one, otherwise the CPU.
        processes: seeds at a time; default: the number of processors, on a GPU 1.
        threads: per process on the CPU. Results do not depend on `processes`, but another number of threads adds up
            in another order.
        data: handed to the task's function.
        preset: handed to the task's function.
        teacher_checkpoint: a pretrained teacher's weights, instead of training one per seed.
        student_checkpoint: weights of a student trained on labels, instead of training one per seed.
        progress: report progress on the terminal.

    Raises:
        InputError: something is not as described, or `out` belongs to another configuration.
    """
    if num_seeds < 1:
        raise InputError(f"num_seeds is {num_seeds}; at least 1 is needed")
    grid = cells(arms, ratios, scores)
    source = find_task(task, data=data, preset=preset)
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        layer=layer,
        device=device,
        permutations=permutations,
        loss=loss or KDLoss(),
        teacher_checkpoint=teacher_checkpoint,
        student_checkpoint=student_checkpoint,
    )
    folder = None if out is None else Path(out)
    first = source.make(0)
    plan = _Plan(task, data, preset, tuple(grid), tuple(scores), settings, folder, threads)
    config = _config(plan, first, source, arms, ratios, num_seeds)
    if folder is not None:
        _claim(folder, config)
    started = time.monotonic()
    todo = [seed for seed in range(num_seeds) if not _finished(plan, seed)]
    made = _run_seeds(plan, source, todo, processes, _Reporter(plan, num_seeds, progress))
    rows = [row for seed in range(num_seeds) for row in _sorted(made.get(seed) or _kept(plan, seed), plan)]
    if folder is not None:
        _write_rows(folder / "results.csv", rows)
        if todo or not (folder / "environment.json").exists():
            files.write_json(folder / "environment.json", environment(seconds=round(time.monotonic() - started, 1)))
    return StudyResult(_frame(rows), source.redrawn, folder)


def environment(**more: Any) -> dict[str, Any]:
    """Versions and hardware, for a run folder."""
    packages = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "mfh")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        **gpu,
        **more,
    }


# --- one seed -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What a worker process needs to know."""

    task: Any
    data: Any
    preset: Any
    grid: tuple[Cell, ...]
    scores: tuple[str, ...]
    settings: Settings
    folder: Path | None
    threads: int

    def seed_folder(self, seed: int) -> Path | None:
        return None if self.folder is None else self.folder / f"seed-{seed}"

    @property
    def rated(self) -> list[Any]:
        """Scores whose AUROC is reported: those the arms use."""
        used = [score for score in self.scores if any(cell.score == score for cell in self.grid)]
        return used + (["probe"] if any(cell.score == "probe" for cell in self.grid) else [])


def _run_seed(plan: _Plan, seed: int, task: Task | None = None) -> list[Row]:
    """All missing cells of one seed, kept after each."""
    rows = _kept(plan, seed)
    done = {_cell_of(row) for row in rows}
    missing = [cell for cell in plan.grid if cell not in done]
    task = task or find_task(plan.task, data=plan.data, preset=plan.preset).make(seed)
    folder = plan.seed_folder(seed)
    with _threads(plan.threads):
        bench = Workbench(task, seed, plan.settings, folder)
        for new in bench.measure(missing) if missing else []:
            rows += new
            _keep(plan, seed, rows)
        rated = {row["score"] for row in rows if row["metric"] == "auroc"}
        rows += bench.score_rows([score for score in plan.rated if score not in rated])
        rows.append(dict.fromkeys(COLUMNS, "") | {"seed": seed, "metric": _DONE, "value": 1.0})
        _keep(plan, seed, rows)
    return rows


#: Marks a seed's file as complete; never shown.
_DONE = "complete"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_seeds(
    plan: _Plan, source: TaskSource, seeds: list[int], processes: int | None, reporter: "_Reporter"
) -> dict[int, list[Row]]:
    on_gpu = torch.cuda.is_available() if plan.settings.device is None else plan.settings.device.startswith("cuda")
    workers = min(processes or (1 if on_gpu else (os.cpu_count() or 1)), len(seeds))
    made: dict[int, list[Row]] = {}
    with reporter:
        if workers > 1 and _can_travel(plan):
            # Workers start afresh: a forked process inherits locks of threads that do not exist in it.
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                futures: dict[Future[list[Row]], int] = {pool.submit(_run_seed, plan, seed): seed for seed in seeds}
                pending = set(futures)
                try:
                    while pending:
                        finished, pending = wait(pending, timeout=0.5)
                        for future in finished:
                            made[futures[future]] = future.result()
                            reporter.finished(futures[future], made[futures[future]])
                        reporter.tick()
                except BaseException:
                    for future in pending:
                        future.cancel()
                    raise
        else:
            for seed in seeds:
                made[seed] = _run_seed(plan, seed, source.make(seed))
                reporter.finished(seed, made[seed])
    return made


def _can_travel(plan: _Plan) -> bool:
    try:
        pickle.dumps(plan)
    except Exception:
        return False
    return True


class _Reporter:
    """Cells done so far: a bar on a terminal, a line per seed elsewhere."""

    def __init__(self, plan: _Plan, num_seeds: int, progress: bool) -> None:
        self.plan, self.num_seeds, self.progress = plan, num_seeds, progress
        self.total = num_seeds * len(plan.grid)
        self._bar: Any = None

    def __enter__(self) -> "_Reporter":
        if self.progress:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.console = Console(stderr=True)
            if self.console.is_terminal:
                self._bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("students, time left"),
                    TimeRemainingColumn(),
                    console=self.console,
                )
                self._bar.start()
                self._line = self._bar.add_task("study", total=self.total)
                self.tick()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tick(self) -> None:
        """Count what the workers have kept."""
        if self._bar is not None:
            done = sum(
                len({_cell_of(r) for r in _kept(self.plan, s)} & {*self.plan.grid}) for s in range(self.num_seeds)
            )
            self._bar.update(self._line, completed=done)

    def finished(self, seed: int, rows: list[Row]) -> None:
        """A seed is complete."""
        if not self.progress:
            return
        self.tick()
        if self._bar is None:
            accuracies = {
                r["arm"]: float(r["value"]) for r in rows if (r["split"], r["metric"]) == ("test", "accuracy")
            }
            shown = ", ".join(f"{arm} {100 * value:.1f}" for arm, value in accuracies.items())
            self.console.print(f"seed {seed} of {self.num_seeds}: {shown}", highlight=False, soft_wrap=True)


# --- the run folder -------------------------------------------------------------------------------------------------


def _config(
    plan: _Plan, first: Task, source: TaskSource, arms: Sequence[str], ratios: Sequence[float], num_seeds: int
) -> dict[str, Any]:
    recipe = first.recipe
    settings = plan.settings.facts()
    settings["epochs"] = settings["epochs"] or recipe.epochs
    settings["batch_size"] = settings["batch_size"] or recipe.batch_size
    layer = settings.pop("layer") or first.layer
    return {
        "command": "study",
        "task": first.name,
        "arms": sorted(set(arms), key=[cell.arm for cell in plan.grid].index),
        "ratios": sorted(set(ratios)),
        "scores": list(plan.scores),
        "layers": [layer],
        "data": None if plan.data is None else str(plan.data),
        "preset": plan.preset,
        **settings,
        "threads": plan.threads,
        "data_redrawn": source.redrawn,
        "facts": dict(first.facts),
        "num_seeds": num_seeds,
    }


def _claim(folder: Path, config: dict[str, Any]) -> None:
    """Make the run folder, or check that it belongs to this configuration; only seeds may be added."""
    path = folder / "config.json"
    if path.exists():
        found = files.read_json(path)
        for name in {*found, *config} - {"num_seeds"}:
            if found.get(name) != _as_json(config.get(name)):
                raise InputError(
                    f"{folder} holds a study with {name} {found.get(name)!r}, now it is {config.get(name)!r}; "
                    "choose another --out, or the same options to resume"
                )
        if found["num_seeds"] > config["num_seeds"]:
            raise InputError(
                f"{folder} holds {found['num_seeds']} seeds, now num_seeds is {config['num_seeds']}; "
                "ask for at least as many, or choose another --out"
            )
    elif folder.exists() and any(folder.iterdir()):
        kept = {"seed-", "config.json"}
        strange = [p.name for p in folder.iterdir() if not any(p.name.startswith(k) for k in kept)]
        if strange:
            raise InputError(f"{folder} is not empty ({strange[0]!r}) and no run of mfh; choose another --out")
    files.write_json(path, config)


def _as_json(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value, default=str))


def _kept(plan: _Plan, seed: int) -> list[Row]:
    folder = plan.seed_folder(seed)
    path = None if folder is None else folder / "results.csv"
    if path is None or not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    if any(tuple(row) != COLUMNS or None in row.values() for row in rows):
        raise InputError(f"{path} is not a table that mfh wrote whole; remove it to measure this seed again")
    return rows


def _keep(plan: _Plan, seed: int, rows: list[Row]) -> None:
    folder = plan.seed_folder(seed)
    if folder is not None:
        _write_rows(folder / "results.csv", rows, all_rows=True)


def _write_rows(path: Path, rows: list[Row], *, all_rows: bool = False) -> None:
    with files.atomic_write(path) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if all_rows or row["metric"] != _DONE)


def _finished(plan: _Plan, seed: int) -> bool:
    rows = _kept(plan, seed)
    return any(row["metric"] == _DONE for row in rows) and set(plan.grid) <= {_cell_of(row) for row in rows}


def _cell_of(row: Row) -> Cell:
    return Cell(row["arm"], row["score"], None if row["ratio"] == "" else float(row["ratio"]))


def _sorted(rows: list[Row], plan: _Plan) -> list[Row]:
    """Rows of one seed in the order of the grid, whatever order they were measured in."""
    place = {cell: index for index, cell in enumerate(plan.grid)}
    return sorted((row for row in rows if row["metric"] != _DONE), key=lambda row: place.get(_cell_of(row), len(place)))


def _frame(rows: list[Row]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame([{**row} for row in rows], columns=list(COLUMNS))
    numbers = {name: pd.to_numeric(frame[name].replace("", None)) for name in ("ratio", "seed", "value")}
    return frame.assign(**numbers)


__all__ = ["StudyResult", "environment", "study"]
