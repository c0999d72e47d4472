"""float16 in kernels: numba has no such type on the CPU, so arrays hold its bits and `widen` converts an element."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic


@intrinsic
def widen(typing: Any, value: Any) -> Any:
    """Return the float32 that value is: a float32 as it stands, or a uint16 that holds the bits of a float16."""
    if value == types.float32:
        return types.float32(types.float32), lambda context, builder, signature, args: args[0]
    if value == types.uint16:

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.uint16), emit
    raise TypingError(f"expected a float32 or the bits of a float16, got {value}")
