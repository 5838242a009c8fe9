"""Results to figures and one self-contained HTML page."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mfh.errors import InputError
from mfh.files import read_json

if TYPE_CHECKING:
    from mfh.figures.style import Medium
    from mfh.reporting.page import Section

__all__ = ["report"]


def report(
    *runs: str | Path,
    out: str | Path | None = None,
    format: Literal["html", "md"] = "html",  # noqa: A002 (the word users know)
    figures: Sequence[Literal["svg", "png", "pdf"]] = ("svg", "png"),
    style: "Medium" = "screen",
) -> Path:
    """Write the report of one run, or one page that compares several.

    The page is a single self-contained HTML file; its figures stand beside it as SVG and PNG. What an earlier
    report left is replaced; results are only read.

    Args:
        *runs: run folders, as studies and Gaussian experiments leave them.
        out: folder for report.html and figures/; default: the run itself, for several runs the folder that
            holds them all.
        format: "html" for one self-contained page, report.html; "md" for report.md, which shows the files in figures/.
        figures: kinds of files to write the figures as.
        style: "paper" for figures in serif letters, one or two text columns wide (3.25 or 6.75 inches), to include in
            LaTeX as they are.

    Returns:
        The path of the page.

    Raises:
        InputError: no folder is given, one is no run, its files cannot be read, or there are no kinds of figures.
    """
    from mfh.figures.style import drawn_for
    from mfh.reporting.markdown import write_markdown
    from mfh.reporting.page import write_page

    if not runs:
        raise InputError("no run folder is given; name at least one, for instance runs/digits")
    if not figures:
        raise InputError("no kind of figures is given; choose svg, png or pdf, or several of them")
    folders = [_run(run) for run in runs]
    target = out or (folders[0] if len(folders) == 1 else os.path.commonpath([run.resolve().parent for run in folders]))
    with drawn_for(style):
        content = _sections(folders[0]) if len(folders) == 1 else _compared(folders)
        return (write_markdown if format == "md" else write_page)(target, *content, figures)


def _compared(folders: Sequence[Path]) -> "tuple[str, str, list[Section]]":
    from mfh.reporting.page import Section
    from mfh.reporting.study import comparison_table

    names = _names(folders)
    studies = {name: run for name, run in zip(names, folders, strict=True) if _command(run) == "study"}
    combined: list[Section] = []
    if studies:
        combined.append(Section("Comparison", [comparison_table(studies)]))
    verdicts = []
    for name, run in zip(names, folders, strict=True):
        title, verdict, sections = _sections(run)
        verdicts.append(f"{name}: {verdict.split(';')[0].rstrip('.')}.")  # the whole stands at its part
        combined.append(Section(f"{name} \u2013 {title}", [verdict]))
        combined.extend(replace(section, level=section.level + 1) for section in sections)
    return f"{len(folders)} runs compared", " ".join(verdicts), combined


def _run(run: str | Path) -> Path:
    folder = Path(run)
    if not (folder / "config.json").is_file() and not (folder / "diagnosis.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise InputError(f"{folder} {what}; give the folder of a run, as `mfh study ... --out {folder}` makes it")
    return folder


def _command(run: Path) -> str:
    config = read_json(run / "config.json") if (run / "config.json").is_file() else {"command": "steps"}
    command = str(config.get("command", "study"))
    return "diagnose" if command == "steps" and (run / "diagnosis.json").is_file() else command


def _sections(run: Path) -> "tuple[str, str, list[Section]]":
    command = _command(run)
    if command.startswith("gauss"):
        return _gaussian_sections(run)
    if command == "diagnose":
        from mfh.reporting.diagnosis import diagnosis_sections

        return diagnosis_sections(run)
    if command != "study":
        raise InputError(f"{run} was made by `mfh {command}`, which has no report; give the folder of a study")
    from mfh.reporting.study import study_sections

    return study_sections(run)


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call the runs: the folders' own names where they differ, else their paths."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _gaussian_sections(run: Path) -> "tuple[str, str, list[Section]]":
    from mfh.gaussian.run import FOUND
    from mfh.reporting.gaussian import gaussian_sections, gaussian_verdict
    from mfh.reporting.study import making_section, read_environment
    from mfh.reporting.summary import read_table

    columns = ("experiment", "alpha", "beta", "gamma", "seed", "role", "arm", "accuracy")
    frame = read_table(run / "results.csv", columns)
    frames = {str(name): group.reset_index(drop=True) for name, group in frame.groupby("experiment", sort=False)}
    if "modify-gamma" in frames and (run / FOUND).is_file():
        found = read_table(run / FOUND, ("alpha", "gamma", "general", "found"))
        frames["modify-gamma"].attrs["general_found"] = found.to_dict(orient="records")
    making = making_section(read_json(run / "config.json"), read_environment(run))
    return "The Gaussian experiments", gaussian_verdict(frames), [*gaussian_sections(frames), making]
