"""A Ray cluster of two nodes on this machine, whose processes are ours to end."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mfh

HERE = Path(__file__).parent
#: Much longer than anything here takes, also on a busy machine; a test that waits so long has failed.
PATIENCE = 900

#: Variables of Ray: a slow start is none that failed, a slow node is not dead, and no worker is killed because other
#: programs have taken the memory. A node that is gone is noticed within seconds.
PATIENT = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "300",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_period_ms": "1000",
}


def environment() -> dict[str, str]:
    """Variables of processes that import this mfh and these helpers, and find no other cluster."""
    found = [str(Path(mfh.__file__).parents[1]), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Nodes:
    """The cluster: its address, the process of the second node that all its workers are children of, and its folder."""

    address: str
    second: int
    folder: Path

    def kill_second(self) -> None:
        os.kill(self.second, signal.SIGKILL)


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Two nodes with a processor each, up when the block begins.

    Each has a loopback address of its own, as two machines would. Nobody else sees them, and no port is fixed, so other
    clusters of this machine do not matter.
    """
    folder = tempfile.mkdtemp(prefix="mfh-ray-")  # paths of sockets are short, and pytest's folders are long
    started: list[subprocess.Popen[str]] = []
    variables = environment() | PATIENT | {"TMPDIR": folder}  # temporary files go with the folder

    def start(*words: str, until: str) -> str:
        """Start a node; returns what it says until it is up: what a pattern finds."""
        options = ["--block", "--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *options]
        command += ["--include-log-monitor", "false"]
        node = subprocess.Popen(
            command,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(node)
        said, patience = "", threading.Timer(PATIENCE, node.kill)
        patience.start()
        try:
            for line in node.stdout:
                said += line
                if found := re.search(until, said):
                    return found[1]
        finally:
            patience.cancel()
        raise RuntimeError(f"ray start failed:\n{said}")

    try:
        head = ["--head", "--port", "0", "--include-dashboard", "false", "--no-monitor", "--temp-dir", folder]
        if find_spec("grpc"):  # then Ray opens a port for clients, which must be free
            with socket.socket() as free:
                free.bind(("127.0.0.2", 0))
                head += ["--ray-client-server-port", str(free.getsockname()[1])]
        address = start(*head, "--node-ip-address", "127.0.0.2", until="--address='(.*?)'")
        start("--address", address, "--node-ip-address", "127.0.0.3", until="(Ray runtime started)")
        yield Nodes(address, _raylet_of(started[1].pid), Path(folder))
    finally:
        for node in reversed(started):
            node.terminate()
        for node in started:
            with suppress(subprocess.TimeoutExpired):
                node.wait(60)
            # Whatever is left of the node's session: nothing, unless it was killed or did not end in time.
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
