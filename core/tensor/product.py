"""Products of packed weights with activations: several at once, dealt out to the threads as shares of one heap of work.

Each block format has one compiled entry, reached through its address, so that one parallel loop serves any mixture of
formats: query, key and value, gate and up, or the experts that a step has chosen. A pair of groups, 32 rows, is the
least that a thread takes; its sums wait in the thread's own memory until every column has been seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from .abreast import abreast
from .jit import kernel, specialised
from .layouts import (
    FLOAT_FORMATS,
    GROUP,
    LAYOUTS,
    PAIR,
    ROUNDED_BYTES,
    ROUNDED_FORMATS,
    SUB,
    WIDE_FORMATS,
    WORDS,
    name_of_records,
    record_of,
)
from .micro import (
    AHEAD,
    CHUNK,
    CODE_BYTES,
    EACH,
    LINE,
    PAIRS,
    SUMS,
    UNPACKED,
    VECTOR,
    multiply,
    multiply_records,
    unpack,
)
from .operands import AS_FLOATS, IN_SIXTEEN, WIDE, WIDTH, bytes_of, padded_count, prepared, width_of
from .packing import packer
from .pointwise import activate_piece
from .simd import BYTES, FLOATS, Emitter
from .sixteen import ASKED, multiply_rounded
from .tape import do, room
from .team import TEAM, shared, threads_of
from .wide import WIDE_CHUNK, WIDENED, interleave, multiply_wide

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

ROWS = PAIR * GROUP
SHARES = 8  # for each thread: so that none waits long for another
RESIDENT = 1 << 20  # bytes of activations that stay in a core's own cache while weights stream past
SCRATCH = max(UNPACKED, WIDENED)  # bytes of weights in the form that tiles are multiplied with
# Tokens that weights are unpacked for in registers: one tile.
FEW = WIDTH if abreast(EACH) >= WIDTH else 1
CODES_OF = SUB * CODE_BYTES  # bytes of a token's codes in a sub-block
PLAIN = -1  # form of a product without activation

# What the driver knows of one product, a row of its table: addresses of the compiled product, of the records, and of a
# gate's other half or 0; columns of a step size, or what stands for floats and for codes of 16 bits; records of a
# group; pairs of groups; rows. Of weights that are packed while they are multiplied also the address of what packs a
# pair, and its bytes then; else 0.
ENTRY, RECORDS, GATED, UNIT, UNITS, PAIRED, OUTPUTS, PACKER, ROOM = range(9)


# What it knows of one product's activations: tokens, where in the result it begins, and the addresses of what
# `Quantised` holds; floats lie at the first.
COUNT, TO, CODES, STARTS, SUMMED, STEPS = range(6)


# --- one pair of groups -----------------------------------------------------------------------------------------------

# The following three are compiled once for each block format: its name, the columns of a step size and the bytes of a
# record stand here.
NAME, COLUMNS, RECORD = "", 0, 0
ENTRY_TYPE = types.void(*[types.intp] * 12)


def multiply_few(records, units, pair, count, codes, starts, pairs, steps, total):
    """Multiply the tiles of a few tokens, all that there are, unit by unit."""
    subs, padded = COLUMNS // SUB, padded_count(count)
    for unit_at in range(units):
        record, sub = (pair * units + unit_at) * PAIR, unit_at * subs
        chunk = sub // CHUNK * CHUNK  # where its activations' chunk begins
        here = min(CHUNK, units * subs - chunk)
        for base in range(0, count, WIDTH):
            width = width_of(count - base)
            before = chunk * padded + base * here + (sub - chunk) * width
            code_at, start_at, at = before * CODES_OF, before * SUMS, base * ROWS
            tile_at = unit_at * padded + base
            step_at = tile_at if COLUMNS == WIDE else start_at
            if width == WIDTH:
                multiply_records(
                    NAME, WIDTH, records, record, codes, code_at, starts, start_at, pairs, tile_at * PAIRS, steps,
                    step_at, total, at,
                )  # fmt: skip
            elif width == 4:
                multiply_records(
                    NAME, 4, records, record, codes, code_at, starts, start_at, pairs, tile_at * PAIRS, steps,
                    step_at, total, at,
                )  # fmt: skip
            elif width == 2:
                multiply_records(
                    NAME, 2, records, record, codes, code_at, starts, start_at, pairs, tile_at * PAIRS, steps,
                    step_at, total, at,
                )  # fmt: skip
            else:
                multiply_records(
                    NAME, 1, records, record, codes, code_at, starts, start_at, pairs, tile_at * PAIRS, steps,
                    step_at, total, at,
                )  # fmt: skip


@kernel
def lines_asked(nbytes, tiles):
    """Return how many cache lines each sub-block of each tile asks for, so that they have asked for the next chunk.

    Memory then answers while tiles are multiplied.
    """
    every = tiles * CHUNK
    return (nbytes // LINE + every) // every


def multiply_pair(records, units, pair, low, high, count, codes, starts, pairs, steps, unpacked, total):
    """total[low:high] = activations · weightsᵀ for one pair of groups. low is a multiple of WIDTH."""
    if count <= FEW:
        multiply_few(records, units, pair, count, codes, starts, pairs, steps, total)
        return
    subs, padded = units * COLUMNS // SUB, padded_count(count)
    for first in range(0, subs, CHUNK):
        here = min(CHUNK, subs - first)
        for sub in range(0, here, COLUMNS // SUB):
            for lane in range(PAIR):
                record = (pair * units + (first + sub) * SUB // COLUMNS) * PAIR + lane
                unpack(NAME, records, record, lane, sub, unpacked)
        ahead = records + (pair * units + (first + CHUNK) * SUB // COLUMNS) * PAIR * RECORD
        coming = RECORD * PAIR * CHUNK * SUB // COLUMNS  # bytes
        most = lines_asked(coming, (high - low + WIDTH - 1) // WIDTH)
        for base in range(low, high, WIDTH):
            before = (base - low) // WIDTH * CHUNK * most * LINE
            asked, lines = ahead + before, most if before < coming else 0
            width = width_of(count - base)
            before = first * padded + base * here
            start_at, tile_at, at = before * SUMS, first // CHUNK * padded + base, (base - low) * ROWS
            step_at = tile_at if COLUMNS == WIDE else start_at
            # The width is part of the compiled code: how many sums it holds in registers.
            if width == WIDTH:
                multiply(
                    NAME, WIDTH, unpacked, here, codes, before * CODES_OF, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at, asked, lines,
                )  # fmt: skip
            elif width == 4:
                multiply(
                    NAME, 4, unpacked, here, codes, before * CODES_OF, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at, asked, lines,
                )  # fmt: skip
            elif width == 2:
                multiply(
                    NAME, 2, unpacked, here, codes, before * CODES_OF, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at, asked, lines,
                )  # fmt: skip
            else:
                multiply(
                    NAME, 1, unpacked, here, codes, before * CODES_OF, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at, asked, lines,
                )  # fmt: skip


def multiply_wide_pair(records, units, pair, low, high, count, x, _starts, _pairs, _steps, widened, total):
    """As above, for weights that are float32; x: the address of what `copy_rows` fills."""
    padded = padded_count(count)
    for first in range(0, units, WIDE_CHUNK):
        here = min(WIDE_CHUNK, units - first)
        for sub in range(here):
            for lane in range(PAIR):
                interleave(records, (pair * units + first + sub) * PAIR + lane, lane, sub, widened)
        for base in range(low, high, WIDTH):
            width = width_of(count - base)
            x_at, at = (first * padded + base * here) * SUB, (base - low) * ROWS
            if width == WIDTH:
                multiply_wide(WIDTH, widened, here, x, x_at, total, at)
            elif width == 4:
                multiply_wide(4, widened, here, x, x_at, total, at)
            elif width == 2:
                multiply_wide(2, widened, here, x, x_at, total, at)
            else:
                multiply_wide(1, widened, here, x, x_at, total, at)


def multiply_rounded_pair(records, units, pair, low, high, count, codes, _starts, _pairs, steps, _scratch, total):
    """As above, for weights of 16 bits; codes, steps: what `round_rows` fills. Multiplied as they lie."""
    padded, both, few = padded_count(count), PAIR * ROUNDED_BYTES, high - low <= WIDTH
    for first in range(0, units, CHUNK):
        here, record = min(CHUNK, units - first), (pair * units + first) * PAIR
        start = records + record * ROUNDED_BYTES
        most = lines_asked(CHUNK * both, (high - low + WIDTH - 1) // WIDTH)
        for base in range(low, high, WIDTH):
            asked, lines = start + AHEAD, ASKED
            if not few:
                behind = (base - low) // WIDTH * CHUNK * most * LINE
                asked, lines = start + CHUNK * both + behind, most if behind < CHUNK * both else 0
            width, before, at = width_of(count - base), first * padded + base * here, (base - low) * ROWS
            if width == WIDTH:
                multiply_rounded(
                    WIDTH, records, record, here, codes, before * WORDS, steps, before, total, at, asked, lines
                )
            elif width == 4:
                multiply_rounded(
                    4, records, record, here, codes, before * WORDS, steps, before, total, at, asked, lines
                )
            elif width == 2:
                multiply_rounded(
                    2, records, record, here, codes, before * WORDS, steps, before, total, at, asked, lines
                )
            else:
                multiply_rounded(
                    1, records, record, here, codes, before * WORDS, steps, before, total, at, asked, lines
                )


@cache
def compiled(name: str) -> Any:
    """Return the compiled product for a block format, which has an address. Compiled, or loaded, the first time."""
    if name in ROUNDED_FORMATS:
        made = multiply_rounded_pair
    elif name in WIDE_FORMATS:
        made = multiply_wide_pair
    else:
        layout = LAYOUTS[name]
        known = {"NAME": name, "COLUMNS": layout.unit, "RECORD": layout.places["end"]}
        few = kernel(specialised(multiply_few, f"multiply_few_{name}", **known))
        made = specialised(multiply_pair, f"multiply_{name}", multiply_few=few, **known)
    return cfunc(ENTRY_TYPE, cache=True)(made)


@intrinsic
def call_entry(
    typing: Any, entry: Any, records: Any, units: Any, pair: Any, low: Any, high: Any, count: Any, codes: Any,
    starts: Any, pairs: Any, steps: Any, unpacked: Any, total: Any,
) -> Any:  # fmt: skip
    """Call a format's compiled product by its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args[1:]])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 13), emit


