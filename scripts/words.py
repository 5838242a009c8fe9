"""Count the words of README, documentation pages and help texts: `python scripts/words.py`."""

import contextlib
import io
import os
import re
from pathlib import Path

from mfh.cli import main, options

ROOT = Path(__file__).parents[1]


def words(text: str) -> int:
    """Number of words: what stands between spaces and has a letter."""
    return sum(any(sign.isalpha() for sign in word) for word in text.split())


def help_of(*command: str) -> str:
    """What a command prints for `--help`, in 100 columns, without colours."""
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
        main([*command, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())


def counts() -> dict[str, int]:
    """Number of words of every page and every help text, by name."""
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/api/*.md"))]
    found = {str(page.relative_to(ROOT)): words(page.read_text(encoding="utf-8")) for page in pages}
    commands = [(), *((name,) for name in options.COMMANDS), ("prepare", "ravdess"), ("prepare", "vggsound")]
    for command in commands:
        found[" ".join(("mfh", *command, "--help"))] = words(help_of(*command))
    return found


if __name__ == "__main__":
    found = counts()
    for name, number in found.items():
        print(f"{number:6d}  {name}")  # noqa: T201
    for title, start in (("README", "README"), ("docs", "docs/"), ("help", "mfh ")):
        total = sum(number for name, number in found.items() if name.startswith(start))
        print(f"{total:6d}  {title}, together")  # noqa: T201
