"""CPU kernels: products with weights as they lie in the file.

Every kernel is a short compiled loop over checked arrays; `cpu.py` holds the checked wrappers that plugins reach
through the operations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .decode import decode_rows
from .jit import FAST, kernel
from .team import shared, spread

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

ROWS = 32  # weight rows a thread widens at a time


@kernel(fastmath=FAST)
def multiply_some_rows(kind, weight, x, out, each, item):
    """`few_rows_product` for `each` rows of the weight."""
    row = np.empty((1, x.shape[1]), np.float32)
    for o in range(item * each, min(weight.shape[0], item * each + each)):
        decode_rows(kind, weight, o, row)
        for t in range(x.shape[0]):
            total = np.float32(0)
            for i in range(x.shape[1]):
                total += x[t, i] * row[0, i]
            out[t, o] = total


share_products = shared(multiply_some_rows)


def few_rows_product(kind: int, weight: Bytes, x: Floats, out: Floats) -> None:
    """out[t, o] = Σ_i x[t, i] · weight[o, i], for few t: each weight row is widened once, in cache, and used for all t.

    kind: id of the block format; weight: [O, row bytes] uint8; x: [T, I] float32; out: [T, O] float32. Accumulates in
    float32.
    """
    spread(share_products, len(weight), ROWS, kind, weight, x, out)


@kernel
def widen_some_rows(kind, weight, first, out, each, item):
    """`widen_rows` for `each` rows."""
    low = item * each
    decode_rows(kind, weight, first + low, out[low : min(out.shape[0], low + each)])


share_widening = shared(widen_some_rows)


def widen_rows(kind: int, weight: Bytes, first: int, out: Floats) -> None:
    """out[r] = weight[first + r] as float32. weight: [O, row bytes] uint8; out: [R, I] float32."""
    spread(share_widening, len(out), ROWS, kind, weight, first, out)


@kernel
def gather_some_rows(kind, weight, rows, out, each, item):
    """`gather_rows` for `each` rows."""
    for t in range(item * each, min(rows.shape[0], item * each + each)):
        decode_rows(kind, weight, rows[t], out[t : t + 1])


share_gathering = shared(gather_some_rows)


def gather_rows(kind: int, weight: Bytes, rows: npt.NDArray[np.int32], out: Floats) -> None:
    """out[t] = weight[rows[t]] as float32. rows: [T] int32, checked by the caller."""
    spread(share_gathering, len(rows), ROWS, kind, weight, rows, out)
