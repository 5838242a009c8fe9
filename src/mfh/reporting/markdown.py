"""A report as Markdown, with its figures beside it: for a repository, a wiki, or pandoc on the way to a paper."""

import re
from collections.abc import Sequence
from pathlib import Path

from mfh.files import atomic_write, markdown_table
from mfh.reporting.page import FIGURES, Block, Command, Content, Files, Folded, Picture, Table, write_pictures


def write_markdown(folder: str | Path, content: Content, figures: Sequence[str] = FIGURES) -> Path:
    """Write folder/report.md and the figures it shows.

    Args:
        folder: Folder of the page. It is made if it is missing.
        content: What the page shows.
        figures: Kinds of files to write the figures as. The page shows the first kind.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    names = write_pictures(folder, content.sections, figures)
    headline, *lines = content.verdict
    parts = [f"# {literal(content.title)}", *([literal(content.about)] if content.about else [])]
    parts += [f"**{literal(headline)}**", "\n".join(f"* {literal(line)}" for line in lines)]
    for section in content.sections:
        parts.append(f"{'#' * section.level} {literal(section.title)}")
        for block in section.blocks:
            picture = f"figures/{names[id(block)]}.{figures[0]}" if isinstance(block, Picture) else ""
            parts += _block(block, picture)
    path = folder / "report.md"
    with atomic_write(path) as file:
        file.write("\n\n".join(part for part in parts if part) + "\n")
    return path


def _block(block: Block, picture: str) -> list[str]:
    if isinstance(block, Picture):
        return [f"![{literal(block.alt)}]({picture})", f"*{literal(block.caption)}*"]
    if isinstance(block, Table):
        columns, *rows = [[literal(cell) for cell in row] for row in (block.columns, *block.rows)]
        table = markdown_table(columns, rows, block.alignments).rstrip()
        return [table, *([f"*{literal(block.caption)}*"] if block.caption else [])]
    if isinstance(block, Command):
        return ["\n".join(f"    {' '.join(line.split())}" for line in block.text.splitlines())]
    if isinstance(block, Files):
        return ["\n".join(f"* {literal(str(path))}: {literal(words)}" for path, words in block.paths.items())]
    if isinstance(block, Folded):
        return [part for inner in block.blocks for part in _block(inner, "")]
    return [literal(block)]


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
