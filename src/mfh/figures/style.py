"""One matplotlib style for every figure: safe for colour-blind readers, vector, legible at column width.

Draw inside `style()` on a figure from `new_figure`, and write it with `save_figure`:

    with style():
        figure, axes = new_figure(6.5, 3.2)
        axes.plot(gamma, gain, color=PALETTE["general"])
        save_figure(figure, "gain.svg")

Nothing here uses pyplot or a display. matplotlib is imported only when something is drawn.
"""

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mfh.errors import InputError, plain
from mfh.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Colour of every arm, the same in all figures. The hues are those of Okabe and Ito (2008), which people with the
#: common colour vision deficiencies can tell apart. Figures name the arms too, so colour is never the only sign.
PALETTE: dict[str, str] = {
    "no-kd": "#4d4d4d",
    "regular": "#0072b2",
    "aligned": "#3a9bd6",
    "aligned-student": "#7a68b3",
    "random": "#8c8c8c",
    "specific": "#d55e00",
    "general": "#009e73",
    "soft": "#c0508f",
    "longer": "#7d6b5d",
    "label-smoothing": "#8f7d3e",
    "self-training": "#b5651d",
    "teacher-shuffled": "#5b8bb0",
    "linear": "#5f6b73",
    "soft-shuffled": "#dd9cc0",
    "tempered": "#d99100",
    "true-general": "#00543c",
    "algorithm-1": "#009e73",
}
#: Colour of every shipped method, and hues for methods of one's own.
METHOD_COLOURS: dict[str, str] = {
    "dkd": "#2f7f86",
    "dist": "#1f6f50",
    "fitnets": "#8a5a00",
    "vid": "#a33b5c",
    "simkd": "#5d4f9e",
    "rkd": "#3d6ea8",
    "sp": "#6d7d1f",
    "mad": "#994f88",
    "crd": "#b2432b",
    "queue": "#4a7a35",
    "fd-cmkd": "#7a5c48",
    "c2kd": "#267096",
    "attainable": "#9a3a9a",
}
_OWN_METHODS = ("#6b5b4b", "#3f6f6a", "#8c4a4a", "#56628f", "#7b6a2c", "#74507a")
#: Colour of each role where a figure shows the roles and not the arms, and a darker one for text on white.
ROLE_COLOURS: dict[str, str] = {"teacher": "#0072b2", "student": "#d55e00"}
ROLE_INKS: dict[str, str] = {"teacher": "#005a8f", "student": "#a34700"}
#: Ink for everything that is no arm: axes, zero lines, guide lines.
INK, FAINT, GRID = "#26292e", "#b9bec6", "#e3e6ea"
_STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "savefig.dpi": 200,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica", "sans-serif"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a user's label is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "errorbar.capsize": 0,
    # Text stays text. DejaVu Sans is as wide as Verdana, the next font in the list, so the layout still fits.
    "svg.fonttype": "none",
    "svg.hashsalt": "mfh",
    "pdf.fonttype": 42,
}
#: For papers: the serif font that ships with matplotlib, as outlines, because readers of an SVG may not have it.
_PAPER: dict[str, Any] = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral"],
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "svg.fonttype": "path",
}
#: What figures are drawn for. "paper" is serif and one column wide (two columns where axes stand side by side), to be
#: included in LaTeX without scaling.
Medium = Literal["screen", "paper"]
#: Reports draw every figure a second time for narrow screens, with axes below each other.
_MEDIUM: ContextVar[Literal["screen", "paper", "phone"]] = ContextVar("medium", default="screen")
COLUMN, TWO_COLUMNS, PHONE = 3.25, 6.75, 3.5
#: Beginning of the names of groups that have a text to show, see `hover`.
_HOVER = "hover:"
#: Metadata to leave out: a date or a version would make equal figures differ.
_METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    ".png": {"Software": None},
}


@contextmanager
def drawn_for(medium: Literal["screen", "paper", "phone"]) -> Iterator[None]:
    """Draw and write all figures inside the block for a medium.

    Args:
        medium: "screen", "paper" or "phone".
    """
    token = _MEDIUM.set(medium)
    try:
        yield
    finally:
        _MEDIUM.reset(token)


def on_screen() -> bool:
    """Whether figures are drawn for the screen, wide or narrow, and not for paper."""
    return _MEDIUM.get() != "paper"


def is_narrow() -> bool:
    """Whether figures are drawn for a phone: there is no room beside the axes."""
    return _MEDIUM.get() == "phone"


def figure_size(width: float, height: float, columns: int = 1) -> tuple[float, float]:
    """Width and height in inches: as given for the screen, as wide as the text's columns on paper.

    Args:
        width: Width in inches, for the screen.
        height: Height in inches, for the screen.
        columns: Number of axes side by side.
    """
    if is_narrow():
        return min(width, PHONE), height
    if on_screen():
        return width, height
    return (COLUMN, 0.8 * height) if columns == 1 else (TWO_COLUMNS, height * TWO_COLUMNS / width)


