"""Digests of users' code and of the values it depends on: what tells two functions, classes or options apart."""

import dis
import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfh.errors import foreign
from mfh.files import EXECUTED

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
_BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
#: Packages whose code is known by its name, besides those that are installed.
_NEVER_OWN = ("mfh", "builtins", "torch", "numpy")
#: What a module has without anybody's doing.
_OF_ANY_MODULE = frozenset(vars(nn.Module()))


def described(value: Any) -> Any:
    """A value as JSON can hold it, so that another value is described otherwise.

    Args:
        value: Numbers, texts and lists stay what they are. A function, class, network, tensor or object becomes its
            name and a digest.

    Raises:
        InputError: An object cannot be read.
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and value == value):  # NaN equals nothing
        return value
    if isinstance(value, (tuple, list)):
        return [described(item) for item in value]
    if isinstance(value, (set, frozenset, Mapping, Tensor, np.ndarray, nn.Module)) or _has_code(value):
        digest = digest_of(value)
        return f"{name_of_code(value)} {digest}"
    text = _text(value)
    return text if len(text) <= 200 else f"{text[:160]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def digest_of(value: Any) -> str:
    """A digest of code and of what it depends on, the same in every process of one version of Python.

    Of a function it covers bytecode, constants, names, defaults, what its closure holds, and what it names of its
    module: functions, classes, plain numbers and texts, but code of installed packages by its name only. Of a class it
    covers methods, attributes and bases, of an object its class and attributes, of a network its structure and weights.
    Code of a file that `mfh.files.load_code` ran counts with the whole content that was executed. It needs no source
    file. What a function imports while it runs is not covered.

    Args:
        value: A function, class, object, network, tensor or plain value.

    Raises:
        InputError: An object cannot be read.
    """
    with foreign("what a method holds cannot be read"):
        digest = _Digest(str(getattr(behind(value), "__module__", "")))
        digest.add(value)
    return digest.text[:16]


def behind(function: Any) -> Any:
    """The function or class that a partial function, bound method or callable object stands for."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def name_of_code(value: Any) -> str:
    """Name of a function, or of an object's class, without its module: the module of a file may have any name."""
    return str(behind(value).__qualname__)


def _has_code(value: Any) -> bool:
    """Whether a value is a function, a class, or an object that says nothing of itself or is of a user's class."""
    return callable(value) or not (_has_text(type(value)) and _is_installed(type(value)))


def _has_text(kind: Any) -> bool:
    """Whether a class says itself how its objects are written."""
    return kind.__repr__ is not object.__repr__


def _text(value: Any) -> str:
    with foreign("an option of a method has no text"):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


@functools.cache
def _installed_in() -> tuple[Path, ...]:
    return tuple(Path(place).resolve() for place in map(sysconfig.get_path, ("purelib", "platlib", "stdlib")) if place)


