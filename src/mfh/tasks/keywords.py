"""KEY=VALUE as keyword arguments of a task's function, with their types checked. Nothing here needs torch."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mfh.errors import InputError, close_names

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def settings_of(given: Mapping[str, Any] | Iterable[str | Sequence[str]] | str) -> tuple[str, ...]:
    """Texts KEY=VALUE, sorted by key, from a mapping, from texts, or from groups of texts.

    Raises:
        InputError: A text has no "=" or no key, or a key is given twice.

    Example:
        >>> settings_of({"teacher": "audio", "labels": 50})
        ('labels=50', 'teacher=audio')
    """
    if isinstance(given, Mapping):
        given = [f"{key}={'none' if value is None else value}" for key, value in given.items()]
    words = [given] if isinstance(given, str) else list(given)
    texts = [text for word in words for text in ([word] if isinstance(word, str) else word)]
    keys = []
    for text in texts:
        key, equals, _ = text.partition("=")
        if not (key and equals):
            raise InputError(f"--set is {text!r}; KEY=VALUE was expected, for instance --set labels=100")
        if key in keys:
            raise InputError(f"--set gives {key!r} twice; give it once")
        keys.append(key)
    return tuple(sorted(texts))


def keywords(
    function: Callable[..., Any], given: Sequence[str], origin: str, taken: Iterable[str] = ()
) -> dict[str, Any]:
    """Keyword arguments of a task's function from texts KEY=VALUE.

    Args:
        function: The task's function. Types of values come from its annotations; a parameter without one has the type
            of its default.
        given: Texts KEY=VALUE.
        origin: Name of the task, for messages.
        taken: Parameters that other options give.

    Raises:
        InputError: The function has no such parameter, another option gives it, or the value has the wrong type.
    """
    if not given:
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters
    known = {name: parameter for name, parameter in parameters.items() if parameter.kind in by_name}
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _hints(function)
    found = {}
    for text in given:
        key, _, value = text.partition("=")
        if key == "seed":
            raise InputError("--set gives 'seed'; use --seed")
        if key in taken:
            raise InputError(f"--set gives {key!r}, and so does --{key}; give it once")
        if key not in known and not anything:
            settable = [name for name in known if name != "seed"]
            raise InputError(f"task() of {origin} has no parameter {key!r}; {close_names(key, settable)}")
        default = known[key].default if key in known else inspect.Parameter.empty
        found[key] = _value(key, value, hints.get(key, _type_of(default)))
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    inner = function.func if isinstance(function, partial) else function
    try:
        return typing.get_type_hints(inner)
    except Exception:  # annotations of a user's file may name what only a type checker imports
        return {}


def _type_of(default: Any) -> Any:
    return Any if default is None or default is inspect.Parameter.empty else type(default)


def _value(key: str, text: str, wanted: Any) -> Any:
    """The value that a text means, where a type is wanted."""
    try:
        return _read(text, wanted)
    except ValueError:
        raise InputError(f"--set {key} is {text!r}; expected {_described(wanted)}") from None


def _read(text: str, wanted: Any) -> Any:
    for kind in _alternatives(wanted):
        try:
            return _as(kind, text)
        except ValueError:
            continue
    raise ValueError


def _alternatives(wanted: Any) -> list[Any]:
    """The types to try, text last: everything is text."""
    if get_origin(wanted) is Annotated:
        return _alternatives(get_args(wanted)[0])
    if get_origin(wanted) in (Union, types.UnionType):
        kinds = [kind for part in get_args(wanted) for kind in _alternatives(part)]
        return sorted(kinds, key=lambda kind: kind in (str, Path))
    return [int, float, bool, str] if wanted in (Any, object) else [wanted]


def _as(kind: Any, text: str) -> Any:
    if kind in (str, Path, int):
        return kind(text)
    if kind is float:
        number = float(text)
        if math.isnan(number):
            raise ValueError
        return number
    if kind in (None, type(None)):
        return _choice(text.lower(), {"none": None})
    if kind is bool:
        return _choice(text.lower(), {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)})
    if get_origin(kind) is Literal:
        return _choice(text, {str(choice): choice for choice in get_args(kind)})
    if _is_list(kind):
        made = list if list in (kind, get_origin(kind)) else tuple
        element = (get_args(kind) or (Any,))[0]
        return made(_read(part, element) for part in text.split(",") if part)
    raise ValueError


def _is_list(kind: Any) -> bool:
    """Whether it stands for any number of values of one type."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    return origin in (list, Sequence, Iterable) or (origin is tuple and parts[1:] in ((), (...,)))


def _choice(text: str, choices: Mapping[str, Any]) -> Any:
    if text not in choices:
        raise ValueError
    return choices[text]


_WORDS = {str: "text", Path: "a path", int: "a whole number", float: "a number", bool: "true or false"}


def _described(wanted: Any) -> str:
    """What a type accepts, in words."""
    words = []
    for kind in _alternatives(wanted):
        if kind in (None, type(None)):
            words.append("none")
        elif kind in _WORDS:
            words.append(_WORDS[kind])
        elif get_origin(kind) is Literal:
            words += [str(choice) for choice in get_args(kind)]
        elif _is_list(kind):
            words.append(f"values separated by commas, each {_described((get_args(kind) or (Any,))[0])}")
        else:
            return f"a {getattr(kind, '__name__', kind)}, which only Python can give: call the function in a task file"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
