"""What the fields of a dataclass, and single options, may be: their types, and bounds that stand beside the types.

Bounds of an option are written once, in its annotation, and Python and the command line share the check:

    epochs: Annotated[int, Bounds(1, 1_000_000)] = 15
"""

import dataclasses
import functools
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mfh.errors import InputError, shown


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number, as part of its annotation.

    Args:
        least: The least allowed value.
        most: The greatest allowed value.
        below: Whether `most` itself is not allowed.
    """

    least: float
    most: float
    below: bool = False

    def hold(self, number: Any) -> bool:
        """Whether a number lies in the bounds."""
        return bool(self.least <= number < self.most if self.below else self.least <= number <= self.most)

    def __str__(self) -> str:
        return f"{self.least} to {'below ' if self.below else ''}{self.most}"


#: Numbers of random seeds, and a seed. NumPy and scikit-learn take seeds below 2^32 only.
NumSeeds = Annotated[int, Bounds(1, 10_000)]
AddSeeds = Annotated[int, Bounds(0, 10_000)]
RandomSeed = Annotated[int, Bounds(0, 2**31 - 1)]
#: Number of random permutations of a channel.
NumPermutations = Annotated[int, Bounds(1, 1_000_000)]


def whole(text: str, most: int = 2**63 - 1) -> int | None:
    """A whole number from 0 to `most`, written in the digits 0 to 9; None for other text.

    `str.isdigit` accepts signs that `int` does not, and `int` refuses thousands of digits.

    Example:
        >>> whole("012"), whole("-1"), whole("9" * 5000)
        (12, None, None)
    """
    number = int(text) if re.fullmatch("[0-9]{1,19}", text) else most + 1
    return number if number <= most else None


#: Part of the annotation of a field whose owner checks it.
UNCHECKED = "checked by its owner"


def check_fields(owner: Any, *, of: str = "") -> None:
    """Refuse a dataclass instance with a field of another type than declared, or out of its bounds.

    NumPy's numbers become Python's. A truth value is no number, and infinity and NaN are not either. A function is
    known to be one, but not what it takes and returns.

    Args:
        owner: The instance, which may be frozen.
        of: What ends the name of a field in messages, for instance " of task 'digits'".

    Raises:
        InputError: A field is not as declared. The message names the field.
    """
    for name, kind in _kinds(type(owner)).items():  # type: ignore[arg-type]
        value = getattr(owner, name)
        fitting = checked(f"{name}{of}", value, kind)
        if fitting is not value:
            object.__setattr__(owner, name, fitting)


@functools.cache
def _kinds(owner: type) -> dict[str, Any]:
    kinds = get_type_hints(owner, include_extras=True)
    return {field.name: kinds[field.name] for field in dataclasses.fields(owner)}


def checked(name: str, value: Any, kind: Any) -> Any:
    """A value of the declared kind, or an error that names it.

    Args:
        name: Name of the value in the message.
        value: The value.
        kind: A type as annotations have it, perhaps with `Bounds`.

    Returns:
        The value itself; a Python number for a number of NumPy.

    Raises:
        InputError: The value has another type, or is out of bounds.

    Example:
        >>> checked("epochs", 0, Annotated[int, Bounds(1, 100)])
        Traceback (most recent call last):
        mfh.errors.InputError: epochs is 0; choose 1 to 100
    """
    try:
        return _fitting(value, kind)
    except _OutOfBoundsError as error:
        words = [_described(part) for part in get_args(kind) if get_origin(part) is Literal]
        raise InputError(f"{name} is {shown(value)}; choose {' or '.join([str(error.bounds), *words])}") from None
    except TypeError:
        pass
    expected = _described(kind)
    if set(map(type, _choices(kind))) <= {str, bool, type(None)} and _choices(kind):
        raise InputError(f"{name} is {shown(value)}; choose {expected}")
    raise InputError(f"{name} is {shown(value)}, of type {type(value).__name__}; {expected} was expected")


class _OutOfBoundsError(Exception):
    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.bounds = bounds


def _fitting(value: Any, kind: Any) -> Any:
    """The value, or the Python number that it stands for; TypeError where it is of another kind."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if any(part is UNCHECKED for part in inner[1:]):
            return value
        fitting = _fitting(value, inner[0])
        for bounds in inner[1:]:
            if isinstance(bounds, Bounds) and fitting is not None and not bounds.hold(fitting):
                raise _OutOfBoundsError(bounds)
        return fitting
    if origin in (Union, types.UnionType):
        return _first_fitting(value, inner)
    if origin is Literal:
        return _known(value, any(type(value) is type(choice) and value == choice for choice in inner))
    if kind in (int, float, bool):
        return _number(value, kind)
    if kind is None or kind is type(None):
        return _known(value, value is None)
    if origin is tuple:
        _known(value, isinstance(value, (tuple, list)))
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        _known(value, len(kinds) == len(value))
        return tuple(map(_fitting, value, kinds))
    if origin is not None and origin is not Callable and isinstance(origin, type):
        _known(value, isinstance(value, origin))
        if issubclass(origin, Collection) and not issubclass(origin, Mapping) and origin.__module__ != "numpy":
            for item in value:
                _fitting(item, inner[0])
        return value
    return _known(value, _is_of_class(value, kind))


def _first_fitting(value: Any, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        try:
            return _fitting(value, kind)
        except TypeError:
            continue
    raise TypeError


def _known(value: Any, fits: bool) -> Any:
    if not fits:
        raise TypeError
    return value


def _number(value: Any, kind: type) -> Any:
    if kind is bool or isinstance(value, bool):
        # NumPy's truth values are not Python's, and no numbers either.
        fits = kind is bool and (isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"))
        return bool(_known(value, fits))
    _known(value, isinstance(value, Integral if kind is int else Real))
    number = value if type(value) in (int, float) else int(value) if isinstance(value, Integral) else float(value)
    # A whole number may have any size, but a float has a greatest one.
    return _known(number, kind is int or abs(number) <= sys.float_info.max)


def _is_of_class(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Callable or kind is Callable or getattr(kind, "_is_protocol", False):
        return callable(value)
    if kind is Path:
        return isinstance(value, (str, os.PathLike))
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values that there are, of a kind that has only a few; otherwise none."""
    if get_origin(kind) is Annotated:
        return _choices(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return get_args(kind)
    return (True, False) if kind is bool else ()


def _described(kind: Any, bounds: Bounds | None = None) -> str:
    """The kind in words, as the expectation of a message."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _described(inner[0], next((item for item in inner[1:] if isinstance(item, Bounds)), None))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(item, bounds) for item in inner))
    if _choices(kind):
        *first, last = map(repr, _choices(kind))
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"a sequence, each item {_described(inner[0])},"
        return f"a sequence of {len(inner)} ({', '.join(map(_described, inner))})"
    if origin is Callable or kind is Callable or getattr(kind, "_is_protocol", False):
        return "a function"
    words = {int: "a whole number", float: "a finite number", str: "text", Path: "a path"}
    named = origin if isinstance(origin, type) else kind
    if named is None or named is type(None):
        return "None"
    word = words.get(named) or f"a {getattr(named, '__name__', named)}"
    return f"{word} from {bounds}" if bounds and kind in (int, float) else word
