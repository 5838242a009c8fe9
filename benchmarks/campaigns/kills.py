"""Kill every command at random moments, run it again, and compare what it keeps with an undisturbed run.

    python benchmarks/campaigns/kills.py --kills 20
    python benchmarks/campaigns/kills.py --kills 200 --out benchmarks/reports/kills-2026-11-27.md

The whole process group gets SIGKILL; nothing can clean up. Temporary files must be gone after the rerun.
"""

import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from campaigns.common import (
    FOLDERS,
    LONGEST,
    TASK,
    Child,
    Totals,
    begun_folder,
    chances,
    finish,
    in_child,
    kept,
    made,
    on,
    options,
    warm,
    workplace,
)

_OUT = ["--quiet", "--out", "RUN"]
#: Commands by name, with the finished folder that they begin from, if any.
COMMANDS: dict[str, tuple[list[str], str | None]] = {
    "study": ([*FOLDERS["study"], *_OUT], None),
    "study --select": ([*FOLDERS["selection"], *_OUT], None),
    "study --add-seeds": ([*FOLDERS["study"], "--add-seeds", "1", *_OUT], "study"),
    "pretrain": (["pretrain", TASK, "--role", "teacher", *_OUT], None),
    "align": (["align", TASK, *_OUT], None),
    "saliency": (["saliency", TASK, *_OUT], None),
    "distill": (["distill", TASK, "--arm", "general", *_OUT], None),
    "diagnose": (["diagnose", TASK, *_OUT], None),
    "gauss": ([*FOLDERS["gauss"], *_OUT], None),
    "report": (["report", "RUN"], "study"),
    # Last, because workers take seconds to start: the short form has no time for it.
    "study, two processes": ([*FOLDERS["study"], "--processes", "2", *_OUT], None),
}


def campaign(kills: int, seed: int = 0, seconds: float = math.inf, names: tuple[str, ...] = tuple(COMMANDS)) -> Totals:
    """Kill commands in turn.

    Args:
        kills: Number of kills in all.
        seed: Random seed of the moments.
        seconds: No trial begins later than this after the folders are made.
        names: Names of the commands.
    """
    totals = Totals()
    warm()
    with workplace() as place:
        folders = made(place, {begin for name in names if (begin := COMMANDS[name][1])})
        warm(folders.values())
        wholes: dict[str, tuple[dict[str, bytes], float]] = {}
        end = time.monotonic() + seconds
        for number in range(kills):
            if time.monotonic() > end:
                break
            name = names[number % len(names)]
            words, begin = COMMANDS[name]
            if name not in wholes:
                begun = time.monotonic()
                wholes[name] = _whole(words, folders.get(begin or ""), place), time.monotonic() - begun
            whole, took = wholes[name]
            moment = took * chances(seed, number).random()
            verdict, said = _killed(words, folders.get(begin or ""), place, whole, moment)
            totals.add(name, verdict, f"{name}, kill {number}: {said}")
    return totals


def _whole(words: list[str], begin: Path | None, place: Path) -> dict[str, bytes]:
    folder = begun_folder(begin, place)
    outcome = Child(on(words, "run"), place).outcome(5 * LONGEST)
    if outcome.code != 0:
        raise RuntimeError(f"{words}: {outcome}")
    return kept(folder)


def _killed(
    words: list[str], begin: Path | None, place: Path, whole: dict[str, bytes], moment: float
) -> tuple[str, str]:
    folder = begun_folder(begin, place)
    first = Child(on(words, "run"), place).outcome(moment)
    again = in_child(on(words, "run"), place)
    if again.verdict != "finished":
        bad = again.verdict if again.verdict in Totals.BAD else "not resumed"
        return bad, again.complained
    now = kept(folder)
    if first.code is not None and "--add-seeds" in words:
        return "had finished", ""  # then more seeds were added, as asked
    left = [
        path.name for path in folder.rglob("*") if path.suffix in (".part", ".ckpt") or path.name == "addition.json"
    ]
    if left:
        return "left behind", str(left)
    differing = sorted(name for name in {*whole, *now} if whole.get(name) != now.get(name))
    if differing:
        return "silent wrong result", str(differing)
    return ("had finished" if first.code is not None else "same result"), ""


if __name__ == "__main__":
    given = options(__doc__, trials="kills", short=20).parse_args()
    begun = time.monotonic()
    sys.exit(finish("Killed commands", campaign(given.trials, given.seed, given.seconds), begun, given.out))
