"""Compiled gradient descent. `solver` imports it on first use, because numba takes a while to load.

Inputs are stored transposed, (d, n). Every inner loop then runs along independent samples, which the compiler turns
into vector instructions.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import numba as nb
import numpy as np

# Sums may be reordered, nothing else: no assumption about infinities or NaN.
_REORDER = {"reassoc", "contract", "nsz"}
# Python's check for division by zero would keep loops from vectorising.
_njit = nb.njit(fastmath=_REORDER, error_model="numpy")
# Entry points release the interpreter lock, so that each thread can take some of the groups.
_entry = nb.njit(fastmath=_REORDER, error_model="numpy", nogil=True, cache=True)
_LN2_HIGH, _LN2_LOW, _LOG2_E = 0.693145751953125, 1.42860682030941723212e-6, 1.4426950408889634


@_njit
def _sigmoid(z):
    """1 / (1 + exp(-z)) to about 1e-15, without branches or calls, so that loops over it vectorise.

    exp(y) = 2^k * exp(r), |r| <= ln(2)/2: a Taylor polynomial of degree 12, and k written into the exponent bits.
    """
    y = min(max(-z, -708.0), 708.0)
    k = np.floor(y * _LOG2_E + 0.5)
    r = (y - k * _LN2_HIGH) - k * _LN2_LOW
    polynomial = 1.0 / 479001600.0
    polynomial = polynomial * r + 1.0 / 39916800.0
    polynomial = polynomial * r + 1.0 / 3628800.0
    polynomial = polynomial * r + 1.0 / 362880.0
    polynomial = polynomial * r + 1.0 / 40320.0
    polynomial = polynomial * r + 1.0 / 5040.0
    polynomial = polynomial * r + 1.0 / 720.0
    polynomial = polynomial * r + 1.0 / 120.0
    polynomial = polynomial * r + 1.0 / 24.0
    polynomial = polynomial * r + 1.0 / 6.0
    polynomial = polynomial * r + 0.5
    polynomial = polynomial * r + 1.0
    polynomial = polynomial * r + 1.0
    power = np.int64((np.int64(k) + 1023) << 52).view(np.float64)
    return 1.0 / (1.0 + polynomial * power)


@_njit
def _forward(x, w, b, z):
    """Logits z (n,) = w (d,) @ x (d, n) + b: four rows of x at a time, to touch z less often."""
    dim, num_samples = x.shape
    z[:] = b
    for j in range(0, dim - 3, 4):
        _add_four(x[j], x[j + 1], x[j + 2], x[j + 3], w[j], w[j + 1], w[j + 2], w[j + 3], z)
    for j in range(dim - dim % 4, dim):
        for i in range(num_samples):
            z[i] += w[j] * x[j, i]


@_njit
def _add_four(x0, x1, x2, x3, w0, w1, w2, w3, z):
    for i in range(z.shape[0]):
        z[i] += w0 * x0[i] + w1 * x1[i] + w2 * x2[i] + w3 * x3[i]


@_njit
def _forward_pair(x, w, b, z):
    """`_forward` of two problems, z (2, n), w (2, d), b (2,), which share every number read from x."""
    dim, num_samples = x.shape
    z[0, :] = b[0]
    z[1, :] = b[1]
    for j in range(0, dim - 3, 4):
        _add_four_to_pair(x[j], x[j + 1], x[j + 2], x[j + 3], w[0, j : j + 4], w[1, j : j + 4], z[0], z[1])
    for j in range(dim - dim % 4, dim):
        for i in range(num_samples):
            z[0, i] += w[0, j] * x[j, i]
            z[1, i] += w[1, j] * x[j, i]


@_njit
def _add_four_to_pair(x0, x1, x2, x3, v, w, y, z):
    v0, v1, v2, v3, w0, w1, w2, w3 = v[0], v[1], v[2], v[3], w[0], w[1], w[2], w[3]
    for i in range(z.shape[0]):
        a0, a1, a2, a3 = x0[i], x1[i], x2[i], x3[i]
        y[i] += v0 * a0 + v1 * a1 + v2 * a2 + v3 * a3
        z[i] += w0 * a0 + w1 * a1 + w2 * a2 + w3 * a3


@_njit
def _gradient(x, r, g):
    """Sums over samples g (d,) = x (d, n) @ r (n,)."""
    for j in range(x.shape[0]):
        g[j] = _dot(x[j], r)


@_njit
def _gradient_pair(x, r, g):
    """`_gradient` of two problems, r (2, n), g (2, d); two rows of x at a time."""
    dim = x.shape[0]
    for j in range(0, dim - 1, 2):
        g[0, j], g[0, j + 1], g[1, j], g[1, j + 1] = _four_dots(x[j], x[j + 1], r[0], r[1])
    if dim % 2:
        g[0, dim - 1] = _dot(x[dim - 1], r[0])
        g[1, dim - 1] = _dot(x[dim - 1], r[1])


@_njit
def _dot(x, r):
    total = 0.0
    for i in range(x.shape[0]):
        total += x[i] * r[i]
    return total


@_njit
def _four_dots(x0, x1, r0, r1):
    d00, d01, d10, d11 = 0.0, 0.0, 0.0, 0.0
    for i in range(r0.shape[0]):
        d00 += x0[i] * r0[i]
        d01 += x1[i] * r0[i]
        d10 += x0[i] * r1[i]
        d11 += x1[i] * r1[i]
    return d00, d01, d10, d11


@_njit
def _sum(r):
    total = 0.0
    for i in range(r.shape[0]):
        total += r[i]
    return total


@_njit
def _residual(z, t):
    """Gradient of the cross-entropy with respect to z, in place."""
    for i in range(z.shape[0]):
        z[i] = _sigmoid(z[i]) - t[i]


@_njit
def _joint_residual(z1, z2, t):
    """Gradient of n times the joint loss with respect to differences (row 0) and sums (row 1), in place."""
    for i in range(t.shape[0]):
        gap = z1[0, i] - z2[0, i]
        z1[0, i] = 2.0 * (_sigmoid(z1[0, i]) - t[i]) + gap
        z2[0, i] = 2.0 * (_sigmoid(z2[0, i]) - t[i]) - gap
    for i in range(t.shape[0]):
        gap = z1[1, i] - z2[1, i]
        z1[1, i] = gap
        z2[1, i] = -gap


@_entry
def descend(inputs, soft_target, weight, bias, step_size, steps):
    """Gradient descent on the cross-entropy of sigmoid(w @ x + b) against soft targets, in place.

    Args:
        inputs: Inputs, (G, d, n). All problems of group g read inputs[g].
        soft_target: Targets in [0, 1], (G, Q, n).
        weight: Weights, (G, Q, d). They are overwritten.
        bias: Biases, (G, Q). They are overwritten.
        step_size: Factor of the mean gradient.
        steps: Number of steps.
    """
    scale = step_size / inputs.shape[2]
    for group in range(inputs.shape[0]):
        for start in range(0, weight.shape[1], 2):
            stop = min(start + 2, weight.shape[1])
            _descend_few(
                inputs[group],
                soft_target[group, start:stop],
                weight[group, start:stop],
                bias[group, start:stop],
                scale,
                steps,
            )


@_njit
def _descend_few(x, t, w, b, scale, steps):
    """One problem or two on the same inputs."""
    few = w.shape[0]
    z, g = np.empty(t.shape), np.empty(w.shape)
    for _ in range(steps):
        if few == 2:
            _forward_pair(x, w, b, z)
        else:
            _forward(x, w[0], b[0], z[0])
        for q in range(few):
            _residual(z[q], t[q])
            b[q] -= scale * _sum(z[q])
        if few == 2:
            _gradient_pair(x, z, g)
        else:
            _gradient(x, z[0], g[0])
        w -= scale * g


@_entry
def descend_jointly(
    first_inputs, second_inputs, target, first_weight, first_bias, second_weight, second_bias, rate, momentum, steps
):
    """Joint gradient descent of two networks (Algorithm 1, step 1), in place.

    Each network is given by the difference (row 0) and the sum (row 1) of its two logits. The cross-entropy depends on
    the differences only, and the squared error of the logits splits into differences and sums.

    Args:
        first_inputs: Inputs of the first network, (G, d1, n).
        second_inputs: Inputs of the second network, (G, d2, n).
        target: Labels 0.0 or 1.0, (G, n).
        first_weight: Weights of the first network, (G, 2, d1). They are overwritten.
        first_bias: Biases of the first network, (G, 2). They are overwritten.
        second_weight: Weights of the second network, (G, 2, d2). They are overwritten.
        second_bias: Biases of the second network, (G, 2). They are overwritten.
        rate: Learning rate.
        momentum: Momentum of SGD, without dampening.
        steps: Number of steps.
    """
    num_groups, _, num_samples = first_inputs.shape
    for group in range(num_groups):
        x1, x2, t = first_inputs[group], second_inputs[group], target[group]
        w1, b1, w2, b2 = first_weight[group], first_bias[group], second_weight[group], second_bias[group]
        v1, v2, g1, g2 = np.zeros_like(w1), np.zeros_like(w2), np.empty_like(w1), np.empty_like(w2)
        u1, u2 = np.zeros_like(b1), np.zeros_like(b2)
        z1, z2 = np.empty((2, num_samples)), np.empty((2, num_samples))
        for _ in range(steps):
            _forward_pair(x1, w1, b1, z1)
            _forward_pair(x2, w2, b2, z2)
            _joint_residual(z1, z2, t)
            _momentum_step(x1, z1, g1, w1, b1, v1, u1, rate, momentum)
            _momentum_step(x2, z2, g2, w2, b2, v2, u2, rate, momentum)


@_njit
def _momentum_step(x, r, g, w, b, w_velocity, b_velocity, rate, momentum):
    num_samples = x.shape[1]
    _gradient_pair(x, r, g)
    for q in range(2):
        b_velocity[q] = momentum * b_velocity[q] + _sum(r[q]) / num_samples
        b[q] -= rate * b_velocity[q]
        for j in range(w.shape[1]):
            w_velocity[q, j] = momentum * w_velocity[q, j] + g[q, j] / num_samples
            w[q, j] -= rate * w_velocity[q, j]