def legend(figure: "Figure", *given: Any) -> Any:
    """A legend of the figure: at the right, or below the axes where there is no room beside them.

    Args:
        figure: The figure.
        *given: Handles and labels, as `Figure.legend` takes them (default: those of all axes).
    """
    if not is_narrow():
        return figure.legend(*given, loc="outside right upper")
    return figure.legend(*given, loc="outside lower left", ncols=2, columnspacing=1)


def possible(limits: tuple[float, float], lowest: float, highest: float) -> tuple[float, float]:
    """Ends of an axis, cut to little more than the possible values: intervals of few seeds can be far wider.

    Args:
        limits: Ends of the axis.
        lowest: Smallest possible value.
        highest: Largest possible value.
    """
    room = 0.03 * (highest - lowest)
    return max(limits[0], lowest - room), min(limits[1], highest + room)


def hover(artist: Any, text: str) -> None:
    """Show a text where the pointer rests on an artist: a <title> in files of the kind SVG.

    Args:
        artist: A matplotlib artist, or a list of them as `Axes.plot` returns it.
        text: Text to show.
    """
    for part in artist if isinstance(artist, list) else [artist]:
        part.set_gid(f"{_HOVER}{text}")


@contextmanager
def style() -> Iterator[None]:
    """Apply the style to matplotlib inside the block. The caller's settings come back after it.

    Text is shown as it is: write symbols as Unicode ("\u03b3"), not as TeX.
    """
    import matplotlib

    parameters: Any = matplotlib.rcParams
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters.update(_STYLE | (_PAPER if _MEDIUM.get() == "paper" else {}))
        yield


def arm_colour(arm: str) -> str:
    """Colour of an arm. METHOD+FOCUS is a darker shade of METHOD; a method of one's own has one of a few hues."""
    if arm in PALETTE:
        return PALETTE[arm]
    method, _, focus = arm.partition("+")
    colour = METHOD_COLOURS.get(method, _OWN_METHODS[zlib.crc32(method.encode()) % len(_OWN_METHODS)])
    if not focus:
        return colour
    return "#" + "".join(f"{int(colour[place : place + 2], 16) * 3 // 4:02x}" for place in (1, 3, 5))


def new_figure(
    width: float = 6.5, height: float = 3.4, rows: int = 1, columns: int = 1, **options: Any
) -> tuple["Figure", Any]:
    """A figure with axes, in the style of all figures. pyplot does not know it, so it needs no closing.

    Args:
        width: Width in inches. 6.5 fills a page of text, 3.25 one of two columns.
        height: Height in inches.
        rows: Number of rows of axes.
        columns: Number of columns of axes. A single row becomes a column on a phone.
        **options: Options for `matplotlib.figure.Figure.subplots`, for instance `sharey=True`.

    Returns:
        The figure, and its axes as `Figure.subplots` returns them: one `Axes` or an array.

    Example:
        >>> figure, axes = new_figure(3.25, 2.5)
        >>> [float(inches) for inches in figure.get_size_inches()]
        [3.25, 2.5]
    """
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that a notebook shows although pyplot does not know it."""

        def _repr_png_(self) -> bytes:
            return figure_bytes(self, "png")

    if is_narrow() and rows == 1 < columns:
        rows, columns, height = columns, rows, height * columns
        options = {name: value for name, value in options.items() if name not in ("sharey", "width_ratios")}
    with style():
        figure = NotebookFigure(figsize=figure_size(width, height, columns), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as SVG (text stays text), PDF (fonts embedded) or PNG (200 dots per inch).

    The file appears whole or not at all. Equal figures give equal bytes.

    Args:
        figure: Figure to write.
        path: File to write, ending in .svg, .pdf or .png. Missing folders are made.

    Returns:
        The path of the file.

    Raises:
        InputError: The path has another ending.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        raise InputError(f"{path} ends in {suffix!r}; figures are written as .svg, .pdf or .png")
    content = figure_bytes(figure, suffix[1:])
    with atomic_write(path, "wb") as file:
        file.write(content)
    return path


def figure_bytes(figure: "Figure", kind: str) -> bytes:
    """The bytes of a figure's file.

    Args:
        figure: Figure to write.
        kind: Kind of the file: "svg", "pdf" or "png".
    """
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, metadata=_METADATA[f".{kind}"])
    if kind != "svg":
        return buffer.getvalue()
    # matplotlib writes only names of groups, as attributes with all signs escaped.
    text = plain(buffer.getvalue().decode())  # XML holds no control characters
    return re.sub(rf'<g id="{_HOVER}([^"]*)">', r"<g><title>\1</title>", text).encode()
