"""JSON files and tables that notice when they were changed, and what the values in them must be.

A file that was damaged must not become a result. What a run folder keeps is written with a checksum of its content and
of its place in the folder. A file without a checksum, as version 0.1 wrote it, is checked for what its values are.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mfh import files
from mfh.errors import InputError

#: Name of the checksum: a key of a JSON file, a column of a table.
CHECKSUM = "checksum"


def present(path: Path, way_out: str) -> bool:
    """Whether a file is there.

    Args:
        path: The file.
        way_out: What the user can do about something else in its place. It ends the message.

    Raises:
        InputError: A folder, a pipe, a device or a dangling link is in its place, which cannot or must not be read.
    """
    if path.is_file():
        return True
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} is no regular file; {way_out}")
    return False


# --- JSON -------------------------------------------------------------------------------------------------------------


def write_record(path: Path, content: Mapping[str, Any], place: str = "") -> None:
    """Write a mapping as JSON with a checksum, whole or not at all.

    Args:
        path: File to write.
        content: What to write. Values that JSON does not know are written as text.
        place: What the file is within its folder (default: its name), so that an exchanged file is noticed.
    """
    plain = json.loads(json.dumps(content, default=str))
    plain.pop(CHECKSUM, None)
    # First, so that whoever changes the file by hand can remove the line.
    files.write_json(path, {CHECKSUM: _digest([place or path.name, plain]), **plain})


def read_record(path: Path, kind: Any, way_out: str, place: str = "") -> dict[str, Any]:
    """Read what `write_record` wrote.

    Args:
        path: File to read.
        kind: A `TypedDict` that says what the values must be; other keys may hold anything.
        way_out: What the user can do about a file that is refused. It ends the message.
        place: As given to `write_record`.

    Raises:
        InputError: There is no such file, it was changed after it was written, or a value is not what it must be.
    """
    try:
        content = files.read_json(path)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be read; {way_out}") from None
    except InputError as error:
        raise InputError(f"{error}; {way_out}") from None
    checksum = content.pop(CHECKSUM, None)
    if checksum is not None and checksum != _digest([place or path.name, content]):
        raise InputError(
            f"{path} was changed after it was written (its checksum differs); {way_out}, or remove its line "
            f'"{CHECKSUM}" if you changed it yourself'
        )
    try:
        fitted(content, kind)
    except ValueError as error:
        raise InputError(f"{path}: {error}; {way_out}") from None
    return content


def fitted(value: Any, kind: Any, name: str = "") -> Any:
    """A value from JSON as the type it must have: lists become tuples and objects dataclasses, where these are meant.

    Args:
        value: What JSON holds.
        kind: A type: text, numbers, lists, dataclasses, `TypedDict`, `Literal`, and unions of them. Numbers are finite.
        name: Name of the value, for messages.

    Raises:
        ValueError: It is of another type; the message says which value, and what was expected.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _fitted_to_one(value, inner, name)
    if origin is Literal:
        if value not in inner or isinstance(value, bool):
            raise ValueError(_other(name, value, " or ".join(map(repr, inner))))
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        items = [fitted(item, inner[0], f"{name}[{number}]") for number, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict and isinstance(value, dict):
        return {key: fitted(item, inner[1], _inner(name, key)) for key, item in value.items()}
    if typing.is_typeddict(kind) and isinstance(value, dict):
        return value | _fitted_items(value, typing.get_type_hints(kind), kind.__required_keys__, name)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
        hints = typing.get_type_hints(kind)
        strange = [key for key in value if key not in hints]
        if strange:
            raise ValueError(f"{_inner(name, strange[0])} is not known to this version of mfh")
        return typing.cast(Callable[..., Any], kind)(**_fitted_items(value, hints, needed, name))
    if kind in _PLAIN and _PLAIN[kind][0](value):
        return value
    raise ValueError(_other(name, value, _words(kind)))


def _fitted_items(
    value: Mapping[str, Any], hints: Mapping[str, Any], needed: Iterable[str], name: str
) -> dict[str, Any]:
    missing = [key for key in needed if key not in value]
    if missing:
        raise ValueError(f"{_inner(name, min(missing))} is missing")
    return {key: fitted(value[key], kind, _inner(name, key)) for key, kind in hints.items() if key in value}


def _fitted_to_one(value: Any, kinds: Sequence[Any], name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    for kind in kinds[:-1]:
        try:
            return fitted(value, kind, name)
        except ValueError:
            continue
    return fitted(value, kinds[-1], name)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _finite(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


_PLAIN: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str), "text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_whole, "a whole number"),
    float: (_finite, "a finite number"),
}


def _words(kind: Any) -> str:
    if kind in _PLAIN:
        return _PLAIN[kind][1]
    return "a list" if typing.get_origin(kind) in (list, tuple) else "an object"


def _inner(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _other(name: str, value: Any, expected: str) -> str:
    text = json.dumps(value, default=str)
    return f"{name} is {text if len(text) <= 60 else text[:57] + '...'}; {expected} was expected"


# --- tables -----------------------------------------------------------------------------------------------------------


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], place: str = "") -> None:
    """Write a table with a checksum of the whole in every row, whole or not at all.

    Args:
        path: File to write.
        columns: Heading of the table, without the checksum.
        rows: Rows from column to value.
        place: What the table is within the run folder, so that an exchanged file is noticed; empty for a table whose
            rows say it.
    """
    rows = list(rows)
    checksum = _rows_digest(columns, rows, place)
    # A table without rows has no such column, so that one that was cut after its heading is noticed.
    heading = (*columns, CHECKSUM) if rows else tuple(columns)
    files.write_table(path, heading, ({**row, CHECKSUM: checksum} for row in rows))


def read_rows(
    path: Path, columns: Sequence[str] | None, way_out: str, place: str = "", *, needs_checksum: bool = False
) -> list[dict[str, str]]:
    """Read a table that `write_rows` wrote, without its checksums; no rows if there is no such file.

    Args:
        path: File to read.
        columns: Expected heading, without the checksum. None accepts any.
        way_out: What the user can do about a file that is refused. It ends the message.
        place: As given to `write_rows`.
        needs_checksum: Whether to refuse a table without checksums, as version 0.1 wrote them.

    Raises:
        InputError: The file is no such table, or it was changed after it was written.
    """
    if not present(path, way_out):
        return []
    rows = files.read_table(path, None, way_out)
    if not rows and CHECKSUM in path.read_text(encoding="utf-8"):
        raise InputError(f"{path} was cut after its heading; {way_out}")
    heading = [name for name in rows[0] if name != CHECKSUM] if rows else list(columns or ())
    if columns is not None and heading != list(columns):
        raise InputError(f"{path} has columns {','.join(heading)}, not {','.join(columns)}; {way_out}")
    checked = needs_checksum or any(CHECKSUM in row for row in rows)
    checksums = {row.pop(CHECKSUM, None) for row in rows}
    if rows and checked and checksums != {_rows_digest(heading, rows, place)}:
        raise InputError(f"{path} was changed after it was written (its checksum differs); {way_out}")
    return rows


def _rows_digest(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], place: str) -> str:
    content = [["" if (value := row.get(name)) is None else str(value) for name in columns] for row in rows]
    return _digest([place, list(columns), content])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
