"""Full-batch gradient descent for many linear softmax classifiers at once; the result is that of one at a time.

Two facts make it fast. They change nothing but the rounding:

1. With two classes, the gradients of the two logits are opposite. Their sum never moves, and training changes their
   difference only. So one weight vector per classifier is enough.
2. At temperature 1, the gradient of `label_weight * CE + teacher_weight * KL` is, up to a factor, the gradient of the
   cross-entropy against a mixture of the label and the teacher's probability. So distillation costs as much as plain
   training, and one loop does both.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.gaussian.settings import Steps, check_loss
from mfh.values import checked

Array = NDArray[np.float64]
Device = str


@dataclass(frozen=True)
class Classifiers:
    """Linear softmax classifiers of two classes: Q classifiers for each of G data sets.

    Args:
        weight: Weights, (G, Q, 2, d).
        bias: Biases, (G, Q, 2).
    """

    weight: Array
    bias: Array

    def logits(self, inputs: Array) -> Array:
        """Logits (G, Q, n, 2) for inputs (G, n, d)."""
        product: Array = np.matmul(inputs[:, None], self.weight.swapaxes(-1, -2))
        return product + self.bias[:, :, None, :]

    def probability(self, inputs: Array) -> Array:
        """Probability of class 1, (G, Q, n), for inputs (G, n, d)."""
        from scipy.special import expit

        probability: Array = expit(self._margin(inputs))
        return probability

    def accuracy(self, inputs: Array, target: Array) -> Array:
        """Accuracy in percent, (G, Q), for inputs (G, n, d) and labels (G, n) of 0.0 and 1.0."""
        predicted = self._margin(inputs) > 0
        accuracy: Array = 100.0 * (predicted == target[:, None].astype(bool)).mean(axis=-1)
        return accuracy

    def _margin(self, inputs: Array) -> Array:
        """Logit of class 1 minus logit of class 0, (G, Q, n)."""
        weight, bias = _difference(self.weight, self.bias)
        margin: Array = np.matmul(weight, inputs.swapaxes(-1, -2)) + bias[..., None]
        return margin


def initial_classifiers(generator: np.random.Generator, dim: int) -> Classifiers:
    """One random classifier, G = Q = 1, uniform within ±1/sqrt(dim) as in `torch.nn.Linear(dim, 2)`.

    Args:
        generator: Draws the weights.
        dim: Width of the input.
    """
    bound = 1.0 / np.sqrt(dim)
    return Classifiers(generator.uniform(-bound, bound, (1, 1, 2, dim)), generator.uniform(-bound, bound, (1, 1, 2)))


def fit(
    inputs: Array,
    target: Array,
    initial: Classifiers,
    *,
    teacher_probability: Array | None = None,
    steps: int = 1000,
    learning_rate: float = 0.1,
    label_weight: float = 1.0,
    teacher_weight: float = 1.0,
    reduction: Literal["batchmean", "mean"] = "mean",
    device: Device = "auto",
) -> Classifiers:
    """Train G x Q classifiers by full-batch gradient descent, on labels or with a teacher.

    With a teacher, the loss of a classifier is label_weight * CE(logits, target) + teacher_weight * KL(teacher ||
    student), at temperature 1 and averaged over the n samples. Without a teacher it is CE(logits, target).

    Args:
        inputs: Inputs, (G, n, d): one data set for each group.
        target: Labels 0.0 or 1.0, (G, n).
        initial: Weights to start from, (G, Q, 2, d), or with sizes of 1 where they are shared.
        teacher_probability: Each student's teacher's probability of class 1, (G, Q, n). None trains on labels.
        steps: Number of gradient steps.
        learning_rate: Learning rate of those steps.
        label_weight: Weight of the cross-entropy, at least 0.
        teacher_weight: Weight of the divergence, at least 0.
        reduction: Reduction of the divergence. "batchmean" sums over the two classes, "mean" (as published) halves
            that.
        device: "cpu" for the compiled loop on all cores, "cuda" for one batch on a GPU, "auto" for a GPU if there is
            one.

    Returns:
        The trained classifiers, in float64.

    Raises:
        InputError: Shapes do not fit together, an option is out of range, or there is no GPU for "cuda".
    """
    checked("steps", steps, Steps)
    check_loss(learning_rate, label_weight, teacher_weight, reduction)
    num_groups, num_samples, dim = inputs.shape
    if target.shape != (num_groups, num_samples):
        raise InputError(f"target has shape {target.shape}; {(num_groups, num_samples)} was expected to fit inputs")
    if teacher_probability is None:
        per_group = initial.weight.shape[1]
        soft_target, factor = np.repeat(target[:, None], per_group, axis=1), 1.0
    else:
        if teacher_probability.shape[::2] != (num_groups, num_samples):
            raise InputError(
                f"teacher_probability has shape {teacher_probability.shape}; "
                f"({num_groups}, Q, {num_samples}) was expected to fit inputs"
            )
        per_group = teacher_probability.shape[1]
        share = teacher_weight * (0.5 if reduction == "mean" else 1.0)
        factor = label_weight + share
        soft_target = (label_weight * target[:, None] + share * teacher_probability) / factor

    try:
        full_weight = np.broadcast_to(initial.weight.astype(np.float64), (num_groups, per_group, 2, dim))
        full_bias = np.broadcast_to(initial.bias.astype(np.float64), (num_groups, per_group, 2))
    except ValueError:
        raise InputError(
            f"initial has weights of shape {initial.weight.shape} and biases of shape {initial.bias.shape}; "
            f"they do not broadcast to {(num_groups, per_group, 2, dim)} and {(num_groups, per_group, 2)}"
        ) from None
    weight, bias = _difference(full_weight, full_bias)
    # The factor 2: both logits move, in opposite directions.
    step_size = 2.0 * learning_rate * factor
    transposed = _transposed(inputs)
    if _on_gpu(device):
        weight, bias = _descend_in_torch(transposed, soft_target, weight, bias, step_size, steps, "cuda")
    else:
        from mfh.gaussian._kernels import descend

        _in_threads(descend, [transposed, np.ascontiguousarray(soft_target), weight, bias], step_size, steps)
    return _from_difference_and_sum(weight, bias, full_weight.sum(axis=2), full_bias.sum(axis=2))


def fit_jointly(
    teacher_inputs: Array,
    student_inputs: Array,
    target: Array,
    initial_teacher: Classifiers,
    initial_student: Classifiers,
    *,
    steps: int = 1000,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    device: Device = "auto",
) -> tuple[Classifiers, Classifiers]:
    """Train teacher and student together, G pairs at once (Algorithm 1, step 1).

    Each of the G data sets has one teacher and one student (Q = 1). Their loss is CE(teacher, y) + CE(student, y) +
    MSE(teacher logits, student logits), and SGD with momentum runs on the whole data set.

    Args:
        teacher_inputs: The teachers' inputs, (G, n, teacher_dim).
        student_inputs: The students' inputs, (G, n, student_dim).
        target: Labels 0.0 or 1.0, (G, n).
        initial_teacher: Teachers to start from, one for each data set or one for all.
        initial_student: Students to start from, one for each data set or one for all.
        steps: Number of gradient steps.
        learning_rate: Learning rate of those steps.
        momentum: Momentum, from 0 to below 1.
        device: Device to train on, see `fit`.

    Returns:
        The trained teachers and students.
    """
    num_groups = len(target)
    inputs = [_transposed(teacher_inputs), _transposed(student_inputs)]
    weights, biases = [], []
    for initial in (initial_teacher, initial_student):
        weights.append(_difference_and_sum(initial.weight[:, 0], num_groups))
        biases.append(_difference_and_sum(initial.bias[:, 0], num_groups))
    target = np.ascontiguousarray(target)
    if _on_gpu(device):
        weights, biases = _descend_jointly_in_torch(
            inputs, target, weights, biases, learning_rate, momentum, steps, "cuda"
        )
    else:
        from mfh.gaussian._kernels import descend_jointly

        first, second = inputs
        arrays = [first, second, target, weights[0], biases[0], weights[1], biases[1]]
        _in_threads(descend_jointly, arrays, learning_rate, momentum, steps)
    teacher, student = (
        _from_difference_and_sum(weight[:, :1], bias[:, :1], weight[:, 1:], bias[:, 1:])
        for weight, bias in zip(weights, biases, strict=True)
    )
    return teacher, student


def _transposed(inputs: Array) -> Array:
    """Inputs (G, n, d) as (G, d, n), contiguous from the start of a cache line, where vector loads are faster."""
    num_groups, num_samples, dim = inputs.shape
    line = 64 // np.dtype(np.float64).itemsize
    memory = np.empty(inputs.size + line)
    start = -(memory.ctypes.data // memory.itemsize) % line
    transposed = memory[start : start + inputs.size].reshape(num_groups, dim, num_samples)
    transposed[...] = inputs.swapaxes(1, 2)
    return transposed


def _difference_and_sum(values: Array, num_groups: int) -> Array:
    """Difference and sum of the two logits' parameters, (G, 2, ...), from the parameters (G or 1, 2, ...)."""
    rows = np.stack([values[:, 1] - values[:, 0], values.sum(axis=1)], axis=1)
    return np.broadcast_to(rows, (num_groups, *rows.shape[1:])).copy()


