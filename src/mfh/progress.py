"""Every progress display: a bar, a tracked loop, several named bars, and what the work at hand is."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from mfh.errors import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.status import Status

T = TypeVar("T")

#: Shows how far a named piece of work is. Called as show(name, done, total).
Show = Callable[[str, int, int], None]

#: Off a terminal, `bars` writes at most one line in this time.
SECONDS_BETWEEN_LINES = 30.0


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")  # a kernel has imported it
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def is_live(console: "Console") -> bool:
    """Whether a display can be redrawn there: on a terminal, or in a notebook with the package ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


# --- what the work at hand is -----------------------------------------------------------------------------------------

_listeners: list[Callable[[str], None]] = []
_work = ""


def doing(work: str) -> None:
    """Say what the work at hand is, for instance "training teacher"; whoever listens shows it.

    Args:
        work: The work, in a few words.
    """
    global _work
    _work = work
    for listener in _listeners:
        listener(work)


def done_of(done: int, total: int, unit: str) -> None:
    """Say how far the work at hand is.

    Args:
        done: Number of units that are finished.
        total: Number of all units.
        unit: Name of a unit, for instance "epoch".
    """
    for listener in _listeners:
        listener(f"{_work}, {unit} {done} of {total}".removeprefix(", "))


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with what `doing` and `done_of` say during the block, in this process.

    Args:
        listener: Takes a line of text.
    """
    _listeners.insert(0, listener)  # the last one to come hears first
    try:
        yield
    finally:
        _listeners.remove(listener)


def seldom(listener: Callable[[str], None], seconds: float) -> Callable[[str], None]:
    """A listener that hears of epochs at most once in this time, and of everything else at once.

    Args:
        listener: Takes a line of text.
        seconds: The time.
    """
    last = -math.inf

    def note(work: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds or ", epoch " not in work:
            last = time.monotonic()
            listener(work)

    return note


_status: "Status | None" = None


@contextmanager
def status(text: str, enabled: bool = True) -> Iterator[None]:
    """A line with a spinner, until the block ends or another display takes over; nothing where it cannot be redrawn.

    Args:
        text: What is going on.
        enabled: Whether to show anything.
    """
    global _status
    console = _stderr() if enabled else None
    if console is None or not console.is_terminal or _status is not None:
        yield
        return
    from rich.text import Text

    _status = console.status(Text(plain(text)))
    _status.start()
    try:
        yield
    finally:
        end_status()


def end_status() -> None:
    """Remove the line that `status` shows, for another display."""
    global _status
    if _status is not None:
        _status.stop()
        _status = None


# --- bars -------------------------------------------------------------------------------------------------------------


def track(loop: Iterable[T], description: str, enabled: bool = True) -> Iterable[T]:
    """The items of a loop, with a bar that grows as they are taken.

    Args:
        loop: What to iterate over. The bar needs its length to show a total.
        description: Text beside the bar.
        enabled: Whether to show the bar. False returns the loop as it is.
    """
    console = _stderr() if enabled else None
    if console is None or (console.is_jupyter and not is_live(console)):
        return loop
    from rich.markup import escape
    from rich.progress import track as rich_track

    total = len(loop) if isinstance(loop, Sized) else None
    return rich_track(loop, escape(plain(description)), total=total, console=console, transient=True)


@contextmanager
def bars(enabled: bool = True, *, lines: bool = False) -> Iterator[Show]:
    """One bar for each name, on a terminal; they disappear at the end of the block.

    Args:
        enabled: Whether to show anything.
        lines: Whether to write a line now and then where stderr is no terminal. False shows nothing there.

    Yields:
        A function show(name, done, total). The first call with a name adds its bar.
    """
    console = _stderr() if enabled else None
    if console is not None and is_live(console):
        with progress_bar(console) as progress:
            yield _on_bars(progress)
    elif console is not None and lines:
        yield _in_lines(console)
    else:
        yield lambda _name, _done, _total: None


def _on_bars(progress: "Progress") -> Show:
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(plain(name), total=total)
        progress.update(tasks[name], completed=done, total=total)

    return show


def _in_lines(console: "Console") -> Show:
    first: dict[str, tuple[float, int]] = {}
    last = time.monotonic()

    def show(name: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        # What an earlier run has finished says nothing about the rate of this one.
        began, done_before = first.setdefault(name, (now, done))
        if now - last <= SECONDS_BETWEEN_LINES and done != total:
            return
        last = now
        seconds, fresh = now - began, done - done_before
        rate = f"{fresh / seconds:.3g} per second," if fresh and seconds else ""
        left = f" about {(total - done) * seconds / fresh:.0f} s left" if fresh and done < total else ""
        line = f"{done} of {total} {plain(name)}, {rate}{left}".rstrip(", ")
        console.print(line, highlight=False, markup=False)

    return show


def progress_bar(console: "Console | None" = None) -> "Progress":
    """A bar that shows done and total, the rate over the last ten minutes, and the time left.

    Args:
        console: Console to draw on. None is for a bar inside another live display.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.3g} per second, left:" if task.speed else "")

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        Rate(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, speed_estimate_period=600)


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True)
