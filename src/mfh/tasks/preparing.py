"""From raw media to a prepared folder: in parallel, piece by piece, interruptible at any moment.

A worker process makes each piece (a clip, a shard) and writes it as one file, whole or not at all. A piece that exists
is never made again. The prepared folder is put together at the end. Its `meta.json` is written last and says that the
folder is complete.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from mfh import files
from mfh.errors import InputError
from mfh.parallel.pool import Job, WorkerDiedError, run_jobs, worker_pool
from mfh.tasks.media import MediaError
from mfh.tasks.sources import Unusable
from mfh.values import Bounds, checked

Piece = TypeVar("Piece")
Candidate = TypeVar("Candidate")
Content = TypeVar("Content")

#: Packages whose versions a prepared folder records.
PACKAGES = ("av", "librosa", "numpy", "pillow", "soxr")


def digest(content: Any) -> str:
    """A short name for content that JSON can hold, for instance options: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def preparing(out: Path, kind: str, options: Mapping[str, Any]) -> Iterator[Path | None]:
    """Lock the folder `out` while it is prepared.

    Args:
        out: The prepared folder.
        kind: Kind of the preparation, for instance "ravdess".
        options: Everything that decides what is prepared, as JSON can hold it.

    Yields:
        The folder for pieces, or None if `out` is complete already.

    Raises:
        InputError: The folder holds something else, or was prepared with other options. It is left as it is.
    """
    options = json.loads(json.dumps(options, default=str))
    refuse_foreign(out)
    with files.claimed(out, (".", ".pieces-*")):
        if (out / "meta.json").exists():
            check_options(out, read_meta(out, kind), options)
            yield None
            return
        pieces = out / f".pieces-{digest([kind, options])}"
        pieces.mkdir(parents=True, exist_ok=True)
        yield pieces
        for old in out.glob(".pieces-*"):  # also those of other options: the folder is complete
            shutil.rmtree(old)


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds files of another program, before anything is written into it.

    Raises:
        InputError: It does. The message names one of them.
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
        out: The prepared folder, with everything else in place.
        kind: Kind of the preparation.
        options: Options as given to `preparing`.
        facts: Counts, shapes, checksums, statistics.
    """
    versions = {name: version(name) for name in PACKAGES}
    files.write_json(
        out / "meta.json", {"kind": kind, "format": FORMAT, "options": options, **facts, "versions": versions}
    )


#: Number of the layout of prepared folders; a new layout gets the next number.
FORMAT = 1


def read_meta(folder: str | Path, kind: str) -> dict[str, Any]:
    """What `finish` wrote.

    Args:
        folder: The prepared folder.
        kind: Kind of the preparation that is expected.

    Raises:
        InputError: The folder is not a complete preparation of this kind and format.
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
    fact(meta, "options", dict, str(folder))
    return meta


def fact(facts: Mapping[str, Any], name: str, kind: type[Content], folder: str) -> Content:
    """A value of a prepared folder's meta.json.

    Args:
        facts: The content of the file, or a mapping in it.
        name: Name of the value.
        kind: Its type.
        folder: The prepared folder, for the message.

    Raises:
        InputError: There is no such value, or it has another type.
    """
    value = facts.get(name)
    if kind is float and isinstance(value, int):
        value = float(min(max(value, -(2**63)), 2**63))
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(
            f"{folder}/meta.json has {name} {str(value)[:60]!r}; a value of type {kind.__name__} was expected: the "
            "file was changed; copy the folder again, or prepare the data again"
        )
    return value


