"""What happens to activations between products: norms and rotations."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import FAST, kernel


@kernel(fastmath=FAST)
def norm_row(x, weight, eps, out):
    """out = weight * x / sqrt(mean(x^2) + eps) for one row. Sums in float32."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(total / np.float32(x.size) + eps)
    for i in range(x.size):
        out[i] = x[i] * scale * weight[i]


@kernel
def norm_few_rows(x, weight, eps, out):
    """`norm_row` for each row of x, [R, D], on this thread: waking others costs more than a few rows."""
    for row in range(x.shape[0]):
        norm_row(x[row], weight, eps, out[row])


@kernel(parallel=True)
def norm_rows(x, weight, eps, out):
    """`norm_row` for each row of x, [R, D]."""
    for row in prange(x.shape[0]):
        norm_row(x[row], weight, eps, out[row])


@kernel(fastmath=FAST)
def layer_norm_row(x, weight, bias, eps, out):
    """out = weight * (x - mean(x)) / sqrt(variance(x) + eps) + bias for one row. Sums in float32, the mean's first."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i]
    mean = total / np.float32(x.size)
    square = np.float32(0)
    for i in range(x.size):
        square += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / np.sqrt(square / np.float32(x.size) + eps)
    for i in range(x.size):
        out[i] = (x[i] - mean) * scale * weight[i] + bias[i]


@kernel
def layer_norm_few_rows(x, weight, bias, eps, out):
    """`layer_norm_row` for each row of x, [R, D], on this thread."""
    for row in range(x.shape[0]):
        layer_norm_row(x[row], weight, bias, eps, out[row])


@kernel(parallel=True)
def layer_norm_rows(x, weight, bias, eps, out):
    """`layer_norm_row` for each row of x, [R, D]."""
    for row in prange(x.shape[0]):
        layer_norm_row(x[row], weight, bias, eps, out[row])


@kernel(fastmath=FAST)
def rotate_token(x, cos, sin, interleaved, out):
    """Turn the pairs of one token's heads. x: [heads, E]; cos, sin: [n/2] with n <= E; the rest passes through."""
    half = cos.size
    for head in range(x.shape[0]):
        for k in range(half):
            a, b = (2 * k, 2 * k + 1) if interleaved else (k, k + half)
            first, second = x[head, a], x[head, b]
            out[head, a] = first * cos[k] - second * sin[k]
            out[head, b] = second * cos[k] + first * sin[k]
        for e in range(2 * half, x.shape[1]):
            out[head, e] = x[head, e]


@kernel
def rotate_few(x, cos, sin, interleaved, out):
    """`rotate_token` for each token of x, [T, heads, E], on this thread."""
    for t in range(x.shape[0]):
        rotate_token(x[t], cos[t], sin[t], interleaved, out[t])


@kernel(parallel=True)
def rotate(x, cos, sin, interleaved, out):
    """`rotate_token` for each token of x, [T, heads, E]."""
    for t in prange(x.shape[0]):
        rotate_token(x[t], cos[t], sin[t], interleaved, out[t])
