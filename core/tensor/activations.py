"""Element-wise functions of the MLP, sixteen numbers at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .jit import kernel
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
