"""From a file's blocks to packed records: bits are moved, no value changes.

Sources of the block layouts: ggml's block structs; see `decode.py`, which reads the same bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import prange

from .blocks import BlockFormat
from .decode import IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from .jit import kernel
from .layouts import GROUP, LAYOUTS, STEPS, Layout

NIBBLES = (Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4)


def pack(raw: npt.NDArray[np.uint8], form: BlockFormat) -> npt.NDArray[np.void]:
    """Return raw as records [groups, units]. raw: [rows, bytes per row]; missing rows of the last pair are zero."""
    layout = LAYOUTS[form.name]
    rows = -(-len(raw) // (2 * GROUP)) * 2 * GROUP
    blocks = raw.shape[1] // form.nbytes
    out = np.zeros((rows // GROUP, blocks), layout.dtype)
    places = layout.places
    where = np.array([places.get(name, -1) for name in ("d", "m", "sc", "mn", "plane0", "plane1")], np.int64)
    flat = out.view(np.uint8).reshape(rows // GROUP, blocks, -1)
    planes = np.array((*layout.planes, 0)[:2], np.int64)
    pack_rows(form.id, raw, form.nbytes, layout.unit, layout.subs, where, planes, flat)
    return out


@kernel(parallel=True)
def pack_rows(kind, raw, nbytes, unit, subs, where, planes, out):
    """Fill out, uint8 [groups, units, record], from raw, uint8 [rows, bytes per row]."""
    for group in prange(out.shape[0]):
        codes = np.zeros((GROUP, unit), np.uint8)
        sc, mn = np.zeros((GROUP, 16), np.uint8), np.zeros((GROUP, 16), np.uint8)
        rows = min(GROUP, raw.shape[0] - group * GROUP)
        for block in range(out.shape[1]):
            record = out[group, block]
            for row in range(rows):
                at = block * nbytes
                source = raw[group * GROUP + row]
                read_codes(kind, source, at, codes[row])
                read_scales(kind, source, at, sc[row], mn[row])
                write_head(kind, source, at, record, where, row)
            for sub in range(subs):
                for row in range(rows):
                    if where[2] >= 0:
                        record[where[2] + sub * GROUP + row] = sc[row, sub]
                    if where[3] >= 0:
                        record[where[3] + sub * GROUP + row] = mn[row, sub]
            write_plane(codes, record, where[4], planes[0], 0)
            if planes[1] > 0:
                write_plane(codes, record, where[5], planes[1], planes[0])


@kernel
def write_plane(codes, record, at, bits, first):
    """Write bits first .. first + bits - 1 of every code. codes: uint8 [16, unit]."""
    per = 8 // bits
    mask = (1 << bits) - 1
    for chunk in range(codes.shape[1] // 4 // per):
        for row in range(GROUP):
            for column in range(4):
                byte = 0
                for step in range(per):
                    code = codes[row, (chunk * per + step) * 4 + column]
                    byte |= ((code >> first) & mask) << (step * bits)
                record[at + chunk * 64 + row * 4 + column] = byte


@kernel
def write_head(kind, src, at, record, where, row):
    """Copy the float16 scale and minimum of a block, or its exponent."""
    if kind == MXFP4:
        record[row] = src[at]
        return
    d, m = 0, 2
    if kind == Q2_K:
        d, m = 80, 82
    elif kind == Q3_K or kind == Q6_K:
        d = 108 if kind == Q3_K else 208
    for byte in range(2):
        record[where[0] + 2 * row + byte] = src[at + d + byte]
        if where[1] >= 0:
            record[where[1] + 2 * row + byte] = src[at + m + byte]


@kernel
def read_scales(kind, src, at, sc, mn):
    """Read the integer scales of a block's sub-blocks, as bytes that hold int8, and their minimums."""
    if kind == Q4_K or kind == Q5_K:
        for j in range(4):
            low, high, both = src[at + 4 + j], src[at + 8 + j], src[at + 12 + j]
            sc[j], mn[j] = low & 63, high & 63
            sc[j + 4] = (both & 15) | ((low >> 6) << 4)
            mn[j + 4] = (both >> 4) | ((high >> 6) << 4)
    elif kind == Q2_K:
        for j in range(16):
            sc[j] = src[at + j]  # scale and minimum, 4 bits each
    elif kind == Q3_K:
        for j in range(16):
            low = (src[at + 96 + (j & 7)] >> (4 * (j >> 3))) & 15
            high = (src[at + 104 + (j & 3)] >> (2 * (j >> 2))) & 3
            sc[j] = (low | (high << 4)) - 32
    elif kind == Q6_K:
        for j in range(16):
            sc[j] = src[at + 192 + j]
    elif kind == IQ4_XS:
        high = src[at + 2] | (src[at + 3] << 8)
        for j in range(8):
            low = (src[at + 4 + (j >> 1)] >> (4 * (j & 1))) & 15
            sc[j] = (low | (((high >> (2 * j)) & 3) << 4)) - 32


