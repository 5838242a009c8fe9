"""A study on a Ray cluster: the same study, whatever dies."""

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mfh
import ray_nodes
import tiny_task
from mfh.errors import InputError
from mfh.files import load_tensors
from mfh.parallel.cluster import ClusterPool, called, cluster_pool
from mfh.studies.away import Luggage, _code_in, _everywhere, _home, _travels
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
ARMS = ["no-kd", "general", "my_task.py:Mine"]
SWEEP = """
task = "my_task.py"
arms = ["no-kd", "general", "rkd", "my_task.py:Mine"]
label_fractions = [0.5, 1.0]
num_seeds = 2

[settings]
ensemble = "on"
keep_students = "all"
"""


def written(folder: Path) -> Path:
    """A folder with a task file and a module beside it."""
    (folder / "my_task.py").write_text(TASK.format(folder=str(folder)))
    (folder / "beside.py").write_text("WEIGHT = 0.5\n")
    (folder / "sweep.toml").write_text(SWEEP)
    return folder


def study(cluster: ray_nodes.Nodes, out: str, *words: str) -> list[str]:
    return ["-m", "mfh", "study", *words, "--out", out, "--engine", "ray", "--address", cluster.address]


@contextmanager
def begun(words: list[str], folder: Path) -> Iterator[subprocess.Popen]:
    """A Python process that writes what it says to said.txt, and does not outlive the block."""
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *words], env=ray_nodes.environment(), cwd=folder, stdout=said, stderr=said
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition, process: subprocess.Popen) -> None:
    """Wait for something that happens, unless the process that should do it has ended."""
    end = time.monotonic() + ray_nodes.PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster():
    if find_spec("ray") is None and "CI" not in os.environ:
        pytest.skip("Ray is not installed: pip install 'mfh[cluster]'")
    if sys.platform != "linux":
        pytest.skip("Ray joins several nodes of one machine on Linux only")
    with ray_nodes.two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a task and the file of a study."""
    return written(tmp_path_factory.mktemp("away"))


POOL = """
import operator, os, sys
import pytest
from mfh.errors import InputError
from mfh.parallel.cluster import cluster_pool
from mfh.parallel.pool import Job, WorkerDiedError, run_jobs

SIX = 6


def of_script(number):
    return SIX * number


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
    assert pool.submit(of_script, 7).result() == 42
    with pytest.raises(ValueError, match="invalid literal"):
        run_jobs(pool, [Job("wrong", int, ("x",))], on_result)
    with pytest.raises(RuntimeError, match="Own: cannot be pickled"):
        run_jobs(pool, [Job("own", exec, ("class Own(Exception): pass\\nraise Own('cannot be pickled')",))], on_result)
    pool._call = pool._call.options(max_retries=0)
    with pytest.raises(WorkerDiedError):
        run_jobs(pool, [Job("fatal", os._exit, (3,))], on_result)
    pool._expected = "9.9, code 0"
    with pytest.raises(InputError, match=r"another version of mfh .*the same versions everywhere \\(here: 9.9"):
        run_jobs(pool, [Job("fine", abs, (-1,))], on_result)
