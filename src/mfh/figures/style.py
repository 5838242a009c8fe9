"""One matplotlib style for every figure: colour-blind safe, vector, legible at column width.

Draw inside `style()`, on a figure from `new_figure`, and write it with `save_figure`:

    with style():
        figure, axes = new_figure(6.5, 3.2)
        axes.plot(gamma, gain, color=PALETTE["general"])
        save_figure(figure, "gain.svg")

Nothing here touches pyplot or a display, and matplotlib is imported only when something is drawn.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mfh.errors import InputError
from mfh.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Colour of every arm, the same in all figures. The hues are those of Okabe and Ito (2008), which stay apart
#: under the common colour vision deficiencies. Figures name the arms as well: colour never stands alone.
PALETTE: dict[str, str] = {
    "no-kd": "#4d4d4d",
    "regular": "#0072b2",
    "aligned": "#3a9bd6",
    "aligned-student": "#7a68b3",
    "random": "#8c8c8c",
    "specific": "#d55e00",
    "general": "#009e73",
    "soft": "#c0508f",
    "soft-shuffled": "#dd9cc0",
    "tempered": "#d99100",
    "true-general": "#00543c",
    "algorithm-1": "#009e73",
}
#: Colour of each role where a figure shows the roles and not the arms, and a darker one for text on white.
ROLE_COLOURS: dict[str, str] = {"teacher": "#0072b2", "student": "#d55e00"}
ROLE_INKS: dict[str, str] = {"teacher": "#005a8f", "student": "#a34700"}
#: Ink for what is no arm: axes, zero lines, things set aside.
INK, FAINT = "#26292e", "#b9bec6"
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
    "grid.color": "#e3e6ea",
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
    # DejaVu Sans is as wide as Verdana, the next in line, so text kept as text fits where it was laid out.
    "svg.fonttype": "none",
    "svg.hashsalt": "mfh",
    "pdf.fonttype": 42,
}
#: For papers: the serif face that matplotlib brings along, as outlines, because readers of an SVG may lack it.
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
#: What figures are drawn for: "screen", or "paper": serif, and one column wide (two columns where axes stand side by
#: side), to be included in LaTeX without scaling.
Medium = Literal["screen", "paper"]
_MEDIUM: ContextVar[Medium] = ContextVar("medium", default="screen")
COLUMN, TWO_COLUMNS = 3.25, 6.75
#: What would put a date or a version into a file, and so make equal figures differ.
_METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    ".png": {"Software": None},
}


@contextmanager
def drawn_for(medium: Medium) -> Iterator[None]:
    """Draw and write all figures inside the block for this medium."""
    token = _MEDIUM.set(medium)
    try:
        yield
    finally:
        _MEDIUM.reset(token)


def figure_size(width: float, height: float, columns: int = 1) -> tuple[float, float]:
    """In inches, as asked for; on paper as wide as the text's columns.

    Args:
        width: in inches.
        height: in inches.
        columns: of axes side by side.
    """
    if _MEDIUM.get() == "screen":
        return width, height
    return (COLUMN, 0.8 * height) if columns == 1 else (TWO_COLUMNS, height * TWO_COLUMNS / width)


@contextmanager
def style() -> Iterator[None]:
    """Apply the house style to matplotlib inside the block and restore the caller's settings after it.

    Text is taken literally: write symbols as Unicode ("\u03b3"), not as TeX.
    """
    import matplotlib

    parameters: Any = matplotlib.rcParams
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters.update(_STYLE | (_PAPER if _MEDIUM.get() == "paper" else {}))
        yield


def arm_colour(arm: str) -> str:
    """Colour of an arm; arms the palette does not know get a neutral one."""
    return PALETTE.get(arm, "#6b5b4b")


def new_figure(
    width: float = 6.5, height: float = 3.4, rows: int = 1, columns: int = 1, **options: Any
) -> tuple["Figure", Any]:
    """A figure with axes, in the house style, unknown to pyplot (so it needs no closing).

    Args:
        width: in inches; 6.5 fills a page of text, 3.25 one of two columns.
        height: in inches.
        rows: rows of axes.
        columns: columns of axes.
        **options: passed to `matplotlib.figure.Figure.subplots`, for instance `sharey=True`.

    Returns:
        The figure and its axes: one `Axes`, or an array of them as `Figure.subplots` returns it.

    Example:
        >>> figure, axes = new_figure(3.25, 2.5)
        >>> [float(inches) for inches in figure.get_size_inches()]
        [3.25, 2.5]
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=figure_size(width, height, columns), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as SVG (text stays text), PDF (fonts embedded) or PNG (200 dots per inch).

    The file appears whole or not at all. Equal figures give equal bytes, whenever they are written.

    Args:
        figure: what to write.
        path: ends in .svg, .pdf or .png; missing folders are made.

    Raises:
        InputError: the path ends in something else.
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
    """A figure as the bytes of a file.

    Args:
        figure: what to write.
        kind: "svg", "pdf" or "png".
    """
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, metadata=_METADATA[f".{kind}"])
    return buffer.getvalue()
