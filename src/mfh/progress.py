"""How far long work is: a bar with rate and time left."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def progress_bar(console: "Console | None" = None) -> "Progress":
    """A bar that shows done and all, the rate over the last ten minutes, and the time left.

    Args:
        console: to draw on; None for a bar that is part of something else.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.3g} per second, left:" if task.speed else "")

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, speed_estimate_period=600)
