"""Embeddings of a frozen model in the place of the teacher's inputs."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from mfh.data.pairs import Collated


def embedded(dataset: Any, embeddings: Tensor) -> Any:
    """The same samples with one embedding each in the place of the teacher's input.

    Args:
        dataset: A map-style data set of (teacher_input, student_input, target), or of unlabelled pairs.
        embeddings: (len(dataset), D), in data-set order. A memory map stays one.
    """
    if type(dataset) is TensorDataset:
        return TensorDataset(embeddings, *dataset.tensors[1:])
    if type(dataset) is Collated:
        return Collated(_Embedded(dataset.dataset, embeddings), dataset.collate)
    return _Embedded(dataset, embeddings)


class _Embedded:
    """Items of a data set, with other teacher inputs."""

    def __init__(self, dataset: Any, embeddings: Tensor) -> None:
        self.dataset, self.embeddings = dataset, embeddings

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return (self.embeddings[index], *self.dataset[index][1:])

    def only(self, role: str) -> Any:
        """For the teacher alone, nothing of the student's is read; for the student, the data set itself."""
        if role == "student":
            return self
        return self if not hasattr(self.dataset, "only") else _Embedded(self.dataset.only("teacher"), self.embeddings)


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
    """Samples of the teacher's modality alone as pairs; see `TeacherAlone`."""
    if type(dataset) is TensorDataset:
        inputs, targets = dataset.tensors[0], dataset.tensors[-1]
        return TensorDataset(inputs, torch.empty(len(inputs), 0), targets)
    if type(dataset) is Collated:
        return Collated(TeacherAlone(dataset.dataset), dataset.collate)
    return TeacherAlone(dataset)
