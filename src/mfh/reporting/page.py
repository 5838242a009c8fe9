"""One self-contained HTML page made of paragraphs, tables and pictures.

The page loads nothing: it contains its style, its pictures, and one short script that sorts tables. Any other script is
refused by its policy, so it opens from a mail attachment, and text that comes from users is shown as text.
"""

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mfh.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: File types that figures are written as by default.
FIGURES = ("svg", "png")

_FOLDER = Path(__file__).parent
_NUMBER = re.compile(r"(?:[\d.,+\-\u2212\u00b1<>\u2264\u2265~%()\s]|to|e[+-])+")
_NOTHING = ("", "-", "\u2013", "\u2014")


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        columns: Headings of the columns.
        rows: One list of cells for each row, as long as `columns`.
        caption: What the table shows, in a sentence.
        colours: A colour for each row, shown beside its first cell; empty for none.

    A column is set flush right if all its cells are empty or numbers, with or without an interval or an error.
    """

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    colours: Sequence[str] = ()

    @property
    def alignments(self) -> list[str]:
        """Kind of every column: "number" or "text"."""
        return [
            "number" if self._is_number([row[column] for row in self.rows]) else "text"
            for column in range(len(self.columns))
        ]

    @property
    def is_wordy(self) -> bool:
        """Whether a cell holds a sentence: narrow screens show the cells of a row below each other."""
        return any(len(cell) > 40 for row in self.rows for cell in row)

    def without_empty_columns(self) -> "Table":
        """The table without the columns that have no content."""
        kept = [place for place in range(len(self.columns)) if any(row[place] for row in self.rows)]
        rows = [[row[place] for place in kept] for row in self.rows]
        return replace(self, columns=[self.columns[place] for place in kept], rows=rows)

    @staticmethod
    def _is_number(cells: list[str]) -> bool:
        filled = [cell for cell in cells if cell.strip() not in _NOTHING]
        return bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)


@dataclass(frozen=True)
class Picture:
    """A figure on the page, and as a file beside it.

    Args:
        draw: Draws the matplotlib figure, as `mfh.figures.style.new_figure` makes it, for the medium in force.
        name: Name of the files figures/<name>.svg and .png; characters other than letters, digits and dots become
            hyphens.
        caption: What the picture shows, in a sentence or two.
        alt: Alternative text for a reader who cannot see the picture.
    """

    draw: "Callable[[], Figure]"
    name: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Command:
    """A command, or lines of code, to copy.

    Args:
        text: The command line, or the lines.
    """

    text: str


@dataclass(frozen=True)
class Files:
    """Links to files of a run.

    Args:
        paths: Path of each file -> what it holds.
    """

    paths: dict[Path, str]


@dataclass(frozen=True)
class Folded:
    """Blocks that a click unfolds. On paper and in Markdown they are shown.

    Args:
        title: What is folded.
        blocks: The blocks.
    """

    title: str
    blocks: "Sequence[Block]"


Block = str | Table | Picture | Command | Files | Folded


@dataclass(frozen=True)
class Section:
    """A heading and the content below it.

    Args:
        title: The heading.
        blocks: Paragraphs of plain text, tables, pictures, commands, links and folded blocks, in order.
        level: Level of the heading: 2 for a section, 3 for a part of the section before it.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2


@dataclass(frozen=True)
class Content:
    """Everything on a page.

    Args:
        title: Title of the page.
        about: What was studied, in a sentence or two; may be empty.
        verdict: The finding: a headline, and further lines.
        sections: Sections, in order.
    """

    title: str
    about: str
    verdict: list[str]
    sections: list[Section]


def write_page(folder: str | Path, content: Content, figures: Sequence[str] = FIGURES) -> Path:
    """Write folder/report.html and the figures beside it.

    Every picture is part of the page, for wide and for narrow screens, and for papers and slides it is also written to
    folder/figures/<name>.svg and .png. Existing files of the same names are replaced, each whole or not at all. The
    page is written last.

    Args:
        folder: Folder of the report; it is created if it is missing.
        content: What the page shows.
        figures: File types to write the figures as: "svg", "png", "pdf".

    Returns:
        The path of the page.
    """
    import jinja2

    from mfh.reporting.inline import colour_styles

    folder = Path(folder)
    names = write_pictures(folder, content.sections, figures)
    charts = {place: _charts(block, names[place]) for place, block in _pictures(content.sections)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tidy": _tidy, "kind": _kind, "id": id}
    css, script = (_read(name) for name in ("page.css", "page.js"))
    shown = [svg for pair in charts.values() for svg in pair]
    text = environment.get_template("page.html").render(
        content=content,
        charts=charts,
        href=lambda path: _href(path, folder),
        css=f"{css}\n{colour_styles(shown + _swatches(content.sections))}",
        script=script,
        policy=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = folder / "report.html"
    with atomic_write(path) as file:
        file.write(text)
    return path


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _kind(block: Block) -> str:
    return "paragraph" if isinstance(block, str) else type(block).__name__.lower()


def _swatches(sections: Sequence[Section]) -> list[str]:
    """The colours beside rows of tables, as style sheets name them."""
    tables = (block for section in sections for block in section.blocks if isinstance(block, Table))
    return [f"var(--c{colour[1:]})" for table in tables for colour in table.colours]


def _charts(picture: Picture, name: str) -> tuple[str, ...]:
    """The elements of a picture: one for wide screens and one for narrow ones; on paper both are one."""
    from mfh.figures.style import drawn_for, figure_bytes, on_screen
    from mfh.reporting.inline import inline_svg

    def element(kind: str) -> str:
        return inline_svg(figure_bytes(picture.draw(), "svg"), f"{name}-{kind}-", label=picture.alt, kind=kind)

    if not on_screen():
        return (element("only"),)
    wide = element("wide")
    with drawn_for("phone"):
        return wide, element("narrow")


def _href(path: Path, folder: Path) -> str:
    """A relative link from the page to a file, which a browser can follow wherever both are moved together."""
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _tidy(text: str) -> str:
    """Text as HTML; a number stays on one line with its percent sign, its error or its interval."""
    from markupsafe import Markup, escape

    kept = str(escape(text.replace(" %", "\u00a0%").replace(" \u00b1 ", "\u00a0\u00b1\u00a0")))
    return Markup(re.sub(r"\([^() ]+ to [^() ]+\)", r'<span class="whole">\g<0></span>', kept))  # noqa: S704 (escaped)


def write_pictures(folder: Path, sections: list[Section], figures: Sequence[str]) -> dict[int, str]:
    """Write every picture as folder/figures/<name>.<kind>.

    Args:
        folder: Folder of the report.
        sections: Sections that contain the pictures.
        figures: File types to write: "svg", "png", "pdf".

    Returns:
        A mapping from the id() of each picture to the name of its files.
    """
    from mfh.figures.style import save_figure

    names: dict[int, str] = {}
    for place, picture in _pictures(sections):
        name = names[place] = _unused(_slug(picture.name), set(names.values()))
        figure = picture.draw()
        for kind in figures:
            save_figure(figure, folder / "figures" / f"{name}.{kind}")
    return names


def _pictures(sections: Sequence[Section]) -> Iterator[tuple[int, Picture]]:
    """Every picture with its id()."""
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                yield id(block), block


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.").lower() or "figure"


def _unused(name: str, names: set[str]) -> str:
    """`name`, with a number if it is in `names` already."""
    candidate, number = name, 1
    while candidate in names:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
