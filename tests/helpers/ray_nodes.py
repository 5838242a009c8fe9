"""A Ray cluster of two nodes on this machine, whose processes are ours to end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mfh

HERE = Path(__file__).parent
#: Much longer than anything here takes; a test that waits so long has failed.
PATIENCE = 240


def environment() -> dict[str, str]:
    """Variables of processes that import this mfh and these helpers, and find no other cluster."""
    found = [str(Path(mfh.__file__).parents[1]), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"}


@dataclass
class Nodes:
    """The cluster: its address, and the process of the second node that all its workers are children of."""

    address: str
    second: int

    def kill_second(self) -> None:
        os.kill(self.second, signal.SIGKILL)


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Two nodes with a processor each, up when the block begins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="mfh-ray-")  # paths of sockets are short, and pytest's folders are long
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> None:
        options = ["--block", "--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *options]
        node = subprocess.Popen(
            command,
            env=environment() | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(node)
        said = []
        for line in node.stdout:
            said.append(line)
            if "runtime started" in line:
                return
        raise RuntimeError("ray start failed:\n" + "".join(said))

    try:
        port = address.split(":")[1]
        start("--head", "--port", port, "--include-dashboard", "false", "--temp-dir", folder)
        start("--address", address)
        yield Nodes(address, _raylet_of(started[1].pid))
    finally:
        for node in reversed(started):
            node.terminate()
        for node in started:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(node.pid, signal.SIGKILL)
                node.wait()
            node.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def _raylet_of(node: int) -> int:
    """The child of a node's first process that starts its workers."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().partition(") ")
            if int(rest.split()[1]) == node and "(raylet" in name:
                return int(stat.parent.name)
    raise RuntimeError(f"process {node} has no raylet")


def call(*words: object, folder: Path) -> tuple[int, str]:
    """A Python process: exit code and what it said."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment(),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout
