"""A task a user might write: small networks, 3 shared inputs of 8 and 7, data redrawn per seed."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import mfh


def teacher() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 2))


def task(seed: int = 0) -> mfh.Task:
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> TensorDataset:
        shared = torch.randn(count, 3, generator=generator)
        teacher_input = torch.cat([shared, torch.randn(count, 5, generator=generator)], dim=1)
        student_input = torch.cat([shared, torch.randn(count, 4, generator=generator)], dim=1)
        return TensorDataset(teacher_input, student_input, (teacher_input[:, :4].sum(1) > 0).long())

    return mfh.Task(
        name="tiny",
        teacher=teacher,
        student=student,
        layer="1",
        student_layer="1",
        train=split(120),
        val=split(60),
        test=split(60),
        recipe=mfh.Recipe(epochs=2),
    )
