"""Reports: the results of a run as figures and one self-contained page."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mfh.errors import InputError
from mfh.files import claimed
from mfh.studies.folder import Run

if TYPE_CHECKING:
    from mfh.figures.style import Medium
    from mfh.reporting.page import Content

__all__ = ["report"]


def report(
    *runs: str | Path | Run,
    out: str | Path | None = None,
    format: Literal["html", "md"] = "html",  # noqa: A002 (the word users know)
    figures: Sequence[Literal["svg", "png", "pdf"]] = ("svg", "png"),
    style: "Medium" = "screen",
) -> Path:
    """Write the report of one run, or one page that compares several.

    The page is a single self-contained HTML file, with its figures beside it as SVG and PNG. It replaces an earlier
    report. Results are only read.

    Args:
        *runs: Run folders of studies, diagnoses or Gaussian experiments.
        out: Folder for report.html and figures/ (default: the run folder itself; for several runs, the folder that
            holds them all).
        format: Page format: "html" for one self-contained page, report.html, or "md" for report.md, which shows the
            files in figures/.
        figures: File types to write the figures as.
        style: Figure style: "screen", or "paper" for serif letters and figures one or two text columns wide (3.25 or
            6.75 inches), ready for LaTeX.

    Returns:
        The path of the page.

    Raises:
        InputError: No folder is given, one holds no run, its files cannot be read, no file type is given, or another
            process writes to the folder of the page.
    """
    from mfh.figures.style import drawn_for
    from mfh.reporting.markdown import write_markdown
    from mfh.reporting.page import write_page

    if not runs:
        raise InputError("no run folder is given; give at least one, for instance runs/digits")
    if not figures:
        raise InputError("no file type of figures is given; choose one or more of svg, png and pdf")
    opened = [Run.open(run) for run in runs]
    folders = [run.folder for run in opened]
    target = out or (folders[0] if len(folders) == 1 else os.path.commonpath([run.resolve().parent for run in folders]))
    # The page of one run belongs to it. Other folders hold pages only, and may hold run folders of others.
    own = len(opened) == 1 and Path(target).resolve() == folders[0].resolve()
    with drawn_for(style), opened[0].locked() if own else claimed(target, (".", "figures")):
        content = _content(opened[0]) if len(opened) == 1 else _compared(opened)
        return (write_markdown if format == "md" else write_page)(target, content, figures)


def _compared(runs: Sequence[Run]) -> "Content":
    from mfh.reporting.page import Content, Section
    from mfh.reporting.study import comparison_table

    named = dict(zip(_names(runs), runs, strict=True))
    studies = {name: run for name, run in named.items() if run.command == "study"}
    combined: list[Section] = []
    if studies:
        combined.append(Section("Comparison", [comparison_table(studies)]))
    verdicts = []
    for name, run in named.items():
        content = _content(run)
        verdicts.append(f"{name}: {content.verdict[0]}")  # the section of the run has the whole verdict
        combined.append(Section(f"{name} \u2013 {content.title}", [*filter(None, [content.about]), *content.verdict]))
        combined.extend(replace(section, level=section.level + 1) for section in content.sections)
    return Content(f"{len(runs)} runs compared", "", ["What each run shows", *verdicts], combined)


def _content(run: Run) -> "Content":
    if run.command == "gauss":
        return _gaussian(run)
    if run.command == "diagnose":
        from mfh.reporting.diagnosis import diagnosis_content

        return diagnosis_content(run)
    if run.command != "study":
        raise InputError(
            f"{run.folder} was made by `mfh {run.command}`, which has no report; give the folder of a study"
        )
    from mfh.reporting.study import study_content

    return study_content(run)


def _names(runs: Sequence[Run]) -> list[str]:
    """Names of the runs: the names of their folders if these differ, otherwise their paths."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _gaussian(run: Run) -> "Content":
    from mfh.gaussian.run import read_frames
    from mfh.reporting.gaussian import gaussian_sections, gaussian_verdict
    from mfh.reporting.page import Content
    from mfh.reporting.study import making_section

    frames = read_frames(run)
    headline, *lines = gaussian_verdict(frames)
    return Content(
        "The Gaussian experiments",
        "Teacher and student are linear models on synthetic data, of which is known what both modalities carry.",
        [headline, *lines],
        [*gaussian_sections(frames), making_section(run)],
    )
