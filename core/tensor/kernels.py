"""CPU kernels: products with weights in any block format, and attention over a cache.

Every kernel is a short compiled loop over checked arrays; `cpu.py` holds the checked wrappers that plugins reach
through the operations.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .decode import decode_rows
from .jit import FAST, kernel
from .lanes import widen

ROWS = 32  # weight rows a thread widens at a time
TILE = 32  # keys whose scores are held at once


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


@kernel(parallel=True, fastmath=FAST)
def attend_rows(q, k, v, first, window, scale, out):
    """Attention of one sequence's rows over its cache, with a running softmax (arXiv:2205.14135, section 3.1).

    q: [T, H, E] float32; k: [S, K, E], v: [S, K, F], float32 or the bits of float16; row t stands at position first + t
    and sees the keys up to itself, of the last `window` positions if that is not 0. out: [T, H, F] float32. The query
    heads of one group share each load of a key. Accumulates in float32.
    """
    T, H, E = q.shape
    K, F = k.shape[1], v.shape[2]
    G = H // K
    for item in prange(T * K):
        t, head = item // K, item % K
        end = first + t + 1
        low = max(0, end - window) if window > 0 else 0
        scores = np.empty((G, TILE), np.float32)
        sums = np.zeros((G, F), np.float32)
        peak = np.full(G, -np.inf, np.float32)
        norm = np.zeros(G, np.float32)
        line = np.empty(max(E, F), np.float32)
        for start in range(low, end, TILE):
            n = min(TILE, end - start)
            for s in range(n):
                for e in range(E):
                    line[e] = widen(k[start + s, head, e])
                for g in range(G):
                    score = np.float32(0)
                    for e in range(E):
                        score += q[t, head * G + g, e] * line[e]
                    scores[g, s] = score * scale
            for g in range(G):
                top = peak[g]
                for s in range(n):
                    top = max(top, scores[g, s])
                shrink = np.exp(peak[g] - top)
                peak[g] = top
                norm[g] *= shrink
                for f in range(F):
                    sums[g, f] *= shrink
                for s in range(n):
                    scores[g, s] = np.exp(scores[g, s] - top)
                    norm[g] += scores[g, s]
            for s in range(n):
                for f in range(F):
                    line[f] = widen(v[start + s, head, f])
                for g in range(G):
                    for f in range(F):
                        sums[g, f] += scores[g, s] * line[f]
        for g in range(G):
            for f in range(F):
                out[t, head * G + g, f] = sums[g, f] / norm[g]
