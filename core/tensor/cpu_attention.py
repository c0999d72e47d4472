"""Attention on numpy arrays: what a cache hands over for each sequence of a step, and the operations over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from . import ops
from .attention import attend_rows

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CpuSpan:
    """One sequence's part of a step: rows start..stop of the batch, the first of them at position `first`."""

    start: int
    stop: int
    first: int
    keys: npt.NDArray[np.generic]  # [tiles, K, E, 16]: float32, or uint16 that holds the bits of float16
    values: npt.NDArray[np.generic]  # [positions, K, F padded]
    value_size: int  # F


@dataclass(frozen=True)
class CpuSeen:
    """What one layer of a step may look at."""

    spans: tuple[CpuSpan, ...]
    window: int  # 0: everything before


@ops.attend.register(np.ndarray)
def attend(q: Floats, seen: CpuSeen, *, scale: float) -> Floats:
    """Return each row's mixture of values, [T, H · F] float32."""
    T, H, E = q.shape
    _, K, size, _ = seen.spans[0].keys.shape
    if H % K or size != E:  # the kernel trusts its shapes
        raise BadModel(f"attention of {H} query heads of {E} over {K} key heads of {size}: they do not fit")
    out = np.empty((T, H, seen.spans[0].value_size), np.float32)
    for span in seen.spans:
        rows = slice(span.start, span.stop)
        attend_rows(q[rows], span.keys, span.values, span.first, seen.window, np.float32(scale), out[rows])
    return out.reshape(T, -1)
