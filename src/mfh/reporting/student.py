"""The student to take home: what a study recommends, and what was exported."""

import shlex

from mfh.export import LOADING
from mfh.reporting.page import Command, Section
from mfh.studies.choice import NO_KD
from mfh.studies.folder import Run
from mfh.studies.grid import LINEAR


def student_lines(run: Run) -> list[str]:
    """The last lines of a study: what was exported, or where students are kept and how to export one."""
    exported = run.exported
    if exported is not None:
        return [str(line) for line in exported["lines"]]
    if not run.holds_students:
        return []
    arm = _without_comparison(run)
    which = f"that of {arm}" if arm else "the recommended one"
    return [f"Students: {run.students_folder}; export {which}: {_exporting(run, arm)}"]


def student_section(run: Run) -> Section:
    """The section on the student that was exported, or that can be."""
    if run.exported is None and run.holds_students:
        arm = _without_comparison(run)
        which = f"the student of {arm}" if arm else "the recommended student"
        words = f"This command writes {which} as a file."
        if not _is_found(run):
            words = f"The task was made in Python, where this writes {which} as a file."
        if not arm:
            words += (
                " An arm is recommended that is preferred on validation data: its gain there over the best control, "
                "no-kd among them, exceeds its standard error. The finding asks for more, an interval above zero on "
                "the test split, so both can differ."
            )
        return Section("Take it home", [words, Command(_exporting(run, arm))])
    lines = student_lines(run)
    place = lines.index(LOADING) + 1 if LOADING in lines else len(lines)
    code = [Command("\n".join(lines[place:]))] if lines[place:] else []
    return Section("Take it home", [*lines[:place], *code])


def _exporting(run: Run, arm: str) -> str:
    """What exports a student: a command, or a line of Python where a command would not find the task."""
    if _is_found(run):
        return shlex.join(["mfh", "export", str(run.folder), *(["--arm", arm] if arm else [])])
    chosen = f'students.of_arm("{arm}")' if arm else "best"
    return f'result.{chosen}.export("student.pt2")'


def _is_found(run: Run) -> bool:
    """Whether the run says where its task comes from."""
    return "source" in run.environment


def _without_comparison(run: Run) -> str:
    """An arm that leaves a student, where nothing can be recommended for lack of no-kd; otherwise empty."""
    arms = run.config.get("arms", [NO_KD.arm])
    return "" if NO_KD.arm in arms else str(next((arm for arm in arms if arm != LINEAR), ""))
