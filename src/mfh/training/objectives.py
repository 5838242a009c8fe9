"""What one step of each kind of training computes: on labels, of an aligned pair, from a teacher's outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfh.data.epochs import Reading
from mfh.data.pairs import PairedBatch, to_device
from mfh.data.spool import IN_MEMORY_BYTES
from mfh.errors import FOREIGN, InputError, in_a_line
from mfh.networks.calling import call
from mfh.networks.layers import as_logits
from mfh.networks.modes import device_of, is_users
from mfh.networks.precision import at_least_single
from mfh.problems.losses import DistillationLoss, KDLoss, LabelLoss, alignment_loss, logit_distance
from mfh.problems.problem import Problem
from mfh.training.checks import check_finite_inputs, check_targets, unreadable, where


class Objective(nn.Module):
    """The networks that a training changes, and the loss of a batch.

    The loop calls the objective itself, `objective(batch, indices)`, so that with several processes networks and loss
    run inside one DistributedDataParallel. A subclass implements `loss`; modules of its own (projectors, heads) that
    it names in `trained` are optimised with the networks, and all of its parameters and persistent buffers go into
    checkpoints.

    Args:
        networks: Networks to train, by role ("teacher", "student").
        problem: What logits and targets mean.
    """

    #: Inputs that batches must have.
    fields: tuple[str, ...]

    def __init__(self, networks: Mapping[str, nn.Module], problem: Problem) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.problem = problem
        self.fields = tuple(f"{role}_input" for role in networks)
        #: The split that is being read, and all of its targets where they are known.
        self.split = "train"
        self.targets: dict[str, Tensor] = {}
        #: The data sets of splits, as they are read.
        self.read: dict[str, Any] = {}
        #: Number of the epoch, from 0.
        self.epoch = 0
        #: Position of the first of them in the split, of which several processes read a part each.
        self.firsts: dict[str, int] = {}
        self._shapes: dict[tuple[str, str], torch.Size] = {}

    #: What a step computes, in messages.
    computes = "label loss"

    def forward(self, batch: PairedBatch, indices: Tensor, label_share: float = 1.0) -> Tensor:
        """The loss of a batch."""
        try:
            return self.loss(batch, indices, label_share)
        except FOREIGN as error:  # the loss function may be the user's own
            found = self.failed(error, self.computes, batch, indices)
            if found is error:
                raise
            raise found from error

    def failed(self, error: BaseException, what: str, batch: PairedBatch, indices: Tensor) -> BaseException:
        """What to raise where a function of the user fails on a batch: a wrong target, or what the function said.

        Args:
            error: What the function raised; what is no user's fault is returned as it is.
            what: Name of the function in the message.
            batch: The batch.
            indices: Positions of its samples.
        """
        if not is_users(error):
            return error
        self.check_targets(batch, indices)
        return InputError(
            f"{where(self.read.get(self.split), self.split, indices.tolist())}: the {what} failed: {in_a_line(error)}"
        )

    def label_loss(self, logits: Tensor, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The label loss alone, for validation."""
        try:
            return self.problem.label_loss(logits, batch.target)
        except FOREIGN as error:  # the loss function may be the user's own
            found = self.failed(error, "label loss", batch, indices)
            if found is error:
                raise
            raise found from error

    def loss(self, batch: PairedBatch, indices: Tensor, label_share: float = 1.0) -> Tensor:
        """The scalar to minimise.

        Args:
            batch: A batch on the networks' device. Its first len(target) samples are labelled.
            indices: Positions of its samples in the training split.
            label_share: Factor of the mean label loss, where the labelled pairs of a step are not shared out between
                its batches like the others.
        """
        raise NotImplementedError

    def trained(self) -> list[nn.Parameter]:
        """Parameters that the optimizer gets."""
        return list(self.networks.parameters())

    def kept(self, role: str) -> nn.Module:
        """The network that is validated and kept: the trained one, or what is deployed of it."""
        return self.networks[role]

    def normalised(self) -> nn.Module:
        """What holds statistics of the data, which several processes average after an epoch."""
        return self.networks

    def index_device(self, device: torch.device) -> torch.device:
        """Device on which `loss` wants the indices of a batch."""
        return device

    def logits(self, batch: PairedBatch, indices: Tensor, role: str) -> Tensor:
        """Logits of the network of this role; the first of a split are checked together with their targets."""
        inputs = batch.student_input if role == "student" else batch.teacher_input
        network = self.networks[role] if self.split == "train" else self.kept(role)
        try:
            output = call(network, inputs)
        except FOREIGN as error:  # the network is the user's own code
            read, split = self.read.get(self.split), self.split
            found = unreadable(error, network, inputs, role, split, indices.tolist(), read)
            if found is error:
                raise
            raise found from error
        logits = as_logits(output)
        if (self.split, role) in self._shapes:
            return logits
        known = self.targets.get(self.split)
        if known is None:
            self._check(logits.shape[1:], batch.target, indices.tolist())
        else:  # all at once: a GPU would end the process where a target is out of range
            first = self.firsts[self.split]
            self._check(logits.shape[1:], known, range(first, first + len(known)))
        self._shapes[self.split, role] = logits.shape[1:]
        return logits

    def know(self, reading: Reading) -> None:
        """Check a split whose samples are all in memory as a whole; the batches of others are seen by `look`.

        Raises:
            InputError: An input is not finite.
        """
        self.read[reading.split] = reading.dataset
        if reading.held is not None:
            self.targets[reading.split], self.firsts[reading.split] = reading.held.target, reading.first
            indices = range(reading.first, reading.first + len(reading.dataset))
            check_finite_inputs(reading.held, self.fields, reading.split, indices, reading.dataset)

    def look(self, batch: PairedBatch, indices: Tensor, fresh: bool) -> None:
        """Check a batch before it goes to the networks' device, which may not survive a wrong target.

        Args:
            batch: The batch, as it was read.
            indices: Positions of its samples.
            fresh: Whether the samples are read for the first time.

        Raises:
            InputError: A target is wrong or an input is not finite; the message names split and sample.
        """
        self.check_targets(batch, indices)
        if fresh:
            check_finite_inputs(batch, self.fields, self.split, indices.tolist(), self.read.get(self.split))

    def check_targets(self, batch: PairedBatch, indices: Tensor) -> None:
        """Refuse a target that does not fit the logits, as far as their shape is known.

        Raises:
            InputError: A target is wrong; the message names split and sample.
        """
        for (split, _), shape in self._shapes.items():
            if split == self.split:
                self._check(shape, batch.target, indices.tolist())

    def _check(self, shape: torch.Size, target: Tensor, indices: Sequence[int]) -> None:
        logits = torch.empty((len(target), *shape), device="meta")
        dataset, training = self.read.get(self.split), self.split == "train"
        check_targets(self.problem, logits, target, self.split, indices, dataset, training=training)


