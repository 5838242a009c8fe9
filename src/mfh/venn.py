"""The modality Venn diagram: how decisive features are shared between two modalities."""

from dataclasses import dataclass
from typing import Any

from mfh.errors import InputError


@dataclass(frozen=True)
class ModalityVenn:
    """The numbers of features that decide the label, and the fractions alpha, beta and gamma that follow from them.

    The fractions are those of Xue et al., "The Modality Focusing Hypothesis", ICLR 2023, section 3.

    Args:
        general: The number of decisive features that both modalities have (g).
        teacher_only: The number of decisive features that only the teacher's modality has (s_a).
        student_only: The number of decisive features that only the student's modality has (s_b).

    Raises:
        InputError: A count is negative or not a whole number, or all counts are zero.

    Example:
        >>> venn = ModalityVenn(general=1, teacher_only=1, student_only=0)
        >>> venn.alpha, venn.beta, venn.gamma
        (0.5, 0.0, 0.5)
    """

    general: int
    teacher_only: int = 0
    student_only: int = 0

    def __post_init__(self) -> None:
        for name in ("general", "teacher_only", "student_only"):
            count = getattr(self, name)
            if not _is_count(count):
                raise InputError(f"{name} is {count!r}; a count of features is a whole number from 0")
        if not self.total:
            raise InputError("no feature is decisive: give at least one of general, teacher_only, student_only")

    @property
    def total(self) -> int:
        """The number of all decisive features."""
        return self.general + self.teacher_only + self.student_only

    @property
    def alpha(self) -> float:
        """The share of the teacher's decisive features that only the teacher has: s_a / (s_a + g)."""
        return _share(self.teacher_only, self.teacher_only + self.general)

    @property
    def beta(self) -> float:
        """The share of the student's decisive features that only the student has: s_b / (s_b + g)."""
        return _share(self.student_only, self.student_only + self.general)

    @property
    def gamma(self) -> float:
        """The share of all decisive features that both modalities have: g / (g + s_a + s_b)."""
        return self.general / self.total


def _is_count(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and bool(value >= 0 and value % 1 == 0)
    except TypeError:
        return False


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
