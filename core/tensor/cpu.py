"""The operations on numpy arrays, and how weights are kept for them: packed, or as they lie in the mapped file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from . import cpu_attention, cpu_vision, ops  # noqa: F401 - attention and what encoders use register themselves
from .activations import PIECE, add_to_rows, norm_rows, pieces_of, rotate
from .arena import Arena
from .blocks import BlockFormat, by_name
from .checks import ANY, INT32, expect, expect_kinds, expect_mlp
from .decode import KINDS, decode_tensor
from .experts import find_largest, mix
from .kernels import few_rows_product, gather_rows, widen_rows
from .layouts import FLOAT_FORMATS, FORMATS
from .mapped import MappedBytes
from .packing import get_ready_to_pack, pack
from .pointwise import FORMS, activate_in_place
from .product import GATED, RECORDS, Integers, Job, fits, job_of, job_of_rows, multiply_all, multiply_gated
from .rope import RopeTable
from .source import TensorInfo, WeightSource
from .tape import contiguous, do, room

Floats = npt.NDArray[np.float32]

FEW = 8  # columns up to which decoding each weight row once beats widening a tile for the matrix library
TILE_ROWS = 1024  # weight rows widened for one call of the matrix library: 8 MB at 2,048 columns stays near the cache


@dataclass(frozen=True)
class CpuMatrix:
    """A weight [out, in] in its file's block format."""

    format: BlockFormat
    data: npt.NDArray[np.uint8]  # [out, row bytes]
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes the product has to read."""
        return int(self.data.nbytes)

    def split(self, count: int) -> list[CpuMatrix]:
        """Return `count` matrices, of equally many rows each."""
        rows = self.shape[0] // count
        return [
            CpuMatrix(self.format, self.data[i * rows : i * rows + rows], (rows, self.shape[1])) for i in range(count)
        ]


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A weight [out, in] packed for products, and its rows in the file, if they lie so there, for `embed`."""

    rows: CpuMatrix
    data: npt.NDArray[np.void] | None  # records [pairs, units, 2]; None: rows are packed while they are multiplied
    job: Job  # what products have to know of it

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.shape

    @property
    def nbytes(self) -> int:
        """Bytes of memory besides the file's."""
        return 0 if self.data is None else int(self.data.nbytes)


def are_alike(gate: object, up: object) -> bool:
    """Whether both are packed in the same way and of one shape: then one pass computes a gate and its other half."""
    if not (isinstance(gate, PackedMatrix) and isinstance(up, PackedMatrix)):
        return False
    kinds = [(matrix.shape, matrix.rows.format, matrix.data is None) for matrix in (gate, up)]
    return kinds[0] == kinds[1]


AnyMatrix = CpuMatrix | PackedMatrix
MATRICES = CpuMatrix, PackedMatrix


@dataclass(frozen=True, eq=False)
class Experts:
    """The same weight of every expert, [experts, out, in]: of one format and one shape."""

    each: tuple[AnyMatrix, ...]

    @cached_property
    def jobs(self) -> Integers | None:
        """What products have to know of each, a row for each; None if they are not packed."""
        rows = [matrix.job.row for matrix in self.each if isinstance(matrix, PackedMatrix)]
        return np.concatenate(rows) if len(rows) == len(self.each) else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, rows and columns."""
        return (len(self.each), *self.each[0].shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all experts hold."""
        return sum(matrix.nbytes for matrix in self.each)


