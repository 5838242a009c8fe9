"""study.toml: a whole study in one file, which `mfh study FILE` and `mfh.study(FILE)` run again."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfh.errors import InputError, close_names, in_a_line
from mfh.files import regular_size
from mfh.studies.settings import Settings

#: What a file may hold beside `settings`: keywords of `mfh.study`.
KEYS = ("task", "arms", "ratios", "scores", "layers", "weights", "label_fractions", "num_seeds", "first_seed", "select")
_SETTINGS = "settings"


def is_study_file(task: Any) -> bool:
    """Whether a task is given by a file that holds a whole study."""
    return isinstance(task, str | Path) and Path(task).suffix == ".toml"


def read_study(path: str | Path) -> dict[str, Any]:
    """Keywords of `mfh.study`, with `settings` as a `Settings`.

    Args:
        path: The file.

    Raises:
        InputError: There is no such file, it is no TOML, it names no task, or it has an entry that a study has not.
    """
    path = Path(path)
    try:
        regular_size(path)
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no study file {path}; give a .toml file, for instance a run's study.toml") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"study file {path} cannot be read: {in_a_line(error)}") from None
    for name in held:
        if name not in (*KEYS, _SETTINGS):
            raise InputError(f"study file {path} has an entry {name!r}; {close_names(name, [*KEYS, _SETTINGS])}")
    settings = held.pop(_SETTINGS, {})
    if not isinstance(settings, dict):
        raise InputError(f"study file {path}: settings is {settings!r}; a table [settings] was expected")
    if not isinstance(held.get("task"), str):
        raise InputError(f'study file {path} names no task; add task = "...", a task as `mfh study` takes it')
    if is_study_file(held["task"]):
        raise InputError(
            f"study file {path} names the study file {held['task']!r} as its task; name that file's task instead"
        )
    try:
        held["settings"] = Settings.of(**settings)
    except InputError as error:
        raise InputError(f"study file {path}: {error}") from None
    if "weights" in held and isinstance(held["weights"], list):
        held["weights"] = [tuple(pair) if isinstance(pair, list) else pair for pair in held["weights"]]
    return held


def merged(held: Mapping[str, Any], given: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The study of a file, with what is given beside it; what is given counts, even where it is a default.

    Args:
        held: What `read_study` returned.
        given: Keywords of `mfh.study`; None or an empty tuple where nothing is given.
        settings: The settings given beside the file.
    """
    asked = {name: value for name, value in given.items() if value is not None and value != ()}
    told, before = told_settings(settings), told_settings(held["settings"])
    if "set" in told:  # other keywords of the task's function stay
        told["set"] = {**before.get("set", {}), **told["set"]}
    return {**held, **asked, "settings": held["settings"].changed(**told)}


def told_settings(settings: Settings) -> dict[str, Any]:
    """Settings by name that were given by name or differ from the defaults, as `Settings.of` takes them."""
    found: dict[str, Any] = {}
    for group in dataclasses.fields(settings):
        of_group = getattr(settings, group.name)
        plain = type(of_group)()
        for item in dataclasses.fields(of_group):
            value = getattr(of_group, item.name)
            if item.name == "off":
                found |= dict.fromkeys(value, False)
            elif value != getattr(plain, item.name) or item.name in settings.given:
                found["loss" if item.name == "function" else item.name] = value
    if "set" in found:
        found["set"] = dict(text.split("=", 1) for text in found["set"])
    return found


def study_text(study: Mapping[str, Any], settings: Settings, lost: Sequence[str] = ()) -> str:
    """The content of a file.

    Args:
        study: Keywords of `mfh.study`, from `KEYS`; those that are empty are left out.
        settings: Its settings.
        lost: What no file can hold, one line each: objects of Python.
    """
    lines = ["# This study, to run again: mfh study study.toml --out ANOTHER_FOLDER"]
    told = told_settings(settings)
    objects = [name for name, value in told.items() if _toml(value) is None]
    lost = [*lost, *(f"the setting {name} is an object of Python" for name in objects)]
    lines += [f"# Not in this file: {line}." for line in lost]
    lines += [f"{name} = {_toml(study[name])}" for name in KEYS if study.get(name) not in (None, (), [], "", False)]
    lines += ["", f"[{_SETTINGS}]"]
    lines += [f"{name} = {_toml(value)}" for name, value in told.items() if name not in objects]
    return "\n".join(lines).rstrip() + "\n"


def _toml(value: Any) -> str | None:
    """A value as TOML; None for an object that it cannot hold."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        parts = [(json.dumps(str(name)), _toml(item)) for name, item in value.items()]
        return None if any(part is None for _, part in parts) else "{" + ", ".join(f"{n} = {p}" for n, p in parts) + "}"
    if isinstance(value, list | tuple):
        items = [_toml(item) for item in value]
        return None if any(item is None for item in items) else f"[{', '.join(map(str, items))}]"
    return None
