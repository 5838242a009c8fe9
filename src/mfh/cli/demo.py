"""The demonstration: two sensors of one room teach each other, on real data, in about a minute."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfh.studies.folder import Run

#: Arms that a newcomer must see: no teacher, ordinary distillation, training together, and more steps alone.
ARMS = ("no-kd", "regular", "aligned-student", "longer")
#: With the splits of `htad`, the smallest number of seeds at which a gain of 5 points, the smaller one of the two in
#: benchmarks/reports/real-2026-11-27.md, is likely to be shown after correction for three comparisons.
NUM_SEEDS = 8
LABELS = 100
#: A third of the steps of the task's own recipe, so that the demonstration takes a minute. Chosen by the validation
#: accuracy of students without a teacher, with seeds from 100 on: it costs 0.2 points.
TRAINING = {"epochs": 40, "batch_size": 64}


@dataclass(frozen=True)
class Direction:
    """Which of the room's two sensors teaches.

    Args:
        teacher: View of the teacher.
        student: View of the student.
    """

    teacher: str
    student: str

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.teacher}-to-{self.student}"

    @property
    def heading(self) -> str:
        """What is studied, in a line."""
        return f"{self.sentence}: home tasks (htad) with {LABELS} labels"

    @property
    def sentence(self) -> str:
        """The direction as the beginning of a sentence."""
        return self.words[0].upper() + self.words[1:]

    @property
    def words(self) -> str:
        """The direction as a clause."""
        return f"{self.teacher} teaches {self.student}"

    @property
    def arguments(self) -> dict[str, str]:
        """What the task is called with."""
        return {"teacher": self.teacher, "student": self.student, "labels": str(LABELS)}


DIRECTIONS = (Direction("audio", "accelerometer"), Direction("accelerometer", "audio"))


def findings(runs: "dict[Direction, Run]") -> list[str]:
    """What the demonstration shows, in three sentences: one for each direction, and what the controls say.

    Args:
        runs: The run folder of each direction.
    """
    lines, controls = [], []
    for direction, run in runs.items():
        summary = run.summary
        best, longer = summary.chosen(), summary.chosen("longer")
        if best is None or best.gain is None:
            lines.append(f"{direction.sentence}: nothing was compared.")
            continue
        p_value = "" if best.corrected_p is None else f", p {_p(best.corrected_p)} corrected"
        says = summary.says(best.label, best.gain).removesuffix(")")
        end = f"{p_value})" if best.gain.num_pairs > 1 else p_value
        lines.append(f"{direction.sentence}: against training on labels alone, {says}{end}.")
        if longer is not None and longer.gain is not None:
            controls.append(f"{summary.difference(longer.gain)} points where {direction.words}")
    lines.append(f"The control longer, as many steps without a teacher, gains {', and '.join(controls)}.")
    return lines


def _p(value: float) -> str:
    from mfh.studies.summary import p_in_words

    return p_in_words(value)


def export(run: "Run") -> list[str]:
    """Write the student that a direction recommends as a file to deploy.

    Returns:
        Lines that say which student it is and why, where it is, and how to load it.

    Args:
        run: The direction's run folder.
    """
    from mfh.reporting.student import student_lines
    from mfh.studies.recommended import Students

    Students.of(run).best().export()
    return student_lines(run)
