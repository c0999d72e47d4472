"""Operations on numpy arrays that encoders need: norms with a mean, activations, plain MLPs, and patches of images."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from . import ops
from .activations import PIECE, layer_norm_rows, pieces_of
from .blocks import by_name
from .checks import ANY, expect
from .packing import pack
from .pointwise import activate_in_place
from .product import job_of, multiply_all
from .tape import contiguous, do, room

Floats = npt.NDArray[np.float32]


@ops.layer_norm.register(np.ndarray)
def layer_norm(x: Floats, weight: Floats, bias: Floats | None, eps: float) -> Floats:
    """Return x with mean 0 and variance 1 over the last dimension, times weight, plus bias."""
    expect("layer_norm: x", x)
    expect("layer_norm: weight", weight, x.shape[-1:])
    if bias is not None:
        expect("layer_norm: bias", bias, x.shape[-1:])
    rows = contiguous(x).reshape(-1, x.shape[-1])
    out = room(rows.shape)
    layer_norm_rows(rows, weight, np.zeros_like(weight) if bias is None else bias, np.float32(eps), out)
    return out.reshape(x.shape)


@ops.activate.register(np.ndarray)
def activate(x: Floats, activation: ops.Activation) -> Floats:
    """Return the activation of each number of x."""
    expect("activate: x", x)
    out = np.array(x, order="C")
    activate_in_place(out, activation)
    return out


@ops.soft_cap.register(np.ndarray)
def soft_cap(x: Floats, cap: float) -> Floats:
    """Return cap · tanh(x / cap)."""
    expect("soft_cap: x", x)
    out = room(x.shape)
    do(np.divide, x, np.float32(cap), out)
    do(np.tanh, out, out)
    do(np.multiply, out, np.float32(cap), out)
    return out


@ops.mlp.register(np.ndarray)
def mlp(
    x: Floats,
    up: ops.Matrix,
    down: ops.Matrix,
    *,
    activation: ops.Activation,
    biases: tuple[Floats | None, Floats | None] = (None, None),
) -> Floats:
    """Return down(activation(up(x)))."""
    if len(x) > PIECE:
        return np.concatenate([mlp(piece, up, down, activation=activation, biases=biases) for piece in pieces_of(x)])
    inner: Floats = ops.linear(x, up, biases[0])  # type: ignore[assignment]
    activate_in_place(inner, activation)
    return ops.linear(inner, down, biases[1])  # type: ignore[return-value]


@ops.concat.register(np.ndarray)
def concat(*parts: Floats, columns: bool = False) -> Floats:
    """Return the rows of all parts, one below the other, or side by side."""
    for part in parts:
        expect("concat: a part", part, (len(parts[0]), ANY) if columns else (ANY, *parts[0].shape[1:]))
    return np.concatenate(parts, axis=1 if columns else 0)


@ops.conv_patches.register(np.ndarray)
def conv_patches(pixels: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """Return one row of D numbers for each patch, [N, P, D]: the patches side by side, times weight."""
    expect("conv_patches: pixels", pixels)
    expect("conv_patches: weight", weight)
    patches = _unfold(pixels, weight.shape)
    # Not numpy's product, whose last bits differ with what is multiplied beside a patch, and from call to call.
    raw = np.ascontiguousarray(weight.reshape(len(weight), -1)).view(np.uint8)
    job = job_of(pack(raw, by_name("F32")), len(weight))
    (found,) = multiply_all(patches.reshape(-1, patches.shape[2]), [job])
    out = found.reshape(*patches.shape[:2], len(weight))
    if bias is not None:
        expect("conv_patches: bias", bias, weight.shape[:1])
        out += bias
    return out


def _unfold(pixels: Floats, kernel: tuple[int, ...]) -> Floats:
    """Return [N, C, *sizes] as [N, patches, numbers of a patch], in the order of a kernel [D, C, *patch sizes]."""
    N, C, *sizes = pixels.shape
    _, channels, *patch = kernel
    if channels != C or len(patch) != len(sizes) or any(size % part for size, part in zip(sizes, patch, strict=True)):
        raise BadModel(f"images {list(pixels.shape)} are not made of patches that weights {list(kernel)} take")
    grid = [size // part for size, part in zip(sizes, patch, strict=True)]
    cut = pixels.reshape(N, C, *(n for pair in zip(grid, patch, strict=True) for n in pair))
    across, within = range(2, cut.ndim, 2), range(3, cut.ndim, 2)
    return cut.transpose(0, *across, 1, *within).reshape(N, math.prod(grid), C * math.prod(patch))


@ops.pool_patches.register(np.ndarray)
def pool_patches(x: Floats, size: int) -> Floats:
    """Return the average of each square of size x size patches, [rows / size, columns / size, D]."""
    expect("pool_patches: x", x, (ANY, ANY, ANY))
    rows, columns, D = x.shape
    if rows % size or columns % size:
        raise BadModel(f"an image of {rows} x {columns} patches is not made of squares of {size} x {size}")
    squares = x.reshape(rows // size, size, columns // size, size, D)
    averages: Floats = squares.mean(axis=(1, 3))
    return averages


@ops.interpolate.register(np.ndarray)
def interpolate(table: Floats, places: Floats) -> Floats:
    """Return the table between its rows, [P, D]."""
    expect("interpolate: table", table, (ANY, ANY, ANY))
    expect("interpolate: places", places, (2, ANY))
    last = np.array(table.shape[:2])[:, None] - 1
    if not ((places >= 0) & (places <= last)).all():
        raise BadModel(f"interpolate: a place lies outside of a table of {table.shape[0]} x {table.shape[1]} rows")
    low = places.astype(np.int64)
    (top, left), (bottom, right) = low, np.minimum(low + 1, last)
    down, across = (places - low.astype(np.float32))[:, :, None]
    above = table[top, left] * ((1 - down) * (1 - across)) + table[top, right] * ((1 - down) * across)
    found: Floats = above + table[bottom, left] * (down * (1 - across)) + table[bottom, right] * (down * across)
    return found
