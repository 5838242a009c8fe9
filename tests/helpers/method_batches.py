"""Fixed contexts and batches in double precision, on which methods are compared with slow computations."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from mfh import Problem
from mfh.methods.batch import Batch, Context
from networks import randn, seeded

#: Names of the only layers that methods read here.
STUDENT, TEACHER = "s", "t"


def context(
    *, problem=None, classes=4, student=(5,), teacher=(6,), positions=(), labelled=0, pairs=12, weights=None, **more
):
    """What a method begins with, for features of these shapes and logits (classes, *positions)."""
    return Context(
        problem=problem or Problem.classification(),
        student=seeded(lambda: nn.Linear(3, classes)),
        teacher=seeded(lambda: nn.Linear(3, classes), 1),
        student_shapes={STUDENT: student},
        teacher_shapes={TEACHER: teacher},
        logits_shape=(classes, *positions),
        num_labelled=labelled or pairs,
        num_pairs=pairs,
        channel_weights={} if weights is None else {TEACHER: weights},
        seed=3,
        **more,
    )


def leaf(*shape, seed=0):
    """Random numbers that collect a gradient."""
    return randn(*shape, seed=seed).double().requires_grad_()


def begin(method, given):
    """The method's modules in double precision, in training mode; None if it has none."""
    modules = method.begin(given)
    return None if modules is None else modules.double().train()


def batch(given, modules, *, count=7, seed=0, target=None, labelled=None, index=None, epoch=0):
    """A batch whose tensors all collect gradients, so that a test can see where a loss reaches."""
    classes, *positions = given.logits_shape
    drawn = torch.Generator().manual_seed(seed)
    if target is None:
        target = torch.randint(classes, (count, *positions), generator=drawn)
    return Batch(
        student_logits=leaf(count, classes, *positions, seed=10 + seed),
        teacher_logits=leaf(count, classes, *positions, seed=20 + seed),
        target=target,
        labelled=torch.ones(count, dtype=torch.bool) if labelled is None else labelled,
        index=torch.arange(count) if index is None else index,
        epoch=epoch,
        student_features={STUDENT: leaf(count, *given.student_shape, seed=30 + seed)},
        teacher_features={TEACHER: leaf(count, *given.teacher_shape, seed=40 + seed)},
        modules=modules,
        channel_weights=given.channel_weights,
    )


def arrays(given):
    """The tensors of a batch as NumPy arrays: zs, zt, fs, ft, y."""
    return SimpleNamespace(
        zs=given.student_logits.detach().numpy(),
        zt=given.teacher_logits.detach().numpy(),
        fs=given.student_feature.detach().numpy(),
        ft=given.teacher_feature.detach().numpy(),
        y=given.target.numpy(),
    )


#: Weights of the six channels of the teacher, of mean 1.
WEIGHTS = torch.tensor([0.1, 2.0, 1.5, 0.4, 1.7, 0.3], dtype=torch.float64)


def similarities(features):
    """Products of all pairs of rows, each row of products with length 1."""
    rows = features.reshape(len(features), -1)
    products = np.array([[a @ b for b in rows] for a in rows])
    return np.array([row / np.linalg.norm(row) for row in products])
