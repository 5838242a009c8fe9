"""Cells of a study measured on a Ray cluster, whose machines share no disk with this one.

A job gets the user's code and what its seed keeps, measures in a temporary run folder of its own, and returns the files
that are new there. Only this process writes to the study's run folder.
"""

import atexit
import hashlib
import importlib.util
import io
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import IO, TYPE_CHECKING, Any

from mfh import files
from mfh.errors import InputError, in_a_line
from mfh.networks.modes import find_device
from mfh.parallel.cluster import ClusterPool
from mfh.parallel.pool import Job
from mfh.progress import listening, seldom
from mfh.studies.folder import Run
from mfh.studies.grid import Cell
from mfh.studies.settings import Execution, Settings
from mfh.tasks.finding import ARRAY_FILES, SHIPPED

if TYPE_CHECKING:
    from mfh.studies.pool import Plan, Unit

#: Files: path within a folder -> content.
Files = dict[str, bytes]
#: Measures some cells of some units; see `mfh.studies.pool`.
Measure = Callable[["Plan", Sequence["Unit"], Sequence[Cell] | None], None]

#: Names of a worker's folder, and of the file in it that is locked while the worker lives.
_HOME, _HELD = "mfh-away-", ".in-use"
_locks: list[ExitStack] = []
#: How often a job says at which epoch it is.
_SECONDS_BETWEEN_NOTES = 2.0
#: More code than this is not a task with the modules beside it.
_MOST_BYTES = 2**26
#: What of a seed's folder belongs to single cells, or to this machine alone.
_OF_CELLS = ("distilled-", "mask-")


@dataclass(frozen=True)
class Luggage:
    """What a user wrote, to be sent: modules by the folder that they are imported from, and given files.

    Args:
        roots: Folders of modules, as they are called here -> their Python files.
        given: Files that the task or the settings name, as they are called here -> content.
        places: Tasks and methods as they are called here -> folder of modules, and what to call them within it.
    """

    roots: Mapping[str, Files]
    given: Files
    places: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, plan: "Plan") -> "Luggage":
        """What a plan needs.

        Raises:
            InputError: The task or a method cannot be sent.
        """
        roots: set[Path] = set()
        given: Files = {}
        places: dict[str, tuple[str, str]] = {}
        for spec in map(str, _named_in(plan)):
            place, colon, name = spec.rpartition(":")
            file = Path(place if place.endswith(".py") else spec)
            if file.suffix == ".py":
                root = file.resolve().parent
                roots.add(root)
                places[spec] = str(root), f"{file.name}:{name}" if place.endswith(".py") else file.name
            elif file.suffix in ARRAY_FILES:
                given[spec] = file.read_bytes()
            elif colon:
                roots |= _root_of(place)
        for name in _modules_of(plan):
            roots |= _root_of(name)
        for item in fields(plan.settings.files):
            path = getattr(plan.settings.files, item.name)
            if path is not None:
                given[str(path)] = Path(path).read_bytes()
        return cls({str(root): _code_in(root) for root in sorted(roots)}, given, places)

    def unpacked(self, pickled: bytes) -> "Plan":
        """A pickled plan with what was sent, in a worker; its modules can be imported."""
        home = _home() / self._digest()
        homes = {}
        for number, (root, code) in enumerate(self.roots.items()):
            homes[root] = home / str(number)
            _write_all(homes[root], code)
            if str(homes[root]) not in sys.path:
                sys.path.insert(0, str(homes[root]))
        given = {}
        for number, (path, content) in enumerate(self.given.items()):
            given[path] = home / f"given-{number}" / Path(path).name  # a task of a table has the name of its file
            _write_all(given[path].parent, {given[path].name: content})

        def here(spec: Any) -> Any:
            if not isinstance(spec, str | Path):
                return spec
            root, name = self.places.get(str(spec), ("", ""))
            return str(given.get(str(spec), homes[root] / name if root else spec))

        plan: Plan = pickle.loads(pickled)  # noqa: S301 (from the process that started this one)
        settings = plan.settings
        own = {item.name: getattr(settings.files, item.name) for item in fields(settings.files)}
        moved = {name: path if path is None else given[str(path)] for name, path in own.items()}
        return replace(
            plan,
            task=here(plan.task),
            methods=tuple((name, here(method)) for name, method in plan.methods),
            settings=replace(settings, files=replace(settings.files, **moved)),
        )

    def _digest(self) -> str:
        return hashlib.sha256(pickle.dumps((self.roots, self.given))).hexdigest()[:16]


