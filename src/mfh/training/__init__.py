"""Training: supervised, the aligned pair (Algorithm 1, step 1), and distillation."""

from mfh.training.fitting import AlignedPair, Fit, align, distill, evaluate, pretrain
from mfh.training.recipe import Recipe

__all__ = ["AlignedPair", "Fit", "Recipe", "align", "distill", "evaluate", "pretrain"]