class Supervised(Objective):
    """Trains one network on labels.

    Args:
        network: Network to train.
        role: "teacher" or "student", which says what input it reads.
        problem: What logits and targets mean.
        loss: Function of (logits, target) to minimise instead of the problem's label loss; validation keeps to that.
    """

    def __init__(self, network: nn.Module, role: str, problem: Problem, loss: LabelLoss | None = None) -> None:
        super().__init__({role: network}, problem)
        self.role, self.minimised = role, loss or problem.known_loss

    def loss(self, batch: PairedBatch, indices: Tensor, label_share: float = 1.0) -> Tensor:  # noqa: ARG002
        """The label loss."""
        return self.minimised(self.logits(batch, indices, self.role), batch.target)


class Alignment(Objective):
    """Trains teacher and student together (Algorithm 1, step 1).

    Args:
        teacher: Teacher to train.
        student: Student to train.
        problem: What logits and targets mean.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, problem: Problem) -> None:
        super().__init__({"teacher": teacher, "student": student}, problem)

    def loss(self, batch: PairedBatch, indices: Tensor, label_share: float = 1.0) -> Tensor:
        """The label losses of both, on labelled pairs, and the mean squared error between their logits, on all."""
        teacher_logits, student_logits = (self.logits(batch, indices, role) for role in ("teacher", "student"))
        target, label_loss = batch.target, self.problem.known_loss
        if len(target) == len(student_logits) and label_share == 1:
            return alignment_loss(teacher_logits, student_logits, target, label_loss=label_loss)
        labels = sum(label_loss(logits[: len(target)], target) for logits in (teacher_logits, student_logits))
        return label_share * labels + logit_distance(teacher_logits, student_logits)


class Taught(Objective):
    """Trains a student on labels and on a teacher's outputs, which `teach` sets.

    Args:
        networks: Networks to train, by role.
        problem: What logits and targets mean.
    """

    def __init__(self, networks: Mapping[str, nn.Module], problem: Problem) -> None:
        super().__init__(networks, problem)
        self.register_buffer("teacher_logits", None, persistent=False)
        # In a list, so that the teacher is not a submodule: it is neither trained, nor moved, nor saved.
        self._aside: list[Any] = [None, None]

    def teach(self, logits: Tensor | None, teacher: nn.Module | None) -> None:
        """Set the teacher's outputs, or the teacher.

        Args:
            logits: (training samples, ...) outputs, looked up by index; None runs `teacher` on every batch.
            teacher: A frozen network in eval mode; needed only without `logits`.
        """
        # Outputs that fill memory (a map of a file) stay where they are, and only the batch's rows travel.
        large = logits is not None and logits.nbytes > IN_MEMORY_BYTES
        self.teacher_logits = None if large else logits
        self._aside = [teacher, logits if large else None]
        if logits is None:
            self.fields = ("teacher_input", "student_input")

    def index_device(self, device: torch.device) -> torch.device:
        """Large outputs are looked up on the CPU."""
        return torch.device("cpu") if self._aside[1] is not None else device

    def taught(self, batch: PairedBatch, indices: Tensor, device: torch.device) -> Tensor:
        """The teacher's logits of a batch."""
        known: Any = self.teacher_logits
        taught = self._elsewhere(batch, indices, device) if known is None else known.index_select(0, indices)
        return at_least_single(taught)

    def _elsewhere(self, batch: PairedBatch, indices: Tensor, device: torch.device) -> Tensor:
        """The teacher's logits of a batch, without a cache on the device."""
        teacher, kept = self._aside
        if kept is not None:
            rows: Tensor = to_device(kept[indices], device)
            return rows
        try:
            with torch.no_grad():
                return as_logits(call(teacher, to_device(batch.teacher_input, device_of(teacher)))).to(device)
        except InputError:
            raise
        except FOREIGN as error:
            place = where(self.read.get(self.split), self.split, indices.tolist())
            raise InputError(f"{place}: the teacher failed: {in_a_line(error)}") from error


class Distillation(Taught):
    """Trains a student on labels and on a frozen teacher's logits.

    Args:
        student: Student to train.
        problem: What logits and targets mean.
        loss: Function of (student logits, teacher logits, target); what it leaves open is the problem's.
    """

    computes = "distillation loss"

    def __init__(self, student: nn.Module, problem: Problem, loss: DistillationLoss | None) -> None:
        super().__init__({"student": student}, problem)
        self.distillation_loss = problem.complete(loss)

    def loss(self, batch: PairedBatch, indices: Tensor, label_share: float = 1.0) -> Tensor:
        """The distillation loss against cached or fresh teacher logits: labels count where they are known."""
        logits = self.logits(batch, indices, "student")
        taught, target = self.taught(batch, indices, logits.device), batch.target
        if len(target) == len(logits) and label_share == 1:
            return self.distillation_loss(logits, taught, target)
        assert isinstance(self.distillation_loss, KDLoss)
        label, divergence = self.distillation_loss.terms(logits, taught, target)
        label = None if label is None else label * label_share
        return divergence if label is None else label if divergence is None else label + divergence  # type: ignore[return-value]
