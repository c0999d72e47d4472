"""Functions of single numbers: the activations of MLPs, in place, and the product of one with a gate's other half.

All but the exact gelu are x * sigmoid of something: silu is x * sigmoid(x), and 1/2 * (1 + tanh(z)) = sigmoid(2 z).
Sources: Gaussian Error Linear Units, arXiv:1606.08415, section 2; GLU Variants Improve Transformer, arXiv:2002.05202.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .activations import each
from .jit import kernel
from .ops import Activation
from .simd import FLOATS, LANES, Emitter, erf, exp
from .team import shared, spread

Floats = npt.NDArray[np.float32]

NOTHING = np.empty(0, np.float32)
SILU, GELU, GELU_TANH, GELU_QUICK = range(4)
FORMS: dict[Activation, int] = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "gelu_quick": GELU_QUICK}


def activate_in_place(x: Floats, activation: Activation, times: Floats = NOTHING) -> None:
    """x = activation(x), or activation(x) * times. Both: contiguous, of one shape."""
    assert x.flags.c_contiguous and times.flags.c_contiguous and times.size in (0, x.size)
    spread(share_activations, x.size, each(x.size, 1), FORMS[activation], x.reshape(-1), times.reshape(-1))


def _constant(value: float) -> Any:
    return ir.Constant(FLOATS, [value] * LANES)


def _x_sigmoid(e: Emitter, x: Any, of: Any) -> Any:
    """Return x * sigmoid(of), from exp(-|of|), which cannot overflow."""
    b = e.builder
    decay = exp(e, b.fneg(e.call("llvm.fabs.v16f32", FLOATS, of)))
    above = b.select(b.fcmp_ordered(">=", of, _constant(0.0)), _constant(1.0), decay)
    return b.fdiv(b.fmul(x, above), b.fadd(decay, _constant(1.0)))


def _silu(e: Emitter, x: Any) -> Any:
    return _x_sigmoid(e, x, x)


def _gelu(e: Emitter, x: Any) -> Any:
    """x * (1 + erf(x / sqrt(2))) / 2."""
    half = e.builder.fmul(x, _constant(0.5))
    return e.fma(half, erf(e, e.builder.fmul(x, _constant(math.sqrt(0.5)))), half)


def _gelu_tanh(e: Emitter, x: Any) -> Any:
    """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2."""
    b, slope = e.builder, 2 * math.sqrt(2 / math.pi)
    inner = e.fma(b.fmul(x, x), _constant(0.044715 * slope), _constant(slope))
    return _x_sigmoid(e, x, b.fmul(inner, x))


def _gelu_quick(e: Emitter, x: Any) -> Any:
    """x * sigmoid(1.702 x)."""
    return _x_sigmoid(e, x, e.builder.fmul(x, _constant(1.702)))


def _in_place(formula: Callable[[Emitter, Any], Any]) -> Any:
    """Return an intrinsic f(x, at): x[at : at + 16] = formula of them."""

    def apply(typing: Any, x: Any, at: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emitter(builder)
            place = e.address(context, signature.args[0], args[0], args[1], 4)
            e.store(formula(e, e.load(FLOATS, place)), place)
            return context.get_dummy_value()

        return types.void(x, types.intp), emit

    return intrinsic(apply)


silu, gelu, gelu_tanh, gelu_quick = (_in_place(formula) for formula in (_silu, _gelu, _gelu_tanh, _gelu_quick))


@kernel
def activate_vector(form, x, at):
    """x[at : at + 16] = the activation of that form."""
    if form == SILU:
        silu(x, at)
    elif form == GELU:
        gelu(x, at)
    elif form == GELU_TANH:
        gelu_tanh(x, at)
    else:
        gelu_quick(x, at)


@kernel
def activate_piece(form, x, times, start, stop):
    """Activate x[start:stop], and multiply it with times if that is not empty."""
    whole = start + (stop - start) // LANES * LANES
    for at in range(start, whole, LANES):
        activate_vector(form, x, at)
    if whole < stop:
        rest = np.zeros(LANES, np.float32)
        rest[: stop - whole] = x[whole:stop]
        activate_vector(form, rest, 0)
        x[whole:stop] = rest[: stop - whole]
    if times.size > 0:
        for i in range(start, stop):
            x[i] *= times[i]


@kernel
def activate_some(form, x, times, each, item):
    """`activate_piece` for `each` numbers of x. x, times: float32, flat."""
    activate_piece(form, x, times, item * each, min(x.size, item * each + each))


share_activations = shared(activate_some)
