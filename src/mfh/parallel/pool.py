"""Worker processes: a pool of them, and one loop that runs jobs in it or on a cluster (`mfh.parallel.cluster`).

with worker_pool(4) as pool:
run_jobs(pool, [Job(name, measure, (name,)) for name in names], on_result=keep)
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for_futures
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, Generic, Protocol, TypeVar

Key = TypeVar("Key")


class WorkerDiedError(Exception):
    """A worker process ended before it finished its job: it crashed, was killed, or could not start."""


class Pool(Protocol):
    """Workers: processes of this machine, see `worker_pool`, or of a cluster, see `mfh.parallel.cluster`."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> "Future[Any]":
        """Run a function of a module in a worker."""
        ...


@dataclass(frozen=True, eq=False)
class Job(Generic[Key]):
    """A call for a worker process.

    Args:
        key: What the caller knows the job by. It stays in this process.
        function: Function of a module. It is pickled.
        arguments: Its arguments. They are pickled.
    """

    key: Key
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


def run_jobs(
    pool: Pool,
    jobs: Iterable[Job[Key]],
    on_result: Callable[[Job[Key], Any], Iterable[Job[Key]] | None],
    on_idle: Callable[[], None] | None = None,
    *,
    seconds: float = 0.5,
) -> None:
    """Run jobs in workers until none is left. The callbacks run in this process.

    The first error ends the loop, with jobs still running: leave the `worker_pool` block to stop them.

    Args:
        pool: The workers. A pool can run several lists of jobs, one after the other.
        jobs: The jobs to start with.
        on_result: Called as on_result(job, result) for every job that has finished, in the order they finish. The jobs
            that it returns are run too.
        on_idle: Called after every wait, at least every `seconds` seconds, for instance to redraw a display.
        seconds: The longest time between two calls of `on_idle`.

    Raises:
        WorkerDiedError: A worker process ended before its job. The pool cannot be used any more.
        Exception: Whatever a job or a callback raises.
    """
    waiting: dict[Future[Any], Job[Key]] = {}

    def submit(more: Iterable[Job[Key]]) -> None:
        for job in more:
            waiting[pool.submit(job.function, *job.arguments)] = job

    try:
        submit(jobs)
        while waiting:
            timeout = None if on_idle is None else seconds
            for future in wait_for_futures(waiting, timeout=timeout, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                submit(on_result(job, future.result()) or ())
            if on_idle is not None:
                on_idle()
    except BrokenProcessPool:
        raise WorkerDiedError("a worker process ended before its job") from None


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes for the block. They end with it, at once if an error ends it.

    Args:
        count: The largest number of processes. They start when there is work.
    """
    pool, ended_well = start_workers(count), False
    try:
        yield pool
        ended_well = True
    finally:
        stop_workers(pool, at_once=not ended_well)


def start_workers(count: int) -> ProcessPoolExecutor:
    """A pool of worker processes that start afresh and never outlive this process.

    Args:
        count: The largest number of processes. They start when there is work.
    """
    # Windows can wait for no more than 61 processes.
    count = min(count, 61) if os.name == "nt" else count
    # Spawned, not forked: a forked process inherits locks of threads that do not exist in it.
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_follow_parent)


def stop_workers(pool: ProcessPoolExecutor, *, at_once: bool) -> None:
    """End a pool.

    Args:
        pool: A pool made by `start_workers`.
        at_once: Whether to end running jobs too. False waits for them.
    """
    if at_once:
        for process in list((pool._processes or {}).values()):
            process.terminate()
    pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """End this worker with the process that started it, also when that one is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
