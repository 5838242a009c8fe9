"""A distillation method of your own, as an arm beside others: same data, initial weights, order and number of steps.

    python examples/08_own_method.py
    mfh study htad --arms no-kd regular fitnets examples/08_own_method.py:Directions --num-seeds 5

The second line is the same from the command line, with a report; `htad` needs the extra `data`. A focus is one word more:
`examples/08_own_method.py:Directions+soft`. Takes about ten seconds on one core.
"""

from torch import Tensor, nn

import mfh
from mfh.methods import Batch, Context, Method


class Directions(Method):
    """Projected student features shall point where the teacher's features point: 1 - cosine of the angle."""

    name = "directions"
    student_layers = teacher_layers = None  # the penultimate layer of each

    def begin(self, context: Context) -> nn.Module:
        return nn.Linear(context.student_shape[0], context.teacher_shape[0])  # trained with the student

    def loss(self, batch: Batch) -> Tensor:
        projected = batch.modules(batch.student_feature)
        return 1 - nn.functional.cosine_similarity(projected, batch.teacher_feature).mean()


def squares(batch: Batch) -> Tensor:
    """A plain function is a method too: the squared difference of the logits."""
    return (batch.student_logits - batch.teacher_logits).square().mean()


if __name__ == "__main__":
    result = mfh.study("htad", arms=["no-kd", "regular", "fitnets", Directions(), squares], num_seeds=2, epochs=20)
    print(result.by_seed().round(3))