class CpuLoader:
    """Puts tensors where the CPU's operations want them."""

    def __init__(self, *, precise: bool = False, mapped: MappedBytes | None = None) -> None:
        """Load weights one after the other.

        precise: compute with float32 activations and exact weights, for comparisons with references. mapped: leave
        weights in the file, as far as that can be, and count them there.
        """
        self._precise, self._mapped, self._arena = precise, mapped, Arena()

    def get_ready(self, forms: Iterable[BlockFormat]) -> None:
        """Load the kernels that pack weights of these formats, if any will be."""
        if not self._precise:
            get_ready_to_pack(forms)

    def matrix(self, source: WeightSource, info: TensorInfo, *, transposed: bool = False) -> AnyMatrix | Experts:
        """Return a [out, in] weight: packed, now or when it is used, if its format has a layout, else as it lies.

        With a dimension more, [experts, out, in], it is one for each expert. transposed: the file holds [in, out].
        """
        if len(info.shape) not in (2, 3):
            raise BadModel(f"{info.name} has {len(info.shape)} dimensions, expected 2, or 3 for experts")
        parts = _turned(source, info) if transposed else self._parts(source, info)
        packs = not self._precise and (transposed or info.format.name in FORMATS)
        kept: list[AnyMatrix] = [self._packed(part, turned=transposed) if packs else part for part in parts]
        if packs:
            source.release(info.name)
        return kept[0] if len(info.shape) == 2 else Experts(tuple(kept))

    def _packed(self, matrix: CpuMatrix, *, turned: bool) -> PackedMatrix:
        """Return a packed matrix. turned: its rows are in no file."""
        if self._mapped is not None and not turned and fits(matrix.data, matrix.shape[1]):
            self._mapped.add(matrix.data)
            return PackedMatrix(matrix, None, job_of_rows(matrix.data, matrix.format.name, matrix.shape[1]))
        packed = packed_matrix(matrix, self._arena)
        # Memory for them twice would be too much, and `embed` never reads what is transposed.
        return replace(packed, rows=replace(matrix, data=np.empty((0, 0), np.uint8))) if turned else packed

    def _parts(self, source: WeightSource, info: TensorInfo) -> list[CpuMatrix]:
        plain = self._plain(source, info)
        return [plain] if len(info.shape) == 2 else plain.split(info.shape[0])

    def _plain(self, source: WeightSource, info: TensorInfo) -> CpuMatrix:
        """Return a weight that kernels read in place, experts one below the other.

        Formats without a kernel are widened to float32 once.
        """
        shape = (math.prod(info.shape[:-1]), info.shape[-1])
        if info.format.id in KINDS:
            return CpuMatrix(info.format, source.raw(info.name).reshape(shape[0], -1), shape)
        return _floats(decode_tensor(source.raw(info.name), info.format, info.shape).reshape(shape))

    def array(self, source: WeightSource, info: TensorInfo) -> Floats:
        """Return a small tensor as float32, in memory of its own."""
        return decode_tensor(source.raw(info.name), info.format, info.shape)


def _turned(source: WeightSource, info: TensorInfo) -> Iterator[CpuMatrix]:
    """Yield the weight of each expert, or the one that there is, of a tensor that files hold as [..., in, out]."""
    raw, form, (columns, rows) = source.raw(info.name), info.format, info.shape[-2:]
    for start in range(0, len(raw), columns):
        part = np.ascontiguousarray(raw[start : start + columns])
        if form.name not in FLOAT_FORMATS:
            yield _floats(decode_tensor(part, form, (columns, rows)).T)
            continue
        numbers = part.view(f"u{form.nbytes}").T  # moved, not read
        yield _read_only(form, np.ascontiguousarray(numbers).view(np.uint8), (rows, columns))


def _floats(numbers: Floats) -> CpuMatrix:
    """Return a matrix of float32."""
    return _read_only(by_name("F32"), np.ascontiguousarray(numbers).view(np.uint8), (len(numbers), numbers.shape[1]))


def _read_only(form: BlockFormat, data: npt.NDArray[np.uint8], shape: tuple[int, int]) -> CpuMatrix:
    """Return a matrix as kernels are compiled for: like a mapped file's."""
    data.flags.writeable = False
    return CpuMatrix(form, data, shape)


def packed_matrix(rows: CpuMatrix, arena: Arena | None = None) -> PackedMatrix:
    """Return rows as products want them, in memory of the arena."""
    data = pack(rows.data, rows.format, arena)
    return PackedMatrix(rows, data, job_of(data, rows.shape[0]))


@ops.embed.register(np.ndarray)
def embed(tokens: npt.NDArray[np.int32], table: AnyMatrix) -> Floats:
    """Return the rows of table at tokens, [T, D] float32."""
    expect_kinds("embed", MATRICES, table)
    expect("embed: tokens", tokens, (tokens.size,), INT32)
    rows = table.rows if isinstance(table, PackedMatrix) else table
    out = room((len(tokens), table.shape[1]))
    do(_gather, rows, tokens, out)
    return out


def _gather(rows: CpuMatrix, tokens: npt.NDArray[np.int32], out: Floats) -> None:
    if tokens.size > 0 and not 0 <= tokens.min() <= tokens.max() < rows.shape[0]:
        raise BadModel(f"embed: tokens from {tokens.min()} to {tokens.max()}, the table has {rows.shape[0]} rows")
    gather_rows(rows.format.id, rows.data, tokens, out)


@ops.insert.register(np.ndarray)
def insert(x: Floats, rows: Floats, at: int) -> Floats:
    """Return x with rows from `at` on."""
    expect("insert: rows", rows, (ANY, x.shape[1]))
    x[at : at + len(rows)] = rows
    return x


@ops.add_rows.register(np.ndarray)
def add_rows(x: Floats, rows: Floats, at: int) -> Floats:
    """Return x with rows added from `at` on."""
    expect("add_rows: x", x)
    expect("add_rows: rows", rows, (ANY, x.shape[1]))
    x[at : at + len(rows)] += rows
    return x


