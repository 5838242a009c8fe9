"""Every method with every problem: it trains, or it says in one line that it cannot."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from mfh import InputError, Problem, Recipe, distill
from mfh.methods import SHIPPED, Attainable
from networks import randn, seeded

COUNT, LABELLED, CLASSES = 24, 16, 3


def vectors(inputs, width):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, CLASSES))


def maps(inputs, width):
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, CLASSES, 1))


def labels(*shape):
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(0))


#: Problem, networks, inputs, targets, and the methods that cannot do it.
PROBLEMS = {
    "classification": (Problem.classification(), vectors, (), labels(LABELLED), set()),
    "several labels": (
        Problem.multi_label(),
        vectors,
        (),
        (labels(LABELLED, CLASSES) > 0).long(),
        {"dkd", "c2kd"},
    ),
    "regression": (Problem.regression(), vectors, (), randn(LABELLED, CLASSES), {"dkd", "dist", "mad", "c2kd"}),
    "dense": (Problem.dense(), maps, (4, 4), labels(LABELLED, 4, 4), {"fd-cmkd", "c2kd", "attainable"}),
}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_it_trains_or_refuses(kind, name):
    problem, network, positions, target, cannot = PROBLEMS[kind]
    x, s = randn(COUNT, 5, *positions), randn(COUNT, 4, *positions, seed=1)
    teacher, student = seeded(lambda: network(5, 8), 1), seeded(lambda: network(4, 6), 2)
    train, more = TensorDataset(x[:LABELLED], s[:LABELLED], target), TensorDataset(x[LABELLED:], s[LABELLED:])
    options = {"unlabelled": more, "problem": problem, "recipe": Recipe(epochs=2, batch_size=8, keep="last")}
    method = Attainable(warm_up=1) if name == "attainable" else name
    if name in cannot:
        with pytest.raises(InputError, match=f"^{name} cannot do "):
            distill(teacher, student, train, train, method=method, device="cpu", **options)
        return
    fit = distill(teacher, student, train, train, method=method, device="cpu", **options)
    assert all(torch.isfinite(parameter).all() for parameter in fit.student.parameters())
    assert fit.student(s).shape == (COUNT, CLASSES, *positions)
    if name == "simkd":  # the teacher's head is part of what is kept, and is as it was
        assert len([*fit.student.parameters()]) > len([*student.parameters()])
        kept = {str(parameter.tolist()) for parameter in fit.student.parameters()}
        assert {str(parameter.tolist()) for parameter in teacher[-1].parameters()} <= kept


def test_the_student_of_simkd_can_be_exported():
    x, s = randn(COUNT, 5), randn(COUNT, 4, seed=1)
    train = TensorDataset(x, s, labels(COUNT))
    networks = seeded(lambda: vectors(5, 8), 1), seeded(lambda: vectors(4, 6), 2)
    fit = distill(*networks, train, train, method="simkd", recipe=Recipe(epochs=1), device="cpu")
    exported = torch.export.export(fit.student.eval(), (s[:4],), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert torch.allclose(exported.module()(s), fit.student(s), atol=1e-6)
