"""Shows the dated reports of benchmarks/ on the site, where links to them lead on GitHub as well."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, *, config: Any) -> Files:
    """Add the reports as pages of their own, outside the navigation."""
    for report in sorted(Path(config.config_file_path).parent.glob("benchmarks/reports/*.md")):
        files.append(File.generated(config, f"reports/{report.name}", abs_src_path=str(report)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to the reports' place in the repository to their place on the site."""
    return markdown.replace("](../benchmarks/reports/", "](reports/")
