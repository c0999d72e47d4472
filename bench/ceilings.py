"""What the machine can do at best: `python -m bench.ceilings [--threads 2]`.

Two kernels with nothing but the work that counts: reading memory, and products of bytes. Decoding cannot read weights
faster than the first, and reading a prompt cannot multiply faster than the second.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import msgspec
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from puna.core.tensor.jit import kernel
from puna.core.tensor.simd import BYTES, CODES, FLOAT, FLOATS, INT, INTS, LANES, Emitter
from puna.core.tensor.team import TEAM, shared, use_threads
from puna.core.tensor.threads import default_threads

from .timing import times

BUFFER_BYTES = 1 << 30  # far more than caches hold
STREAMS = 4  # places that one thread reads from in turn
RUN = 4  # vectors read at a place before it is the next one's turn
LEFT, RIGHT = 2, 8  # vectors of codes and of activations: 16 sums in registers, as in a kernel for 8 tokens
PLACES = 16  # where rounds find their codes in turn, so that no compiler takes the products out of the loop
ROUNDS = 1 << 20  # of LEFT * RIGHT products each
DOT_OPERATIONS = 2 * BYTES  # multiplications and additions in one `dot4`
SECONDS = 0.6  # that each ceiling is tried for; the best try counts


class Ceilings(msgspec.Struct, frozen=True):
    """The limits of a machine with a number of threads."""

    bytes_per_s: float  # read from memory
    operations_per_s: float  # multiplications and additions of 8-bit numbers


def measure_ceilings(threads: int, buffer_bytes: int = BUFFER_BYTES) -> Ceilings:
    """Return the limits of this machine. Takes about two seconds once the kernels are compiled."""
    use_threads(threads)
    buffer = np.ones(buffer_bytes // (threads * STREAMS * RUN * BYTES) * (threads * STREAMS * RUN * BYTES), np.uint8)
    codes, sums = np.ones(PLACES * LEFT * BYTES, np.uint8), np.zeros(threads * LANES, np.int32)
    reading = times(partial(read_memory, buffer, threads, sums), SECONDS)
    multiplying = times(partial(multiply_bytes, codes, threads, ROUNDS, sums), SECONDS)
    operations = threads * ROUNDS * LEFT * RIGHT * DOT_OPERATIONS
    return Ceilings(buffer.nbytes / reading.least, operations / multiplying.least)


@kernel
def read_part(buffer, threads, sums, thread):
    """Read a thread's part of buffer. sums: int32 [threads * 16], so that no read is idle."""
    part = buffer.size // threads
    add_streams(buffer, thread * part, part // STREAMS, sums, thread * LANES)


@kernel
def multiply_alone(codes, rounds, sums, thread):
    """Multiply bytes and keep the sums in registers. codes: uint8, LEFT vectors for each of PLACES, always in cache."""
    add_products(codes, rounds, sums, thread * LANES)


share_reading, share_multiplying = shared(read_part), shared(multiply_alone)


def read_memory(buffer: Any, threads: int, sums: Any) -> None:
    """Read all of buffer, uint8, each thread a part of its own."""
    share_reading(TEAM.ready(), threads, (buffer, threads, sums))


def multiply_bytes(codes: Any, threads: int, rounds: int, sums: Any) -> None:
    """Multiply bytes on every thread."""
    share_multiplying(TEAM.ready(), threads, (codes, rounds, sums))


@intrinsic
def add_streams(typing: Any, buffer: Any, at: Any, length: Any, sums: Any, sums_at: Any) -> Any:
    """Add up, as int32, the bytes of STREAMS neighbouring streams of `length` bytes each from buffer[at] on."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        start = e.address(context, signature.args[0], args[0], args[1])
        totals = _registers(builder, STREAMS * RUN)
        steps = builder.udiv(args[2], ir.Constant(args[2].type, RUN * BYTES))
        with cgutils.for_range(builder, steps) as loop:
            place = e.move(start, loop.index, RUN * BYTES)
            for stream in range(STREAMS):
                for vector in range(RUN):
                    total = totals[stream * RUN + vector]
                    builder.store(builder.add(builder.load(total), e.load(INTS, place, vector * BYTES)), total)
                place = e.move(place, args[2])
        _store_total(e, totals, e.address(context, signature.args[3], args[3], args[4], 4))
        return context.get_dummy_value()

    return types.void(buffer, types.intp, types.intp, sums, types.intp), emit


@intrinsic
def add_products(typing: Any, codes: Any, rounds: Any, sums: Any, sums_at: Any) -> Any:
    """Run `rounds` times LEFT * RIGHT independent dot products of bytes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0])
        right = [e.splat(e.load(INT, source, 4 * j)) for j in range(RIGHT)]
        totals = _registers(builder, LEFT * RIGHT)
        with cgutils.for_range(builder, args[1]) as loop:
            place = builder.and_(loop.index, ir.Constant(loop.index.type, PLACES - 1))
            place = e.move(source, place, LEFT * BYTES)
            left = [e.load(CODES, place, i * BYTES) for i in range(LEFT)]
            for i in range(LEFT):
                for j in range(RIGHT):
                    total = totals[i * RIGHT + j]
                    builder.store(e.dot4(builder.load(total), left[i], right[j]), total)
        _store_total(e, totals, e.address(context, signature.args[2], args[2], args[3], 4))
        return context.get_dummy_value()

    return types.void(codes, types.intp, sums, types.intp), emit


