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
from numba.extending import intrinsic

from .jit import kernel, specialised
from .layouts import GROUP, LAYOUTS, PAIR, SUB, WIDE_FORMATS, name_of_records
from .micro import CHUNK, PAIRS, SUMS, UNPACKED, multiply, multiply_records, unpack
from .operands import WIDE, WIDTH, floats_in_tiles, padded_count, quantised, width_of
from .pointwise import activate_piece
from .simd import BYTES
from .team import TEAM, shared, threads_of
from .wide import WIDE_CHUNK, WIDENED, multiply_wide, widen

Floats = npt.NDArray[np.float32]

ROWS = PAIR * GROUP
SHARES = 8  # for each thread: so that none waits long for another
RESIDENT = 1 << 20  # bytes of activations that stay in a core's own cache while weights stream past
SCRATCH = max(UNPACKED, WIDENED)  # bytes of weights in the form that tiles are multiplied with
FEW = 4  # tokens that weights are unpacked for in registers
PLAIN = -1  # form of a product without activation

# What the driver knows of one product, a row of its table: addresses of the compiled product, of the records, and of a
# gate's other half or 0; columns of a step size, 1 for floats; records of a group; pairs of groups; rows.
ENTRY, RECORDS, GATED, UNIT, UNITS, PAIRED, OUTPUTS = range(7)


# --- one pair of groups -----------------------------------------------------------------------------------------------

# The following three are compiled once for each block format: its name and the columns of a step size stand here.
NAME, COLUMNS = "", 0
ENTRY_TYPE = types.void(*[types.intp] * 12)