@cache
def _home() -> Path:
    """A folder for this worker alone. Ray kills workers, so the next one removes what they leave."""
    for held in Path(tempfile.gettempdir()).glob(f"{_HOME}*/{_HELD}"):
        with suppress(OSError), files.locked(held, wait=False):
            shutil.rmtree(held.parent, ignore_errors=True)
    home = Path(tempfile.mkdtemp(prefix=_HOME))
    lock = ExitStack()
    lock.enter_context(files.locked(home / ".new"))
    with suppress(OSError):  # where an open file keeps its name, the folder stays behind
        (home / ".new").rename(home / _HELD)  # seen by others only when it is locked
    _locks.append(lock)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def _named_in(plan: "Plan") -> list[str | Path]:
    """The task and the methods that are given by name, without shipped ones."""
    named = [spec for spec in (plan.task, *dict(plan.methods).values()) if isinstance(spec, str | Path)]
    return [spec for spec in named if str(spec) not in SHIPPED]


class _Modules(pickle.Pickler):
    """Pickles, and notes the modules of functions and classes on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.found: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType):
            self.found.add(value.__module__)
        return NotImplemented


def _modules_of(plan: "Plan") -> list[str]:
    """Names of the modules that a plan needs to be unpickled.

    Raises:
        InputError: It cannot be sent.
    """
    way_out = "write it into a file, for instance my_task.py with a function task(), and give the file"
    pickler = _Modules(io.BytesIO())
    try:
        pickler.dump(plan)
    except Exception as error:
        raise InputError(
            f"the task or a method cannot be sent to a cluster ({in_a_line(error)}), because it holds a lambda, a "
            f"function within a function or something open; {way_out}"
        ) from None
    if "__main__" in pickler.found:
        raise InputError(
            "the task or a method is made by a function of this notebook or script, which other machines do not have; "
            f"{way_out}"
        )
    return sorted(pickler.found)


def _root_of(module: str) -> set[Path]:
    """The folder that a user's module is imported from; nothing for an installed one, which machines must have."""
    top = module.partition(".")[0]
    origin = getattr(sys.modules.get(top), "__file__", None)
    if origin is None:
        found = None
        with suppress(ImportError, ValueError):
            found = importlib.util.find_spec(top)
        if found is not None and found.origin is None and found.submodule_search_locations:
            raise InputError(
                f"the package {top!r} has no __init__.py, so it cannot be sent to a cluster; add an empty one"
            )
        origin = None if found is None else found.origin
    if origin is None or top == "mfh" or top in sys.stdlib_module_names or not origin.endswith(".py"):
        return set()
    path = Path(origin).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return set()
    return {path.parent.parent if path.name == "__init__.py" else path.parent}


def _code_in(root: Path) -> Files:
    """The modules and packages that can be imported from a folder.

    Raises:
        InputError: There is more than belongs to a task.
    """
    found: Files = {}
    size = 0
    folders = [root]
    while folders:
        folder = folders.pop()
        for path in sorted(folder.iterdir()):
            if _is_package(path) and path.resolve() not in {folder.resolve(), *folder.resolve().parents}:
                folders.append(path)
            elif path.suffix == ".py" and path.is_file():
                found[path.relative_to(root).as_posix()] = path.read_bytes()
                size += len(found[path.relative_to(root).as_posix()])
                if size > _MOST_BYTES:
                    raise InputError(
                        f"the Python files beside the task in {root} have more than {_MOST_BYTES >> 20} MB, which is "
                        "too much to send; put the task into a folder with the modules that it needs"
                    )
    return found


def _is_package(path: Path) -> bool:
    with suppress(PermissionError):  # the folder of somebody else
        return path.is_dir() and (path / "__init__.py").is_file()
    return False


def _write_all(folder: Path, content: Mapping[str, bytes]) -> None:
    """Write files that are not there yet, each whole or not at all."""
    for name, data in content.items():
        path = folder / name
        if not path.is_file():
            with files.atomic_write(path, "wb") as file:
                file.write(data)


class Away:
    """Measures on a cluster, and keeps what comes back in the run folder.

    Args:
        pool: The workers.
        luggage: What the user wrote.
    """

    def __init__(self, pool: ClusterPool, luggage: Luggage) -> None:
        self.pool = pool
        self._luggage = pool.share(luggage)
        self._told: tuple[Plan, Any] | None = None
        self._shared: dict[Unit, Any] = {}
        self._count = 0

    def job(self, measure: Measure, plan: "Plan", units: Sequence["Unit"], cells: Sequence[Cell] | None) -> Job[Any]:
        """Run `measure(plan, units, cells)` on the cluster; with None it measures no cells, or all that it can.

        Args:
            measure: A function of `mfh.studies.pool`.
            plan: The study.
            units: The seeds, each with its label fraction.
            cells: The cells.
        """
        if self._told is None or self._told[0] is not plan:  # it may hold the task's data: sent once, not with each job
            told = replace(plan, notes=None, settings=_everywhere(plan))
            self._told = plan, self.pool.share(pickle.dumps(told))  # read only where its modules are unpacked
        own: Files = {}
        for unit in units:
            own |= _own_files(plan, unit, cells)
            if unit not in self._shared:
                self._shared[unit] = self.pool.share(_shared_files(plan, unit))
        self._count += 1
        board = None if plan.notes is None else self.pool.board()
        key = f"{plan.units.index(units[0])}-{self._count}"
        shared = [self._shared[unit] for unit in units]
        arguments = (measure, self._told[1], units, cells, self._luggage, own, board, key, *shared)
        return Job((units, cells), measured_away, arguments)

    def keep(self, plan: "Plan", units: Sequence["Unit"], found: Files) -> None:
        """Keep what a job returned, the tables of measurements last: they say that the rest is there."""
        for unit in units:
            self._shared.pop(unit, None)  # there may be more now
        students = {name: content for name, content in found.items() if name.startswith("students/")}
        if students:
            _offer_all(plan, units, students)
        for name in sorted(set(found) - set(students), key=lambda name: ("/cells/" in name, name)):
            with files.atomic_write(plan.folder / name, "wb") as file:
                file.write(found[name])

    def write_notes(self, folder: Path) -> None:
        """Write what jobs are doing as files that the study's display reads."""
        notes = self.pool.read_board()
        if notes is None:
            return
        for file in folder.iterdir():
            if file.name not in notes:
                file.unlink(missing_ok=True)
        for key, text in notes.items():
            (folder / key).write_text(text, encoding="utf-8")


