"""The student to take home: what a study recommends, and what was exported."""

from mfh.export import LOADING
from mfh.reporting.page import Command, Section
from mfh.studies.folder import Run


def student_lines(run: Run) -> list[str]:
    """The last lines of a study: what was exported, or where students are kept and how to export one."""
    exported = run.exported
    if exported is not None:
        return [str(line) for line in exported["lines"]]
    if not run.holds_students:
        return []
    return [f"Students: {run.students_folder}; export the recommended one: mfh export {run.folder}"]


def student_section(run: Run) -> Section:
    """The section on the student that was exported, or that can be."""
    if run.exported is None and run.holds_students:
        command = Command(f"mfh export {run.folder}")
        words = (
            "This command writes the recommended student as a file. An arm is recommended that is preferred on "
            "validation data: its gain there over the best control, no-kd among them, exceeds its standard error. The "
            "finding asks for more, an interval above zero on the test split, so both can differ."
        )
        return Section("Take it home", [words, command])
    lines = student_lines(run)
    place = lines.index(LOADING) + 1 if LOADING in lines else len(lines)
    code = [Command("\n".join(lines[place:]))] if lines[place:] else []
    return Section("Take it home", [*lines[:place], *code])
