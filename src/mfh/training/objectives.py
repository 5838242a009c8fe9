"""What each kind of training minimises: on labels, jointly (Algorithm 1, step 1), or against a frozen teacher.

An objective is a module that holds the networks to train and turns a batch into a loss. Under DistributedDataParallel
it is the module that is wrapped, so everything trainable belongs to it and every loss is computed in its `forward`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfh.data.pairs import PairedBatch, to_device
from mfh.data.spool import IN_MEMORY_BYTES
from mfh.networks.layers import as_logits
from mfh.networks.modes import device_of
from mfh.networks.precision import at_least_single
from mfh.problems.losses import DistillationLoss, alignment_loss
from mfh.problems.problem import Problem
from mfh.training.checks import explained, explained_loss


class Objective(nn.Module):
    """Networks to train, and the loss of a batch.

    Args:
        networks: Role ("teacher", "student") -> network to train.
        problem: What logits and targets mean.
    """

    def __init__(self, networks: Mapping[str, nn.Module], problem: Problem) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.problem = problem
        #: Whether logits and targets of the batches to come are checked; the loop turns it off after the first epoch.
        self.checking = True
        self._shapes: dict[tuple[str, str], torch.Size] = {}

    def forward(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The loss of a batch, to minimise.

        Args:
            batch: The samples, on the device of the networks.
            indices: (N,) Positions of the samples in the training split.
        """
        raise NotImplementedError

    def logits(self, batch: PairedBatch, indices: Tensor, role: str) -> Tensor:
        """Logits of one network, checked together with the targets while `checking`."""
        inputs = batch.teacher_input if role == "teacher" else batch.student_input
        if not self.checking:
            return as_logits(self.networks[role](inputs))
        with explained(self.networks[role], role, inputs, self._split):
            logits = as_logits(self.networks[role](inputs))
        self.problem.check(logits, batch.target, f"{self._split} split", indices.tolist())
        self._shapes[self._split, role] = logits.shape[1:]
        return logits

    @property
    def _split(self) -> str:
        return "train" if self.training else "val"

    def check_target(self, target: Tensor, indices: Tensor) -> None:
        """Check targets without running a network; on a GPU a wrong one is not an exception but the process's end."""
        for (split, _), shape in self._shapes.items():
            if split == self._split:
                logits = torch.empty((len(target), *shape), device="meta")
                self.problem.check(logits, target, f"{split} split", indices.tolist())


class Supervised(Objective):
    """Trains one network on labels.

    Args:
        network: The network to train.
        role: Whether the network reads the teacher's or the student's input.
        problem: What logits and targets mean.
    """

    def __init__(self, network: nn.Module, role: str, problem: Problem) -> None:
        super().__init__({role: network}, problem)
        self.role = role

    def forward(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The label loss."""
        return self.problem.label_loss(self.logits(batch, indices, self.role), batch.target)


class Alignment(Objective):
    """Trains teacher and student together (Algorithm 1, step 1).

    Args:
        teacher: The teacher to train.
        student: The student to train.
        problem: What logits and targets mean.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, problem: Problem) -> None:
        super().__init__({"teacher": teacher, "student": student}, problem)

    def forward(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The label losses of both networks and the mean squared error between their logits."""
        teacher_logits, student_logits = (self.logits(batch, indices, role) for role in ("teacher", "student"))
        return alignment_loss(teacher_logits, student_logits, batch.target, label_loss=self.problem.label_loss)


class Distillation(Objective):
    """Trains a student on labels and a frozen teacher's outputs.

    Args:
        student: The student to train.
        problem: What logits and targets mean.
        loss: A function of student logits, teacher logits and target; the problem fills in what a `KDLoss` leaves open.
        teacher_logits: (training samples, ...) Outputs that are looked up by sample; None to run `teacher` on every
            batch.
        teacher: A frozen network in eval mode; needed only without `teacher_logits`.
        device: Where the student is trained.
    """

    def __init__(
        self,
        student: nn.Module,
        problem: Problem,
        loss: DistillationLoss | None,
        teacher_logits: Tensor | None,
        teacher: nn.Module | None,
        device: torch.device,
    ) -> None:
        super().__init__({"student": student}, problem)
        self.distillation_loss = problem.complete(loss)
        # In a list, so that it is no submodule: it is neither trained, nor moved, nor saved.
        self._teacher = [teacher]
        # Outputs that fill memory (a map of a file) stay where they are, and only the batch's rows travel.
        large = teacher_logits is not None and teacher_logits.nbytes > IN_MEMORY_BYTES
        self._logits = teacher_logits if teacher_logits is None or large else at_least_single(teacher_logits).to(device)

    def forward(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """The distillation loss against cached or fresh teacher logits."""
        logits = self.logits(batch, indices, "student")
        taught = self._taught(batch, indices)
        if taught.device != logits.device:
            taught = taught.to(logits.device)
        if self.checking:
            with explained_loss(self.distillation_loss):
                return self.distillation_loss(logits, taught, batch.target)
        return self.distillation_loss(logits, taught, batch.target)

    def _taught(self, batch: PairedBatch, indices: Tensor) -> Tensor:
        """What the teacher says of a batch, in single precision at least."""
        if self._logits is not None:
            rows = indices if self._logits.device.type == "cpu" else indices.to(self._logits.device, non_blocking=True)
            return at_least_single(self._logits[rows])
        (teacher,) = self._teacher
        assert isinstance(teacher, nn.Module)
        with torch.no_grad():
            outputs: Any = teacher(to_device(batch.teacher_input, device_of(teacher)))
        return at_least_single(as_logits(outputs))
