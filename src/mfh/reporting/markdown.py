"""A report as Markdown, with its figures beside it: for a repository, a wiki, or pandoc on the way to a paper."""

import re
from collections.abc import Sequence
from pathlib import Path

from mfh.files import atomic_write, markdown_table
from mfh.reporting.page import FIGURES, Picture, Section, Table, write_pictures


def write_markdown(
    folder: str | Path, title: str, verdict: str, sections: list[Section], figures: Sequence[str] = FIGURES
) -> Path:
    """Write folder/report.md and the figures it shows.

    Args:
        folder: Folder of the page. It is made if it is missing.
        title: First heading.
        verdict: The finding in a sentence, which stands under the title.
        sections: Sections of the page, in order.
        figures: Kinds of files to write the figures as. The page shows the first kind.

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
                cells = [[literal(cell) for cell in row] for row in (block.columns, *block.rows)]
                parts.append(markdown_table(cells[0], cells[1:], block.alignments).rstrip())
                parts += [f"*{literal(block.caption)}*"] if block.caption else []
            else:
                parts.append(literal(block))
    path = folder / "report.md"
    with atomic_write(path) as file:
        file.write("\n\n".join(parts) + "\n")
    return path


def literal(text: str) -> str:
    r"""Text escaped so that Markdown shows it as it is, on one line.

    Args:
        text: Any text, also with characters that Markdown or HTML would interpret.

    Example:
        >>> print(literal("a_b | <i>"), literal("1. x"))
        a\_b \| &lt;i&gt; 1\. x
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", text)  # would begin a list
