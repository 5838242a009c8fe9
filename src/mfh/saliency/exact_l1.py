"""Sums of absolute differences over all pairs of samples, which the exact L1 distance needs.

Replacing the contribution w x_i of a channel by that of a sample j drawn uniformly turns the difference of logits r_i
into a_i + w x_j, where a_i = r_i - w x_i. The mean of |a_i + w x_j| over j follows from the number and the sum of the
x_j below z_i = -a_i / w. That takes one sort of the channel's activations, which serves all logits, and a search for
each sample and logit.

Where z_i lies beyond all activations, the mean is |a_i + w times their mean|, without a search. So the compiled sums
add that for all samples first, many at once, and search only for those between the activations. A table of even steps
over the activations leaves few to search among.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# Channels that a thread reads at once: activations lie sample by sample, and this many share a line of the cache.
_GROUP = 8
# Samples that are worked on at once, so that they stay in the processor's cache.
_BLOCK = 2048


def mean_absolute_sums(a: Tensor, b: Tensor) -> Tensor:
    """For every entry of `a`, the mean of |a + b_j| over all j, in O(N log N) by sorting and prefix sums.

    Args:
        a: (..., N).
        b: (..., M), with the same leading dimensions as `a`.

    Returns:
        (..., N), the means.

    Example:
        >>> mean_absolute_sums(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 4.0]))
        tensor([3., 2.])
    """
    ordered = b.sort(-1).values.contiguous()
    sums = torch.nn.functional.pad(ordered.cumsum(-1), (1, 0))
    below = torch.searchsorted(ordered, (-a).contiguous())  # the number of b_j that make a + b_j negative
    count = b.shape[-1]
    return (sums[..., -1:] - 2 * sums.gather(-1, below) + a * (count - 2 * below)) / count


def compiled_channel_sums(
    mine: Tensor, everyone: Tensor, residual: Tensor, weights: Tensor, track: Any = iter
) -> Tensor | None:
    """For every channel, the sum over samples i and logits k of the mean of |r_ik - w_kc x_ic + w_kc x_jc| over j.

    It runs in torch's number of threads. Besides its arguments it keeps a copy of `residual`, and about 30 numbers per
    sample of `everyone` in each thread.

    Args:
        mine: (N, C) activations of the samples to sum over, on the CPU.
        everyone: (M, C) activations of the samples to draw from, on the CPU.
        residual: (N, K) float64, the differences of the logits r, on the CPU.
        weights: (K, C) float64, on the CPU.
        track: A function that wraps the loop over groups of channels to show progress.

    Returns:
        (C,) float64, or None where there is no compiled code: numba is missing or finds no folder for its cache.
    """
    kernel = _compiled()
    if kernel is None:
        return None
    rows, columns = np.ascontiguousarray(residual.numpy().T), np.ascontiguousarray(weights.numpy().T)

    def sums(start: int) -> list[float]:
        group = slice(start, start + _GROUP)
        own, donors = _by_channel(mine[:, group]), _by_channel(everyone[:, group])
        return [
            kernel(*_prepared(own[c], donors[c]), rows, column) / len(everyone)
            for c, column in enumerate(columns[group])
        ]

    starts = range(0, len(columns), _GROUP)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = [part for _, part in zip(track(starts), pool.map(sums, starts), strict=True)]
    return torch.tensor([total for part in parts for total in part], dtype=torch.float64)


def _by_channel(activations: Tensor) -> Array:
    if activations.dtype == torch.bfloat16:  # which numpy lacks
        activations = activations.float()
    return np.ascontiguousarray(activations.numpy().T, dtype=np.float64)


def _prepared(own: Array, donors: Array) -> tuple[Any, ...]:
    """Arguments of `_absolute_sum`: the samples' own activations, those to draw from in order, their sums, and a table.

    The table's steps are even between the 1st and the 1023rd 1024th of the activations, so that a few far ones do not
    leave all others in one step. The mean is taken off all activations: it cancels, but would cost digits.
    """
    middle = donors.mean()
    ordered = np.sort(donors - middle)
    count = len(ordered)
    low, high = ordered[count // 1024], ordered[count - 1 - count // 1024]
    with np.errstate(divide="ignore", over="ignore"):
        scale = count / (high - low)
    if not np.isfinite(scale):
        scale = 0.0
    step = np.clip((ordered - low) * scale, -1.0, count).astype(np.int64) if scale else np.zeros(count, np.int64)
    table = np.zeros(count + 3, dtype=np.int32 if count < 2**31 else np.int64)
    np.cumsum(np.bincount(step + 1, minlength=count + 2), out=table[1:])
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    return own - middle, np.append(ordered, [np.inf] * 4), sums, low, scale, table


@functools.cache
def _compiled() -> Callable[..., float] | None:
    try:
        import numba

        wrapped = numba.njit(
            nogil=True,
            cache=True,
            error_model="numpy",
            fastmath={"reassoc", "contract"},  # sums in any order, so that several numbers are added at once
        )
        compiled: Callable[..., float] = wrapped(_absolute_sum)
    except (ImportError, RuntimeError):  # the second where numba may write nowhere
        return None
    return compiled


def _absolute_sum(
    own: Array,
    ordered: Array,
    sums: Array,
    low: float,
    scale: float,
    table: NDArray[Any],
    residual: NDArray[Any],
    weights: Array,
) -> float:
    """The sum of |residual[k, i] - weights[k] own[i] + weights[k] ordered[j]| over i, j and k. numba compiles it."""
    count, last_step = len(sums) - 1, len(table) - 3
    whole, first, last = sums[count], ordered[0], ordered[count - 1]
    zeros, between = np.empty(_BLOCK), np.empty(_BLOCK + 1)
    total = 0.0
    for k in range(len(weights)):
        weight = weights[k]
        if abs(weight) < 1e-300:  # its inverse may be infinite
            for i in range(len(own)):
                total += abs(residual[k, i]) * count
            continue
        inverse, offset = 1.0 / weight, weight * whole / count
        at_mean, above = 0.0, 0.0
        for start in range(0, len(own), _BLOCK):
            left, mine = residual[k, start : start + _BLOCK], own[start : start + _BLOCK]
            for i in range(len(mine)):
                at_mean += abs(offset + (left[i] - weight * mine[i]))
                zeros[i] = mine[i] - left[i] * inverse  # the activation that makes the difference vanish
            found = 0
            for i in range(len(mine)):  # without a branch, which would often be mispredicted; NaN is not between
                zero = zeros[i]
                between[found] = zero
                found += (zero > first) & (zero < last)
            for i in range(found):
                zero = between[i]
                step = (zero - low) * scale
                step = step if step > -1.0 else -1.0
                step = step if step < last_step else last_step
                begin, end = table[int(step) + 1], table[int(step) + 2]
                if end - begin <= 4:  # those after them are not below
                    here = ordered[begin : begin + 4]
                    begin += (here[0] < zero) + (here[1] < zero) + (here[2] < zero) + (here[3] < zero)
                else:
                    while begin < end:
                        middle = (begin + end) // 2
                        if ordered[middle] < zero:
                            begin = middle + 1
                        else:
                            end = middle
                above += whole - 2.0 * sums[begin] + zero * (2 * begin - count) - abs(whole - count * zero)
        total += count * at_mean + abs(weight) * above
    return total
