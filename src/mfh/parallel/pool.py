"""Worker processes that start afresh and never outlive the process that started them."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait


def start_workers(count: int) -> ProcessPoolExecutor:
    """A pool of worker processes.

    Args:
        count: how many at most; they start when there is work.
    """
    # Windows can wait for no more than 61 processes.
    count = min(count, 61) if os.name == "nt" else count
    # Spawned, not forked: a forked process inherits locks of threads that do not exist in it.
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_follow_parent)


def stop_workers(pool: ProcessPoolExecutor, *, at_once: bool) -> None:
    """End a pool.

    Args:
        pool: made by `start_workers`.
        at_once: do not wait for work that nobody will look at.
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
