"""A report as Markdown, with its figures beside it: for a repository, a wiki, or pandoc on the way to a paper."""

import re
from collections.abc import Sequence
from pathlib import Path

from mfh.files import atomic_write
from mfh.reporting.page import FIGURES, Picture, Section, Table, write_pictures


def write_markdown(
    folder: str | Path, title: str, verdict: str, sections: list[Section], figures: Sequence[str] = FIGURES
) -> Path:
    """Write folder/report.md and the figures it shows.

    Args:
        folder: made if it is missing.
        title: the first heading.
        verdict: the finding, in a sentence; stands under the title.
        sections: in order.
        figures: kinds of files to write the figures as; the page shows the first.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    names = write_pictures(folder, sections, figures)
    parts = [f"# {literal(title)}", f"**{literal(verdict)}**"]
    for section in sections:
        parts.append(f"{'#' * section.level} {literal(section.title)}")
        for block in section.blocks:
            if isinstance(block, Picture):
                parts.append(f"![{literal(block.alt)}](figures/{names[id(block)]}.{figures[0]})")
                parts.append(f"*{literal(block.caption)}*")
            elif isinstance(block, Table):
                parts.append("\n".join(_table(block)))
                parts += [f"*{literal(block.caption)}*"] if block.caption else []
            else:
                parts.append(literal(block))
    path = folder / "report.md"
    with atomic_write(path) as file:
        file.write("\n\n".join(parts) + "\n")
    return path


def _table(table: Table) -> list[str]:
    rules = ["---:" if alignment == "number" else "---" for alignment in table.alignments]
    rows = [[literal(cell) for cell in row] for row in (table.columns, *table.rows)]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rules, *rows[1:])]


def literal(text: str) -> str:
    r"""Text that shows as it is, on one line: neither Markdown nor HTML.

    Example:
        >>> print(literal("a_b | <i>"), literal("1. x"))
        a\_b \| &lt;i&gt; 1\. x
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", text)  # else the beginning of a list
