"""The one kind of error that a user can cause, and text of others made safe to print."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# What a terminal may obey instead of showing it: control characters but tab and newline, characters that reverse the
# direction of writing, further line ends, and halves of characters, which cannot be encoded.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    r"""Text that somebody else wrote, safe to print: what a terminal would obey is spelt out.

    Class names, layers, paths and metadata of files may hold control characters. Everything that is printed goes
    through this function; messages of `InputError` do by themselves.

    Example:
        >>> print(plain("\x1b[31mred"))
        \x1b[31mred
    """
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line that says what was given, what was expected and what to do. The command line prints it and
    exits with code 2. Any other exception that leaves `mfh` is a bug of `mfh`.

    Args:
        message: The message. It may quote what others wrote, see `plain`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


#: What somebody else's code may raise. A call of `sys.exit` in a task file is a mistake like others; Ctrl-C is not.
FOREIGN = (Exception, SystemExit, GeneratorExit)


def in_a_line(error: BaseException) -> str:
    """An exception of somebody else's code as part of a one-line message: its type and the start of its text."""
    try:
        text = str(error)
    except FOREIGN:
        text = "(its text cannot be read)"
    return " ".join(plain(f"{type(error).__name__}: {text}").split())[:300]


def shown(value: Any) -> str:
    """A value that somebody else made as part of a one-line message: the start of its `repr`."""
    try:
        text = " ".join(plain(repr(value)).split())
    except FOREIGN:
        text = "something without a text"
    return text if len(text) <= 100 else f"{text[:97]}..."


@contextmanager
def foreign(said: str) -> Iterator[None]:
    """Run somebody else's code in the block: whatever it raises is an error of its owner, told in one line.

    Args:
        said: What could not be done, the beginning of the message.

    Raises:
        InputError: The code raised an exception, which is the cause of this one.

    Example:
        >>> with foreign("the metric failed"):
        ...     {}["f1"]
        Traceback (most recent call last):
        mfh.errors.InputError: the metric failed: KeyError: 'f1'
    """
    try:
        yield
    except InputError:
        raise
    except FOREIGN as error:
        raise InputError(f"{said}: {in_a_line(error)}") from error


def close_names(name: str, known: list[str], limit: int = 5) -> str:
    """A hint for a misspelt name: the closest known names, or the first few if none is close.

    Args:
        name: The name that is not known.
        known: All known names.
        limit: The largest number of names in the hint.
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    if close:
        return f"close names: {', '.join(map(repr, close))}"
    listed = ", ".join(map(repr, known[:limit])) + (", ..." if len(known) > limit else "")
    return f"known names: {listed}" if known else "there are none"


def refuse_difference(holder: str, made: Mapping[str, Any], now: Mapping[str, Any], way_out: str) -> None:
    """Refuse to mix results of two configurations; the message names the first setting that differs.

    Args:
        holder: What was made, as the beginning of the message: "runs/digits (a study)", or a file.
        made: The configuration it was made with. Settings may be nested.
        now: The configuration asked for now.
        way_out: What the user can do about it; ends the message.

    Raises:
        InputError: A setting differs.

    Example:
        >>> refuse_difference("run.ckpt", {"recipe": {"epochs": 2}}, {"recipe": {"epochs": 3}}, "delete it")
        Traceback (most recent call last):
        mfh.errors.InputError: run.ckpt was made with recipe.epochs 2, now it is 3; delete it
    """
    difference = _first_difference(*(json.loads(json.dumps(one, default=str)) for one in (made, now)))
    if difference is not None:
        name, before, after = difference
        raise InputError(f"{holder} was made with {name} {before}, now it is {after}; {way_out}")


def _first_difference(made: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    for name in [*now, *(name for name in made if name not in now)]:
        before, after = made.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = _first_difference(before, after)
            if inner is not None:
                return f"{name}.{inner[0]}", *inner[1:]
        elif before != after:
            return name, _short(before), _short(after)
    return None


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(value) + "}"
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:97]}..."
