"""Distillation of what the student's modality can explain of the teacher."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from mfh.methods.batch import Batch, Context
from mfh.methods.checks import Temperature, check_pairs, check_problem, warn_once
from mfh.methods.features import FeatureMethod, of_all_processes, pooled
from mfh.networks.precision import at_least_single
from mfh.problems.problem import Problem
from mfh.saliency.probe import ridge_predictions
from mfh.values import Bounds


@dataclass(frozen=True)
class Attainable(FeatureMethod):
    """Attainable targets: the student learns only what its own modality can explain of the teacher's logits.

    The student first learns from the teacher's own logits, for `warm_up` epochs. Its features (means over positions) of
    the last of these epochs are kept for each training pair, together with the teacher's logits. Then the logits of
    each pair are replaced by their prediction from the features, by ridge regressions that were fitted on the other
    folds of the pairs, with the penalties of the probe (`ridge_predictions`). The loss is the divergence of
    the problem between the student and these targets. What of the logits the student's modality does not explain has
    mean zero given its features, and is removed rather than averaged out over pairs; see the theory in the
    documentation.

    This is our construction. Related: ATLAS (SSRN 7346910, 2026), which projects teacher features and decisions onto
    attainable targets by the spectrum of a warmed-up student's sample graph, known to us from a third party's summary
    only.

    It needs no labels. The fit takes all training pairs, labelled or not, so each of them must pass in the last epoch
    of the warm-up; pairs that did not keep the teacher's own logits.

    Args:
        temperature: Softmax temperature of the divergence; 1 for regression.
        warm_up: Number of epochs before the targets are fitted. A training of no more epochs never fits them, and says
            so before it begins.
        folds: Number of folds of the fit.

    Raises:
        InputError: A field has another type than declared or is out of bounds.
    """

    teacher_layers: tuple[str, ...] | None = ()
    temperature: Temperature = 1.0
    warm_up: Annotated[int, Bounds(1, 1_000_000)] = 5
    folds: Annotated[int, Bounds(2, 1000)] = 5

    name = "attainable"

    @property
    def least_pairs(self) -> int:  # type: ignore[override]
        """Number of training pairs that the method needs: two for each fold."""
        return 2 * self.folds

    def begin(self, context: Context) -> nn.Module:
        """Make room for the features and logits of all training pairs.

        Raises:
            InputError: The problem is dense, or there are fewer than two pairs per fold.
        """
        check_problem(self.name, context, "classification", "multi-label classification", "regression")
        check_pairs(self.name, context, self.least_pairs)
        if context.epochs is not None and context.epochs <= self.warm_up:
            warn_once(
                f"attainable: the targets are fitted after {self.warm_up} epochs of warm-up, and epochs is "
                f"{context.epochs}, so this is kd; choose at least {self.warm_up + 1} epochs, or a shorter warm_up"
            )
        return Targets(context, self.folds)

    def loss(self, batch: Batch) -> Tensor:
        """The divergence from the teacher's logits, or from the attainable targets when they are fitted."""
        targets: Targets = batch.modules
        teacher = at_least_single(batch.teacher_logits.detach())
        if batch.epoch == self.warm_up - 1:
            targets.see(batch.index, pooled(batch.student_feature.detach()), teacher)
        elif batch.epoch >= self.warm_up:
            teacher = targets.of(batch.index, teacher)
        student = at_least_single(batch.student_logits)
        return targets.problem.divergence(
            student, teacher.to(student), temperature=self.temperature, reduction="batchmean"
        )


class Targets(nn.Module):
    """Features and logits of all training pairs, and then what the features predict of the logits.

    Args:
        context: Numbers and shapes.
        folds: Number of folds.
    """

    def __init__(self, context: Context, folds: int) -> None:
        super().__init__()
        count = context.num_pairs
        self.problem: Problem = context.problem
        self.folds, self.seed = folds, context.seed
        self.features: Tensor
        self.logits: Tensor
        self.seen: Tensor
        self.fitted: Tensor
        self.register_buffer("features", torch.zeros(count, context.student_shape[0]))
        self.register_buffer("logits", torch.zeros(count, *context.logits_shape))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def see(self, index: Tensor, features: Tensor, logits: Tensor) -> None:
        """Keep what is known of a batch, of all processes.

        Args:
            index: (N,), the samples' positions among the training pairs.
            features: (N, C), the student's.
            logits: (N, K), the teacher's.
        """
        index = of_all_processes(index)
        self.features[index] = of_all_processes(features).to(self.features)
        self.logits[index] = of_all_processes(logits).to(self.logits)
        self.seen[index] = True

    @torch.no_grad()
    def of(self, index: Tensor, teacher: Tensor) -> Tensor:
        """The targets of a batch.

        Args:
            index: (N,), the samples' positions among the training pairs.
            teacher: (N, K), the teacher's own logits, for pairs that were not seen.
        """
        if not self.fitted:
            self._fit()
        known = self.seen[index].reshape(-1, *[1] * (teacher.ndim - 1))
        return torch.where(known, self.logits[index].to(teacher), teacher)

    def _fit(self) -> None:
        """Replace the logits by their cross-fitted predictions."""
        self.fitted.fill_(True)
        (seen,) = self.seen.nonzero(as_tuple=True)
        if len(seen) < 2 * self.folds:
            self.seen.zero_()
            return
        features, logits = self.features[seen].double(), self.logits[seen].flatten(1)[:, :, None].double()
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(self.seed)).to(seen.device)
        for held_out in order.tensor_split(self.folds):
            fitting = torch.ones(len(seen), dtype=torch.bool, device=seen.device)
            fitting[held_out] = False
            predicted = ridge_predictions(features[fitting], logits[fitting], features[held_out])
            self.logits[seen[held_out]] = predicted.reshape(len(held_out), *self.logits.shape[1:]).to(self.logits)