@ops.linear.register(np.ndarray)
def linear(x: Floats, weight: AnyMatrix, bias: Floats | None = None) -> Floats:
    """Return x · weightᵀ + bias, [T, out] float32."""
    return _products("linear", x, [(weight, bias)])[0]


@ops.project.register(np.ndarray)
def project(x: Floats, *parts: tuple[AnyMatrix, Floats | None]) -> tuple[Floats, ...]:
    """Return the product with each weight, plus its bias: one parallel loop for all that are packed."""
    return tuple(_products("project", x, parts))


def _products(name: str, x: Floats, parts: Sequence[tuple[AnyMatrix, Floats | None]]) -> list[Floats]:
    """Return what `project` does, for the operation of that name."""
    if len(x) > PIECE:
        pieces = [_products(name, piece, parts) for piece in pieces_of(x)]
        return [np.concatenate(found) for found in zip(*pieces, strict=True)]
    expect_kinds(name, MATRICES, *[weight for weight, _ in parts])
    for weight, bias in parts:
        expect(f"{name}: x", x, (ANY, weight.shape[1]))
        if bias is not None:
            expect(f"{name}: a bias", bias, weight.shape[:1])
    x = contiguous(x)
    packed = [weight.job for weight, _ in parts if isinstance(weight, PackedMatrix)]
    found = iter(multiply_all(x, packed) if packed else ())
    outs = []
    for weight, bias in parts:
        out = next(found) if isinstance(weight, PackedMatrix) else _plain_product(x, weight)
        if bias is not None:
            add_to_rows(out, bias)
        outs.append(out)
    return outs


def _plain_product(x: Floats, weight: CpuMatrix) -> Floats:
    out = room((len(x), weight.shape[0]))
    if len(x) <= FEW:
        do(few_rows_product, weight.format.id, weight.data, x, out)
    else:
        do(_many_rows_product, weight, x, out)
    return out


def _many_rows_product(weight: CpuMatrix, x: Floats, out: Floats) -> None:
    tile = np.empty((min(TILE_ROWS, weight.shape[0]), weight.shape[1]), np.float32)
    for first in range(0, weight.shape[0], TILE_ROWS):
        rows = tile[: weight.shape[0] - first]
        widen_rows(weight.format.id, weight.data, first, rows)
        np.matmul(x, rows.T, out=out[:, first : first + len(rows)])


@ops.rms_norm.register(np.ndarray)
def rms_norm(x: Floats, weight: Floats | None, eps: float) -> Floats:
    """Return x scaled to unit root mean square over the last dimension, times weight."""
    expect("rms_norm: x", x)
    weight = np.ones(x.shape[-1:], np.float32) if weight is None else weight
    expect("rms_norm: weight", weight, x.shape[-1:])
    rows = contiguous(x).reshape(-1, x.shape[-1])
    out = room(rows.shape)
    norm_rows(rows, weight, np.float32(eps), out)
    return out.reshape(x.shape)


@ops.gated_mlp.register(np.ndarray)
def gated_mlp(
    x: Floats,
    gate: AnyMatrix,
    up: AnyMatrix,
    down: AnyMatrix,
    *,
    activation: ops.Activation = "silu",
    biases: tuple[Floats | None, Floats | None, Floats | None] = (None, None, None),
) -> Floats:
    """Return down(activation(gate(x)) · up(x))."""
    if len(x) > PIECE:
        pieces = pieces_of(x)
        return np.concatenate([gated_mlp(p, gate, up, down, activation=activation, biases=biases) for p in pieces])
    expect_mlp("gated_mlp", MATRICES, gate, up, down)
    if biases[0] is None and biases[1] is None and are_alike(gate, up):
        assert isinstance(gate, PackedMatrix) and isinstance(up, PackedMatrix)
        expect("gated_mlp: x", x, (ANY, gate.shape[1]))
        inner = multiply_gated(contiguous(x), gate.job, up.job, FORMS[activation])
    else:
        inner, wide = _products("gated_mlp", x, [(gate, biases[0]), (up, biases[1])])
        activate_in_place(inner, activation, times=wide)
    return _products("gated_mlp", inner, [(down, biases[2])])[0]


@ops.sigmoid.register(np.ndarray)
def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    expect("sigmoid: x", x)
    out = room(x.shape)
    do(_sigmoid, x, out)
    return out


def _sigmoid(x: Floats, out: Floats) -> None:
    with np.errstate(over="ignore"):  # exp of what is far below zero is infinite, and 1 over it 0, as it should be
        np.exp(-x, out)
        np.divide(1, out + 1, out)


@ops.largest.register(np.ndarray)
def largest(x: Floats, count: int) -> tuple[npt.NDArray[np.int32], Floats]:
    """Return places and values of the largest numbers of each row."""
    expect("largest: x", x, (ANY, ANY))
    if not 0 < count <= x.shape[1]:
        raise BadModel(f"largest: {count} of {x.shape[1]} numbers")
    places, values = room((len(x), count), INT32), room((len(x), count))
    do(find_largest, contiguous(x), places, values)
    return places, values