def _difference(weight: Array, bias: Array) -> tuple[Array, Array]:
    return weight[:, :, 1] - weight[:, :, 0], bias[:, :, 1] - bias[:, :, 0]


def _from_difference_and_sum(weight: Array, bias: Array, weight_sum: Array, bias_sum: Array) -> Classifiers:
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError("the linear models diverged; choose a smaller learning rate or smaller loss weights")
    return Classifiers(
        np.stack([weight_sum - weight, weight_sum + weight], axis=2) / 2,
        np.stack([bias_sum - bias, bias_sum + bias], axis=2) / 2,
    )


def _in_threads(kernel: Callable[..., None], arrays: list[Array], *options: float) -> None:
    """Call the kernel on slices of the groups, in parallel.

    Plain threads, because numba's parallel loops share OpenMP with torch, change its number of threads and do not
    survive a fork.
    """
    num_groups, num_slices = len(arrays[0]), 4 * (os.cpu_count() or 1)
    starts = sorted({num_groups * k // num_slices for k in range(num_slices + 1)})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in [
            pool.submit(kernel, *(array[start:stop] for array in arrays), *options) for start, stop in pairwise(starts)
        ]:
            result.result()


def _on_gpu(device: Device) -> bool:
    if device == "cpu":
        return False
    if device not in ("auto", "cuda"):
        raise InputError(f"device is {device!r}; choose 'auto', 'cpu' or 'cuda'")
    # Importing torch takes longer than ten seeds, so ask the operating system for a driver first.
    if Path("/proc/driver/nvidia").exists() or device == "cuda":
        import torch

        if torch.cuda.is_available():
            return True
    if device == "cuda":
        raise InputError("device is 'cuda', but torch finds no GPU here; choose 'auto' or 'cpu'")
    return False


def _descend_in_torch(
    inputs: Array, soft_target: Array, weight: Array, bias: Array, step_size: float, steps: int, device: str
) -> tuple[Array, Array]:
    """The same as `_kernels.descend`, by batched matrix products. Returns new weights and biases."""
    import torch

    with torch.no_grad():
        x, t, w, b = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (inputs, soft_target, weight, bias))
        scale = step_size / x.shape[2]
        rows = x.transpose(1, 2).contiguous()
        b = b[..., None]
        for _ in range(steps):
            residual = torch.sigmoid(torch.bmm(w, x) + b) - t
            w = torch.baddbmm(w, residual, rows, alpha=-scale)
            b = b - scale * residual.sum(dim=2, keepdim=True)
        return w.cpu().numpy(), b[..., 0].cpu().numpy()


