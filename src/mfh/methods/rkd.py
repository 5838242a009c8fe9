"""Relational knowledge distillation."""

from dataclasses import dataclass

from torch import Tensor

from mfh.methods.batch import Batch
from mfh.methods.checks import Weight
from mfh.methods.features import FeatureMethod, focused, in_single, of_all_processes, pooled, share_of
from mfh.problems.losses import relational_angle_loss, relational_distance_loss


@dataclass(frozen=True)
class RKD(FeatureMethod):
    """Relational knowledge distillation: samples that are far apart for the teacher shall be so for the student.

    distance x Huber(relative distances of pairs of samples) + angle x Huber(cosines of the angles of three samples),
    see `relational_distance_loss` and `relational_angle_loss`. Features are means over positions. A focus multiplies
    the teacher's features by the square roots of the weights, so squared distances are weighted by channel. With
    several processes the samples of all are compared. Batches of one sample teach nothing, those of two have no angles.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 5 and 7. The weights 25 and 50 are
    those of RepDistiller and mdistiller. There a distance of 0 from a sample to itself counts in the mean of the Huber
    losses; here only distinct pairs do.

    It needs no labels. The angles of N samples cost N^3.

    Args:
        distance: Weight of the distance-wise loss.
        angle: Weight of the angle-wise loss.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    distance: Weight = 25.0
    angle: Weight = 50.0

    name = "rkd"

    @in_single
    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of both losses."""
        own = pooled(batch.student_feature)
        student = of_all_processes(own)
        teacher = of_all_processes(focused(pooled(batch.teacher_feature.detach()), batch.channel_weight))
        loss = 0 * own.sum()
        if self.distance and len(student) > 1:
            loss = loss + self.distance * relational_distance_loss(student, teacher)
        if self.angle and len(student) > 2:
            loss = loss + self.angle * relational_angle_loss(student, teacher)
        return share_of(loss, len(own), len(student))
