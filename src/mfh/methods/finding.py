"""Methods by name, file, module, class or function; and what tells one method from another."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from mfh.errors import InputError, close_names, foreign, shown
from mfh.files import import_code, load_code
from mfh.methods.batch import Batch, Method
from mfh.methods.code import behind, described, digest_of, name_of_code
from mfh.methods.names import SHIPPED

_WANTED = "a class of mfh.methods.Method or a function of a Batch"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")


class FunctionMethod(Method):
    """A plain function of a `Batch` as a method.

    Args:
        function: Function from a `Batch` to the teacher's term, a scalar.
        name: Name of the arm (default: the name of the function, of the function behind a partial one, or of the class
            of a callable object).
        student_layers: The student's layers whose features the function reads; None means the penultimate one. By
            default the function's attribute of this name, or none.
        teacher_layers: The teacher's layers, likewise.
        needs_labels: Whether the function sees labelled pairs alone. By default its attribute of this name, or False.

    Raises:
        InputError: It is no function of one argument.

    Example:
        >>> def squares(batch):
        ...     return (batch.student_logits - batch.teacher_logits).square().mean()
        >>> FunctionMethod(squares).name
        'squares'
    """

    def __init__(self, function: Callable[[Batch], Tensor], name: str = "", **reads: Any) -> None:
        self.function, known_by = function, behind(function)
        self.name = name or known_by.__name__.strip("<>")  # "<lambda>"
        try:
            inspect.signature(function).bind(None)
        except (TypeError, ValueError):
            raise InputError(
                f"method is the function {self.name or shown(function)}, and a function of one argument, a Batch, was "
                "expected; give a function of (student_logits, teacher_logits, target) as loss="
            ) from None
        known = ("student_layers", "teacher_layers", "needs_labels")
        for key in (*known, *reads):
            if key not in known:
                raise InputError(f"a function as a method has no option {key!r}; {close_names(key, list(known))}")
            usual = getattr(function, key, getattr(known_by, key, getattr(Method, key)))
            setattr(self, key, reads.get(key, usual))

    def loss(self, batch: Batch) -> Tensor:
        """What the function returns."""
        return self.function(batch)


class LikeMethod(Method):
    """An object with a method's parts that is no `Method`: what it lacks is as `Method` has it.

    Args:
        own: An object with `loss(batch)`, and any other part of a `Method`.
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        for name in _PARTS:
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))
        self.name = str(getattr(own, "name", "") or type(own).__name__)

    def loss(self, batch: Batch) -> Tensor:
        """What the object's loss returns."""
        found: Tensor = self.own.loss(batch)
        return found


#: Parts of a `Method` beside `loss` and `name`.
_PARTS = tuple(name for name in vars(Method) if not name.startswith("_") and name not in ("loss", "name"))
#: Those that say how much the two terms of a student's loss count.
_WEIGHTS = ("label_weight", "teacher_weight")


def resolve(method: Any) -> Method:
    """A method from whatever names it.

    Args:
        method: Name of a shipped method (`mfh.methods.names.SHIPPED`), "path/to/file.py:MyMethod",
            "package.module:MyMethod", a `Method` or an object with its parts (at least `loss`), the class of one that
            needs no arguments, or a function of a `Batch`.

    Raises:
        InputError: There is no such method, or it is none.

    Example:
        >>> resolve("kd").name
        'kd'
    """
    found = _found(method) if isinstance(method, (str, Path)) else method
    if isinstance(found, type) and _has_loss(found):
        with foreign(f"method {found.__name__} cannot be made without arguments; give an instance of it"):
            found = found()
    if not isinstance(found, (Method, type, nn.Module)):
        found = LikeMethod(found) if _has_loss(found) else FunctionMethod(found) if callable(found) else found
    if not isinstance(found, Method):
        what = "" if found is method else f", of type {type(found).__name__}"
        raise InputError(f"method is {shown(method)}{what}; {_WANTED} was expected, or a name: {', '.join(SHIPPED)}")
    _check(found)
    return found


def _has_loss(found: Any) -> bool:
    return callable(getattr(found, "loss", None))


def name_of(method: Method) -> str:
    """Name of a method: its own, or that of its class."""
    return method.name or type(method).__name__


def reads_features(method: Method) -> bool:
    """Whether a method reads features of the teacher, and not its logits alone."""
    return method.teacher_layers is None or len(method.teacher_layers) > 0


def facts_of(method: Method) -> dict[str, Any]:
    """What decides a method, as JSON can hold it: its name, weights and options, and a digest of code not mfh's."""
    own: Any = getattr(method, "function" if isinstance(method, FunctionMethod) else "own", method)
    held = vars(method)
    if own is not method:  # parts that were taken over are those of the object or its class
        held = {name: value for name, value in held.items() if name not in ("function", "own", "begin", "deploy")}
        held |= getattr(own, "__dict__", {})
    options = {name: described(held[name]) for name in sorted(held) if name not in _WEIGHTS}
    facts = {**{name: getattr(method, name) for name in _WEIGHTS}, "options": options}
    code = own if isinstance(method, FunctionMethod) else type(own)
    if isinstance(code, type) and code.__module__.startswith("mfh."):
        return {"method": f"{code.__module__}.{code.__qualname__}", **facts}
    return {"method": name_of_code(code), **facts, "code": digest_of(code)}


def _found(spec: str | Path) -> Any:
    text = str(spec)
    if text in SHIPPED:
        module, name = SHIPPED[text].split(":")
        return getattr(importlib.import_module(f"mfh.methods.{module}"), name)
    place, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        if text.endswith(".py"):
            raise InputError(f"method is {text!r}; name a class or function in the file: {text}:MyMethod")
        raise InputError(
            f"method is {text!r}; {close_names(text, list(SHIPPED), limit=len(SHIPPED))}; or give "
            "path/to/file.py:MyMethod or package.module:MyMethod"
        )
    if place.endswith(".py"):
        module_: ModuleType = load_code(Path(place), "method file", _WANTED)
    else:
        module_ = import_code(place, f"method {text!r}")
    if not hasattr(module_, name):
        known = [key for key, value in vars(module_).items() if _could_be(value, module_)]
        raise InputError(f"{place} has no class or function {name!r}; {close_names(name, known)}")
    return getattr(module_, name)


def _could_be(value: Any, module: ModuleType) -> bool:
    own = getattr(value, "__module__", None) == module.__name__
    return own and (inspect.isfunction(value) or (isinstance(value, type) and issubclass(value, Method)))


def _check(method: Method) -> None:
    name = name_of(method)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"a method's name is {name!r}; a letter and up to 79 letters, digits, '.', '_' or '-' were expected"
        )
    for key in ("student_layers", "teacher_layers"):
        layers = getattr(method, key)
        if isinstance(layers, str) or not (layers is None or all(isinstance(layer, str) for layer in layers)):
            raise InputError(f"method {name}: {key} is {shown(layers)}; a tuple of names, or None, was expected")
    for key in _WEIGHTS:
        weight = getattr(method, key)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise InputError(f"method {name}: {key} is {shown(weight)}; a number of at least 0 was expected")
    if getattr(method.loss, "__func__", None) is Method.loss:
        raise InputError(
            f"method {name} has no loss(batch); write one that returns the teacher's term of a batch, a scalar"
        )
