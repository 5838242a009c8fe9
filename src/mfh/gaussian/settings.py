"""Settings of the three experiments. The defaults are the published ones."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mfh.errors import InputError
from mfh.gaussian.worlds import World, world_of
from mfh.values import Bounds, NumPermutations, check_fields, checked
from mfh.venn import ModalityVenn

#: A number of pairs, inputs or decisive inputs.
Size = Annotated[int, Bounds(1, 1_000_000)]
SizeOrNone = Annotated[int, Bounds(0, 1_000_000)]
Steps = Annotated[int, Bounds(0, 100_000_000)]
Permutations = NumPermutations | Literal["exact"]
Rate = Annotated[float, Bounds(0, 1_000_000)]
# All inputs of one setting and seed, at eight bytes each, are in memory at once: 4 GiB.
_MOST_NUMBERS = 2**29


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
        InputError: A setting has the wrong type or is out of range, or all inputs together are too many.
    """

    num_train: Size = 200
    num_test: Size = 1000
    student_dim: Size = 50
    steps: Steps = 1000
    learning_rate: Rate = 0.1
    label_weight: Rate = 1.0
    teacher_weight: Rate = 1.0
    reduction: Literal["batchmean", "mean"] = "mean"

    def __post_init__(self) -> None:
        check_fields(self)
        width = max(self.student_dim, getattr(self, "teacher_dim", 1), getattr(self, "num_decisive", 1))
        numbers = max(self.num_train, self.num_test) * width
        if numbers > _MOST_NUMBERS:
            raise InputError(
                f"{max(self.num_train, self.num_test)} pairs with {width} inputs are {numbers} numbers; choose sizes "
                f"with at most {_MOST_NUMBERS}"
            )
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

    decisive: Size = 10
    overlaps: tuple[SizeOrNone, ...] = (0, 2, 4, 6, 8, 10)
    teacher_dim: Size = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_empty("overlaps", self.overlaps)
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

    general: Size = 10
    teacher_only: tuple[SizeOrNone, ...] = (0, 10, 20, 30, 40)
    num_decisive: Size = 50
    teacher_dim: Size = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_empty("teacher_only", self.teacher_only)
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

    counts: tuple[tuple[SizeOrNone, Size], ...] = ((15, 5), (10, 5), (10, 10), (10, 20), (10, 30))
    teacher_dim: Size = 50
    permutations: Permutations = "exact"
    joint_learning_rate: Rate = 0.01
    joint_momentum: Annotated[float, Bounds(0, 1, below=True)] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_empty("counts", self.counts)
        if not self.joint_learning_rate:
            raise InputError("joint_learning_rate is 0; it must be positive")
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


def check_loss(learning_rate: float, label_weight: float, teacher_weight: float, reduction: str) -> None:
    """Raise InputError unless the learning rate is positive, a weight is positive and the reduction is known."""
    for name, value in (
        ("learning_rate", learning_rate),
        ("label_weight", label_weight),
        ("teacher_weight", teacher_weight),
    ):
        checked(name, value, Rate)
    if not learning_rate:
        raise InputError(f"learning_rate is {learning_rate}; it must be positive")
    if not (label_weight or teacher_weight):
        raise InputError("label_weight and teacher_weight are both 0; make one of them positive")
    if reduction not in ("batchmean", "mean"):
        raise InputError(f"reduction is {reduction!r}; choose 'batchmean' or 'mean'")


def _refuse_empty(name: str, values: tuple[Any, ...]) -> None:
    if not values:
        raise InputError(f"{name} is empty; give at least one value")