def _descend_jointly_in_torch(
    inputs: list[Array],
    target: Array,
    weights: list[Array],
    biases: list[Array],
    learning_rate: float,
    momentum: float,
    steps: int,
    device: str,
) -> tuple[list[Array], list[Array]]:
    """The same as `_kernels.descend_jointly`, by batched matrix products. Returns new weights and biases."""
    import torch

    with torch.no_grad():
        x = [torch.from_numpy(a).to(device) for a in inputs]
        rows = [a.transpose(1, 2).contiguous() for a in x]
        w = [torch.from_numpy(a).to(device) for a in weights]
        b = [torch.from_numpy(a).to(device)[..., None] for a in biases]
        t = torch.from_numpy(np.ascontiguousarray(target)).to(device)
        w_velocity = [torch.zeros_like(a) for a in w]
        b_velocity = [torch.zeros_like(a) for a in b]
        for _ in range(steps):
            z = [torch.bmm(w[k], x[k]) + b[k] for k in range(2)]
            gap = z[0] - z[1]
            for k, sign in enumerate((1.0, -1.0)):
                residual = sign * gap
                residual[:, 0] += 2.0 * (torch.sigmoid(z[k][:, 0]) - t)
                residual /= t.shape[1]
                w_velocity[k] = torch.baddbmm(momentum * w_velocity[k], residual, rows[k])
                b_velocity[k] = momentum * b_velocity[k] + residual.sum(dim=2, keepdim=True)
                w[k] = w[k] - learning_rate * w_velocity[k]
                b[k] = b[k] - learning_rate * b_velocity[k]
        return [a.cpu().numpy() for a in w], [a[..., 0].cpu().numpy() for a in b]
