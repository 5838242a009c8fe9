"""A study on a Ray cluster: the same study, whatever dies."""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import mfh
import ray_nodes
import tiny_task
from mfh.errors import InputError
from mfh.files import load_tensors
from mfh.studies.away import Luggage, _code_in
from mfh.studies.grid import Cell
from mfh.studies.pool import Plan
from mfh.studies.settings import Settings

TASK = """
import os
import sys
import time
from pathlib import Path

import beside
import tiny_task
from mfh.methods import Method

HERE = Path({folder!r})
on_cluster = "default_worker" in sys.argv[0]
if on_cluster:
    # What travelled is what runs, not the file on this disk.
    assert HERE not in Path(__file__).parents, __file__
    assert HERE not in Path(beside.__file__).parents, beside.__file__


class Mine(Method):
    name = "mine"

    def loss(self, batch):
        return (batch.student_logits - batch.teacher_logits).square().mean() * beside.WEIGHT


def task(seed: int = 0):
    if on_cluster:
        gates = [HERE / "gate", HERE / f"gate-{{seed}}"]
        (HERE / f"at-{{os.getppid()}}").touch()
        while any(gate.exists() for gate in gates):
            time.sleep(0.1)
    return tiny_task.task(seed)
"""
STUDY = ["--arms", "no-kd", "general", "my_task.py:Mine", "--threads", "1"]


def written(folder: Path) -> Path:
    """A folder with a task file and a module beside it."""
    (folder / "my_task.py").write_text(TASK.format(folder=str(folder)))
    (folder / "beside.py").write_text("WEIGHT = 0.5\n")
    return folder


def study(cluster: ray_nodes.Nodes, out: str, *more: str) -> list[str]:
    return [
        "-m",
        "mfh",
        "study",
        "my_task.py",
        *STUDY,
        "--out",
        out,
        "--engine",
        "ray",
        "--address",
        cluster.address,
        *more,
    ]


def begun(words: list[str], folder: Path) -> subprocess.Popen:
    """A Python process that writes what it says to said.txt."""
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            [sys.executable, *words], env=ray_nodes.environment(), cwd=folder, stdout=said, stderr=said
        )


def until(condition, process: subprocess.Popen) -> None:
    """Wait for something that happens, unless the process that should do it has ended."""
    end = time.monotonic() + ray_nodes.PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mfh[cluster]'", exc_type=ImportError)
    if sys.platform != "linux":
        pytest.skip("Ray joins several nodes of one machine on Linux only")
    with ray_nodes.two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the task, and the same study in processes, of three seeds."""
    folder = written(tmp_path_factory.mktemp("away"))
    code, said = ray_nodes.call(
        "-m",
        "mfh",
        "study",
        "my_task.py",
        *STUDY,
        "--ensemble",
        "off",
        "--num-seeds",
        "3",
        "--processes",
        "1",
        "--out",
        "whole",
        folder=folder,
    )
    assert code == 0, said
    return folder


POOL = """
import operator, os, sys
import pytest
from mfh.errors import InputError
from mfh.parallel.cluster import cluster_pool
from mfh.parallel.pool import Job, WorkerDiedError, run_jobs

with pytest.raises(InputError, match=r"no machine of the Ray cluster has 64 processor\\(s\\)"):
    with cluster_pool(sys.argv[1], cpus=64):
        pass
with cluster_pool(sys.argv[1]) as pool:
    assert (pool.slots, pool.num_nodes) == (2, 2)
    kept = {}

    def on_result(job, result):
        kept[job.key] = result
        return [Job(job.key + 10, operator.mul, (result, 10))] if job.key < 10 else None

    run_jobs(pool, [Job(number, operator.add, (number, 1)) for number in range(3)], on_result)
    assert kept == {0: 1, 1: 2, 2: 3, 10: 10, 11: 20, 12: 30}
    assert pool.submit(operator.getitem, pool.share({"a": 5}), "a").result() == 5
    with pytest.raises(ValueError, match="invalid literal"):
        run_jobs(pool, [Job("wrong", int, ("x",))], on_result)
    pool._call = pool._call.options(max_retries=0)
    with pytest.raises(WorkerDiedError):
        run_jobs(pool, [Job("fatal", os._exit, (3,))], on_result)
    pool._expected = "9.9, code 0"
    with pytest.raises(InputError, match=r"has another version of mfh \\(.*the same version everywhere \\(here: 9.9"):
        run_jobs(pool, [Job("fine", abs, (-1,))], on_result)
