"""Workers on a Ray cluster: the second of the two pools that `mfh.parallel.pool.run_jobs` runs jobs in.

with cluster_pool("10.0.0.5:6379", cpus=1) as pool:
run_jobs(pool, [Job(name, measure, (name,)) for name in names], on_result=keep)

Nothing but Ray's own connections links the machines: what a job needs goes with it, and its result comes back.
"""

import hashlib
import importlib.metadata
import logging
import os
import pickle
import re
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mfh.errors import FOREIGN, InputError, in_a_line
from mfh.parallel.pool import WorkerDiedError

log = logging.getLogger("mfh")

#: Where a cluster is looked for that is named neither by the user nor by Ray's own variable: its head, on this machine.
_DEFAULT_ADDRESS = "127.0.0.1:6379"
_SECONDS_TO_ANSWER = 5.0
#: How a client of HTTP/2, which Ray's head speaks, begins: with a fixed text and a frame of settings, here none.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
#: How often a job is run again whose machine or process died.
_RETRIES = 3
_INSTALL = "install it on every machine of the cluster: pip install 'mfh[cluster]'"


@contextmanager
def cluster_pool(address: str | None = None, *, cpus: int = 1, gpus: float = 0.0) -> Iterator["ClusterPool"]:
    """Workers on a Ray cluster for the block. Jobs that still run when it ends are cancelled.

    A connection that this process has already is used, and left as it is.

    Args:
        address: HOST:PORT of the cluster's head, as `ray start --head` says it (default: the environment variable
            RAY_ADDRESS, otherwise port 6379 of this machine). This machine must belong to the cluster.
        cpus: Number of processors that each job needs.
        gpus: Number of GPUs that each job needs; 0.5 lets two jobs share one.

    Raises:
        InputError: Ray is not installed, no cluster answers at the address, or no machine of it can run such a job.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address or os.environ.get("RAY_ADDRESS") or _DEFAULT_ADDRESS)
    elif type(ray.put(None)) is not ray.ObjectRef:  # a client's reference is of a class derived from it
        raise InputError(
            "this process is a Ray client (ray://), which a study cannot use; run it on a machine of the cluster, or "
            "leave ray.init out"
        )
    pool = None
    try:
        pool = ClusterPool(ray, cpus, gpus)
        yield pool
    finally:
        if pool is not None:
            pool.cancel()
        if ours:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(f"engine is 'ray', and the package ray is not installed; {_INSTALL}") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(
            f"address (or RAY_ADDRESS) is {address!r}; give HOST:PORT of the cluster's head, for instance "
            "10.0.0.5:6379, on a machine "
            "of the cluster"
        )
    try:
        _greet(host.strip("[]"), int(port))
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({in_a_line(error)}); start one with `ray start --head`, or give "
            "its --address"
        ) from None
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except FOREIGN as error:
        ray.shutdown()  # what was begun
        raise InputError(
            f"the Ray cluster at {address} cannot be joined: {in_a_line(error)}; this machine must belong to it "
            f"(`ray start --address {address}`), with the same versions of ray and Python"
        ) from None


def _greet(host: str, port: int) -> None:
    """Find out within seconds whether something like Ray's head answers; Ray itself waits for minutes.

    Raises:
        OSError: Nothing answers, or it is another service, for instance Redis, whose port is the same.
    """
    with socket.create_connection((host, port), _SECONDS_TO_ANSWER) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "1":  # then a greeting needs certificates
            return
        connection.sendall(_GREETING)
        answer = connection.recv(9)
        if answer[3:4] != b"\x04":  # a frame of settings, as every server of HTTP/2 sends first
            raise OSError("another service listens there")


class ClusterPool:
    """Workers on a cluster; `cluster_pool` makes it."""

    def __init__(self, ray: Any, cpus: int, gpus: float) -> None:
        self._ray = ray
        if gpus > 1 and gpus != int(gpus):
            raise InputError(f"gpus is {gpus:g}; choose a whole number, or a share of one GPU below 1")
        nodes = [node for node in ray.nodes() if node["Alive"]]
        rooms = [_room(node["Resources"], cpus, gpus) for node in nodes]
        if not any(rooms):
            raise InputError(
                f"no machine of the Ray cluster has {cpus} processor(s) and {gpus:g} GPU(s) for a job; ask for less "
                "(threads, gpus), or start its nodes with more (`ray start --num-cpus --num-gpus`)"
            )
        #: How many jobs run at once.
        self.slots = sum(rooms)
        self.num_nodes = len(nodes)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": _RETRIES, "retry_exceptions": False}
        self._call = ray.remote(**options)(_entry())
        self._expected = version_of_code()
        self._running: set[Any] = set()
        self._board: Any = None

    def share(self, value: Any) -> Any:
        """Put something into the cluster's object store, once for all jobs that get it as an argument.

        Args:
            value: What `pickle` can hold.
        """
        return self._ray.put(pickle.dumps(value))  # read only once the worker's mfh is known to be this one

    def board(self) -> Any:
        """A `Board` as an argument for jobs, which say there what they are doing."""
        if self._board is None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            # On this machine, so that it lives as long as the study does.
            here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
            self._board = self._ray.remote(num_cpus=0, scheduling_strategy=here)(_board_class()).remote()
        return self._board

    def read_board(self) -> Mapping[str, str] | None:
        """What jobs say on the board; None where that is not known at once."""
        with suppress(Exception):  # it starts with the first job; the work does not wait for it
            return self._ray.get(self._board.read.remote(), timeout=1.0)  # type: ignore[no-any-return]
        return None

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> "Future[Any]":
        """Run a function on the cluster; what `share` and `board` returned may be among its arguments.

        A function of a script or notebook travels as code, one of a module by name.
        """
        kept = (self._ray.ObjectRef, self._ray.actor.ActorHandle)
        places = [place for place, value in enumerate(arguments) if isinstance(value, kept)]
        plain = [None if place in places else value for place, value in enumerate(arguments)]
        shared = [arguments[place] for place in places]
        reference = self._call.remote(self._expected, self._ray.cloudpickle.dumps((function, plain, places)), *shared)
        self._running.add(reference)
        found: Future[Any] = Future()

        def done(result: "Future[Any]") -> None:
            self._running.discard(reference)
            if found.cancelled():
                return
            try:
                found.set_result(self._opened(result))
            except BaseException as error:
                found.set_exception(error)

        reference.future().add_done_callback(done)
        return found

    def _opened(self, result: "Future[Any]") -> Any:
        """What a job returned.

        Raises:
            WorkerDiedError: Its process died again and again.
            Exception: What the job raised.
        """
        errors = self._ray.exceptions
        try:
            kind, content = result.result()
        except errors.RayTaskError as error:
            raise getattr(error, "cause", None) or error from None
        except errors.RayError as error:
            raise WorkerDiedError(in_a_line(error)) from None
        if kind == "refused":
            raise InputError(f"{content}; {_INSTALL}, the same versions everywhere (here: {self._expected})")
        if kind == "raised":
            text, where, pickled = content
            try:
                raised = pickle.loads(pickled)  # noqa: S301 (from a worker that this process started)
            except Exception:  # of a class that cannot be pickled, or that only the worker can import
                raised = RuntimeError(text)
                raised.add_note(where)
            raise raised
        return content

    def cancel(self) -> None:
        """End what still runs."""
        for reference in list(self._running):
            with suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._board is not None:
            with suppress(Exception):
                self._ray.kill(self._board)
            self._board = None


def _room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many jobs a machine runs at once."""
    room = int(resources.get("CPU", 0) // cpus)
    if not gpus:
        return room
    # Several jobs share a GPU, but none is cut from the rests of two.
    cards = resources.get("GPU", 0)
    return min(room, int(cards // gpus) if gpus >= 1 else int(cards) * int(1 / gpus + 1e-9))


@cache
def version_of_code() -> str:
    """What machines must have in common: mfh, with a digest of its code that tells states of development apart, torch.

    Builds of one version of torch, for instance with and without CUDA, count as the same.
    """
    import mfh

    root, digest = Path(mfh.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    torch = importlib.metadata.version("torch").partition("+")[0]
    return f"{mfh.__version__}, code {digest.hexdigest()[:8]}, torch {torch}"


def called(payload: bytes, shared: tuple[Any, ...]) -> tuple[str, Any]:
    """Run a job in a worker; returns "done" and its result, or "raised" and the exception: text, where, pickled."""
    try:
        function, arguments, places = pickle.loads(payload)  # noqa: S301 (from the process that started this one)
        for place, value in zip(places, shared, strict=True):
            arguments[place] = pickle.loads(value) if isinstance(value, bytes) else value  # noqa: S301
        return "done", function(*arguments)
    except Exception as error:
        where, pickled = f"On {socket.gethostname()}:\n{traceback.format_exc()}", b""
        if not isinstance(error, InputError):
            error.add_note(where)
        with suppress(Exception):
            pickled = pickle.dumps(error)
        return "raised", (in_a_line(error), where, pickled)


# What follows is sent as code, not by name, because a worker may have another mfh, or none.


def _entry() -> Callable[..., Any]:
    def run(expected: str, payload: bytes, *shared: Any) -> Any:
        import importlib
        import socket

        where = f"the Ray worker on {socket.gethostname()}"
        try:
            mfh = importlib.import_module("mfh")
        except ImportError as error:
            return "refused", f"{where} cannot import mfh ({error})"
        try:
            cluster = importlib.import_module("mfh.parallel.cluster")
            found = cluster.version_of_code()
        except (ImportError, AttributeError):
            found = getattr(mfh, "__version__", "unknown")
        if found != expected:
            return "refused", f"{where} has another version of mfh or torch ({found})"
        return cluster.called(payload, shared)

    return run


def _board_class() -> type:
    class Board:
        """What jobs are doing: key -> text. Methods are called as `board.say.remote(key, text)`."""

        def __init__(self) -> None:
            self.notes: dict[str, str] = {}

        def say(self, key: str, text: str) -> None:
            if text:
                self.notes[key] = text
            else:
                self.notes.pop(key, None)

        def read(self) -> dict[str, str]:
            return dict(self.notes)

    return Board
