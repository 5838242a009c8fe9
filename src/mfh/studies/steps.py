"""One seed of a task, checked and ready to work on, in a run folder that no other process writes to meanwhile."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mfh.errors import InputError, refuse_difference
from mfh.parallel.distributed import rank, world_size
from mfh.studies.folder import Run
from mfh.studies.seed import Seed
from mfh.studies.settings import Settings
from mfh.tasks.checks import check_task
from mfh.tasks.finding import find_task
from mfh.tasks.task import Task
from mfh.values import RandomSeed, checked


@contextmanager
def open_seed(
    task: str | Path | Task | Callable[..., Task],
    *,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Settings | None = None,
    layers: Sequence[str] = (),
    progress: bool = False,
    keep_students: bool = False,
    methods: Mapping[str, Any] | None = None,
) -> Iterator[Seed]:
    """Open one seed of a task: what `mfh pretrain`, `align`, `saliency`, `distill` and `diagnose` work on.

    The task is checked first. Its optional arguments (data, preset, augment) default to those of earlier steps in the
    same folder.

    Args:
        task: A task as `find_task` accepts it.
        seed: Random seed of data, initial weights, order of data and permutations.
        out: Run folder, which is held until the block ends; None keeps everything in memory.
        settings: What differs from the task's own recipe and protocol.
        layers: Layers of the teacher that must exist.
        progress: Whether to show progress bars.
        keep_students: Whether to keep distilled students in the run folder.
        methods: Methods by name that are not shipped, or not as they are shipped; see `mfh.studies.arms.find_arms`.

    Raises:
        InputError: The task cannot be used, or another process holds the folder.
    """
    checked("seed", seed, RandomSeed)
    settings, run = settings or Settings(), None if out is None else Run(out)
    settings = with_earlier_arguments(settings, task, run)
    source = find_task(task, settings.task)
    made = source.make(seed)
    check_task(made, layers, source.origin)
    if run is None:
        yield Seed(made, seed, settings, progress=progress, methods=methods)
        return
    with run.locked() if rank() == 0 else nullcontext():
        run.refresh()
        if run.config.get("task", made.name) != made.name:
            refuse_difference(run.described, {"task": run.config["task"]}, {"task": made.name}, "choose another --out")
        if rank() == 0 and not run.holds_config:
            run.write_config({"command": "steps", "task": made.name, **settings.task.facts()})
        yield Seed(
            made, seed, settings, run.seed(seed), progress=progress, keep_students=keep_students, methods=methods
        )


def with_earlier_arguments(settings: Settings, task: Any, run: Run | None) -> Settings:
    """Settings whose arguments for the task's function default to those of earlier work in the same run folder."""
    if run is None or isinstance(task, Task):
        return settings
    return dataclasses.replace(settings, task=settings.task.or_else(run.config))


def refuse_torchrun(what: str) -> None:
    """Refuse work that runs in one process.

    Args:
        what: The work, as the beginning of the message: "a study".

    Raises:
        InputError: Several processes work together.
    """
    if world_size() > 1:
        raise InputError(f"{what} runs in one process; call it without torchrun")