"""


def test_jobs_run_errors_come_back_and_another_version_is_refused(cluster, tmp_path):
    code, said = ray_nodes.call("-c", POOL, cluster.address, folder=tmp_path)
    assert code == 0, said


def test_networks_trained_at_once_are_the_same_on_a_cluster(cluster, here):
    """Each node has the networks of one seed; students and rows come back."""
    same = ["--num-seeds", "2", "--ensemble", "on"]
    code, said = ray_nodes.call(
        "-m", "mfh", "study", "my_task.py", *STUDY, *same, "--processes", "1", "--out", "near", folder=here
    )
    assert code == 0, said
    code, said = ray_nodes.call(*study(cluster, "far", *same), folder=here)
    assert code == 0, said
    assert "Ray cluster: 2 node(s), 2 job(s) at once" in said
    assert (here / "far/results.csv").read_bytes() == (here / "near/results.csv").read_bytes()
    assert sorted(path.name for path in (here / "far/students").glob("*.safetensors")) == sorted(
        path.name for path in (here / "near/students").glob("*.safetensors")
    )


def test_a_killed_driver_resumes_and_the_cells_of_a_killed_node_run_again(cluster, here):
    (here / "gate-1").touch()
    driver = begun(study(cluster, "part", "--ensemble", "off", "--num-seeds", "2"), here)
    with driver:
        until(lambda: [*here.glob("part/seed-0/cells/*.csv")], driver)
        # While the second seed waits at its gate, the display says where.
        until(lambda: f" on {socket.gethostname()}, seed " in (here / "said.txt").read_text(), driver)
        driver.send_signal(signal.SIGKILL)
    assert not [*here.glob("part/seed-1/cells/*.csv")]
    assert not (here / "part/results.csv").exists()
    kept = {path: path.read_bytes() for path in here.glob("part/seed-0/cells/*.csv")}

    (here / "gate").touch()
    (here / "gate-1").unlink()
    for told in here.glob("at-*"):
        told.unlink()
    again = begun(study(cluster, "part", "--ensemble", "off", "--num-seeds", "3"), here)
    with again:
        until((here / f"at-{cluster.second}").exists, again)  # the second node is at work
        cluster.kill_second()
        (here / "gate").unlink()
        code = again.wait(ray_nodes.PATIENCE)
    assert code == 0, (here / "said.txt").read_text()
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert (here / "part/results.csv").read_bytes() == (here / "whole/results.csv").read_bytes()
    for file in (here / "whole/students").glob("*.safetensors"):
        wanted, found = (load_tensors(here / run / "students" / file.name, "student")[0] for run in ("whole", "part"))
        assert all(value.equal(found[name]) for name, value in wanted.items())


# --- without a cluster ------------------------------------------------------------------------------------------------


class Ray:
    """As much of Ray as is asked before a cluster is joined."""

    __spec__ = None

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def init(**_):
        raise RuntimeError("Version mismatch: the cluster has Ray 2.0,\nthis process has Ray 3.0")


def refused(match: str, task=str(tiny_task.__file__), **settings) -> None:
    with pytest.raises(InputError, match=match) as found:
        mfh.study(task, arms=["no-kd", "regular"], num_seeds=1, engine="ray", **settings)
    assert "\n" not in str(found.value)


def test_what_has_no_ray_or_no_cluster_is_told_in_a_line_and_soon(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(r"engine is 'ray', and the package ray is not installed; .* pip install 'mfh\[cluster\]'")
    monkeypatch.setitem(sys.modules, "ray", Ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as bound:  # nobody listens there, and nobody else can
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        refused(
            rf"no Ray cluster answers at 127.0.0.1:{port} \(ConnectionRefused.*`ray start --head`",
            address=f"127.0.0.1:{port}",
        )
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        refused(f"no Ray cluster answers at 127.0.0.1:{port}")
    for address in ("ray://10.0.0.5:10001", "somewhere", ":6379", "host:port", "host:70000"):
        refused("give HOST:PORT of the cluster's head", address=address)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        refused("cannot be joined: RuntimeError: Version mismatch", address=f"127.0.0.1:{listening.getsockname()[1]}")


def test_settings_of_a_cluster_are_checked():
    with pytest.raises(InputError, match="engine is 'slurm'"):
        Settings.of(engine="slurm")
    with pytest.raises(InputError, match="gpus is -1"):
        Settings.of(gpus=-1.0)


def from_notebook(seed: int = 0) -> mfh.Task:
    return tiny_task.task(seed)


def test_a_task_that_cannot_be_sent_is_refused_with_what_and_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Ray)
    refused(
        "cannot be sent to a cluster .*lambda.*my_task.py with a function task",
        task=lambda seed=0: tiny_task.task(seed),
    )
    unsent = replace(tiny_task.task(), student=lambda: tiny_task.student())
    refused("cannot be sent to a cluster .*write it into a file", task=unsent)
    monkeypatch.setattr(from_notebook, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "from_notebook", from_notebook, raising=False)
    refused("a function of this notebook or script.*write it into a file", task=from_notebook)


def plan(task, methods=(), **settings) -> Plan:
    made = Settings.of(**settings)
    scale = tiny_task.task().problem.metric.scale
    return Plan(task, made, (Cell("no-kd"),), ("val", "test"), Path("run"), range(1), scale, False, methods=methods)


def test_files_modules_and_given_networks_travel(tmp_path, monkeypatch):
    folder = written(tmp_path)
    (folder / "package").mkdir()
    (folder / "package/__init__.py").write_text("")
    (folder / "package/inner.py").write_text("VALUE = 1\n")
    (folder / "data.csv").write_text("not sent\n")
    assert set(_code_in(folder)) == {"my_task.py", "beside.py", "package/__init__.py", "package/inner.py"}
    weights = folder / "teacher.safetensors"
    weights.write_bytes(b"weights")
    monkeypatch.chdir(folder)
    sent = Luggage.of(plan("my_task.py", (("mine", "my_task.py:Mine"),), teacher_checkpoint=weights))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir("/")
    found = sent.unpacked(plan("my_task.py", (("mine", "my_task.py:Mine"),), teacher_checkpoint=weights))
    assert Path(found.task).read_text() == (folder / "my_task.py").read_text()
    assert Path(found.task).parent != folder
    assert dict(found.methods)["mine"] == f"{found.task}:Mine"
    assert found.settings.files.teacher_checkpoint.read_bytes() == b"weights"
    assert sys.path[0] == str(Path(found.task).parent)


def test_modules_travel_and_installed_ones_do_not(tmp_path, monkeypatch):
    helpers = str(Path(tiny_task.__file__).parent)
    assert [*Luggage.of(plan(tiny_task.task)).roots] == [helpers]
    assert [*Luggage.of(plan("tiny_task:task")).roots] == [helpers]
    assert not Luggage.of(plan("digits")).roots


def test_code_that_is_too_much_to_send_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mfh.studies.away._MOST_BYTES", 5)
    with pytest.raises(InputError, match="put the task into a folder with the modules that it needs"):
        _code_in(written(tmp_path))
