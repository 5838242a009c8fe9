"""Settings of the three experiments. The defaults are the published ones."""

from dataclasses import dataclass
from typing import Any, Literal

from mfh.errors import InputError
from mfh.gaussian.worlds import World, world_of
from mfh.venn import ModalityVenn


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings that the three experiments share.

    Args:
        num_train: Number of training pairs.
        num_test: Number of test pairs.
        student_dim: Width of the student's input.
        steps: Number of full-batch gradient steps.
        learning_rate: Learning rate of those steps.
        label_weight: Weight of the cross-entropy in the students' loss.
        teacher_weight: Weight of the divergence from the teacher in the students' loss.
        reduction: Reduction of the divergence as in `mfh.KDLoss`. "mean" (as published) divides it by the two classes.

    Raises:
        InputError: A size is not a whole number from 1, or a weight or the learning rate is out of range.
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
    """Settings of "vary gamma" (Figure 2): equally many decisive inputs in both modalities, more and more shared.

    There are 2m decisive inputs. With overlap v the student carries those numbered 0 to m-1, and the teacher those
    numbered m-v to 2m-v-1, in places of the same numbers. Then gamma = v / (2m - v), and neither modality sees the
    last v decisive inputs.

    Args:
        decisive: Number m of decisive inputs that each modality carries.
        overlaps: Number v of decisive inputs that both carry. Each value makes one setting.
        teacher_dim: Width of the teacher's input.
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
        """One world for each overlap."""
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
    """Settings of "vary alpha" (Figure 3): the teacher carries all that the student does, and more and more besides.

    With k teacher-only inputs, alpha = k / (k + general) and gamma = 1 - alpha. Neither modality sees the decisive
    inputs beyond general + k.

    Args:
        general: Number of decisive inputs that both carry. The student carries no others.
        teacher_only: Number k of decisive inputs that only the teacher carries. Each value makes one setting.
        num_decisive: Number of decisive inputs.
        teacher_dim: Width of the teacher's input.
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
        """One world for each number of teacher-only inputs."""
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
    """Settings of "modify gamma" (Table 2): does a teacher teach better after some of its inputs are removed?

    Args:
        counts: Numbers (teacher-only, general) of decisive inputs. Each pair makes one setting, with
            gamma = general / (teacher-only + general).
        teacher_dim: Width of the teacher's input.
        permutations: "exact" for Algorithm 1 without sampling error, or a number of random permutations (the
            published script uses 100).
        joint_learning_rate: Learning rate of Algorithm 1's joint training.
        joint_momentum: Momentum of Algorithm 1's joint training.
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
        """One world for each pair of counts."""
        return tuple(
            world_of(
                ModalityVenn(general=general, teacher_only=teacher_only),
                teacher_dim=self.teacher_dim,
                student_dim=self.student_dim,
            )
            for teacher_only, general in self.counts
        )


def whole(name: str, value: Any, *, least: int, otherwise: str = "") -> None:
    """Raise InputError unless a value is a whole number from `least`.

    Args:
        name: Name of the value in the message.
        value: Value to check.
        least: Smallest allowed value.
        otherwise: What else is allowed, as words that end the expectation in the message.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; a whole number from {least}{otherwise} was expected")


def check_loss(learning_rate: float, label_weight: float, teacher_weight: float, reduction: str) -> None:
    """Raise InputError unless the learning rate is positive, a weight is positive and the reduction is known."""
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