@intrinsic
def call_packer(typing: Any, packs: Any, raw: Any, units: Any, pair: Any, out: Any) -> Any:
    """Call what packs a pair of groups of a format by its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args[1:]])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit


# --- many products at once --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What the driver has to know of a weight."""

    row: Integers  # [1, ROOM + 1], of its table
    outputs: int
    data: npt.NDArray[Any]  # whose address is in the row


def job_of(data: npt.NDArray[np.void], rows: int) -> Job:
    """Return the job of packed weights [pairs, units, PAIR], which stay as long as it does."""
    return _job(name_of_records(data), data, (data.shape[1], data.shape[0]), rows)


def job_of_rows(raw: npt.NDArray[np.uint8], name: str, columns: int) -> Job:
    """Return the job of weights [rows, bytes per row] that are packed while they are multiplied. See `fits`."""
    unit = SUB if name in FLOAT_FORMATS else LAYOUTS[name].unit
    units = columns // unit
    room = units * PAIR * record_of(name).itemsize
    return _job(name, raw, (units, len(raw) // ROWS), len(raw), packer(name).address, room)


def fits(raw: npt.NDArray[np.uint8], columns: int) -> bool:
    """Return whether such weights can be packed while they are multiplied: whole pairs of groups, and whole records."""
    return len(raw) % ROWS == 0 and columns % SUB == 0 and raw.flags.c_contiguous


def _job(name: str, data: npt.NDArray[Any], sizes: tuple[int, int], rows: int, packs: int = 0, room: int = 0) -> Job:
    unit: int = IN_SIXTEEN if name in ROUNDED_FORMATS else AS_FLOATS
    if name in LAYOUTS:
        unit = LAYOUTS[name].unit
    address = data.__array_interface__["data"][0]
    return Job(np.array([[compiled(name).address, address, 0, unit, *sizes, rows, packs, room]], np.int64), rows, data)


def multiply_all(x: Floats, jobs: Sequence[Job]) -> list[Floats]:
    """Return x · weightsᵀ for each job, [T, rows] float32 each. x: [T, D] float32, contiguous."""
    T = len(x)
    out = room((T * sum(job.outputs for job in jobs),))
    table = jobs[0].row if len(jobs) == 1 else np.concatenate([job.row for job in jobs])
    do(run, TEAM.ready(), x, table, PLAIN, out)
    found, start = [], 0
    for job in jobs:
        stop = start + T * job.outputs
        found.append(out[start:stop].reshape(T, job.outputs))
        start = stop
    return found


def multiply_gated(x: Floats, gate: Job, up: Job, form: int) -> Floats:
    """Return activation(x · gateᵀ) * (x · upᵀ), [T, rows] float32. The jobs are of one format and one shape."""
    table = gate.row.copy()
    table[0, GATED] = up.row[0, RECORDS]
    out = room((len(x), gate.outputs))
    do(run, TEAM.ready(), x, table, form, out.reshape(-1))
    return out


@kernel
def needed(x, jobs, unit):
    """Return x, or none of it if no job has that unit."""
    for job in range(len(jobs)):
        if jobs[job, UNIT] == unit:
            return x
    return x[:0]


@kernel
def aligned(memory):
    """Return memory, bytes, from where a vector begins: loads that straddle two cache lines cost twice."""
    return memory[-memory.ctypes.data % BYTES :]


@intrinsic
def copy_sums(typing: Any, total: Any, count: Any, out: Any, at: Any, stride: Any) -> Any:
    """Copy the sums of `count` tokens, ROWS of each, to out[at], and so on `stride` numbers apart."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0])
        target = e.address(context, signature.args[2], args[2], args[3], 4)
        with cgutils.for_range(builder, args[1]) as loop:
            here = e.move(source, loop.index, PAIR * VECTOR)
            there = e.move(target, builder.mul(loop.index, args[4]), 4)
            for g in range(PAIR):
                e.store(e.load(FLOATS, here, g * VECTOR), there, g * VECTOR)
        return context.get_dummy_value()

    return types.void(total, types.intp, out, types.intp, types.intp), emit


@kernel
def put_rows(total, count, stride, out, at, rows):
    """Copy the sums of one pair of groups, [count, ROWS], to where they belong: `stride` apart from out[at] on."""
    if rows >= ROWS:
        copy_sums(total, count, out, at, stride)
    else:
        for j in range(count):
            for row in range(rows):
                out[at + j * stride + row] = total[j * ROWS + row]


@kernel
def multiply_pairs(job, x, first, last, D, form, unpacked, packed, totals, out):
    """Compute pairs of groups first..last - 1 of one job. x: its row of `inputs`; the rest: as `room_to_multiply`."""
    rows, T = job[OUTPUTS], x[COUNT]
    step = max(1, RESIDENT // (max(D, SUB) * WIDTH * bytes_of(job[UNIT]))) * WIDTH
    for low in range(0, T, step):
        high = min(T, low + step)
        for pair in range(first, last):
            for part in range(1 if job[GATED] == 0 else 2):
                totals[part, : (high - low + WIDTH) * ROWS] = 0
                records, at = job[RECORDS] if part == 0 else job[GATED], pair
                if job[PACKER] != 0:
                    call_packer(job[PACKER], records, job[UNITS], pair, packed.ctypes.data)
                    records, at = packed.ctypes.data, 0
                call_entry(
                    job[ENTRY], records, job[UNITS], at, low, high, T, x[CODES], x[STARTS], x[SUMMED], x[STEPS],
                    unpacked.ctypes.data, totals[part].ctypes.data,
                )  # fmt: skip
            if form != PLAIN:
                activate_piece(form, totals[0], totals[1], 0, (high - low) * ROWS)
            to = x[TO] + low * rows + pair * ROWS
            put_rows(totals[0], high - low, rows, out, to, rows - pair * ROWS)


@kernel
def room_to_multiply(count, packed):
    """Return where a thread unpacks weights, where it packs so many bytes, and the sums of so many tokens, [2, ..]."""
    totals = np.empty((2, (min(count, RESIDENT // SUB) + WIDTH) * ROWS), np.float32)
    return aligned(np.empty(SCRATCH + BYTES, np.uint8)), aligned(np.empty(packed + BYTES, np.uint8)), totals


@kernel
def multiply_share(jobs, inputs, D, form, every, shares, out, share):
    """Compute one share of the pairs of groups of all jobs, of which there are `every`. inputs: as `see` fills them."""
    unpacked, packed, totals = room_to_multiply(inputs[:, COUNT].max(), jobs[:, ROOM].max())
    start, stop, before = share * every // shares, (share + 1) * every // shares, 0
    for index in range(len(jobs)):
        first, last = max(0, start - before), min(jobs[index, PAIRED], stop - before)
        before += jobs[index, PAIRED]
        if first < last:
            multiply_pairs(jobs[index], inputs[index], first, last, D, form, unpacked, packed, totals, out)


share_products = shared(multiply_share)


@kernel
def see(inputs, index, count, to, activations):
    """Note for a job how many tokens it has, where its part of the result begins, and where its activations lie.

    activations: as `prepared` returns them.
    """
    codes, starts, pairs, steps = activations
    inputs[index, COUNT], inputs[index, TO] = count, to
    inputs[index, CODES], inputs[index, STARTS] = codes.ctypes.data, starts.ctypes.data
    inputs[index, SUMMED], inputs[index, STEPS] = pairs.ctypes.data, steps.ctypes.data


@kernel
def multiply_jobs(table, jobs, inputs, D, form, out):
    """Have all jobs done. The addresses in `inputs` keep no activations alive: that is the caller's duty."""
    every = jobs[:, PAIRED].sum()
    shares = min(every, SHARES * threads_of(table))
    share_products(table, shares, (jobs, inputs, D, form, every, shares, out))


@kernel
def run(table, x, jobs, form, out):
    """Compute every job's product with x, [T, D] float32, one behind the other into out. form: of gated jobs.

    table: of the team.
    """
    T, D = x.shape
    halves = prepared(table, needed(x, jobs, SUB), SUB)
    wholes = prepared(table, needed(x, jobs, WIDE), WIDE)
    floats = prepared(table, needed(x, jobs, AS_FLOATS), AS_FLOATS)
    words = prepared(table, needed(x, jobs, IN_SIXTEEN), IN_SIXTEEN)
    inputs, to = np.zeros((len(jobs), STEPS + 1), np.int64), 0
    for index in range(len(jobs)):
        unit, own = jobs[index, UNIT], halves
        if unit == WIDE:
            own = wholes
        elif unit == AS_FLOATS:
            own = floats
        elif unit == IN_SIXTEEN:
            own = words
        see(inputs, index, T, to, own)
        to += T * jobs[index, OUTPUTS]
    multiply_jobs(table, jobs, inputs, D, form, out)
    return len(halves) + len(wholes) + len(floats) + len(words)  # what is still in use has not been freed
