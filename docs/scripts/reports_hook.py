"""Shows the reports of benchmarks/ and research/ on the site, under their paths in the repository.

Links between them and the pages of docs/ work as on GitHub.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PATTERNS = ("benchmarks/reports/*.md", "research/*/reports/*.md", "research/theory/derivation.md")
REPORTS = [path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]


def on_files(files: Files, *, config: Any) -> Files:
    """Add the reports as pages of their own, outside the navigation."""
    for report in REPORTS:
        files.append(File.generated(config, report, abs_src_path=str(ROOT / report)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite links, as the pages of docs/ lie at the root of the site; rank reports last in the search."""
    if page.file.src_uri not in REPORTS:
        return re.sub(r"\]\(\.\./((?:\.\./)*(?:benchmarks|research)/)", r"](\1", markdown)
    page.meta["search"] = {"boost": 0.1}
    return re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", markdown)
