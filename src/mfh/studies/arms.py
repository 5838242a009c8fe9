"""Arms as a user gives them: names, METHOD+FOCUS, methods in files and modules, and methods themselves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mfh.errors import InputError, shown
from mfh.methods.finding import name_of, resolve
from mfh.methods.names import SHIPPED
from mfh.studies.grid import ARMS, CONTROLS, SPELLINGS, method_and_focus


class Arms(NamedTuple):
    """The arms of a study.

    Args:
        names: Their names, as they are recorded.
        methods: Methods by name that are not shipped, or not as they are shipped: what `mfh.methods.resolve` takes.
    """

    names: tuple[str, ...]
    methods: dict[str, Any]


def find_arms(given: Sequence[Any]) -> Arms:
    """Arms by their recorded names.

    Args:
        given: Names of arms, METHOD or METHOD+FOCUS, where METHOD is the name of a shipped method,
            "path/to/file.py:MyMethod" or "package.module:MyMethod"; or methods themselves, whose arms are called by
            their names. So [my_method, "my-name", "my-name+soft"] has two arms of one method.

    Raises:
        InputError: A method cannot be found, or has a name that something else has.

    Example:
        >>> find_arms(["no-kd", "kd", "kd+soft", "fitnets+aligned"]).names
        ('no-kd', 'regular', 'soft', 'fitnets+aligned')
    """
    methods: dict[str, Any] = {}
    names = []
    for arm in given:
        if not isinstance(arm, str):
            names.append(_named(arm, methods))
            continue
        method, focus = method_and_focus(arm)
        if ":" in method or method.endswith(".py"):
            method = _named(method, methods)
        name = f"{method}+{focus}" if focus else method
        names.append(SPELLINGS.get(name, name))
    both = [name for name in methods if name in SHIPPED and any(isinstance(arm, str) and arm == name for arm in given)]
    if both:
        raise InputError(f"two arms are called {both[0]!r}, a method as it is shipped and one of your own; {_RENAME}")
    return Arms(tuple(dict.fromkeys(names)), methods)


_RENAME = "give yours another name (its attribute `name`)"


def _named(given: Any, methods: dict[str, Any]) -> str:
    """The name of a method that is no shipped name; the method is noted."""
    method = resolve(given)
    name = name_of(method)
    if name in (*ARMS, *CONTROLS, *SPELLINGS) or (name in SHIPPED and type(method) is not type(resolve(name))):
        raise InputError(f"a method is called {name!r}, as another arm is; {_RENAME}")
    if name in methods and not _same(methods[name], given):
        raise InputError(f"two arms are called {name!r}: {shown(methods[name])} and {shown(given)}; {_RENAME}")
    methods[name] = given
    return name


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and one == other)
