"""Data sets with several views of the same samples, any two of which make a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError, close_names
from mfh.problems.problem import Problem
from mfh.tasks.arrays import ArrayOptions, arrays_task
from mfh.tasks.encoding import PairedArrays
from mfh.tasks.task import Task


@dataclass(frozen=True)
class Views:
    """N samples with several views, their classes, and perhaps their groups.

    Args:
        views: Name of a view -> its inputs, (N, C, ...) float32. All have the same shape after C.
        target: Class indices, (N,) int64.
        classes: Names of the classes, in order.
        groups: Index of each sample's group, (N,); None where samples are independent.
        unit: What a group is, in the plural.
    """

    views: Mapping[str, NDArray[np.float32]]
    target: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    unit: str = "groups"

    def inputs(self, names: str, role: str) -> NDArray[np.float32]:
        """The inputs of one view, or of several joined along the channels.

        Args:
            names: Name of a view, names joined by "+", or "both" where there are two views.
            role: Role that reads them, for messages.

        Raises:
            InputError: There is no such view.
        """
        return np.concatenate([self.views[name] for name in self._chosen(names, role)], axis=1)

    def _chosen(self, names: str, role: str) -> list[str]:
        known, pair = list(self.views), len(self.views) == 2
        chosen = known if names == "both" and pair else str(names).split("+")
        for name in chosen:
            if name not in known:
                hint = close_names(name, [*known, "both"] if pair and len(chosen) == 1 else known, limit=6)
                raise InputError(f"{role} is {names!r}, and there is no view {name!r}; {hint}; join views with '+'")
        if len(set(chosen)) < len(chosen):
            raise InputError(f"{role} is {names!r}, which names a view twice; name each once")
        return chosen

    def task(
        self,
        name: str,
        seed: int,
        *,
        teacher: str,
        student: str,
        labels: int | Literal["all"],
        unlabelled: bool,
        val: int,
        test: int,
        **facts: Any,
    ) -> Task:
        """A task with one view for the teacher and another one for the student.

        Args:
            name: Name of the task.
            seed: Seed of the split.
            teacher: View of the teacher, see `inputs`.
            student: View of the student.
            labels: Number of training pairs that keep their labels, or "all".
            unlabelled: Whether the other training pairs are used.
            val: Number of validation pairs, or of groups.
            test: Number of test pairs, or of groups.
            **facts: Further facts for the report.

        Raises:
            InputError: There is no such view, both roles have the same one, or the pairs cannot be split so.
        """
        if set(self._chosen(teacher, "teacher")) == set(self._chosen(student, "student")):
            raise InputError(f"teacher and student both read {teacher!r}; choose different views")
        pairs = PairedArrays(
            teacher=self.inputs(teacher, "teacher"),
            student=self.inputs(student, "student"),
            target=self.target,
            labelled=np.ones(len(self.target), dtype=bool),
            problem=Problem.classification(),
            num_outputs=len(self.classes),
            classes=self.classes,
            groups=self.groups,
        )
        facts = {"teacher_view": teacher, "student_view": student, **facts}
        options = ArrayOptions(
            name=name, labels=labels, unlabelled=unlabelled, val=val, test=test, unit=self.unit, facts=facts
        )
        return arrays_task(pairs, options, seed)
