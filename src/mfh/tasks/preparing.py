"""Raw media to a prepared folder: in parallel, piece by piece, interruptible at any moment.

Every piece (a clip, a shard) is worked out by a worker process and kept as one file that is there whole or not at
all. What is in the folder of pieces is never done twice; the prepared folder is put together at the end, and its
`meta.json`, written last, says that it is complete.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from mfh import files
from mfh.errors import InputError
from mfh.parallel.pool import start_workers, stop_workers
from mfh.progress import progress_bar

Job = TypeVar("Job")

PACKAGES = ("av", "librosa", "numpy", "pillow", "soxr")


def digest(content: Any) -> str:
    """A short name for options or for a file's identity, from its JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def preparing(out: Path, kind: str, options: Mapping[str, Any]) -> Iterator[Path | None]:
    """Hold the folder `out` while it is prepared; yields where to keep pieces, or None if it is complete already.

    Args:
        out: the prepared folder.
        kind: of the preparation, for instance "ravdess".
        options: everything that decides what is prepared, as JSON can hold it.

    Raises:
        InputError: the folder holds something else, or was prepared with other options; it is left as it is.
    """
    options = json.loads(json.dumps(options, default=str))
    refuse_foreign(out)
    with files.claimed(out):
        if (out / "meta.json").exists():
            check_options(out, read_meta(out, kind), options)
            yield None
            return
        pieces = out / f".pieces-{digest([kind, options])}"
        pieces.mkdir(parents=True, exist_ok=True)
        yield pieces
        for old in out.glob(".pieces-*"):  # of other options too: the folder is complete
            shutil.rmtree(old)


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds what is not ours, before anything is written into it.

    Raises:
        InputError: names what is there.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; a folder to prepare was expected")
    if out.is_dir() and not (out / "meta.json").exists() and not any(out.glob(".pieces-*")):
        strange = [item.name for item in out.iterdir() if not item.name.startswith((".", "part-"))]
        if strange:
            raise InputError(
                f"{out} is not empty ({sorted(strange)[0]!r}) and was not prepared by mfh; choose another OUT"
            )


