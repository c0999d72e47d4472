"""CPU kernels: products with weights as they lie in the file.

Every kernel is a short compiled loop over checked arrays; `cpu.py` holds the checked wrappers that plugins reach
through the operations.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .decode import decode_rows
from .jit import FAST, kernel

ROWS = 32  # weight rows a thread widens at a time


@kernel(parallel=True, fastmath=FAST)
def few_rows_product(kind, weight, x, out):
    """out[t, o] = Σ_i x[t, i] · weight[o, i], for few t: each weight row is widened once, in cache, and used for all t.

    kind: id of the block format; weight: [O, row bytes] uint8; x: [T, I] float32; out: [T, O] float32. Accumulates in
    float32.
    """
    total, width = weight.shape[0], x.shape[1]
    for chunk in prange((total + ROWS - 1) // ROWS):
        row = np.empty((1, width), np.float32)
        for o in range(chunk * ROWS, min(total, chunk * ROWS + ROWS)):
            decode_rows(kind, weight, o, row)
            for t in range(x.shape[0]):
                total_t = np.float32(0)
                for i in range(width):
                    total_t += x[t, i] * row[0, i]
                out[t, o] = total_t


@kernel(parallel=True)
def widen_rows(kind, weight, first, out):
    """out[r] = weight[first + r] as float32. weight: [O, row bytes] uint8; out: [R, I] float32."""
    rows = out.shape[0]
    for chunk in prange((rows + ROWS - 1) // ROWS):
        low = chunk * ROWS
        decode_rows(kind, weight, first + low, out[low : min(rows, low + ROWS)])


@kernel(parallel=True)
def gather_rows(kind, weight, rows, out):
    """out[t] = weight[rows[t]] as float32. rows: [T] int32, checked by the caller."""
    for t in prange(rows.shape[0]):
        decode_rows(kind, weight, rows[t], out[t : t + 1])