@kernel
def read_codes(kind, src, at, codes):
    """Read the unsigned codes of a block in the order of its columns."""
    if kind == Q8_0:
        for i in range(32):
            codes[i] = src[at + 2 + i] ^ 128  # int8 + 128
    elif kind == Q4_K or kind == Q5_K:
        first = 16 if kind == Q4_K else 48
        for i in range(32):
            for pair in range(4):
                byte = src[at + first + 32 * pair + i]
                codes[64 * pair + i], codes[64 * pair + 32 + i] = byte & 15, byte >> 4
            if kind == Q5_K:
                for j in range(8):
                    codes[32 * j + i] |= ((src[at + 16 + i] >> j) & 1) << 4
    elif kind == Q6_K:
        for half in range(2):
            for i in range(32):
                a, b = src[at + 64 * half + i], src[at + 64 * half + 32 + i]
                high = src[at + 128 + 32 * half + i]
                codes[128 * half + i] = (a & 15) | ((high & 3) << 4)
                codes[128 * half + 32 + i] = (b & 15) | (((high >> 2) & 3) << 4)
                codes[128 * half + 64 + i] = (a >> 4) | (((high >> 4) & 3) << 4)
                codes[128 * half + 96 + i] = (b >> 4) | ((high >> 6) << 4)
    elif kind == Q2_K or kind == Q3_K:
        first = 16 if kind == Q2_K else 32
        for half in range(2):
            for i in range(32):
                byte = src[at + first + 32 * half + i]
                for j in range(4):
                    codes[128 * half + 32 * j + i] = (byte >> (2 * j)) & 3
        if kind == Q3_K:
            for i in range(32):
                for j in range(8):
                    codes[32 * j + i] |= ((src[at + i] >> j) & 1) << 2
    elif kind == IQ4_XS:
        for sub in range(8):
            for i in range(16):
                byte = src[at + 8 + 16 * sub + i]
                codes[32 * sub + i], codes[32 * sub + 16 + i] = byte & 15, byte >> 4
    else:
        read_nibbles(kind, src, at, codes)


@kernel
def read_nibbles(kind, src, at, codes):
    """Read a block of 32 codes whose nibbles are split into halves, with a fifth bit in some formats."""
    first = 2
    if kind == MXFP4:
        first = 1
    elif kind == Q4_1:
        first = 4
    elif kind == Q5_0:
        first = 6
    elif kind == Q5_1:
        first = 8
    for i in range(16):
        byte = src[at + first + i]
        codes[i], codes[16 + i] = byte & 15, byte >> 4
    if kind == Q5_0 or kind == Q5_1:
        for i in range(32):
            codes[i] |= ((src[at + first - 4 + (i >> 3)] >> (i & 7)) & 1) << 4


__all__ = ["Layout", "pack", "STEPS"]