def gpus_of_a_job(execution: Execution) -> float:
    """How many GPUs each job gets: as many as the settings say, or one where the study runs on a GPU."""
    return float(find_device(execution.device).type == "cuda") if execution.gpus is None else execution.gpus


def _everywhere(plan: "Plan") -> Settings:
    """The settings for another machine: folders are named in full, and the device is the one that was found here."""
    task, execution = plan.settings.task, plan.settings.execution
    if task.data is not None and "://" not in task.data and Path(task.data).exists():
        task = replace(task, data=str(Path(task.data).resolve()))
    # A job sees the GPUs that it was given, as the first ones; one without a GPU must not find any.
    found = find_device(execution.device)
    if gpus_of_a_job(execution) and (execution.device is None or found.type == "cuda"):
        device = "cuda"
    else:
        device = "cpu" if found.type == "cuda" else str(found)
    cache = None if execution.cache is None else Path(execution.cache).resolve()
    return replace(plan.settings, task=task, execution=replace(execution, device=device, cache=cache))


def _shared_files(plan: "Plan", unit: "Unit") -> Files:
    """What all cells of a unit read: networks and scores."""
    kept = plan.kept(unit)
    found = [path for path in kept.folder.glob("*.safetensors") if not path.name.startswith(_OF_CELLS)]
    return _read_all(plan.folder, [*found, kept.truth_file])


def _own_files(plan: "Plan", unit: "Unit", cells: Sequence[Cell] | None) -> Files:
    """What some cells of a unit read, and all measurements where only the unit's own are missing."""
    kept = plan.kept(unit)
    wanted = cells if cells is not None else plan.grid
    found = [kept.network_file(cell) for cell in wanted]
    if not cells:
        found += [kept.rows_file(cell, plan.splits) for cell in plan.grid]
    return _read_all(plan.folder, found)


def _read_all(root: Path, paths: Iterable[Path]) -> Files:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def _offer_all(plan: "Plan", units: Sequence["Unit"], students: Files) -> None:
    """Keep students that are the best of their variant so far; they come in any order."""
    with tempfile.TemporaryDirectory(prefix="mfh-students-") as folder:
        _write_all(Path(folder), students)
        theirs, ours = Run(folder), Run(plan.folder)
        for fraction in dict.fromkeys(fraction for _, fraction in units):
            for cell in plan.grid:
                if theirs.student_file(cell, fraction).is_file():
                    weights, facts = theirs.read_student(cell, fraction)
                    ours.offer_student(cell, fraction, weights.copy, facts, plan.scale.sign)


def measured_away(
    measure: Measure,
    pickled: bytes,
    units: Sequence["Unit"],
    cells: Sequence[Cell] | None,
    luggage: Luggage,
    own: Files,
    board: Any,
    key: str,
    *shared: Files,
) -> Files:
    """In a worker: measure in a temporary run folder; returns the files that are new or changed there."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="job-", dir=_home()))) / "run"
        before = {**own}
        for content in shared:
            before |= content
        _write_all(root, before)
        if board is not None:
            where = socket.gethostname()
            say = seldom(lambda work: board.say.remote(key, f"{work} on {where}"), _SECONDS_BETWEEN_NOTES)
            stack.enter_context(listening(say))
            stack.callback(board.say.remote, key, "")
        measure(replace(luggage.unpacked(pickled), folder=root), units, cells)
        paths = [path for path in root.rglob("*") if path.is_file() and _travels(path.relative_to(root))]
        return {name: content for name, content in _read_all(root, paths).items() if before.get(name) != content}


def _travels(path: Path) -> bool:
    return not (path.name.startswith(".") or path.suffix in (".ckpt", ".lock"))