@intrinsic
def add_float_products(typing: Any, numbers: Any, rounds: Any, sums: Any, sums_at: Any) -> Any:
    """Run `rounds` times LEFT * RIGHT independent multiply-adds of vectors of float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        source = e.address(context, signature.args[0], args[0])
        right = [e.splat(e.load(FLOAT, source, 4 * j)) for j in range(RIGHT)]
        totals = _registers(builder, LEFT * RIGHT, FLOATS)
        with cgutils.for_range(builder, args[1]) as loop:
            place = builder.and_(loop.index, ir.Constant(loop.index.type, PLACES - 1))
            place = e.move(source, place, LEFT * BYTES)
            left = [e.load(FLOATS, place, i * BYTES) for i in range(LEFT)]
            for i in range(LEFT):
                for j in range(RIGHT):
                    total = totals[i * RIGHT + j]
                    builder.store(e.fma(left[i], right[j], builder.load(total)), total)
        for total in totals[1:]:
            builder.store(builder.fadd(builder.load(totals[0]), builder.load(total)), totals[0])
        e.store(builder.load(totals[0]), e.address(context, signature.args[2], args[2], args[3], 4))
        return context.get_dummy_value()

    return types.void(numbers, types.intp, sums, types.intp), emit


@kernel
def multiply_floats(numbers, rounds, sums, thread):
    """Have one thread run its rounds."""
    add_float_products(numbers, rounds, sums, thread * LANES)


share_floats = shared(multiply_floats)


def float_ceiling(threads: int) -> float:
    """Return the multiplications and additions of float32 that so many threads do in a second."""
    use_threads(threads)
    numbers = np.ones(PLACES * LEFT * BYTES, np.float32).view(np.uint8)
    sums = np.zeros(threads * LANES, np.float32)
    least = times(lambda: share_floats(TEAM.ready(), threads, (numbers, ROUNDS, sums)), SECONDS).least
    return 2 * LANES * LEFT * RIGHT * ROUNDS * threads / least


def _registers(builder: Any, count: int, kind: Any = INTS) -> list[Any]:
    """Return places for vectors of zeros, which the compiler turns into registers."""
    places = [cgutils.alloca_once(builder, kind) for _ in range(count)]
    for place in places:
        builder.store(ir.Constant(kind, [0] * LANES), place)
    return places


def _store_total(e: Emitter, places: list[Any], target: Any) -> None:
    total = e.builder.load(places[0])
    for place in places[1:]:
        total = e.builder.add(total, e.builder.load(place))
    e.store(total, target)


def main() -> None:
    """Measure and print the ceilings, as JSON on one line."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceilings", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=default_threads())
    print(msgspec.json.encode(measure_ceilings(parser.parse_args().threads)).decode())


if __name__ == "__main__":
    main()
