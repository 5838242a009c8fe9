"""A teacher of which only the outputs are known: a file of logits, in the order of the training split.

    python examples/06_teacher_outputs_only.py

Think of a model behind an API, or one too large to load here. There is nothing to mask then, but distillation and its
comparison with labels alone work. The file is mapped into memory, not read. Takes a few seconds.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import mfh


def pairs(count: int, generator: torch.Generator) -> TensorDataset:
    shared, own = (torch.randn(count, 5, generator=generator) for _ in range(2))
    target = ((shared + own).sum(1) > 0).long()
    # The teacher's input is not here; its place is taken by a zero.
    return TensorDataset(torch.zeros(count, 1), shared, target)


def some_service(train: TensorDataset) -> np.ndarray:
    """Stands for the model that nobody can look into: (N, 2) logits."""
    _, shared, target = train.tensors
    sure = 2 * (2 * target - 1) + shared.sum(1)
    return torch.stack([-sure, sure], 1).numpy().astype(np.float16)


if __name__ == "__main__":
    draws = torch.Generator().manual_seed(0)
    train, val, test = (pairs(count, draws) for count in (500, 300, 1000))
    folder = Path(tempfile.mkdtemp())
    np.save(folder / "logits.npy", some_service(train))

    task = mfh.Task(
        name="outputs-only",
        teacher=None,
        teacher_logits=folder / "logits.npy",
        student=lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2)),
        layer="",  # there is no network to look into
        train=train,
        val=val,
        test=test,
        recipe=mfh.Recipe(epochs=20),
    )
    result = mfh.study(task, arms=["no-kd", "regular"], num_seeds=3)
    print(result.by_seed().round(3))
