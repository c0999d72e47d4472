"""Widening blocks to float32: one short kernel for each format, and `decode_tensor` for a whole tensor.

Every product and sum is rounded to float32 on its own, in the order of ggml's reference decoder, so the values are
equal to the bit. q, d, m, sc below are the codes, scale, minimum and sub-block scales of a block; byte layouts are in
the comments. Source: the block structs and dequantize_row functions of ggml.
"""

# mypy: allow-untyped-defs
# (the kernels' types are numba's: src is uint8, at a byte, out float32, to an element)

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from .blocks import FORMATS, BlockFormat, by_name
from .jit import kernel
from .lanes import (
    bits,
    f16,
    f16x16,
    f32,
    f32x16,
    from_bits,
    from_bits_x16,
    i8,
    i8x16,
    lookup,
    real,
    store,
    u8,
    u8x16,
    u16,
    u16x16,
    u32,
)

F32, F16, BF16 = (by_name(name).id for name in ("F32", "F16", "BF16"))
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (by_name(name).id for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = (by_name(name).id for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"))
IQ4_NL, IQ4_XS, MXFP4 = (by_name(name).id for name in ("IQ4_NL", "IQ4_XS", "MXFP4"))

KINDS = frozenset(
    (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4)
)  # what the kernels here decode

_NBYTES = np.zeros(max(KINDS) + 1, np.intp)  # by kind; 0: not decoded here
_ELEMENTS = np.zeros(max(KINDS) + 1, np.intp)
for _kind in KINDS:
    _NBYTES[_kind], _ELEMENTS[_kind] = FORMATS[_kind].nbytes, FORMATS[_kind].elements

_IQ4_TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1_TABLE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # doubled
_IQ4, _E2M1 = _IQ4_TABLE.view(np.uint8), _E2M1_TABLE.view(np.uint8)


# ---- one element a block ----


@kernel
def _f32(src, at, out, to, count):
    whole = count - count % 16
    for i in range(0, whole, 16):
        store(out, to + i, f32x16(src, at + 4 * i))
    for i in range(whole, count):
        out[to + i] = f32(src, at + 4 * i)


@kernel
def _f16(src, at, out, to, count):
    whole = count - count % 16
    for i in range(0, whole, 16):
        store(out, to + i, f16x16(src, at + 2 * i))
    for i in range(whole, count):
        out[to + i] = f16(src, at + 2 * i)


@kernel
def _bf16(src, at, out, to, count):
    whole = count - count % 16
    for i in range(0, whole, 16):
        store(out, to + i, from_bits_x16(u16x16(src, at + 2 * i) << 16))
    for i in range(whole, count):
        out[to + i] = from_bits(np.int32(u16(src, at + 2 * i) << 16))


# ---- 32 elements a block; byte j of a nibble field holds elements j and j + 16 ----


@kernel
def _q4_0(src, at, out, to):  # 0 d, 2 nibbles: d·(q − 8)
    d = f16(src, at)
    q = u8x16(src, at + 2)
    store(out, to, real((q & 15) - 8) * d)
    store(out, to + 16, real((q >> 4) - 8) * d)


@kernel
def _q4_1(src, at, out, to):  # 0 d, 2 m, 4 nibbles: d·q + m
    d, m = f16(src, at), f16(src, at + 2)
    q = u8x16(src, at + 4)
    store(out, to, real(q & 15) * d + m)
    store(out, to + 16, real(q >> 4) * d + m)


@kernel
def _q5_0(src, at, out, to):  # 0 d, 2 fifth bits, 6 nibbles: d·(q − 16)
    d, high = f16(src, at), u32(src, at + 2)
    q = u8x16(src, at + 6)
    store(out, to, real(((q & 15) | (bits(high, 0) << 4)) - 16) * d)
    store(out, to + 16, real(((q >> 4) | (bits(high, 16) << 4)) - 16) * d)


@kernel
def _q5_1(src, at, out, to):  # 0 d, 2 m, 4 fifth bits, 8 nibbles: d·q + m
    d, m, high = f16(src, at), f16(src, at + 2), u32(src, at + 4)
    q = u8x16(src, at + 8)
    store(out, to, real((q & 15) | (bits(high, 0) << 4)) * d + m)
    store(out, to + 16, real((q >> 4) | (bits(high, 16) << 4)) * d + m)


@kernel
def _q8_0(src, at, out, to):  # 0 d, 2 int8 codes: d·q
    d = f16(src, at)
    store(out, to, real(i8x16(src, at + 2)) * d)
    store(out, to + 16, real(i8x16(src, at + 18)) * d)


@kernel
def _iq4_nl(src, at, out, to):  # 0 d, 2 nibbles: d·table[q]
    d, table = f16(src, at), f32x16(_IQ4, 0)
    q = u8x16(src, at + 2)
    store(out, to, lookup(table, q & 15) * d)
    store(out, to + 16, lookup(table, q >> 4) * d)


@kernel
def _mxfp4(src, at, out, to):  # 0 exponent e, 1 nibbles: 2^(e − 128)·table[q]
    e, table = u8(src, at), f32x16(_E2M1, 0)
    d = from_bits(np.int32((e - 1) << 23 if e > 1 else 1 << 21 + e))  # e = 0 and 1 are sub-normal
    q = u8x16(src, at + 1)
    store(out, to, lookup(table, q & 15) * d)
    store(out, to + 16, lookup(table, q >> 4) * d)


# ---- 256 elements a block; j counts sub-blocks of 16 or 32 ----


@kernel
def _q2_k(src, at, out, to):  # 0 scale and min, 4 bits each, 16 codes, 80 d, 82 dmin: d·sc·q − dmin·mn
    d, dmin = f16(src, at + 80), f16(src, at + 82)
    for j in range(16):
        half, group, part = j // 8, j // 2 % 4, j % 2
        packed = u8(src, at + j)
        scale, low = d * np.float32(packed & 15), dmin * np.float32(packed >> 4)
        q = (u8x16(src, at + 16 + 32 * half + 16 * part) >> 2 * group) & 3
        store(out, to + 16 * j, real(q) * scale - low)


@kernel
def _q3_k_scale(src, at, j):  # 16 scales of 6 bits in 12 bytes: 4 low bits, then 2 high ones; −32..31
    low = (u8(src, at + j % 8) >> 4 * (j // 8)) & 15
    high = (u8(src, at + 8 + j % 4) >> 2 * (j // 4)) & 3
    return (low | (high << 4)) - 32


@kernel
def _q3_k(src, at, out, to):  # 0 third bits, 32 low bits, 96 scales, 108 d: d·sc·(q − 4)
    d = f16(src, at + 108)
    for j in range(16):
        half, group, part = j // 8, j // 2 % 4, j % 2
        low = (u8x16(src, at + 32 + 32 * half + 16 * part) >> 2 * group) & 3
        high = (u8x16(src, at + 16 * part) >> j // 2) & 1
        scale = d * np.float32(_q3_k_scale(src, at + 96, j))
        store(out, to + 16 * j, real((low | (high << 2)) - 4) * scale)


@kernel
def _scale_and_min(src, at, j):  # 8 pairs of 6 bits in 12 bytes
    if j < 4:
        return u8(src, at + j) & 63, u8(src, at + j + 4) & 63
    both = u8(src, at + j + 4)
    return (both & 15) | (u8(src, at + j - 4) >> 6 << 4), (both >> 4) | (u8(src, at + j) >> 6 << 4)


@kernel
def _q4_k(src, at, out, to):  # 0 d, 2 dmin, 4 scales and mins, 16 nibbles: d·sc·q − dmin·mn
    d, dmin = f16(src, at), f16(src, at + 2)
    for j in range(8):
        sc, mn = _scale_and_min(src, at + 4, j)
        scale, low = d * np.float32(sc), dmin * np.float32(mn)
        for part in range(0, 32, 16):
            q = (u8x16(src, at + 16 + 32 * (j // 2) + part) >> 4 * (j % 2)) & 15
            store(out, to + 32 * j + part, real(q) * scale - low)


@kernel
def _q5_k(src, at, out, to):  # 0 d, 2 dmin, 4 scales and mins, 16 fifth bits, 48 nibbles: d·sc·q − dmin·mn
    d, dmin = f16(src, at), f16(src, at + 2)
    for j in range(8):
        sc, mn = _scale_and_min(src, at + 4, j)
        scale, low = d * np.float32(sc), dmin * np.float32(mn)
        for part in range(0, 32, 16):
            q = (u8x16(src, at + 48 + 32 * (j // 2) + part) >> 4 * (j % 2)) & 15
            high = (u8x16(src, at + 16 + part) >> j) & 1
            store(out, to + 32 * j + part, real(q | (high << 4)) * scale - low)


@kernel
def _q6_k(src, at, out, to):  # 0 nibbles, 128 high bits, 192 int8 scales, 208 d: d·sc·(q − 32)
    d = f16(src, at + 208)
    for j in range(16):
        half, group, part = j // 8, j // 2 % 4, j % 2
        low = (u8x16(src, at + 64 * half + 32 * (group % 2) + 16 * part) >> 4 * (group // 2)) & 15
        high = (u8x16(src, at + 128 + 32 * half + 16 * part) >> 2 * group) & 3
        scale = d * np.float32(i8(src, at + 192 + j))
        store(out, to + 16 * j, real((low | (high << 4)) - 32) * scale)


@kernel
def _iq4_xs(src, at, out, to):  # 0 d, 2 high and 4 low bits of the scales, 8 nibbles: d·(sc − 32)·table[q]
    d, high, table = f16(src, at), u16(src, at + 2), f32x16(_IQ4, 0)
    for j in range(8):
        low = (u8(src, at + 4 + j // 2) >> 4 * (j % 2)) & 15
        scale = d * np.float32((low | (high >> 2 * j & 3) << 4) - 32)
        q = u8x16(src, at + 8 + 16 * j)
        store(out, to + 32 * j, lookup(table, q & 15) * scale)
        store(out, to + 32 * j + 16, lookup(table, q >> 4) * scale)


# ---- any of them ----


@kernel
def decode_blocks(kind, src, at, out, to, count):
    """Widen `count` blocks of format `kind`, from byte `at` of src, into out from element `to`. For kernels.

    src: uint8 [any], may be read-only. out: float32 [any]. Nothing is checked: the caller has checked the shapes and
    that kind is in KINDS. F32, F16 and BF16 have one element a block.
    """
    if kind == F32:
        _f32(src, at, out, to, count)
    elif kind == F16:
        _f16(src, at, out, to, count)
    elif kind == BF16:
        _bf16(src, at, out, to, count)
    elif kind == Q4_0:
        for b in range(count):
            _q4_0(src, at + 18 * b, out, to + 32 * b)
    elif kind == Q4_1:
        for b in range(count):
            _q4_1(src, at + 20 * b, out, to + 32 * b)
    elif kind == Q5_0:
        for b in range(count):
            _q5_0(src, at + 22 * b, out, to + 32 * b)
    elif kind == Q5_1:
        for b in range(count):
            _q5_1(src, at + 24 * b, out, to + 32 * b)
    elif kind == Q8_0:
        for b in range(count):
            _q8_0(src, at + 34 * b, out, to + 32 * b)
    elif kind == Q2_K:
        for b in range(count):
            _q2_k(src, at + 84 * b, out, to + 256 * b)
    elif kind == Q3_K:
        for b in range(count):
            _q3_k(src, at + 110 * b, out, to + 256 * b)
    elif kind == Q4_K:
        for b in range(count):
            _q4_k(src, at + 144 * b, out, to + 256 * b)
    elif kind == Q5_K:
        for b in range(count):
            _q5_k(src, at + 176 * b, out, to + 256 * b)
    elif kind == Q6_K:
        for b in range(count):
            _q6_k(src, at + 210 * b, out, to + 256 * b)
    elif kind == IQ4_NL:
        for b in range(count):
            _iq4_nl(src, at + 18 * b, out, to + 32 * b)
    elif kind == IQ4_XS:
        for b in range(count):
            _iq4_xs(src, at + 136 * b, out, to + 256 * b)
    elif kind == MXFP4:
        for b in range(count):
            _mxfp4(src, at + 17 * b, out, to + 32 * b)


@kernel
def decode_block(kind, src, at, out, to):
    """Widen one block: `decode_blocks` with a count of 1."""
    decode_blocks(kind, src, at, out, to, 1)


@kernel
def decode_rows(kind, data, first_row, out):
    """Widen rows first_row, first_row + 1, ... of data into every row of out.

    data: uint8 [rows, bytes per row], may be read-only. out: float32 [rows wanted, elements per row].
    Raises ValueError if kind is not in KINDS or the shapes do not fit it.
    """
    if kind < 0 or kind >= _NBYTES.size or _NBYTES[kind] == 0:
        raise ValueError("this format has no compiled decoder")
    blocks = out.shape[1] // _ELEMENTS[kind]
    if blocks * _ELEMENTS[kind] != out.shape[1] or blocks * _NBYTES[kind] != data.shape[1]:
        raise ValueError("the rows of data and out are not the same number of whole blocks")
    if first_row < 0 or first_row + out.shape[0] > data.shape[0]:
        raise ValueError("out has more rows than data holds from first_row on")
    for row in range(out.shape[0]):
        decode_blocks(kind, data[first_row + row], 0, out[row], 0, blocks)


_PLAIN = {
    "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8",
    "BOOL": "?", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


def decode_tensor(raw: npt.NDArray[np.uint8], form: BlockFormat, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return a whole tensor as a new float32 array of this shape. raw: [rows, bytes per row], as a source gives it.

    Exact, save that I32, I64, U32, U64 and F64 are rounded to the nearest float32. Raises BadModel for a format that
    has no decoder, ValueError if raw does not have the shape that form and shape imply.
    """
    n = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    if raw.shape != (rows, form.row_bytes(n)):
        raise ValueError(f"raw is {raw.shape}, but {shape} in {form.name} takes {(rows, form.row_bytes(n))}")
    if form.id in KINDS:
        out = np.empty((rows, n), np.float32)
        source = raw.view()
        source.flags.writeable = False  # as arrays of a map are: one compiled version serves both
        decode_rows(form.id, source, 0, out)
        return out.reshape(shape)
    if form.name in _PLAIN:
        return np.frombuffer(raw.tobytes(), _PLAIN[form.name]).astype(np.float32).reshape(shape)
    return _decode_rare(raw, form).reshape(shape)


def _decode_rare(raw: npt.NDArray[np.uint8], form: BlockFormat) -> npt.NDArray[np.float32]:
    """Decode the formats of which models are rarely made with gguf's numpy code: right, and a hundred times slower."""
    from gguf.constants import GGMLQuantizationType  # here because its import takes 150 ms
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):  # blocks may hold infinite scales
            values = dequantize(raw, GGMLQuantizationType[form.name])
    except (KeyError, NotImplementedError) as error:
        raise BadModel(f"there is no decoder for {form.name}") from error
    return np.asarray(values, np.float32)
