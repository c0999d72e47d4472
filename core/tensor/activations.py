"""What happens to activations between products: norms and rotations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .jit import FAST, kernel
from .team import shared, spread

Floats = npt.NDArray[np.float32]

LITTLE = 1 << 15  # numbers that one thread is done with before others have looked up
SHARE = 1 << 13  # numbers that a thread takes at once, about
# Rows of activations that are computed with at once: of many more, as an image has, arrays would be so large that the
# system takes their memory back each time, and clears every page that it gives again.
PIECE = 1024


def each(rows: int, size: int) -> int:
    """Return how many of `rows` rows of `size` numbers a thread takes at once: all of them if they are few."""
    return max(1, rows if rows * size < LITTLE else SHARE // size)


def pieces_of(x: Floats) -> list[Floats]:
    """Return the rows of x, PIECE at a time."""
    return [x[first : first + PIECE] for first in range(0, len(x), PIECE)]


@kernel
def add_to_some_rows(x, bias, each, item):
    """x += bias for `each` rows of x, [R, D]."""
    for row in range(item * each, min(x.shape[0], item * each + each)):
        for i in range(bias.size):
            x[row, i] += bias[i]


share_adding = shared(add_to_some_rows)


def add_to_rows(x: Floats, bias: Floats) -> None:
    """x += bias for each row of x, [R, D]."""
    spread(share_adding, len(x), each(*x.shape), x, bias)


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
def norm_some_rows(x, weight, eps, out, each, item):
    """`norm_row` for `each` rows of x, [R, D]."""
    for row in range(item * each, min(x.shape[0], item * each + each)):
        norm_row(x[row], weight, eps, out[row])


share_norms = shared(norm_some_rows)


def norm_rows(x: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    """`norm_row` for each row of x, [R, D]."""
    spread(share_norms, len(x), each(*x.shape), x, weight, eps, out)


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
def layer_norm_some_rows(x, weight, bias, eps, out, each, item):
    """`layer_norm_row` for `each` rows of x, [R, D]."""
    for row in range(item * each, min(x.shape[0], item * each + each)):
        layer_norm_row(x[row], weight, bias, eps, out[row])


share_layer_norms = shared(layer_norm_some_rows)


def layer_norm_rows(x: Floats, weight: Floats, bias: Floats, eps: np.float32, out: Floats) -> None:
    """`layer_norm_row` for each row of x, [R, D]."""
    spread(share_layer_norms, len(x), each(*x.shape), x, weight, bias, eps, out)


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
def rotate_some(x, cos, sin, interleaved, out, each, item):
    """`rotate_token` for `each` tokens of x, [T, heads, E]."""
    for t in range(item * each, min(x.shape[0], item * each + each)):
        rotate_token(x[t], cos[t], sin[t], interleaved, out[t])


share_rotations = shared(rotate_some)


def rotate(x: Floats, cos: Floats, sin: Floats, interleaved: bool, out: Floats) -> None:
    """`rotate_token` for each token of x, [T, heads, E]."""
    spread(share_rotations, len(x), each(len(x), x.shape[1] * x.shape[2]), x, cos, sin, interleaved, out)
