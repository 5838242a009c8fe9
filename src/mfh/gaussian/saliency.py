"""Algorithm 1 for a linear teacher: a saliency for every input."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.gaussian.settings import Permutations
from mfh.values import checked

Array = NDArray[np.float64]


def input_saliency(
    weight: Array,
    bias: Array,
    inputs: Array,
    student_logits: Array,
    *,
    permutations: int | Literal["exact"] = "exact",
    seed: int | np.random.Generator = 0,
) -> Array:
    """How far the squared distance to the student's logits rises when one of the teacher's inputs is permuted.

    This is step 2 of Algorithm 1 (Xue et al. 2023) with the mean squared error and the input itself as the layer. The
    teacher's K logits are h = W x + b, the student's are s, and r = h - s. The mean over all permutations is

        E[Dist_c] - Dist = (2 / K) * (var(x_c) |w_c|^2 - w_c . cov(r, x_c))

    with the (co)variances of the data set, divided by n, and column c of W as w_c.

    Args:
        weight: The teacher's weights W, (K, d).
        bias: The teacher's biases b, (K,).
        inputs: The teacher's inputs, (n, d).
        student_logits: The student's logits, (n, K).
        permutations: "exact" for the mean over all permutations, or the number of random ones to average over.
        seed: Seed of the random permutations, or a generator, which is advanced.

    Returns:
        (d,) rise of the distance. A larger value means a more modality-general input.

    Raises:
        InputError: `permutations` is neither "exact" nor a whole number from 1, or the shapes do not fit together.
    """
    num_samples, dim = inputs.shape
    if weight.shape[1] != dim or student_logits.shape != (num_samples, len(weight)):
        raise InputError(
            f"weight {weight.shape}, inputs {inputs.shape} and student_logits {student_logits.shape} do not fit; "
            "(K, d), (n, d) and (n, K) were expected"
        )
    if permutations != "exact":
        checked("permutations", permutations, Permutations)
    residual = inputs @ weight.T + bias - student_logits
    squared_norm = (weight**2).sum(axis=0)
    if permutations == "exact":
        centred = inputs - inputs.mean(axis=0)
        covariance = residual.T @ centred / num_samples
        rise: Array = inputs.var(axis=0) * squared_norm - (weight * covariance).sum(axis=0)
        rise *= 2.0 / len(weight)
        return rise

    # With delta = permuted - unpermuted, this is the mean of sum_k (r_k + w_kc delta)^2 - r_k^2.
    generator = np.random.default_rng(seed)
    unpermuted = residual.T @ inputs
    energy = (inputs**2).sum(axis=0)
    total = np.zeros(dim)
    for _ in range(permutations):
        permuted = generator.permuted(inputs, axis=0)
        total += 2.0 * (weight * (residual.T @ permuted - unpermuted)).sum(axis=0)
        total += 2.0 * squared_norm * (energy - (inputs * permuted).sum(axis=0))
    total /= permutations * num_samples * len(weight)
    return total
