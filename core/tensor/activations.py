"""What happens to activations between products: norms, rotations and gates."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .jit import FAST, kernel
from .simd import FLOATS, LANES, Emitter, exp

PIECE = 4096  # numbers a thread takes at once


@intrinsic
def silu_product(typing: Any, gate: Any, up: Any, at: Any) -> Any:
    """gate[at : at + 16] = silu(gate) * up, with silu(x) = x / (1 + exp(-x))."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        place = e.address(context, signature.args[0], args[0], args[2], 4)
        x = e.load(FLOATS, place)
        u = e.load(FLOATS, e.address(context, signature.args[1], args[1], args[2], 4))
        decay = exp(e, builder.fneg(x))
        e.store(builder.fdiv(builder.fmul(x, u), builder.fadd(decay, ir.Constant(FLOATS, [1.0] * LANES))), place)
        return context.get_dummy_value()

    return types.void(gate, up, types.intp), emit


@kernel(parallel=True)
def gate_in_place(gate, up):
    """gate = silu(gate) * up, element by element. Both: float32, flat."""
    for piece in prange((gate.size + PIECE - 1) // PIECE):
        start, stop = piece * PIECE, min(gate.size, piece * PIECE + PIECE)
        whole = start + (stop - start) // LANES * LANES
        for at in range(start, whole, LANES):
            silu_product(gate, up, at)
        for at in range(whole, stop):
            gate[at] = gate[at] / (np.float32(1) + np.exp(-gate[at])) * up[at]


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
