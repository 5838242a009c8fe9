"""Shows the dated reports of benchmarks/ and research/ on the site, where links to them work as on GitHub."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FOLDERS = ("benchmarks/reports", "research/worlds/reports", "research/statistics/reports", "research/theory/reports")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the reports as pages of their own, outside the navigation."""
    for folder in FOLDERS:
        for report in sorted((Path(config.config_file_path).parent / folder).glob("*.md")):
            files.append(File.generated(config, f"reports/{report.name}", abs_src_path=str(report)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links to the reports' place in the repository into links to their place on the site; rank reports last."""
    if page.file.src_uri.startswith("reports/"):
        page.meta["search"] = {"boost": 0.1}
    for folder in FOLDERS:
        markdown = markdown.replace(f"](../{folder}/", "](reports/")
    return markdown
