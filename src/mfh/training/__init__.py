"""Training: supervised, the aligned pair (Algorithm 1, step 1), and distillation."""

from mfh.training.recipe import Recipe

__all__ = ["Recipe"]
