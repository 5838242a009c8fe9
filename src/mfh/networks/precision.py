"""How far two computations may lie apart."""

import torch
from torch import Tensor


def at_least_single(tensor: Tensor) -> Tensor:
    """Half precision is for networks; sums over samples need more."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def tolerance(reference: Tensor) -> float:
    """How far two computations of `reference` may lie apart."""
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    return relative_tolerance(reference.dtype) * max(scale, 1e-12)


def relative_tolerance(dtype: torch.dtype) -> float:
    """A few hundred roundings of single or double precision, a few of half precision."""
    rounding: float = torch.finfo(dtype).eps
    return 4 * rounding if rounding > 1e-4 else rounding ** (2 / 3)