def _is_installed(value: Any, own: str = "") -> bool:
    """Whether a function, class or module belongs to mfh, to Python or to an installed package; a module `own` not."""
    name = str(value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", ""))
    top = name.partition(".")[0]
    if top == "__main__":
        return False
    if top in _NEVER_OWN or top in sys.stdlib_module_names:
        return True
    if name == own:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and any(place in Path(file).resolve().parents for place in _installed_in())


class _Digest:
    """Walks through code and values in an order that is the same in every process.

    Args:
        own: Name of a module whose code counts although it may be installed.
    """

    def __init__(self, own: str) -> None:
        self._own, self._hash = own, hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # with the values, so that no identity is used again

    @property
    def text(self) -> str:
        return self._hash.hexdigest()

    def _note(self, *parts: object) -> None:
        self._hash.update(repr(parts).encode("utf-8", "backslashreplace"))

    def add(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._note(type(value).__name__, value)
            return
        if id(value) in self._seen:
            self._note("again", self._seen[id(value)][0])
            return
        self._seen[id(value)] = len(self._seen), value
        self._add_new(value)

    def _add_new(self, value: Any) -> None:
        match value:
            case list() | tuple():
                self._all(type(value).__name__, value)
            case set() | frozenset():
                self._note("set", sorted(digest_of(item) for item in value))  # their order differs by process
            case dict():
                self._all("dict", (part for item in value.items() for part in item))
            case types.CodeType():
                self._note(value.co_code, value.co_names, value.co_freevars, value.co_flags, value.co_argcount)
                self._all("constants", value.co_consts)
            case types.FunctionType():
                self._function(value)
            case types.MethodType():
                self._all("bound", (value.__func__, value.__self__))
            case functools.partial():
                self._all("partial", (value.func, value.args, value.keywords))
            case staticmethod() | classmethod():
                self.add(value.__func__)
            case property():
                self._all("property", (value.fget, value.fset))
            case functools.cached_property():
                self.add(value.func)
            case type():
                self._class(value)
            case types.ModuleType():
                self._note("module", value.__name__)
            case Tensor():
                self._tensor(value)
            case np.ndarray() if not value.dtype.hasobject:
                self._note("array", str(value.dtype), value.shape)
                self._hash.update(np.ascontiguousarray(value).tobytes())
            case _:
                self._object(value)

    def _all(self, kind: str, values: Iterable[Any]) -> None:
        self._note(kind)
        for value in values:
            self.add(value)
        self._note("end")

    def _named(self, kind: str, values: Mapping[str, Any]) -> None:
        self._all(kind, (part for name in sorted(values) for part in (name, values[name])))

    def _function(self, function: types.FunctionType) -> None:
        if _is_installed(function, self._own):
            self._note("function", function.__module__, function.__qualname__)
            return
        self._note("function", function.__name__, function.__globals__.get(EXECUTED))
        cells = [cell for cell in function.__closure__ or () if _is_filled(cell)]
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, *(c.cell_contents for c in cells))
        self._all("parts", parts)
        self._named("globals", _used(function, self._own))

    def _class(self, kind: type) -> None:
        if _is_installed(kind, self._own):
            self._note("class", kind.__module__, kind.__qualname__)
            return
        module = sys.modules.get(kind.__module__)
        self._note("class", kind.__qualname__, getattr(module, EXECUTED, None))
        self._all("bases", kind.__bases__)
        self._named("attributes", {name: value for name, value in vars(kind).items() if _counts(name, value)})

    def _tensor(self, tensor: Tensor) -> None:
        try:
            shape, rows = tuple(tensor.shape), tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        except (RuntimeError, NotImplementedError):  # sparse, without values, or on the meta device
            self._note("tensor", _text(tensor))
        else:
            self._note("tensor", str(tensor.dtype), shape)
            self._hash.update(rows.numpy().data)

    def _object(self, value: Any) -> None:
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(value, _BUILT_IN) or (wrapped is None and _says_itself(value, self._own)):
            self._note("object", type(value).__qualname__, _text(value))
            return
        self._all("object", (type(value), wrapped))
        own = _held(value)
        if isinstance(value, nn.Module):
            self._note(_text(value))
            own = _parts_of_module(value, own)
        self._named("attributes", {str(name): of for name, of in own.items() if name != "__wrapped__"})


def _held(value: Any) -> dict[str, Any]:
    """Attributes of an object itself, by name."""
    names = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    slots = {name for of in names for name in ((of,) if isinstance(of, str) else of)} - {"__dict__", "__weakref__"}
    return {**{name: getattr(value, name, None) for name in slots}, **getattr(value, "__dict__", {})}


def _parts_of_module(module: nn.Module, own: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a network from another of its text: weights, modules, and attributes that its class gives it."""
    given = {name: of for name, of in own.items() if name not in _OF_ANY_MODULE}
    if _is_installed(type(module)):  # the others are hooks and the like
        given = {name: of for name, of in given.items() if isinstance(of, _PLAIN)}
    return {**given, **{name: own[name] for name in ("_parameters", "_buffers", "_modules")}}


def _says_itself(value: Any, own: str) -> bool:
    """Whether an object's text says what it is: that of an installed class with a text of its own, or without parts."""
    if isinstance(value, nn.Module):
        return False
    if _has_text(type(value)) and _is_installed(type(value), own):
        return True
    return not (hasattr(value, "__dict__") or hasattr(value, "__slots__") or callable(value))


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return False
    return True


def _counts(name: str, value: Any) -> bool:
    """Whether an attribute of a class decides what it does; Python adds many that do not."""
    return isinstance(value, types.FunctionType) or not (name.startswith("__") or name == "_abc_impl")


def _used(function: types.FunctionType, own: str) -> dict[str, Any]:
    """What a function uses of its module, and of other modules of the user: code, and what only assignment changes."""
    codes = [*_codes(function.__code__)]
    steps = (step for code in codes for step in dis.get_instructions(code))
    read = {step.argval for step in steps if step.opname.startswith("LOAD_") and "GLOBAL" in step.opname}
    found: dict[str, Any] = {}
    for name in read & set(function.__globals__):
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            if not _is_installed(value, own):
                names = set(vars(value)) & {part for code in codes for part in code.co_names}
                found |= {f"{name}.{part}": vars(value)[part] for part in names}
        else:
            found[name] = value
    return {name: value for name, value in found.items() if _stays(value)}


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _stays(value: Any) -> bool:
    """Whether a global value is code, or one that only an assignment can change."""
    if isinstance(value, tuple):
        return all(map(_stays, value))
    return isinstance(value, (*_PLAIN, types.FunctionType, type, functools.partial))
