"""Damage every file of small run folders in every way, and run every command that reads the folder.

    python benchmarks/campaigns/damage.py --damages 60
    python benchmarks/campaigns/damage.py --damages 500 --out benchmarks/reports/damage-2026-11-27.md

A damage counts as handled if the command refuses it in one line, or ends with the same results as without it. Tracebacks,
hangs, and other numbers with exit code 0 are failures.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from campaigns.common import FOLDERS, TASK, Totals, chances, finish, in_child, made, on, options, warm, workplace

#: Commands that read each run folder, which stands where RUN does.
REPORT = ["report", "RUN", "--format", "md", "--figures", "svg"]
_OUT = ["--quiet", "--out", "RUN"]
READERS: dict[str, dict[str, list[str]]] = {
    "study": {
        "report": REPORT,
        "study": [*FOLDERS["study"], *_OUT],
        "study --add-seeds": [*FOLDERS["study"], "--add-seeds", "1", *_OUT],
        "diagnose": ["diagnose", TASK, *_OUT],
        "saliency": ["saliency", TASK, *_OUT],
    },
    "selection": {
        "report": REPORT,
        "study --select": [*FOLDERS["selection"], *_OUT],
        "distill": ["distill", TASK, "--arm", "soft", *_OUT],
    },
    "diagnosis": {"report": REPORT, "diagnose": ["diagnose", TASK, *_OUT]},
    "gauss": {"report": REPORT, "gauss": [*FOLDERS["gauss"], *_OUT]},
}
_SPARED = ("selection.json", "diagnosis.json", "truth.json", ".safetensors")
#: How often a command is drawn, relative to the others.
WEIGHTS = {"report": 3.0, "study --add-seeds": 0.3, "saliency": 0.5}


# --- damages ----------------------------------------------------------------------------------------------------------


def truncate(path: Path, chance: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def cut_lines(path: Path, chance: Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: chance.randrange(len(lines))]))


def empty(path: Path, chance: Random) -> None:
    path.write_bytes(b"")


def flip_bit(path: Path, chance: Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def exchange(path: Path, chance: Random) -> None:
    """With a file of the same kind: another one in the folder, or the same one of another seed."""
    siblings = [other for other in sorted(path.parent.iterdir()) if other.suffix == path.suffix and other != path]
    for folder in sorted(path.parents[1].glob("seed-*")) + sorted(path.parents[2].glob("seed-*")):
        siblings += [other for other in sorted(folder.rglob(path.name)) if other != path]
    if siblings:
        shutil.copy(chance.choice(siblings), path)


def delete(path: Path, chance: Random) -> None:
    path.unlink()


def directory(path: Path, chance: Random) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, chance: Random) -> None:
    """A link to itself: nobody can read it, not even root."""
    path.unlink()
    path.symlink_to(path)


def fifo(path: Path, chance: Random) -> None:
    path.unlink()
    os.mkfifo(path)


_WRONG: list[Any] = [None, True, -1, 1.5, "x", [], ["x"], {}, {"x": 1}]


def in_json(change: Callable[[Any, Any, Random], None]) -> Callable[[Path, Random], None]:
    """A damage at one key of a JSON object, at any depth."""

    def damage(path: Path, chance: Random) -> None:
        content = json.loads(path.read_text())
        places: list[tuple[Any, Any]] = []

        def walk(inner: Any) -> None:
            for key, value in inner.items() if isinstance(inner, dict) else enumerate(inner):
                places.append((inner, key))
                if isinstance(value, dict | list):
                    walk(value)

        walk(content)
        change(*chance.choice(places), chance)
        path.write_text(json.dumps(content, indent=2) + "\n")

    return damage


def wrong_type(inner: Any, key: Any, chance: Random) -> None:
    inner[key] = chance.choice([value for value in _WRONG if type(value) is not type(inner[key])])


def missing_key(inner: Any, key: Any, chance: Random) -> None:
    del inner[key]


def extra_key(inner: Any, key: Any, chance: Random) -> None:
    if isinstance(inner, dict):
        inner[f"{key}_more"] = chance.choice(_WRONG)
    else:
        inner.append(chance.choice(_WRONG))


def not_a_number(inner: Any, key: Any, chance: Random) -> None:
    inner[key] = float("nan")


def huge(inner: Any, key: Any, chance: Random) -> None:
    inner[key] = chance.choice([10**20, 1e300, -(10**20)])


def in_table(change: Callable[[list[list[str]], int, int, Random], None]) -> Callable[[Path, Random], None]:
    """A damage at one field of a CSV table."""

    def damage(path: Path, chance: Random) -> None:
        rows = [line.split(",") for line in path.read_text().splitlines()]
        row = chance.randrange(1, len(rows)) if len(rows) > 1 else 0
        change(rows, row, chance.randrange(len(rows[row])), chance)
        path.write_text("".join(",".join(row) + "\n" for row in rows))

    return damage


def _field(*texts: str) -> Callable[[Path, Random], None]:
    def change(rows: list[list[str]], row: int, column: int, chance: Random) -> None:
        rows[row][column] = chance.choice(texts)

    return in_table(change)


def missing_column(rows: list[list[str]], row: int, column: int, chance: Random) -> None:
    for fields in rows:
        del fields[column]


def extra_column(rows: list[list[str]], row: int, column: int, chance: Random) -> None:
    for number, fields in enumerate(rows):
        fields.append("more" if number == 0 else "1")


def twice(rows: list[list[str]], row: int, column: int, chance: Random) -> None:
    rows.append(rows[row])


ANY: dict[str, Callable[[Path, Random], None]] = {
    "truncate": truncate,
    "empty": empty,
    "bit flip": flip_bit,
    "exchange": exchange,
    "delete": delete,
    "directory": directory,
    "unreadable": unreadable,
    "fifo": fifo,
}
DAMAGES = {
    ".json": ANY
    | {
        "wrong type": in_json(wrong_type),
        "missing key": in_json(missing_key),
        "extra key": in_json(extra_key),
        "NaN": in_json(not_a_number),
        "huge": in_json(huge),
    },
    ".csv": ANY
    | {
        "cut lines": cut_lines,
        "wrong type": _field("x", "1.5", "-1", ""),
        "missing column": in_table(missing_column),
        "extra column": in_table(extra_column),
        "NaN": _field("nan", "NaN"),
        "huge": _field("100000000000000000000", "1e300", "-1e300"),
        "line twice": in_table(twice),
    },
}


# --- trials -----------------------------------------------------------------------------------------------------------


def shown(folder: Path, command: str, said: str) -> dict[str, Any]:
    """What a command shows and keeps, without what differs from run to run."""
    if command == "report":
        # The last section lists the configuration and versions, not results.
        return {"report": (folder / "report.md").read_text().split("\n## How it was made")[0]}
    content: dict[str, Any] = {"said": said}
    if command.startswith(("study", "gauss")):
        content["results.csv"] = (folder / "results.csv").read_text()
    return content


def files_of(folder: Path) -> list[Path]:
    """All files that commands read. Figures and pages are only written."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and "figures" not in path.parts]
    return [path for path in found if path.suffix not in (".html", ".md", ".tex", ".txt") and path.stat().st_size]


