"""The shipped tasks, and how a task is found by its name, file or module."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction, arg

from mfh.errors import FOREIGN, InputError, close_names, in_a_line
from mfh.files import import_code, load_code
from mfh.tasks.keywords import keywords, settings_of
from mfh.values import UNCHECKED

if TYPE_CHECKING:
    from mfh.tasks.task import Task

    Pairs = tuple[str, ...]
else:  # the command line collects a group of texts for each --set; __post_init__ puts them together
    _SHOWN = arg(metavar="KEY=VALUE ...", help_behavior_hint="")
    Pairs = Annotated[tuple[tuple[str, ...], ...], UseAppendAction, _SHOWN, UNCHECKED]

#: Shipped tasks: name -> module with a function `task`.
SHIPPED = {
    "digits": "mfh.tasks.digits",
    "htad": "mfh.tasks.htad",
    "numerals": "mfh.tasks.numerals",
    "smartwatch": "mfh.tasks.smartwatch",
    "ravdess": "mfh.tasks.ravdess",
    "vggsound": "mfh.tasks.vggsound",
}

#: Endings of files with paired arrays, each of which is a task.
ARRAY_FILES = (".npz", ".parquet", ".csv")


@dataclass(frozen=True)
class TaskSource:
    """Where a task comes from: it makes the task, anew for every seed if the task's function takes a seed.

    Args:
        make: Function from a random seed to a `Task`.
        redrawn: Whether each seed draws its own data.
        origin: File or module of a user's own task, for messages; empty for a shipped task.
    """

    make: "Callable[[int], Task]"
    redrawn: bool
    origin: str = ""


@dataclass(frozen=True)
class TaskArguments:
    """Arguments of the task's function; unset ones are not passed."""

    data: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Prepared data: a folder; for vggsound also a URL."""
    preset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Preset of the task, for instance paper."""
    augment: Annotated[bool, arg(help_behavior_hint="")] = False
    """Vary training inputs at random."""
    set: Pairs = ()
    """Any other arguments, for instance teacher=audio labels=50."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "set", settings_of(self.set))
        if isinstance(self.data, Path):
            object.__setattr__(self, "data", str(self.data))

    def or_else(self, before: Mapping[str, Any]) -> "TaskArguments":
        """These arguments; unset ones are taken from `before`, for instance from a run's configuration."""
        given = {name: value or before.get(name, value) for name, value in vars(self).items()}
        kept = dict(before.get("set", {})) | dict(text.split("=", 1) for text in self.set)
        return TaskArguments(**given | {"set": kept})

    def lacking(self, config: Mapping[str, Any]) -> "TaskArguments":
        """The arguments of a run's configuration that these do not give."""
        others = {name: config.get(name) for name, value in vars(self).items() if name != "set" and not value}
        known = {text.partition("=")[0] for text in self.set}
        kept = {name: value for name, value in config.get("set", {}).items() if name not in known}
        return TaskArguments(**{name: value for name, value in others.items() if value} | {"set": kept})

    def facts(self) -> dict[str, Any]:
        """The arguments in a form that JSON can hold; "set" only where something is set."""
        pairs = dict(text.split("=", 1) for text in self.set)
        given = {**vars(self), "data": None if self.data is None else str(self.data), "set": pairs}
        return given if pairs else {name: value for name, value in given.items() if name != "set"}

    def for_function(self, function: Callable[..., Any], origin: str) -> dict[str, Any]:
        """The arguments as keywords for a task's function.

        Args:
            function: The task's function.
            origin: Name of the task, for messages.

        Raises:
            InputError: The function does not take one of them, or a value has the wrong type.
        """
        given = {name: value for name, value in vars(self).items() if value and name != "set"}
        parameters = inspect.signature(function).parameters
        for name in given:
            if name not in parameters:
                raise InputError(
                    f"task() of {origin} has no parameter {name!r}; leave --{name} out, or add the parameter"
                )
        return given | keywords(function, self.set, origin, taken=given)


def find_task(task: "str | Path | Task | Callable[..., Task]", arguments: TaskArguments | None = None) -> TaskSource:
    """Find a task by its name, file or module.

    Args:
        task: Name of a shipped task, "path/to/file.py" with a function `task()`, "path/to/file.py:function",
            "package.module:function", a file of paired arrays (.npz, .parquet or .csv), such a function itself, or a
            `Task`. The data of a `Task` stay the same for all seeds, unless it has `resplit`.
        arguments: Optional arguments for the task's function (default: none).

    Raises:
        InputError: There is no such task, or its function cannot be called.
    """
    # Imported only now: worker processes of a preparation import this module too, and do not need torch.
    from mfh.tasks.task import Task

    if isinstance(task, Task):
        if arguments is not None and arguments != TaskArguments():
            raise InputError(
                "data, preset, augment and set need a task's function, but a Task was given; give the function instead"
            )
        return _source_of(task)
    function, origin = (task, getattr(task, "__name__", repr(task))) if callable(task) else _find(str(task))
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"task() of {origin} cannot be called ({error})") from None
    given = (arguments or TaskArguments()).for_function(function, origin)
    if isinstance(task, (str, Path)) and Path(task).suffix in ARRAY_FILES:  # the file says whether splits are drawn
        return _source_of(function(**given))
    takes_seed, own = "seed" in parameters, isinstance(task, (str, Path)) and str(task) not in SHIPPED

    def make(seed: int) -> Task:
        try:
            made = function(**given, **({"seed": seed} if takes_seed else {}))
        except InputError as error:
            raise InputError(f"{origin}: {error}" if own else str(error)) from None
        except FOREIGN as error:
            raise InputError(f"task() of {origin} failed: {in_a_line(error)}") from error
        if not isinstance(made, Task):
            raise InputError(f"task() of {origin} returned a {type(made).__name__}; an mfh.Task was expected")
        return made

    return TaskSource(make, redrawn=takes_seed, origin=origin if own else "")


def _source_of(task: "Task") -> TaskSource:
    """A task that exists: it is split anew for every seed where that is possible, and the same for all otherwise."""
    return TaskSource(task.resplit or (lambda _seed: task), redrawn=task.resplit is not None)


def _find(spec: str) -> tuple[Callable[..., Any], str]:
    if spec in SHIPPED:
        return importlib.import_module(SHIPPED[spec]).task, spec
    file, colon, name = spec.rpartition(":") if not spec.endswith(".py") else (spec, "", "task")
    if file.endswith(".py"):
        return _function(load_code(Path(file), "task file", f"a function {name}()"), name, file), spec
    if Path(spec).suffix in ARRAY_FILES:
        from mfh.tasks.tables import task

        return partial(task, spec), spec
    if colon:
        return _function(import_code(file, f"task {spec!r}"), name, spec), spec
    raise InputError(
        f"there is no task {spec!r}; {close_names(spec, list(SHIPPED))}; "
        "or give path/to/file.py with a function task(), file.py:function, package.module:function, "
        "or pairs.npz, .parquet or .csv"
    )


def _function(module: ModuleType, name: str, origin: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
        raise InputError(f"{origin} has no function {name}() that returns an mfh.Task; {close_names(name, known)}")
    return function  # type: ignore[no-any-return]
