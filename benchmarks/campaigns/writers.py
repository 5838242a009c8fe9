"""Run two commands at once on one run folder, again and again, and compare what is there afterwards.

    python benchmarks/campaigns/writers.py --pairs 8
    python benchmarks/campaigns/writers.py --pairs 60 --out benchmarks/reports/writers-2026-11-27.md

Each command must finish, or be refused in one line because the folder is in use. When the first command is given once
more, the folder must hold what one command alone leaves.
"""

import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from campaigns.common import (
    FOLDERS,
    TASK,
    Child,
    Totals,
    begun_folder,
    chances,
    finish,
    in_child,
    made,
    on,
    options,
    warm,
    workplace,
)

_OUT = ["--quiet", "--out", "RUN"]
_STUDY, _GAUSS = [*FOLDERS["study"], *_OUT], [*FOLDERS["gauss"], *_OUT]
_PRETRAIN, _DIAGNOSE = ["pretrain", TASK, *_OUT], ["diagnose", TASK, *_OUT]
#: Pairs by name: both commands, and the finished folder that they begin from, if any.
PAIRS: dict[str, tuple[list[str], list[str], str | None]] = {
    "study, study": (_STUDY, _STUDY, None),
    "study, pretrain": (_STUDY, _PRETRAIN, None),
    "study, diagnose": (_STUDY, _DIAGNOSE, None),
    "study, report": (_STUDY, ["report", "RUN"], "study"),
    "study --select, study --select": ([*FOLDERS["selection"], *_OUT],) * 2 + (None,),
    "report, report": (["report", "RUN"], ["report", "RUN"], "study"),
    "gauss, gauss": (_GAUSS, _GAUSS, None),
    "gauss, report": (_GAUSS, ["report", "RUN"], "gauss"),
}


def campaign(pairs: int, seed: int = 0, seconds: float = math.inf, names: tuple[str, ...] = tuple(PAIRS)) -> Totals:
    """Run pairs of commands in turn.

    Args:
        pairs: Number of pairs in all.
        seed: Random seed of how much later the second command starts.
        seconds: No trial begins later than this after the folders are made.
        names: Names of the pairs.
    """
    totals = Totals()
    warm()
    with workplace() as place:
        folders = made(place, {begin for name in names if (begin := PAIRS[name][2])})
        warm(folders.values())
        alone: dict[str, tuple[bytes, float]] = {}
        end = time.monotonic() + seconds
        for number in range(pairs):
            if time.monotonic() > end:
                break
            name = names[number % len(names)]
            first, second, begin = PAIRS[name]
            if name not in alone:
                begun = time.monotonic()
                alone[name] = (
                    _afterwards(first, begun_folder(folders.get(begin or ""), place), place),
                    time.monotonic() - begun,
                )
            whole, took = alone[name]
            folder = begun_folder(folders.get(begin or ""), place)
            one = Child(on(first, "run"), place)
            time.sleep(took * chances(seed, number).random())
            other = Child(on(second, "run"), place)
            outcomes = [one.outcome(), other.outcome()]
            for outcome in outcomes:
                in_use = outcome.verdict == "refused" and "in use by another process" in outcome.complained
                verdict = "in use" if in_use else outcome.verdict
                totals.add(name, "other refusal" if verdict == "refused" else verdict, outcome.complained)
            now = _afterwards(first, folder, place)
            totals.add(name, "same result" if now == whole else "silent wrong result", f"{name}, pair {number}")
    return totals


def _afterwards(words: list[str], folder: Path, place: Path) -> bytes:
    outcome = in_child(on(words, "run"), place)
    return (folder / "results.csv").read_bytes() if outcome.code == 0 else outcome.complained.encode()


if __name__ == "__main__":
    given = options(__doc__, trials="pairs", short=8).parse_args()
    begun = time.monotonic()
    sys.exit(finish("Two commands at once", campaign(given.trials, given.seed, given.seconds), begun, given.out))
