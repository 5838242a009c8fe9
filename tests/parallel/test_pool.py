import operator
import os
import time

import pytest

from mfh.parallel.pool import Job, WorkerDiedError, run_jobs, worker_pool


def test_every_job_is_run_and_finished_jobs_add_more():
    kept = {}

    def on_result(job, result):
        kept[job.key] = result
        return [Job(job.key + 10, operator.mul, (result, 10))] if job.key < 10 else None

    with worker_pool(2) as pool:
        run_jobs(pool, (Job(number, operator.add, (number, 1)) for number in range(3)), on_result)
        assert kept == {0: 1, 1: 2, 2: 3, 10: 10, 11: 20, 12: 30}
        kept.clear()
        run_jobs(pool, [Job(20, operator.add, (1, 1))], on_result)  # the same workers again
        assert kept == {20: 2}
        run_jobs(pool, [], on_result)


def test_an_error_stops_everything_at_once():
    begun = time.monotonic()
    with pytest.raises(ValueError, match="invalid literal"), worker_pool(2) as pool:
        run_jobs(pool, [Job("long", time.sleep, (600,)), Job("wrong", int, ("x",))], lambda job, result: None)
    assert time.monotonic() - begun < 300  # the long job was not waited for


def test_an_error_of_a_callback_stops_everything_too():
    def refuse(job, result):
        raise KeyError(job.key)

    begun = time.monotonic()
    with pytest.raises(KeyError, match="short"), worker_pool(2) as pool:
        run_jobs(pool, [Job("long", time.sleep, (600,)), Job("short", abs, (-1,))], refuse)
    assert time.monotonic() - begun < 300  # the long job was not waited for


def test_a_worker_that_dies_is_told_apart_from_a_job_that_fails():
    with pytest.raises(WorkerDiedError, match="ended before its job"), worker_pool(1) as pool:
        run_jobs(pool, [Job("fatal", os._exit, (3,)), Job("fine", abs, (-1,))], lambda job, result: None)


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def test_idle_calls_come_while_jobs_run_and_after_the_last(tmp_path):
    calls, results = [], []

    def idle():
        calls.append(len(results))
        if len(calls) == 6:
            (tmp_path / "go").touch()

    with worker_pool(1) as pool:
        run_jobs(
            pool,
            [Job("slow", wait_for, (tmp_path / "go",))],
            lambda job, result: results.append(job.key),
            on_idle=idle,
            seconds=0.05,
        )
    assert calls.count(0) > 5
    assert calls[-1] == 1