def plan(folders: dict[str, Path], damages: int, seed: int) -> list[tuple[str, str, str, str]]:
    """Folder, file, kind of damage and command of every trial; all kinds and files come up about equally often."""
    chance = chances(seed, "plan")
    kinds: dict[str, list[tuple[str, str, str]]] = {}
    for name, folder in folders.items():
        for path in files_of(folder):
            for kind in DAMAGES.get(path.suffix, ANY):
                # Files of one sort (all cells, all networks) share their turns.
                sort = f"{name} {path.parent.name.split('-')[0]} {path.name if path.suffix == '.json' else path.suffix}"
                kinds.setdefault(sort, []).append((name, str(path.relative_to(folder)), kind))
    for entries in kinds.values():
        chance.shuffle(entries)
    trials = []
    sorts = sorted(kinds)
    for number in range(damages):
        entries = kinds[sorts[number % len(sorts)]]
        name, path, kind = entries[number // len(sorts) % len(entries)]
        commands = list(READERS[name])
        command = chance.choices(commands, [WEIGHTS.get(command, 1.0) for command in commands])[0]
        trials.append((name, path, kind, command))
    return trials


def references(place: Path, folders: dict[str, Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """What every command shows of the undisturbed folders."""
    found = {}
    for name, commands in READERS.items():
        for command, words in commands.items() if name in folders else ():
            copy = place / "copy" / name
            shutil.copytree(folders[name], copy)
            outcome = in_child(on(words, name), copy.parent)
            if outcome.code != 0:
                raise RuntimeError(f"{name}, {command}: {outcome}")
            found[name, command] = shown(copy, command, outcome.said)
            shutil.rmtree(copy)
    return found


def trial(
    place: Path, folder: Path, reference: dict[str, Any], seed: int, entry: tuple[str, str, str, str]
) -> tuple[str, str]:
    """Verdict of one damage under one command, and what was said."""
    name, path, kind, command = entry
    copy = place / name
    shutil.copytree(folder, copy)
    try:
        DAMAGES.get(Path(path).suffix, ANY)[kind](copy / path, chances(seed, *entry))
        outcome = in_child(on(READERS[name][command], name), place)
        verdict, said = outcome.verdict, outcome.complained[-300:]
        if verdict == "finished":
            now = shown(copy, command, outcome.said)
            differing = [key for key in reference if now[key] != reference[key]]
            # Without a file that a report can do without, it shows less, and nothing else.
            spared = path.endswith(_SPARED) or "/histories/" in path
            without = kind == "delete" and command == "report" and spared
            verdict = "same result" if not differing else "shown without" if without else "silent wrong result"
            said = f"other {differing}"
        return verdict, said
    finally:
        shutil.rmtree(copy)


def _some(
    folders: dict[str, Path], known: Any, seed: int, entries: Sequence[tuple[str, str, str, str]], end: float
) -> Totals:
    totals = Totals()
    with workplace() as place:
        warm(folders.values())
        for entry in entries:
            if time.monotonic() > end:
                break
            name, path, kind, command = entry
            verdict, said = trial(place, folders[name], known[name, command], seed, entry)
            totals.add(command, verdict, f"{command}, {name}/{path}, {kind}: {said}")
    return totals


def campaign(
    damages: int,
    seed: int = 0,
    processes: int = 1,
    seconds: float = math.inf,
    names: Sequence[str] = tuple(FOLDERS),
) -> Totals:
    """Damage files of all run folders, one command each.

    Args:
        damages: Number of damages.
        seed: Random seed.
        processes: Number of processes that share the trials.
        seconds: No trial begins later than this after the folders are made.
        names: Names of the run folders.
    """
    warm()
    with workplace() as place:
        folders = made(place, names)
        warm(folders.values())
        known = references(place, folders)
        trials = plan(folders, damages, seed)
        if processes == 1:
            return _some(folders, known, seed, trials, time.monotonic() + seconds)
        parts = [trials[start::processes] for start in range(processes)]
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            return Totals().merge(
                pool.map(
                    _some,
                    [folders] * processes,
                    [known] * processes,
                    [seed] * processes,
                    parts,
                    [time.monotonic() + seconds] * processes,
                )
            )


if __name__ == "__main__":
    parser = options(__doc__, trials="damages", short=60)
    parser.add_argument("--processes", type=int, default=1, help="processes that share the trials")
    given = parser.parse_args()
    begun = time.monotonic()
    sys.exit(
        finish(
            "Damaged run folders", campaign(given.trials, given.seed, given.processes, given.seconds), begun, given.out
        )
    )
