import numpy as np
import pytest

from method_batches import WEIGHTS, arrays, batch, context, similarities
from mfh.methods.sp import SP


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("student", "teacher"), [((5,), (6,)), ((5, 2, 3), (6, 4))])
def test_equals_a_slow_computation(student, teacher, weights):
    seen = batch(context(student=student, teacher=teacher, weights=weights), None)
    a = arrays(seen)
    ft = a.ft if weights is None else np.moveaxis(np.moveaxis(a.ft, 1, -1) * np.sqrt(weights.numpy()), -1, 1)
    expected = ((similarities(a.fs) - similarities(ft)) ** 2).sum() / len(a.fs) ** 2
    assert expected > 0.001
    assert SP().loss(seen).item() == pytest.approx(expected, rel=1e-10)


def test_the_published_weight_is_outside_of_the_loss():
    assert SP().teacher_weight == 3000
    assert SP(teacher_weight=1).teacher_weight == 1
