"""How far two computations of the same number may lie apart."""

import torch
from torch import Tensor


def tolerance(reference: Tensor) -> float:
    """The largest difference allowed between `reference` and a second computation of it."""
    scale = float(reference.detach().abs().max()) if reference.numel() else 0.0
    return relative_tolerance(reference.dtype) * max(scale, 1e-12)


def relative_tolerance(dtype: torch.dtype) -> float:
    """A few hundred rounding errors of single or double precision, four of half precision."""
    rounding: float = torch.finfo(dtype).eps
    return 4 * rounding if rounding > 1e-4 else rounding ** (2 / 3)


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision: networks run in that, but sums over samples need more."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
