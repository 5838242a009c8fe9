"""What a distillation method sees: the context it begins with, and the batches it computes its loss on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from mfh.errors import InputError
from mfh.problems.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What a method knows when a training begins.

    Args:
        problem: What logits and targets mean.
        student: The student that will be trained. A method reads it, for instance its last layer; it changes nothing.
        teacher: The teacher, frozen and in eval mode (with `trains_teacher`, the copy that is trained); None where only
            its outputs are known.
        student_shapes: Shape of one sample's features by student layer, channels first: (C, *positions).
        teacher_shapes: The same by teacher layer.
        logits_shape: Shape of one sample's student logits, (K, *positions).
        teacher_logits: (pairs, K, ...), the teacher's logits on all training pairs in data-set order, labelled pairs
            first; None where they are computed on every batch.
        teacher_features: (pairs, C, *positions) by teacher layer, likewise; empty where they are computed on every
            batch.
        num_labelled: Number of labelled training pairs.
        num_pairs: Number of training pairs, with and without labels.
        channel_weights: (C,) weights of the channels of a teacher layer, of mean 1, by layer: the focus of an arm
            METHOD+FOCUS on a method of features. Empty without a focus.
        teacher_tails: Function by teacher layer from its output, channels first, to the teacher's logits: the rest of
            the teacher, with frozen weights. Empty where the teacher cannot be cut.
        seed: Seed for what the method draws.
        student_channel_dim: Dimension of the student's named layers that counts channels, as the task says; see
            `mfh.networks.taps.find_taps`.
        epochs: Number of epochs of the training, at most; None where it is not known.
    """

    problem: Problem
    student: nn.Module
    teacher: nn.Module | None = None
    student_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    teacher_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    logits_shape: Sequence[int] = ()
    teacher_logits: Tensor | None = None
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    num_labelled: int = 0
    num_pairs: int = 0
    channel_weights: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_tails: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    seed: int = 0
    student_channel_dim: int | None = None
    epochs: int | None = None

    @property
    def student_shape(self) -> Sequence[int]:
        """Shape of one sample's features at the only student layer."""
        return _only(self.student_shapes, "student")

    @property
    def teacher_shape(self) -> Sequence[int]:
        """Shape of one sample's features at the only teacher layer."""
        return _only(self.teacher_shapes, "teacher")

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.logits_shape[0]


@dataclass(frozen=True)
class Batch:
    """One batch, as a method sees it.

    Args:
        student_logits: (N, K, ...), with gradient.
        teacher_logits: (N, K, ...), without gradient unless the method trains the teacher.
        target: (N, ...), the labels. Rows of unlabelled pairs hold some valid label that means nothing.
        labelled: (N,), whether a pair has a label.
        index: (N,), position of each pair among all training pairs, labelled ones first.
        epoch: Number of the epoch, from 0.
        student_features: (N, C, *positions) by layer, channels first, with gradient.
        teacher_features: The same of the teacher, without gradient unless the method trains the teacher.
        modules: What `begin` returned.
        channel_weights: As in `Context`.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    target: Tensor
    labelled: Tensor
    index: Tensor
    epoch: int = 0
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    modules: Any = None
    channel_weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def student_feature(self) -> Tensor:
        """(N, C, *positions), the features of the only student layer."""
        return _only(self.student_features, "student")

    @property
    def teacher_feature(self) -> Tensor:
        """(N, C, *positions), the features of the only teacher layer."""
        return _only(self.teacher_features, "teacher")

    @property
    def channel_weight(self) -> Tensor | None:
        """(C,), the weights of the channels of the only teacher layer; None without a focus."""
        return _only(self.channel_weights, "teacher") if self.channel_weights else None


class Method:
    """A distillation method: what a student minimises beside the loss of its labels.

    A subclass says what it reads and implements `loss`. Methods hold no state of a training: whatever is trained,
    remembered or drawn lies in the module that `begin` returns, which is trained with the student, moved to its device
    and written into checkpoints (buffers too: queues and memories are buffers). So one method serves any number of
    trainings.
    """

    #: Name of the arm.
    name: str = ""
    #: Layers whose features the method reads, by name; None means the network's penultimate layer, () no features.
    student_layers: tuple[str, ...] | None = ()
    teacher_layers: tuple[str, ...] | None = ()
    #: Whether the method's loss has no meaning for pairs without a label. It then sees the labelled pairs alone.
    needs_labels: bool = False
    #: Whether `loss` covers the labels; otherwise label_weight x label loss is added to it.
    owns_labels: bool = False
    #: Whether the method changes the teacher: every arm then trains a copy of its own, whose outputs are never cached.
    trains_teacher: bool = False
    #: Number of training pairs that the method needs, for instance to fit on parts of them.
    least_pairs: int = 1
    #: Whether the teacher may be focused: a mask for a method of logits, weights of channels for one of features.
    takes_focus: bool = True
    #: Weights of the label loss and of `loss` where nobody gives others: the published ones.
    label_weight: float = 1.0
    teacher_weight: float = 1.0

    def begin(self, context: Context) -> nn.Module | None:  # noqa: ARG002
        """Make the method's own modules, once per training; None if it has none.

        Args:
            context: Shapes, networks and cached outputs.

        Raises:
            InputError: The method cannot work with these networks or this problem.
        """
        return None

    def loss(self, batch: Batch) -> Tensor:
        """The teacher's term of one batch, a scalar."""
        raise NotImplementedError

    def deploy(self, student: nn.Module, modules: nn.Module | None) -> nn.Module:  # noqa: ARG002
        """The network that is kept and evaluated: the student alone, or with some of the method's modules."""
        return student


def _only(found: Mapping[str, T], role: str) -> T:
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise InputError(f"the method reads {len(found)} layers of the {role} ({names}); name the one that is meant")
    return next(iter(found.values()))
