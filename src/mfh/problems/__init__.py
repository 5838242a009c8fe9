"""What logits and targets mean: problems, losses, metrics, and how to show a metric's values."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfh.problems.problem import Problem as Problem


def __getattr__(name: str) -> Any:
    # Loaded on first use: `scale` is needed without torch.
    if name != "Problem":
        raise AttributeError(f"module 'mfh.problems' has no attribute {name!r}")
    from mfh.problems.problem import Problem

    return Problem
