import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from method_batches import WEIGHTS, arrays, batch, begin, context
from mfh import InputError
from mfh.methods.crd import CRD


def unit(x):
    return x / np.linalg.norm(x)


class Slow:
    """The loss as RepDistiller describes it, sample by sample."""

    def __init__(self, modules, method):
        self.student, self.teacher = (memory.numpy().copy() for memory in (modules.student, modules.teacher))
        self.maps = [
            (layer.weight.detach().numpy(), layer.bias.detach().numpy())
            for layer in (modules.of_student, modules.of_teacher)
        ]
        self.method, self.scales = method, [None, None]

    def __call__(self, fs, ft, rows):
        count = len(self.student)
        own = [[unit(w @ x + b) for x in f] for f, (w, b) in zip((fs, ft), self.maps, strict=True)]
        total = 0.0
        for which, (anchors, memory) in enumerate(zip(own, (self.teacher, self.student), strict=True)):
            values = [
                [math.exp(a @ memory[r] / self.method.temperature) for r in row]
                for a, row in zip(anchors, rows, strict=True)
            ]
            if self.scales[which] is None:
                self.scales[which] = np.concatenate(values).mean() * count
            for row in values:
                right, *others = (value / self.scales[which] for value in row)
                noise = len(others) / count
                loss = -math.log(right / (right + noise + 1e-7))
                loss -= sum(math.log(noise / (p + noise + 1e-7)) for p in others)
                total += loss / len(fs)
        for memory, new in zip((self.student, self.teacher), own, strict=True):
            for row, value in zip(rows, new, strict=True):
                memory[row[0]] = unit(self.method.momentum * memory[row[0]] + (1 - self.method.momentum) * value)
        return total


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_three_batches_equal_a_slow_computation(weights):
    method, given = CRD(width=8, temperature=0.5, momentum=0.3), context(weights=weights)
    modules = begin(method, given)
    slow, losses = Slow(modules, method), []
    for number, index in enumerate(([0, 3, 5, 11], [3, 1, 2, 4], [11, 10, 9, 8])):
        seen = batch(given, modules, count=4, seed=number, index=torch.tensor(index))
        a = arrays(seen)
        ft = a.ft if weights is None else a.ft * np.sqrt(weights.numpy())
        rows = [[own, *(other for other in range(12) if other != own)] for own in index]
        losses.append(slow(a.fs, ft, rows))
        assert method.loss(seen).item() == pytest.approx(losses[-1], rel=1e-8)
    assert len({round(loss, 6) for loss in losses}) == 3
    for memory, expected in ((modules.student, slow.student), (modules.teacher, slow.teacher)):
        np.testing.assert_allclose(memory.numpy(), expected, rtol=1e-8)


def test_drawn_negatives_are_the_same_again_after_a_resume():
    method, given = CRD(width=8, negatives=5), context()
    modules = begin(method, given)
    drawn = modules.drawn(5)
    assert drawn.shape == (5,)
    assert drawn.min() >= 0
    assert drawn.max() < 12
    method.loss(batch(given, modules, count=4))
    later = modules.drawn(5)
    assert not later.equal(drawn)
    resumed = begin(method, given)
    resumed.load_state_dict(modules.state_dict())
    assert resumed.drawn(5).equal(later)
    assert modules.drawn(11).equal(torch.arange(12))  # no more than there are


@pytest.mark.parametrize("negatives", [1, 5])
def test_the_loss_of_drawn_negatives_equals_a_slow_computation(negatives):
    method, given = CRD(width=8, negatives=negatives), context()
    modules = begin(method, given)
    drawn = modules.drawn(negatives).tolist()
    index = [drawn[0], *[other for other in range(12) if other not in drawn][:3]]  # the first is among the drawn
    slow, rows = Slow(modules, method), [[own, *(other for other in drawn if other != own)] for own in index]
    assert len(rows[0]) <= negatives < len(rows[1])
    seen = batch(given, modules, count=4, index=torch.tensor(index))
    a = arrays(seen)
    loss = method.loss(seen)
    assert loss.item() == pytest.approx(slow(a.fs, a.ft, rows), rel=1e-8)
    loss.backward()
    assert torch.isfinite(seen.student_feature.grad).all()
    assert seen.student_feature.grad[1:].abs().sum() > 0


def test_a_batch_costs_no_more_with_more_pairs():
    """Nothing that a batch makes grows with the number of pairs but the memories, which are made once."""

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, arguments=(), options=None):
            found = function(*arguments, **(options or {}))
            made = [found] if isinstance(found, torch.Tensor) else []
            # What writes into a memory returns the memory.
            largest.append(max((t.numel() for t in made if t.data_ptr() not in memories), default=0))
            return found

    sizes = []
    for pairs in (500, 5000):
        method, given, largest = CRD(width=8, negatives=20), context(pairs=pairs), []
        modules = begin(method, given)
        memories = {modules.student.data_ptr(), modules.teacher.data_ptr()}
        seen = batch(given, modules, count=4)
        with Sizes():
            method.loss(seen).backward()
        sizes.append(max(largest))
    assert sizes[0] == sizes[1] < 500


def test_the_global_random_state_stays():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    method, given = CRD(negatives=3), context()
    method.loss(batch(given, begin(method, given)))
    assert torch.rand(1) == expected


def test_it_needs_pairs():
    with pytest.raises(InputError, match="crd remembers training pairs by index and needs at least 2, got 0"):
        CRD().begin(context(pairs=0))
    with pytest.raises(InputError, match="momentum is 1; choose 0 to below 1"):
        CRD(momentum=1)