def multiply_few(records, units, pair, width, codes, starts, pairs, steps, total):
    """Multiply one tile of `width` tokens, all that there are."""
    for unit_at in range(units):
        record, sub = (pair * units + unit_at) * PAIR, unit_at * (COLUMNS // SUB)
        code_at, start_at, tile_at = sub * SUB * width, sub * SUMS * width, unit_at * width
        step_at = tile_at if COLUMNS == WIDE else start_at
        if width == 1:
            multiply_records(
                NAME, 1, records, record, codes, code_at, starts, start_at, pairs, tile_at * PAIRS, steps, step_at,
                total, 0,
            )  # fmt: skip
        elif width == 2:
            multiply_records(
                NAME, 2, records, record, codes, code_at, starts, start_at, pairs, tile_at * PAIRS, steps, step_at,
                total, 0,
            )  # fmt: skip
        else:
            multiply_records(
                NAME, 4, records, record, codes, code_at, starts, start_at, pairs, tile_at * PAIRS, steps, step_at,
                total, 0,
            )  # fmt: skip


def multiply_pair(records, units, pair, low, high, count, codes, starts, pairs, steps, unpacked, total):
    """total[low:high] = activations · weightsᵀ for one pair of groups. low is a multiple of WIDTH."""
    if count <= FEW:
        multiply_few(records, units, pair, width_of(count), codes, starts, pairs, steps, total)
        return
    subs, padded = units * COLUMNS // SUB, padded_count(count)
    for first in range(0, subs, CHUNK):
        here = min(CHUNK, subs - first)
        for sub in range(0, here, COLUMNS // SUB):
            for lane in range(PAIR):
                record = (pair * units + (first + sub) * SUB // COLUMNS) * PAIR + lane
                unpack(NAME, records, record, lane, sub, unpacked)
        for base in range(low, high, WIDTH):
            width = width_of(count - base)
            before = first * padded + base * here
            start_at, tile_at, at = before * SUMS, first // CHUNK * padded + base, (base - low) * ROWS
            step_at = tile_at if COLUMNS == WIDE else start_at
            # The width is part of the compiled code: how many sums it holds in registers.
            if width == WIDTH:
                multiply(
                    NAME, WIDTH, unpacked, here, codes, before * SUB, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at,
                )  # fmt: skip
            elif width == 4:
                multiply(
                    NAME, 4, unpacked, here, codes, before * SUB, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at,
                )  # fmt: skip
            elif width == 2:
                multiply(
                    NAME, 2, unpacked, here, codes, before * SUB, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at,
                )  # fmt: skip
            else:
                multiply(
                    NAME, 1, unpacked, here, codes, before * SUB, starts, start_at, pairs, tile_at * PAIRS,
                    steps, step_at, total, at,
                )  # fmt: skip


def multiply_wide_pair(records, units, pair, low, high, count, x, _starts, _pairs, _steps, widened, total):
    """As above, for weights that are floats; x: the address of `floats_in_tiles`."""
    padded = padded_count(count)
    for first in range(0, units, WIDE_CHUNK):
        here = min(WIDE_CHUNK, units - first)
        for sub in range(here):
            for lane in range(PAIR):
                widen(NAME, records, (pair * units + first + sub) * PAIR + lane, lane, sub, widened)
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


@cache
def compiled(name: str) -> Any:
    """Return the compiled product for a block format, which has an address. Compiled, or loaded, the first time."""
    if name in WIDE_FORMATS:
        made = specialised(multiply_wide_pair, f"multiply_{name}", NAME=name)
    else:
        known = {"NAME": name, "COLUMNS": LAYOUTS[name].unit}
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


# --- many products at once --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What the driver has to know of a weight."""

    row: npt.NDArray[np.int64]  # [1, OUTPUTS + 1], of its table
    outputs: int


def job_of(data: npt.NDArray[np.void], rows: int) -> Job:
    """Return the job of packed weights [pairs, units, PAIR]; they must outlive it."""
    name = name_of_records(data)
    unit = 1 if name in WIDE_FORMATS else LAYOUTS[name].unit
    address = data.__array_interface__["data"][0]
    fields = [compiled(name).address, address, 0, unit, data.shape[1], data.shape[0], rows]
    return Job(np.array([fields], np.int64), rows)


def multiply_all(x: Floats, jobs: Sequence[Job]) -> list[Floats]:
    """Return x · weightsᵀ for each job, [T, rows] float32 each. x: [T, D] float32, contiguous."""
    T = len(x)
    out = np.empty(T * sum(job.outputs for job in jobs), np.float32)
    run(TEAM.ready(), x, jobs[0].row if len(jobs) == 1 else np.concatenate([job.row for job in jobs]), PLAIN, out)
    found, start = [], 0
    for job in jobs:
        stop = start + T * job.outputs
        found.append(out[start:stop].reshape(T, -1))
        start = stop
    return found


def multiply_gated(x: Floats, gate: Job, up: Job, form: int) -> Floats:
    """Return activation(x · gateᵀ) * (x · upᵀ), [T, rows] float32. The jobs are of one format and one shape."""
    table = gate.row.copy()
    table[0, GATED] = up.row[0, RECORDS]
    out = np.empty((len(x), gate.outputs), np.float32)
    run(TEAM.ready(), x, table, form, out.reshape(-1))
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


@kernel
def put_rows(total, count, stride, out, at, rows):
    """Copy the sums of one pair of groups, [count, ROWS], to where they belong: `stride` apart from out[at] on."""
    if rows >= ROWS:
        for j in range(count):
            for row in range(ROWS):
                out[at + j * stride + row] = total[j * ROWS + row]
    else:
        for j in range(count):
            for row in range(rows):
                out[at + j * stride + row] = total[j * ROWS + row]


@kernel
def addresses(unit, halves, wholes, floats):
    """Return where the activations lie that go with weights of this unit: codes or floats, starts, pairs, steps."""
    if unit == SUB:
        return halves[0].ctypes.data, halves[1].ctypes.data, halves[2].ctypes.data, halves[3].ctypes.data
    if unit == WIDE:
        return wholes[0].ctypes.data, wholes[1].ctypes.data, wholes[2].ctypes.data, wholes[3].ctypes.data
    return floats.ctypes.data, floats.ctypes.data, floats.ctypes.data, floats.ctypes.data


@kernel
def multiply_share(T, D, jobs, halves, wholes, floats, form, every, shares, out, share):
    """Compute one share of the pairs of groups of all jobs, of which there are `every`."""
    unpacked = aligned(np.empty(SCRATCH + BYTES, np.uint8))
    totals = np.empty((2, (min(T, RESIDENT // SUB) + WIDTH) * ROWS), np.float32)
    start, stop = share * every // shares, (share + 1) * every // shares
    before, out_at = 0, 0
    for index in range(len(jobs)):
        job = jobs[index]
        first, last, rows = max(0, start - before), min(job[PAIRED], stop - before), job[OUTPUTS]
        x = addresses(job[UNIT], halves, wholes, floats)
        step = max(1, RESIDENT // (D * WIDTH * (4 if job[UNIT] == 1 else 1))) * WIDTH if first < last else T
        for low in range(0, T if first < last else 0, step):
            high = min(T, low + step)
            for pair in range(first, last):
                for part in range(1 if job[GATED] == 0 else 2):
                    totals[part, : (high - low + WIDTH) * ROWS] = 0
                    call_entry(
                        job[ENTRY], job[RECORDS] if part == 0 else job[GATED], job[UNITS], pair, low, high, T,
                        x[0], x[1], x[2], x[3], unpacked.ctypes.data, totals[part].ctypes.data,
                    )  # fmt: skip
                if form != PLAIN:
                    activate_piece(form, totals[0], totals[1], 0, (high - low) * ROWS)
                put_rows(totals[0], high - low, rows, out, out_at + low * rows + pair * ROWS, rows - pair * ROWS)
        before += job[PAIRED]
        out_at += T * rows


share_products = shared(multiply_share)


@kernel
def run(table, x, jobs, form, out):
    """Compute every job's product with x, [T, D] float32, one behind the other into out. form: of gated jobs.

    table: of the team.
    """
    T, D = x.shape
    halves = quantised(table, needed(x, jobs, SUB), SUB)
    wholes = quantised(table, needed(x, jobs, WIDE), WIDE)
    floats = floats_in_tiles(table, needed(x, jobs, 1), WIDE_CHUNK * SUB)
    every = jobs[:, PAIRED].sum()
    shares = min(every, SHARES * threads_of(table))
    share_products(table, shares, (T, D, jobs, halves, wholes, floats, form, every, shares, out))
