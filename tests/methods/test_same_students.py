"""`distill` trains the students of a plain loop, method by method."""

import pytest
import torch
from torch.utils.data import TensorDataset

from mfh import Recipe, distill
from mfh.data.epochs import MixedBatches
from mfh.methods import resolve
from mfh.methods.names import SHIPPED
from taught_world import Plan, new_student, trained, world

EPOCHS, BATCH, RATE, SEED, MORE = 6, 16, 0.003, 5, 24


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture(scope="module")
def data():
    return world(0, unlabelled=MORE)


@pytest.fixture(scope="module")
def batches(data):
    """The rows of each batch of each epoch, in the order in which `distill` reads them."""
    mixed, found = MixedBatches(len(data.target), MORE, BATCH, SEED), []
    for epoch in range(EPOCHS):
        mixed.sampler.set_epoch(epoch)
        found.append(list(mixed.rows()))
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_the_student_equals_that_of_a_plain_loop(name, data, batches, monkeypatch):
    method, seeds, labelled = resolve(name), [], len(data.target)
    begin = type(method).begin

    def noted(self, context):
        seeds.append(context.seed)
        return begin(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(type(method), "begin", noted)
        train = TensorDataset(data.teacher_input[:labelled], data.student_input[:labelled], data.target)
        more = TensorDataset(data.teacher_input[labelled:], data.student_input[labelled:])
        recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, optimizer=lambda p: torch.optim.SGD(p, RATE), keep="last")
        fit = distill(
            data.teacher,
            new_student(0),
            train,
            train,
            unlabelled=more,
            method=method,
            recipe=recipe,
            seed=SEED,
            device="cpu",
        )
    own = seeds[0] if seeds else 0  # the short way of kd does not begin
    plan = Plan(EPOCHS, BATCH, RATE, SEED, own, batches, torch.optim.SGD)
    expected, plain = trained(method, data, plan, new_student(0)), trained(None, data, plan, new_student(0))
    assert not torch.allclose(weights(fit.student)[: len(weights(plain))], weights(plain), atol=1e-4)
    torch.testing.assert_close(weights(fit.student), weights(expected), rtol=1e-4, atol=1e-6)
