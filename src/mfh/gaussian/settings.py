"""Sizes and training of the three experiments, as typed options; the defaults are the published ones."""

from dataclasses import dataclass
from typing import Any, Literal

from mfh.errors import InputError
from mfh.gaussian.worlds import World, world_of
from mfh.venn import ModalityVenn


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the three experiments share: sizes of the splits, and how every classifier is trained.

    Args:
        num_train: training pairs.
        num_test: test pairs.
        student_dim: width of the student's input.
        steps: full-batch gradient steps.
        learning_rate: of those steps.
        label_weight: weight of the cross-entropy in the students' loss.
        teacher_weight: weight of the divergence from the teacher.
        reduction: of the divergence, as in `mfh.KDLoss`; "mean" (as published) divides it by the two classes.

    Raises:
        InputError: a size is not a whole number from 1, or a weight or the learning rate is out of range.
    """

    num_train: int = 200
    num_test: int = 1000
    student_dim: int = 50
    steps: int = 1000
    learning_rate: float = 0.1
    label_weight: float = 1.0
    teacher_weight: float = 1.0
    reduction: Literal["batchmean", "mean"] = "mean"

    def __post_init__(self) -> None:
        for name in ("num_train", "num_test", "student_dim", "steps"):
            whole(name, getattr(self, name), least=1)
        check_loss(self.learning_rate, self.label_weight, self.teacher_weight, self.reduction)


@dataclass(frozen=True, kw_only=True)
class VaryGamma(Training):
    """Vary gamma (Figure 2): both modalities carry equally many decisive inputs, more and more of them shared.

    The student carries decisive inputs 0..m-1, the teacher m-v..2m-v-1 in places of the same numbers, out of 2m in
    all, for every overlap v: gamma = v / (2m - v). For v > 0, v decisive inputs are seen by neither.

    Args:
        decisive: decisive inputs each modality carries, m.
        overlaps: how many of them are shared, one setting for each v.
        teacher_dim: width of the teacher's input.
    """

    decisive: int = 10
    overlaps: tuple[int, ...] = (0, 2, 4, 6, 8, 10)
    teacher_dim: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("decisive", self.decisive, least=1)
        whole("teacher_dim", self.teacher_dim, least=1)
        _each("overlaps", self.overlaps, least=0)
        for overlap in self.overlaps:
            if overlap > self.decisive:
                raise InputError(
                    f"overlaps has {overlap}, but each modality carries only {self.decisive} decisive inputs; "
                    f"give overlaps from 0 to {self.decisive}, or a larger decisive count"
                )
        _ = self.worlds

    @property
    def worlds(self) -> tuple[World, ...]:
        """One world for every overlap."""
        m = self.decisive
        return tuple(
            World(
                num_decisive=2 * m,
                teacher=range(m - overlap, 2 * m - overlap),
                student=range(m),
                teacher_dim=self.teacher_dim,
                student_dim=self.student_dim,
                teacher_start=m - overlap,
            )
            for overlap in self.overlaps
        )


@dataclass(frozen=True, kw_only=True)
class VaryAlpha(Training):
    """Vary alpha (Figure 3): the teacher carries all the student does, and more and more of its own.

    alpha = k / (k + general) and gamma = 1 - alpha for every k of `teacher_only`; decisive inputs beyond
    general + k are seen by neither.

    Args:
        general: decisive inputs both carry; the student carries no others.
        teacher_only: further decisive inputs of the teacher, one setting for each k.
        num_decisive: decisive inputs in all.
        teacher_dim: width of the teacher's input.
    """

    general: int = 10
    teacher_only: tuple[int, ...] = (0, 10, 20, 30, 40)
    num_decisive: int = 50
    teacher_dim: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("general", self.general, least=1)
        whole("teacher_dim", self.teacher_dim, least=1)
        whole("num_decisive", self.num_decisive, least=1)
        _each("teacher_only", self.teacher_only, least=0)
        most = self.general + max(self.teacher_only)
        if most > self.num_decisive:
            raise InputError(
                f"num_decisive is {self.num_decisive}, but the teacher carries up to {most} decisive inputs; "
                f"give num_decisive at least {most}"
            )
        _ = self.worlds

    @property
    def worlds(self) -> tuple[World, ...]:
        """One world for every number of teacher-only inputs."""
        return tuple(
            world_of(
                ModalityVenn(general=self.general, teacher_only=teacher_only),
                teacher_dim=self.teacher_dim,
                student_dim=self.student_dim,
                unseen=self.num_decisive - self.general - teacher_only,
            )
            for teacher_only in self.teacher_only
        )


@dataclass(frozen=True, kw_only=True)
class ModifyGamma(Training):
    """Modify gamma (Table 2): take inputs from the teacher and see whether it teaches better.

    Args:
        counts: (teacher-only, general) decisive inputs, one setting for each pair; gamma = general / sum.
        teacher_dim: width of the teacher's input.
        permutations: "exact" for Algorithm 1 without sampling error, or a number of random permutations (the
            published script: 100).
        joint_learning_rate: of Algorithm 1's joint training.
        joint_momentum: of Algorithm 1's joint training.
    """

    counts: tuple[tuple[int, int], ...] = ((15, 5), (10, 5), (10, 10), (10, 20), (10, 30))
    teacher_dim: int = 50
    permutations: int | Literal["exact"] = "exact"
    joint_learning_rate: float = 0.01
    joint_momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("teacher_dim", self.teacher_dim, least=1)
        if not self.counts:
            raise InputError("counts is empty; give at least one pair (teacher-only, general)")
        for pair in self.counts:
            if len(pair) != 2:
                raise InputError(f"counts has {pair!r}; a pair (teacher-only, general) was expected")
            whole("the teacher-only number of counts", pair[0], least=0)
            whole("the general number of counts", pair[1], least=1)
        if self.permutations != "exact":
            whole("permutations", self.permutations, least=1, otherwise=" or 'exact'")
        if not (self.joint_learning_rate > 0 and 0 <= self.joint_momentum < 1):
            raise InputError(
                f"joint_learning_rate is {self.joint_learning_rate} and joint_momentum {self.joint_momentum}; "
                "the rate must be positive and the momentum from 0 to below 1"
            )
        _ = self.worlds

    @property
    def worlds(self) -> tuple[World, ...]:
        """One world for every pair of counts."""
        return tuple(
            world_of(
                ModalityVenn(general=general, teacher_only=teacher_only),
                teacher_dim=self.teacher_dim,
                student_dim=self.student_dim,
            )
            for teacher_only, general in self.counts
        )


def whole(name: str, value: Any, *, least: int, otherwise: str = "") -> None:
    """Raise InputError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; a whole number from {least}{otherwise} was expected")


def check_loss(learning_rate: float, label_weight: float, teacher_weight: float, reduction: str) -> None:
    """Raise InputError unless gradient descent on this loss makes sense."""
    if not learning_rate > 0:
        raise InputError(f"learning_rate is {learning_rate}; it must be positive")
    if not (label_weight >= 0 and teacher_weight >= 0 and label_weight + teacher_weight > 0):
        raise InputError(
            f"label_weight is {label_weight} and teacher_weight {teacher_weight}; "
            "both must be at least 0 and one of them positive"
        )
    if reduction not in ("batchmean", "mean"):
        raise InputError(f"reduction is {reduction!r}; choose 'batchmean' or 'mean'")


def _each(name: str, values: tuple[int, ...], *, least: int) -> None:
    if not values:
        raise InputError(f"{name} is empty; give at least one number")
    for value in values:
        whole(f"a number of {name}", value, least=least)
