"""Count the words of README, documentation pages and help texts: `python scripts/words.py`."""

import runpy
from pathlib import Path

from mfh.cli import options

ROOT = Path(__file__).parents[1]


def words(text: str) -> int:
    """Number of words: what stands between spaces and has a letter."""
    return sum(any(sign.isalpha() for sign in word) for word in text.split())


def counts() -> dict[str, int]:
    """Number of words of every page and every help text, by name."""
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/api/*.md"))]
    found = {page.relative_to(ROOT).as_posix(): words(page.read_text(encoding="utf-8")) for page in pages}
    help_of = runpy.run_path(str(ROOT / "docs/scripts/options_hook.py"))["help_of"]
    for command in ("", *options.COMMANDS, "prepare ravdess", "prepare vggsound"):
        found[" ".join(["mfh", *command.split(), "--help"])] = words(help_of(command))
    return found


if __name__ == "__main__":
    found = counts()
    for name, number in found.items():
        print(f"{number:6d}  {name}")  # noqa: T201
    for title, start in (("README", "README"), ("docs", "docs/"), ("help", "mfh ")):
        total = sum(number for name, number in found.items() if name.startswith(start))
        print(f"{total:6d}  {title}, together")  # noqa: T201