"""


def test_jobs_run_errors_come_back_and_another_version_is_refused(cluster, tmp_path):
    code, said = ray_nodes.call("-c", POOL, cluster.address, folder=tmp_path)
    assert code == 0, said


def networks(run: Path) -> dict[str, dict]:
    """All networks and students of a run folder: path within it -> weights."""
    kinds = {"students": "student"}
    return {
        str(path.relative_to(run)): load_tensors(path, kinds.get(path.relative_to(run).parts[0], "network"))[0]
        for path in run.rglob("*.safetensors")
        if not path.name.startswith(("saliency", "mask"))
    }


def check_same(found: Path, wanted: Path) -> None:
    """Two runs hold the same measurements, to the last byte, and the same networks."""
    assert (found / "results.csv").read_bytes() == (wanted / "results.csv").read_bytes()
    ours, theirs = networks(found), networks(wanted)
    assert len(theirs) > 5
    assert sorted(ours) == sorted(theirs)
    for path, weights in theirs.items():
        assert all(value.equal(ours[path][name]) for name, value in weights.items()), path


def test_a_study_from_a_file_is_the_same_on_a_cluster(cluster, here, monkeypatch):
    """Label budgets, several methods, networks trained at once, all students kept, and a cache of teacher outputs."""
    monkeypatch.chdir(here)
    mfh.study("sweep.toml", processes=2, out="near")  # as many networks are trained at once as on two nodes
    code, said = ray_nodes.call(*study(cluster, "far", "sweep.toml", "--cache", "outputs"), folder=here)
    assert code == 0, said
    assert "Ray cluster: 2 node(s), 2 job(s) at once" in said
    check_same(here / "far", here / "near")
    # Workers have another working directory, and the path of the cache was sent in full.
    assert [*(here / "outputs").glob("*.rows")]


def test_a_killed_driver_resumes_and_the_cells_of_a_killed_node_run_again(cluster, here, monkeypatch):
    monkeypatch.chdir(here)
    mfh.study("my_task.py", arms=ARMS, ensemble="off", num_seeds=3, processes=1, out="whole")
    words = ["my_task.py", "--arms", *ARMS, "--ensemble", "off", "--num-seeds"]
    (here / "gate-1").touch()
    with begun(study(cluster, "part", *words, "2"), here) as driver:
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
    with begun(study(cluster, "part", *words, "3"), here) as again:
        until((here / f"at-{cluster.second}").exists, again)  # the second node is at work
        cluster.kill_second()
        (here / "gate").unlink()
        code = again.wait(ray_nodes.PATIENCE)
    assert code == 0, (here / "said.txt").read_text()
    assert all(path.read_bytes() == content for path, content in kept.items())
    check_same(here / "part", here / "whole")


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

    @staticmethod
    def shutdown() -> None:
        pass


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
    refused(r"no Ray cluster answers at 10..5:6379 \(UnicodeError", address="10..5:6379")
    for address in ("ray://10.0.0.5:10001", "somewhere", ":6379", "host:port", "host:²", "host:70000"):
        refused("give HOST:PORT of the cluster's head", address=address)
    monkeypatch.setattr("mfh.parallel.cluster._SECONDS_TO_ANSWER", 0.3)
    for answer in (b"-ERR unknown command", b""):  # Redis, whose port is the same, and something that says nothing
        with answering(answer) as address:
            refused(f"no Ray cluster answers at {address}", address=address)
    monkeypatch.setattr("mfh.parallel.cluster._SECONDS_TO_ANSWER", 60.0)
    with answering(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))) as address:
        refused("cannot be joined: RuntimeError: Version mismatch", address=address)


@contextmanager
def answering(text: bytes) -> Iterator[str]:
    """A service that answers everybody with the same text, or with nothing; its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            caller, _ = listening.accept()
            with caller, suppress(ConnectionError):
                caller.recv(4096)
                caller.sendall(text)
                caller.recv(4096)  # until the caller has gone

        serving = threading.Thread(target=answer, daemon=True)
        serving.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        serving.join()


def test_what_a_cluster_cannot_give_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"gpus is 1.5; choose a whole number, or a share of one GPU below 1"):
        ClusterPool(None, 1, 1.5)
    client = SimpleNamespace(is_initialized=lambda: True, put=lambda _: True, ObjectRef=int)  # bool is derived from int
    monkeypatch.setitem(sys.modules, "ray", client)
    with pytest.raises(InputError, match="is a Ray client"), cluster_pool():
        pass


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
    study = plan("my_task.py", (("mine", "my_task.py:Mine"),), teacher_checkpoint=weights)
    sent = Luggage.of(study)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir("/")
    found = sent.unpacked(pickle.dumps(study))
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


