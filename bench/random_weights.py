"""Bytes of random weights in the formats of a GGUF file, made as fast as a disk takes them.

A block's codes and its small scales are random bytes; only its half-precision scales are chosen, so that the weights
have the standard deviation a trained layer has and activations neither vanish nor overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from .shapes import Shape, Tensor, Type

Bytes = npt.NDArray[np.uint8]

CHUNK_BYTES = 16 << 20
# Where a block holds its half-precision scales, and how large each is beside the first: a minimum is half the range of
# the codes, so that weights lie around zero.
SCALES: dict[GGMLQuantizationType, dict[int, float]] = {
    Type.Q4_0: {0: 1.0},
    Type.Q4_1: {0: 1.0, 2: -7.5},
    Type.Q5_0: {0: 1.0},
    Type.Q5_1: {0: 1.0, 2: -15.5},
    Type.Q8_0: {0: 1.0},
    Type.Q2_K: {80: 1.0, 82: 1.5},
    Type.Q3_K: {108: 1.0},
    Type.Q4_K: {0: 1.0, 2: 7.5},
    Type.Q5_K: {0: 1.0, 2: 15.5},
    Type.Q6_K: {208: 1.0},
    Type.IQ4_NL: {0: 1.0},
    Type.IQ4_XS: {0: 1.0},
}


def chunks(tensor: Tensor, shape: Shape, rng: np.random.Generator) -> Iterator[Bytes]:
    """Yield the bytes of one tensor, whole rows at a time."""
    if tensor.name == "rope_freqs.weight":
        yield rope_divisors(shape).view(np.uint8)
    elif tensor.type == Type.F32:
        yield _floats(tensor, rng).view(np.uint8)
    else:
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        step = max(1, CHUNK_BYTES // tensor.row_bytes)
        for start in range(0, rows, step):
            count = min(step, rows - start) * columns
            yield random_weights(tensor.type, count, deviation=columns**-0.5, rng=rng)


def random_weights(kind: GGMLQuantizationType, count: int, deviation: float, rng: np.random.Generator) -> Bytes:
    """Return the bytes of count weights of a type, with the given standard deviation and a mean near zero."""
    if kind in SCALES:
        return _blocks(kind, count // GGML_QUANT_SIZES[kind][0], deviation / _unit_deviation(kind), rng)
    table = _float_table(kind)
    scaled = table * deviation
    narrow = scaled.astype(np.float16).view(np.uint16) if kind == Type.F16 else (scaled.view(np.uint32) >> 16)
    return narrow.astype(np.uint16)[_random_bytes(2 * count, rng).view(np.uint16)].view(np.uint8)


def rope_divisors(shape: Shape) -> npt.NDArray[np.float32]:
    """Return what Llama 3.1 and later divide rotary frequencies by, [E/2]: the slow ones by a factor, the fast by 1."""
    assert shape.rope_factor is not None
    low, high, original = 1.0, 4.0, 8192
    exponents = np.arange(0, shape.head_size, 2) / shape.head_size
    wavelengths = 2 * np.pi * shape.rope_base**exponents
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / shape.rope_factor + smooth)).astype(np.float32)


def _floats(tensor: Tensor, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    if len(tensor.shape) > 1:  # a router
        return (tensor.shape[-1] ** -0.5 * rng.standard_normal(tensor.shape)).astype(np.float32)
    centre = 0.0 if tensor.name.endswith(".bias") else 1.0  # else a norm's weight
    return (centre + 0.05 * rng.standard_normal(tensor.shape)).astype(np.float32)


def _blocks(kind: GGMLQuantizationType, count: int, scale: float, rng: np.random.Generator) -> Bytes:
    _, size = GGML_QUANT_SIZES[kind]
    blocks = _random_bytes(count * size, rng).reshape(count, size)
    if kind == Type.Q8_0:
        blocks[blocks == 0x80] = 0x81  # quantisers never write -128, and some kernels rely on it
    scales = (scale * rng.uniform(0.75, 1.25, count)).astype(np.float32)
    if len(SCALES[kind]) == 1:  # codes without a minimum reach further down than up, and quantisers use either sign
        scales *= rng.choice(np.array([-1, 1], np.float32), count)
    for offset, factor in SCALES[kind].items():
        blocks[:, offset : offset + 2] = (scales * factor).astype("<f2").view(np.uint8).reshape(count, 2)
    return blocks.reshape(-1)


@cache
def _unit_deviation(kind: GGMLQuantizationType) -> float:
    """Return the standard deviation of a type's weights at scale 1, by decoding some."""
    return float(dequantize(_blocks(kind, 4096, 1.0, np.random.default_rng(0)), kind).std())


@cache
def _float_table(kind: GGMLQuantizationType) -> npt.NDArray[np.float32]:
    """Return 65536 normally distributed numbers: two random bytes choose a weight."""
    return np.random.default_rng(0).standard_normal(1 << 16, np.float32)


def _random_bytes(count: int, rng: np.random.Generator) -> Bytes:
    return np.frombuffer(bytearray(rng.bytes(count)), np.uint8)