def check_options(out: Path, meta: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a folder that was prepared with other options.

    Args:
        out: The prepared folder.
        meta: Its meta.json.
        options: The options asked for now.

    Raises:
        InputError: An option differs. The message names the first one.
    """
    before = meta["options"]
    for name in sorted({*before, *options}):
        if before.get(name) != options.get(name):
            raise InputError(
                f"{out} was prepared with {name} {before.get(name)!r}, now it is {options.get(name)!r}; "
                "choose another OUT, or remove it"
            )


def first_usable(
    candidates: Iterable[Candidate],
    read: Callable[[Candidate], Content],
    faults: dict[Candidate, str],
    deaths: "Deaths",
    purpose: str,
) -> tuple[Candidate, Content] | None:
    """Decode the first of a clip's files that can be decoded. Whatever decoding raises is a fault of that file.

    Args:
        candidates: Files of the clip, the preferred one first.
        read: Decodes a file. It writes nothing, so that a full disk is never taken for a fault of a clip.
        faults: Gets the reason for every file that cannot be used. A file keeps its first reason.
        deaths: The files of this piece that crashed their worker.
        purpose: What is read, for instance "sound". A file may be read once for each purpose.

    Returns:
        The file and its content. None if no file can be used.
    """
    for candidate in candidates:
        if isinstance(candidate, Unusable):
            faults.setdefault(candidate, candidate.reason)
        elif not deaths.begin(f"{purpose} {candidate}"):
            faults.setdefault(candidate, "crashes the decoder")
        else:
            try:
                return candidate, read(candidate)
            except MediaError as error:
                faults.setdefault(candidate, error.reason)
            except Exception:
                faults.setdefault(candidate, "unreadable")
    return None


#: A file is skipped after this many worker processes crashed while they decoded it.
MOST_DEATHS = 2


class Deaths:
    """Counts how often a worker crashed while it decoded a file of a piece, in this run.

    An interruption ends workers too, so counts of an earlier run are ignored.

    Args:
        piece: The piece that is made.
        run: Name of this run.
    """

    def __init__(self, piece: Path, run: str) -> None:
        self.path, self.run = piece.with_name(f"{piece.name}.deaths"), run
        self.counts: dict[str, int] = {}
        # A power cut may leave anything behind, and what an earlier run counted does not matter.
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["run"] == run:
                self.counts = {str(key): int(count) for key, count in kept["counts"].items()}
        self._now = ""

    @property
    def condemned(self) -> int:
        """Number of files that are not tried again."""
        return sum(count >= MOST_DEATHS for count in self.counts.values())

    def begin(self, key: str) -> bool:
        """Note a file before it is decoded. False if it must not be decoded.

        Args:
            key: Name of the file, and what is read from it.
        """
        if self.counts.get(key, 0) >= MOST_DEATHS:
            return False
        self.counts.pop(self._now, None)  # its worker did not crash
        self._now = key
        self.counts[key] = self.counts.get(key, 0) + 1
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps({"run": self.run, "counts": self.counts}), encoding="utf-8")
        part.replace(self.path)
        return True

    def forget(self) -> None:
        """Remove the counts: the piece is made."""
        self.path.unlink(missing_ok=True)


def make_from_files(
    jobs: Mapping[Path, Piece],
    work: Callable[[Piece, Path], None],
    run: str,
    *,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Make every piece that is missing, by work that decodes files with `first_usable`.

    Args:
        jobs: As for `make_pieces`.
        work: As for `make_pieces`. It counts deaths with `Deaths(piece, run)`.
        run: Name of this run, which no other run has.
        processes: As for `make_pieces`.
        progress: As for `make_pieces`.

    Raises:
        InputError: A worker ends although it decodes nothing, or see `make_pieces`.
    """
    condemned: dict[Path, int] = {}
    fruitless: Counter[Path] = Counter()
    while crashed := make_pieces(jobs, work, processes=processes, progress=progress):
        for piece in sorted(crashed):
            # Files that crashed their worker twice are skipped next time; any other crash would only repeat. The first
            # of a piece's two crashes may have been that of another piece, whose death ends all workers, so one crash
            # without a file to skip says nothing.
            already, condemned[piece] = condemned.get(piece, 0), Deaths(piece, run).condemned
            fruitless[piece] = 0 if condemned[piece] > already else fruitless[piece] + 1
            if fruitless[piece] == MOST_DEATHS:
                raise InputError(
                    f"the worker of {piece.name} ended between two clips, for instance for lack of memory; finished "
                    "work is kept: run the same command with --processes 1, which needs the least memory"
                )


def counted(reasons: Iterable[str]) -> str:
    """How often each reason occurs, for messages: "3 truncated, 1 silent", or "none"."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common()) or "none"


def make_pieces(
    jobs: Mapping[Path, Piece],
    work: Callable[[Piece, Path], None],
    *,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> set[Path]:
    """Make every piece that is missing.

    Args:
        jobs: What the worker needs, by the piece's path. It is pickled.
        work: Writes a piece atomically. It is a function of a module.
        processes: Worker processes (default: the number of processors). 0 works in this process, which a decoder that
            crashes takes down.
        progress: Called with the number of finished pieces whenever it changes.

    Returns:
        The pieces whose worker crashed twice: once among others and once alone.

    Raises:
        InputError: Workers end before they begin, or `processes` is negative.
    """
    count = (os.cpu_count() or 1) if processes is None else processes
    checked("processes", count, Annotated[int, Bounds(0, 1024)])
    tell = progress or (lambda _done: None)
    crashed: set[Path] = set()
    while todo := {piece: job for piece, job in jobs.items() if piece not in crashed and not piece.exists()}:
        done = len(jobs) - len(todo)
        tell(done)
        suspects = _make(todo, work, count, lambda finished, done=done: tell(done + finished))  # type: ignore[misc]
        crashed |= {piece for piece in suspects if _make({piece: todo[piece]}, work, 1, lambda _finished: None)}
    tell(len(jobs))
    return crashed


def _make(
    todo: Mapping[Path, Piece], work: Callable[[Piece, Path], None], count: int, tell: Callable[[int], None]
) -> list[Path]:
    """Make pieces with `count` processes. If a worker crashes, return the pieces that were being made."""
    for piece in todo:  # marks of an interrupted run say nothing about this one
        _marker(piece).unlink(missing_ok=True)
    if not count:
        for done, (piece, job) in enumerate(todo.items(), start=1):
            work(job, piece)
            tell(done)
        return []
    finished = itertools.count(1)
    jobs = [Job(piece, _make_marked, (work, job, piece)) for piece, job in todo.items()]
    try:
        with worker_pool(min(count, len(todo))) as pool:
            run_jobs(pool, jobs, on_result=lambda _job, _result: tell(next(finished)))
    except WorkerDiedError:
        suspects = [piece for piece in todo if _marker(piece).exists() and not piece.exists()]
        if not suspects:
            raise InputError(
                "worker processes ended before they began, for instance for lack of memory; finished work is kept: "
                "run the same command with --processes 1, which needs the least memory"
            ) from None
        return suspects
    return []


def _marker(piece: Path) -> Path:
    return piece.with_name(f"{piece.name}.started")


def _make_marked(work: Callable[[Piece, Path], None], job: Piece, piece: Path) -> None:
    """Leave a mark while working, so that a crash can be attributed to one piece."""
    _marker(piece).touch()
    work(job, piece)
    _marker(piece).unlink()
