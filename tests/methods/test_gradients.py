"""Where the gradient of each method goes: to the student and the method's own modules, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from method_batches import TEACHER, batch, begin, context
from mfh.methods.attainable import Attainable
from mfh.methods.c2kd import C2KD
from mfh.methods.crd import CRD
from mfh.methods.dist import DIST
from mfh.methods.dkd import DKD
from mfh.methods.fd_cmkd import FDCMKD
from mfh.methods.mad import MAD
from mfh.methods.queue import Queue
from mfh.methods.rkd import RKD
from mfh.methods.simkd import SimKD
from mfh.methods.sp import SP
from mfh.methods.vid import VID
from networks import seeded

LOGITS, FEATURES = "student_logits", "student_feature"
TEACHERS = ("teacher_logits", "teacher_feature")
#: What each method reaches.
REACHED = {
    DKD: (LOGITS,),
    DIST: (LOGITS,),
    Attainable: (LOGITS,),
    VID: (FEATURES,),
    SimKD: (FEATURES,),
    RKD: (FEATURES,),
    SP: (FEATURES,),
    MAD: (FEATURES,),
    CRD: (FEATURES,),
    Queue: (FEATURES,),
    FDCMKD: (FEATURES,),
    C2KD: (LOGITS, FEATURES, *TEACHERS),
}


@pytest.mark.parametrize("kind", REACHED, ids=lambda kind: kind.name)
def test_gradients_reach_what_they_should_and_nothing_else(kind):
    tail = seeded(lambda: nn.Linear(6, 4))
    method, given = kind(), context(teacher_tails={TEACHER: tail})
    modules = begin(method, given)
    seen = batch(given, modules)
    loss = method.loss(seen)
    assert loss.shape == ()
    loss.backward()
    for name in (LOGITS, FEATURES, *TEACHERS):
        grad = getattr(seen, name).grad
        if name in REACHED[kind]:
            # Every sample, but for those whose rankings disagree in c2kd.
            assert (grad.abs().flatten(1).sum(1) > 0).all(), name
        else:
            assert grad is None or not grad.any(), name
    own = nn.Module() if modules is None else modules
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or "classifiers" in name, name
    assert all(parameter.grad is None for parameter in (*given.student.parameters(), *given.teacher.parameters()))
    assert all(parameter.grad is None for parameter in tail.parameters())
    assert not any(value.requires_grad for value in own.buffers())


@pytest.mark.parametrize("kind", REACHED, ids=lambda kind: kind.name)
def test_a_method_holds_nothing_of_a_training(kind):
    """Two trainings that take turns are the same as one after the other."""
    method = kind()
    given = [context(teacher_tails={TEACHER: seeded(lambda: nn.Linear(6, 4))}) for _ in range(2)]
    together = [begin(method, each) for each in given]
    turns = [
        [method.loss(batch(each, modules, seed=seed)).item() for each, modules in zip(given, together, strict=True)]
        for seed in range(3)
    ]
    alone = begin(method, given[0])
    once = [method.loss(batch(given[0], alone, seed=seed)).item() for seed in range(3)]
    assert [first for first, _ in turns] == [second for _, second in turns] == once
    assert len(set(once)) == 3


@pytest.mark.parametrize("kind", REACHED, ids=lambda kind: kind.name)
def test_making_modules_draws_from_the_seed_alone(kind):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    method, given = kind(), context(teacher_tails={TEACHER: nn.Identity()})
    torch.manual_seed(0)
    first = begin(method, given)
    assert torch.rand(1) == expected
    second = begin(method, given)
    for key, value in {} if first is None else first.state_dict().items():
        assert value.equal(second.state_dict()[key]), key


@pytest.mark.parametrize("kind", REACHED, ids=lambda kind: kind.name)
def test_half_precision_is_computed_in_single(kind):
    """Where networks run in half precision, features and logits arrive in it."""
    tail = seeded(lambda: nn.Linear(6, 4))
    method, given = kind(), context(teacher_tails={TEACHER: tail})
    modules = method.begin(given)
    exact = method.loss(_rounded(batch(given, modules), torch.float32)).item()
    halves = _rounded(batch(given, method.begin(given)), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(halves)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.05)


def _rounded(seen, dtype):
    """The batch with numbers that half precision has, in some type."""
    features = {
        side: {name: value.detach().bfloat16().to(dtype) for name, value in getattr(seen, side).items()}
        for side in ("student_features", "teacher_features")
    }
    logits = {name: getattr(seen, name).detach().bfloat16().to(dtype) for name in (LOGITS, "teacher_logits")}
    return replace(seen, **features, **logits)