def test_a_table_that_travels_keeps_its_name(tmp_path, monkeypatch):
    table = tmp_path / "pairs.csv"
    table.write_text("teacher_1,student_1,target\n")
    study = plan(str(table))
    found = Luggage.of(study).unpacked(pickle.dumps(study))
    assert Path(found.task).read_text() == table.read_text()
    assert Path(found.task).parent != table.parent
    assert Path(found.task).name == table.name  # a task of a table is called after it


def test_folders_that_cannot_be_sent(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/itself").symlink_to(tmp_path / "package", target_is_directory=True)
    (tmp_path / "no_init").mkdir()
    (tmp_path / "no_init/inner.py").write_text("def task(seed=0): ...\n")
    assert set(_code_in(tmp_path)) == {"package/__init__.py"}
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"package 'no_init' has no __init__\.py"):
        Luggage.of(plan("no_init.inner:task"))


def test_a_function_of_a_module_is_found_where_only_what_was_sent_is(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("import tiny_task\n\ndef task(seed=0):\n    return tiny_task.task(seed)\n")
    with monkeypatch.context() as context:
        context.syspath_prepend(str(tmp_path))
        study = plan(importlib.import_module("only_here").task)
        sent, pickled = Luggage.of(study), pickle.dumps(study)
    del sys.modules["only_here"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(pickled)
    found = sent.unpacked(pickled)
    assert found.task(3).name == "tiny"
    assert tmp_path not in Path(sys.modules.pop("only_here").__file__).parents


def test_a_job_runs_on_the_device_and_with_the_folders_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").mkdir()
    sent = _everywhere(plan("digits", data="prepared", cache="outputs"))
    assert sent.task.data == str(tmp_path / "prepared")
    assert sent.execution.cache == tmp_path / "outputs"
    assert sent.execution.device == "cpu"  # also on a machine that has a GPU
    assert _everywhere(plan("digits", data="s3://bucket")).task.data == "s3://bucket"
    assert _everywhere(plan("digits", gpus=0.5)).execution.device == "cuda"
    assert _everywhere(plan("digits", gpus=0.5, device="cpu")).execution.device == "cpu"
    monkeypatch.setattr("mfh.studies.away.find_device", lambda _: torch.device("cuda"))
    assert _everywhere(plan("digits")).execution.device == "cuda"
    assert _everywhere(plan("digits", gpus=0)).execution.device == "cpu"


def test_what_a_logger_writes_travels_and_unfinished_training_does_not():
    assert _travels(Path("seed-0/logs/no-kd/metrics.csv"))
    assert not any(_travels(Path("seed-0") / name) for name in ("student-1.ckpt", ".in-use", "students.lock"))


HOME = "import os, sys; from mfh.studies.away import _home; print(_home(), flush=True); sys.stdin.read(); os._exit(1)"


def test_folders_of_killed_workers_are_removed_by_the_next_and_others_are_not(tmp_path, monkeypatch):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", HOME],
            env=ray_nodes.environment() | {"TMPDIR": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    homes = [Path(worker.stdout.readline().strip()) for worker in workers]
    assert all(home.is_dir() for home in homes)
    workers[0].communicate()
    assert homes[0].is_dir()  # it had no time to tidy up
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    next_home = _home.__wrapped__()
    assert next_home.is_dir()
    assert [home.exists() for home in homes] == [False, True]
    workers[1].communicate()


def test_an_error_that_cannot_be_sent_comes_back_as_text():
    kind, (text, where, pickled) = called(
        pickle.dumps((exec, ["class Own(Exception): pass\nraise Own('why')"], [])), ()
    )
    assert (kind, text, pickled) == ("raised", "Own: why", b"")
    assert where.startswith("On ")


def test_code_that_is_too_much_to_send_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mfh.studies.away._MOST_BYTES", 5)
    with pytest.raises(InputError, match="put the task into a folder with the modules that it needs"):
        _code_in(written(tmp_path))