def finish(out: Path, kind: str, options: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Declare the prepared folder complete.

    Args:
        out: the prepared folder, with everything else in place.
        kind: of the preparation.
        options: as given to `preparing`.
        facts: counts, shapes, checksums, statistics.
    """
    versions = {name: version(name) for name in PACKAGES}
    files.write_json(
        out / "meta.json", {"kind": kind, "format": FORMAT, "options": options, **facts, "versions": versions}
    )


#: Raised when the layout of prepared folders changes.
FORMAT = 1


def read_meta(folder: str | Path, kind: str) -> dict[str, Any]:
    """What `finish` wrote.

    Raises:
        InputError: the folder is not a complete preparation of this kind and format.
    """
    path = Path(folder) / "meta.json"
    if not path.is_file():
        what = "is not prepared to the end: run the same mfh prepare again" if Path(folder).is_dir() else "is no folder"
        if Path(folder).is_dir() and not any(Path(folder).glob(".pieces-*")):
            what = f"has no meta.json; make it with: mfh prepare {kind} SOURCE {folder}"
        raise InputError(f"{folder} {what}")
    meta = files.read_json(path)
    if meta.get("kind") != kind:
        raise InputError(f"{folder} was prepared for {meta.get('kind')!r}; a folder for {kind!r} was expected")
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{folder} was prepared in format {meta.get('format')!r}, this version of mfh reads {FORMAT}: "
            "prepare it again into another folder"
        )
    return meta


def check_options(out: Path, meta: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a folder that was prepared with other options.

    Raises:
        InputError: names the first option that differs.
    """
    before = meta["options"]
    for name in sorted({*before, *options}):
        if before.get(name) != options.get(name):
            raise InputError(
                f"{out} was prepared with {name} {before.get(name)!r}, now it is {options.get(name)!r}; "
                "choose another OUT, or remove it"
            )


def make_pieces(
    jobs: Mapping[Path, Job],
    work: Callable[[Job, Path], None],
    *,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> set[Path]:
    """Do every job whose piece is missing.

    Args:
        jobs: piece -> what its worker needs; must travel to other processes.
        work: writes the piece atomically; a function of a module.
        processes: at a time; default: the number of processors. 0 works in this process, which a crashing decoder
            takes along.
        progress: called with the number of pieces done, as they are.

    Returns:
        Pieces whose worker died (a decoder that crashed), twice: once among others and once alone.

    Raises:
        InputError: workers die before they begin; `processes` is negative.
    """
    count = (os.cpu_count() or 1) if processes is None else processes
    if count < 0:
        raise InputError(f"processes is {count}; it must be at least 0")
    tell = progress or (lambda _done: None)
    crashed: set[Path] = set()
    while todo := {piece: job for piece, job in jobs.items() if piece not in crashed and not piece.exists()}:
        done = len(jobs) - len(todo)
        tell(done)
        suspects = _run(todo, work, count, lambda finished, done=done: tell(done + finished))  # type: ignore[misc]
        crashed |= {piece for piece in suspects if _run({piece: todo[piece]}, work, 1, lambda _finished: None)}
    tell(len(jobs))
    return crashed


def _run(
    todo: Mapping[Path, Job], work: Callable[[Job, Path], None], count: int, tell: Callable[[int], None]
) -> list[Path]:
    """Work with `count` processes; if one of them dies, the pieces that were being worked on."""
    for piece in todo:  # marks of an interrupted run say nothing about this one
        _marker(piece).unlink(missing_ok=True)
    if not count:
        for done, (piece, job) in enumerate(todo.items(), start=1):
            work(job, piece)
            tell(done)
        return []
    pool, finished, ended_well = start_workers(min(count, len(todo))), 0, False
    try:
        waiting = {pool.submit(_marked, work, job, piece) for piece, job in todo.items()}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                future.result()
            finished += len(ready)
            tell(finished)
        ended_well = True
    except BrokenProcessPool:
        suspects = [piece for piece in todo if _marker(piece).exists() and not piece.exists()]
        if not suspects:
            raise InputError(
                "worker processes ended before they began, for instance for lack of memory; what was finished is "
                "kept, and the same command with --processes 1 needs the least"
            ) from None
        return suspects
    finally:
        stop_workers(pool, at_once=not ended_well)
    return []


def _marker(piece: Path) -> Path:
    return piece.with_name(f"{piece.name}.started")


def _marked(work: Callable[[Job, Path], None], job: Job, piece: Path) -> None:
    """Leave a mark while working, so that a death can be laid at the right door."""
    _marker(piece).touch()
    work(job, piece)
    _marker(piece).unlink()


class Meter:
    """How far a preparation is: a bar with rate and time left on a terminal, now and then a line elsewhere.

    Args:
        total: pieces in all.
        what: they are, in the plural.
        quiet: show nothing.
    """

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, total: int, what: str, *, quiet: bool) -> None:
        self.total, self.what, self.quiet = total, what, quiet
        self._bar: Any = None

    def __enter__(self) -> "Meter":
        if not self.quiet:
            from rich.console import Console

            self._console = Console(stderr=True)
            if self._console.is_terminal:
                self._bar = progress_bar(self._console)
                self._line = self._bar.add_task(self.what, total=self.total)
                self._bar.start()
        self._began: tuple[float, int] | None = None
        self._told = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int) -> None:
        """So many pieces are done."""
        now = time.monotonic()
        self._began = self._began or (now, done)  # what an earlier run left says nothing about the rate
        seconds, fresh = now - self._began[0], done - self._began[1]
        if self._bar is not None:
            self._bar.update(self._line, completed=done)
        elif not self.quiet and (now - self._told > self.SECONDS_BETWEEN_LINES or done == self.total):
            self._told = now
            rate = f"{fresh / seconds:.3g} per second," if fresh and seconds else ""
            left = f" about {(self.total - done) * seconds / fresh:.0f} s left" if fresh and done < self.total else ""
            self._console.print(f"{done} of {self.total} {self.what}, {rate}{left}".rstrip(", "), highlight=False)
