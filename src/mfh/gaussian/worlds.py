"""Worlds: which decisive inputs each modality carries, and where in its input vector."""

from dataclasses import dataclass

from mfh.errors import InputError
from mfh.venn import ModalityVenn


@dataclass(frozen=True, kw_only=True)
class World:
    """A synthetic task: decisive inputs, and what each of two modalities carries of them.

    The decisive inputs are numbered from 0 and together make the label. A modality carries some of them in consecutive
    places of its input vector, and noise everywhere else. Decisive inputs that neither modality carries limit the
    accuracy of both.

    Args:
        num_decisive: Number of decisive inputs.
        teacher: Numbers of the decisive inputs that the teacher's modality carries, in order.
        student: Numbers of the decisive inputs that the student's modality carries, in order.
        teacher_dim: Width of the teacher's input.
        student_dim: Width of the student's input.
        teacher_start: Place of the first decisive input in the teacher's input. In the student's input it is 0.

    Raises:
        InputError: A width is too small for what it must carry, a number does not exist or occurs twice, or a modality
            carries nothing.

    Example:
        >>> World(num_decisive=3, teacher=range(3), student=range(1), teacher_dim=5, student_dim=5).venn.gamma
        0.3333333333333333
    """

    num_decisive: int
    teacher: range | tuple[int, ...]
    student: range | tuple[int, ...]
    teacher_dim: int = 50
    student_dim: int = 50
    teacher_start: int = 0

    def __post_init__(self) -> None:
        for name, dim, carried, start in (
            ("teacher", self.teacher_dim, self.teacher, self.teacher_start),
            ("student", self.student_dim, self.student, 0),
        ):
            if not carried:
                raise InputError(f"the {name} carries no decisive input; it needs at least one to learn from")
            if len(set(carried)) < len(carried) or min(carried) < 0 or max(carried) >= self.num_decisive:
                raise InputError(
                    f"the {name} carries decisive inputs {list(carried)}; "
                    f"distinct numbers from 0 to {self.num_decisive - 1} were expected"
                )
            if dim < start + len(carried):
                raise InputError(
                    f"{name}_dim is {dim}, but decisive inputs fill the {name}'s places up to "
                    f"{start + len(carried)}; give {name}_dim at least {start + len(carried)}"
                )

    @property
    def venn(self) -> ModalityVenn:
        """The counts behind alpha, beta and gamma."""
        general = len(set(self.teacher) & set(self.student))
        return ModalityVenn(general, len(self.teacher) - general, len(self.student) - general)

    @property
    def general_places(self) -> range | tuple[int, ...]:
        """Places of the modality-general decisive inputs in the teacher's input."""
        shared = set(self.student)
        return tuple(self.teacher_start + place for place, number in enumerate(self.teacher) if number in shared)


def world_of(venn: ModalityVenn, *, teacher_dim: int = 50, student_dim: int = 50, unseen: int = 0) -> World:
    """The world with the counts of a modality Venn diagram.

    The teacher's input is [general, teacher-only, noise], the student's [general, student-only, noise].

    Args:
        venn: Counts of the decisive inputs.
        teacher_dim: Width of the teacher's input.
        student_dim: Width of the student's input.
        unseen: Number of decisive inputs that neither modality carries.

    Raises:
        InputError: A width is too small for the counts, `unseen` is negative, or a modality carries nothing.

    Example:
        >>> world_of(ModalityVenn(general=2, teacher_only=1, student_only=1)).student
        (0, 1, 3)
    """
    if unseen < 0:
        raise InputError(f"unseen is {unseen}; a count of inputs must be a whole number from 0")
    seen_by_teacher = venn.general + venn.teacher_only
    return World(
        num_decisive=venn.total + unseen,
        teacher=range(seen_by_teacher),
        student=(*range(venn.general), *range(seen_by_teacher, venn.total)),
        teacher_dim=teacher_dim,
        student_dim=student_dim,
    )
