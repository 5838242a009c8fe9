"""Embeddings of a frozen model in the place of the teacher's inputs."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from mfh.data.epochs import known_targets
from mfh.data.pairs import Collated, groups_of, in_split


def embedded(dataset: Any, embeddings: Tensor) -> Any:
    """The same samples with one embedding each in the place of the teacher's input.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target), or of unlabelled pairs.
        embeddings: (len(dataset), D), in data-set order. A memory map stays one.
    """
    if type(dataset) is TensorDataset:
        made = TensorDataset(embeddings, *dataset.tensors[1:])
        if hasattr(dataset, "groups"):
            made.groups = dataset.groups  # type: ignore[attr-defined]
        return made
    if type(dataset) is Collated:
        return Collated(_Embedded(dataset.dataset, embeddings), dataset.collate)
    return _Embedded(dataset, embeddings)


class _Embedded:
    """Items of a data set, with other teacher inputs.

    Args:
        dataset: The data set. Its groups, and targets that it holds apart from its items, are kept.
        embeddings: (len(dataset), D).
        role: Network that reads the items; the other one's input is then empty, (0,). None gives both.
    """

    def __init__(self, dataset: Any, embeddings: Tensor, role: str | None = None) -> None:
        self.dataset, self.embeddings, self.role = dataset, embeddings, role
        self.groups, self.targets = groups_of(dataset), known_targets(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        _, student_input, *target = self.dataset[index]
        embedding = torch.empty(0) if self.role == "student" else self.embeddings[index]
        return (embedding, torch.empty(0) if self.role == "teacher" else student_input, *target)

    def only(self, role: str) -> "_Embedded":
        """The same samples for one network alone."""
        own = self.dataset.only(role) if role == "teacher" and hasattr(self.dataset, "only") else self.dataset
        return _Embedded(own, self.embeddings, role)


class TeacherAlone:
    """Samples of the teacher's modality alone, as pairs whose student input is empty, (0,).

    Args:
        dataset: A map-style data set of (teacher_input, target).
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        return item[0], torch.empty(0), item[-1]


def alone(dataset: Any) -> Any:
    """Samples of the teacher's modality alone as pairs; see `TeacherAlone`. Messages call them "teacher_train"."""
    made: Any
    if type(dataset) is TensorDataset:
        inputs, targets = dataset.tensors[0], dataset.tensors[-1]
        made = TensorDataset(inputs, torch.empty(len(inputs), 0), targets)
    elif type(dataset) is Collated:
        made = Collated(TeacherAlone(dataset.dataset), dataset.collate)
    else:
        made = TeacherAlone(dataset)
    return in_split(made, "teacher_train")
