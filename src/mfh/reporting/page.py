"""One self-contained HTML page made of paragraphs, tables and pictures.

The page loads nothing: it contains its style and pictures, and no scripts. So it opens from a mail attachment, and text
that comes from users is shown as text.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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

    A column is set flush right if all its cells are empty or numbers, with or without an interval or an error.
    """

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""

    @property
    def alignments(self) -> list[str]:
        """Kind of every column: "number" or "text"."""
        return [
            "number" if self._is_number([row[column] for row in self.rows]) else "text"
            for column in range(len(self.columns))
        ]

    @staticmethod
    def _is_number(cells: list[str]) -> bool:
        filled = [cell for cell in cells if cell.strip() not in _NOTHING]
        return bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)


@dataclass(frozen=True)
class Picture:
    """A figure on the page, and as a file beside it.

    Args:
        figure: A matplotlib figure, as `mfh.figures.style.new_figure` makes it.
        name: Name of the files figures/<name>.svg and .png; characters other than letters, digits and dots become
            hyphens.
        caption: What the picture shows, in a sentence or two.
        alt: Alternative text for a reader who cannot see the picture.
    """

    figure: "Figure"
    name: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Section:
    """A heading and the content below it.

    Args:
        title: The heading.
        blocks: Paragraphs of plain text, tables and pictures, in order.
        level: Level of the heading: 2 for a section, 3 for a part of the section before it.
    """

    title: str
    blocks: list[str | Table | Picture] = field(default_factory=list)
    level: int = 2


def write_page(
    folder: str | Path, title: str, verdict: str, sections: list[Section], figures: Sequence[str] = FIGURES
) -> Path:
    """Write folder/report.html and the figures beside it.

    Every picture is part of the page, and for papers and slides it is also written to folder/figures/<name>.svg and
    .png. Existing files of the same names are replaced, each whole or not at all. The page is written last.

    Args:
        folder: Folder of the report; it is created if it is missing.
        title: Title of the page.
        verdict: The finding, in a sentence, shown below the title.
        sections: Sections of the page, in order.
        figures: File types to write the figures as: "svg", "png", "pdf".

    Returns:
        The path of the page.
    """
    import jinja2

    from mfh.figures.style import figure_bytes

    folder = Path(folder)
    names = write_pictures(folder, sections, figures)
    content = []
    for number, section in enumerate(sections, start=1):
        blocks = []
        for place, block in enumerate(section.blocks, start=1):
            if isinstance(block, Picture):
                path = folder / "figures" / f"{names[id(block)]}.svg"
                source = _data_uri(path.read_bytes() if "svg" in figures else figure_bytes(block.figure, "svg"))
                blocks.append({"kind": "picture", "picture": block, "source": source})
            elif isinstance(block, Table):
                blocks.append({"kind": "table", "table": block, "id": f"table-{number}-{place}"})
            else:
                blocks.append({"kind": "paragraph", "text": block})
        content.append({"id": f"section-{number}", "section": section, "blocks": blocks})

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tidy"] = _tidy
    page = environment.get_template("page.html").render(
        title=title,
        verdict=verdict,
        sections=content,
        css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
    )
    path = folder / "report.html"
    with atomic_write(path) as file:
        file.write(page)
    return path


def _tidy(text: str) -> str:
    """Keep a percent sign on the line of its number."""
    return text.replace(" %", "\u00a0%")


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
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                name = names[id(block)] = _unused(_slug(block.name), set(names.values()))
                for kind in figures:
                    save_figure(block.figure, folder / "figures" / f"{name}.{kind}")
    return names


def _data_uri(svg: bytes) -> str:
    """A data URI of an SVG image: its ids cannot clash with those of other images, and it cannot run code."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.").lower() or "figure"


def _unused(name: str, names: set[str]) -> str:
    """`name`, with a number if it is in `names` already."""
    candidate, number = name, 1
    while candidate in names:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