@ops.moe.register(np.ndarray)
def moe(
    x: Floats,
    chosen: npt.NDArray[np.int32],
    share: Floats,
    gate: Experts,
    up: Experts,
    down: Experts,
    *,
    activation: ops.Activation = "silu",
    shares_of: Literal["answers", "inputs"] = "answers",
) -> Floats:
    """Return each token's sum of its experts' answers, times their shares."""
    expect_mlp("moe", (Experts,), gate, up, down)
    expect("moe: x", x, (ANY, gate.shape[2]))
    expect("moe: chosen", chosen, (len(x), ANY), INT32)
    expect("moe: share", share, chosen.shape)
    out = room((len(x), down.shape[1]))
    if chosen.size == 0:
        do(out.fill, 0)
    elif gate.jobs is None or up.jobs is None or down.jobs is None:
        do(_ask_one_by_one, x, chosen, share, (gate, up, down), activation, shares_of, out)
    else:
        jobs = _both(gate.jobs, up.jobs) if are_alike(gate.each[0], up.each[0]) else (gate.jobs, up.jobs)
        x, chosen, share = contiguous(x), contiguous(chosen), contiguous(share)
        do(mix, x, chosen, share, (*jobs, down.jobs), FORMS[activation], shares_of == "inputs", out)
    return out


def _both(gates: Integers, ups: Integers) -> tuple[Integers, Integers]:
    """Return the jobs of gates with those of their other halves, and none beside them."""
    gates = gates.copy()
    gates[:, GATED] = ups[:, RECORDS]
    return gates, ups[:0]


def _ask_one_by_one(
    x: Floats,
    chosen: npt.NDArray[np.int32],
    share: Floats,
    parts: tuple[Experts, Experts, Experts],
    activation: ops.Activation,
    shares_of: str,
    out: Floats,
) -> None:
    """Do what `mix` does, with weights as they lie in the file."""
    if not 0 <= chosen.min() <= chosen.max() < len(parts[0].each):
        raise BadModel(f"moe: chosen {chosen.min()} to {chosen.max()}, there are {len(parts[0].each)} experts")
    out[...] = 0
    for expert in np.unique(chosen):
        tokens, places = np.nonzero(chosen == expert)
        own = share[tokens, places][:, None]
        weights = [part.each[expert] for part in parts]
        if shares_of == "inputs":
            out[tokens] += gated_mlp(x[tokens] * own, *weights, activation=activation)
        else:
            out[tokens] += own * gated_mlp(x[tokens], *weights, activation=activation)


@dataclass(frozen=True)
class CpuRotation:
    """cos, sin: [T, n/2] float32."""

    cos: Floats
    sin: Floats
    table: RopeTable


@ops.rotations.register(np.ndarray)
def rotations(positions: npt.NDArray[np.int32], table: RopeTable) -> CpuRotation:
    """Return the turn of each position, computed in float32 as the references do."""
    shape = positions.shape[-1], len(table.frequencies)
    _check_streams(positions, table)
    rotation = CpuRotation(room(shape), room(shape), table)
    do(_turn, positions, table, rotation.cos, rotation.sin)
    return rotation


def _check_streams(positions: npt.NDArray[np.int32], table: RopeTable) -> None:
    streams = None if table.streams is None else int(table.streams.max()) + 1
    if positions.ndim != (1 if streams is None else 2) or (streams is not None and len(positions) < streams):
        expected = "[T]" if streams is None else f"[{streams}, T]"
        raise BadModel(f"rotations: positions are {list(positions.shape)}, expected {expected}")


def _turn(positions: npt.NDArray[np.int32], table: RopeTable, cos: Floats, sin: Floats) -> None:
    by = positions[:, None] if table.streams is None else positions[table.streams].T  # [T, 1 or n/2]
    angles = by.astype(np.float32) * table.frequencies
    magnitude = np.float32(table.magnitude)
    np.multiply(np.cos(angles), magnitude, cos)
    np.multiply(np.sin(angles), magnitude, sin)


@ops.rope.register(np.ndarray)
def rope(x: Floats, rotation: CpuRotation) -> Floats:
    """Return x, [T, heads, E], with its first n dimensions turned."""
    T, pairs = rotation.cos.shape
    expect("rope: x", x, (T, ANY, ANY))
    if 2 * pairs > x.shape[2]:
        raise BadModel(f"rope: heads of {x.shape[2]}, expected at least the {2 * pairs} dimensions that turn")
    x = contiguous(x)
    out = room(x.shape)
    rotate(x, rotation.cos, rotation.sin, rotation.table.pairing == "interleaved", out)
    return out
