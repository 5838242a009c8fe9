"""Shows the help of every command on the site, as a terminal of 80 columns shows it."""

import contextlib
import io
import os
import textwrap
from typing import Any
from unittest.mock import patch

from mfh.cli import options
from mfh.cli.commands import main

MARK = "<!-- options -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put one folded block for each command in the place of the mark."""
    return markdown.replace(MARK, "\n".join(map(_folded, _commands()))) if MARK in markdown else markdown


def _commands() -> list[str]:
    """All commands; `prepare` has its options below the names of the data sets."""
    names = list(options.COMMANDS)
    place = names.index("prepare")
    return [*names[:place], "prepare ravdess", "prepare vggsound", *names[place + 1 :]]


def _folded(command: str) -> str:
    shown = f"<details markdown>\n<summary>mfh {command}</summary>\n\n"
    return f"{shown}```text\n{help_of(command)}\n```\n\n</details>\n"


def help_of(command: str) -> str:
    """What `mfh COMMAND --help` prints, with its description wrapped as the terminal would wrap it."""
    said = io.StringIO()
    with (
        patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        main([*command.split(), "--help"])
    lines = said.getvalue().strip().splitlines()
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 80) or [""])
