"""How fast each kernel is by itself: `python -m bench.kernels [--formats Q4_K,Q6_K] [--only products,attention]`.

Products with up to eight tokens go through more weights than the caches hold, as a reply does; those with many tokens
stay with one matrix. The limits of the machine are measured first, in the same process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from rich.console import Console
from rich.table import Table

from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.plugin import CacheLayer, Causal
from puna.core.tensor import attend, rms_norm, rope, rope_table, rotations
from puna.core.tensor import cpu as _cpu  # noqa: F401 - it brings the operations' implementations
from puna.core.tensor.blocks import by_name
from puna.core.tensor.operands import quantise
from puna.core.tensor.packing import pack
from puna.core.tensor.pointwise import activate_in_place
from puna.core.tensor.product import job_of, multiply_all
from puna.core.tensor.team import use_threads
from puna.core.tensor.threads import default_threads

from .ceilings import Ceilings, measure_ceilings
from .options import some_of
from .random_weights import SCALES, random_weights
from .report import giga, readable
from .timing import Times, times

Floats = npt.NDArray[np.float32]

KINDS = ("products", "attention", "activations")
FORMATS = ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]  # those measured unless others are asked for
KNOWN = ("F16", "BF16", *(kind.name for kind in SCALES))
FEW, MANY = (1, 2, 4, 8), (16, 128, 512)  # tokens of a product
ROWS, COLUMNS = 8192, 2048  # of a matrix
RING_BYTES = 512 << 20  # of weights that products with few tokens go through
LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 16, 32, 8, 64  # of attention
CONTEXTS = (512, 2048, 8192)
SECONDS = 0.3  # for each figure
WIDTH = 140  # characters of a table that goes to a file


# --- products -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Many copies of one matrix, in the layout that products read."""

    format: str
    copies: list[Any]  # arrays: records, or the file's bytes for formats that are not packed
    packing: Times | None  # of one copy

    @property
    def file_bytes(self) -> int:
        """Bytes of one copy in a file."""
        return ROWS * by_name(self.format).row_bytes(COLUMNS)

    def product(self, x: Floats) -> Callable[[Any], object]:
        """Return what multiplies x with a copy."""
        jobs = {id(data): job_of(data, ROWS) for data in self.copies}
        return lambda data: multiply_all(x, [jobs[id(data)]])


def make_weights(name: str) -> Weights:
    """Return random weights of a format, RING_BYTES in all."""
    form = by_name(name)
    raw = random_weights(GGMLQuantizationType[name], ROWS * COLUMNS, COLUMNS**-0.5, np.random.default_rng(0))
    raw = raw.reshape(ROWS, -1)
    raw.flags.writeable = False  # as mapped files are
    count = -(-RING_BYTES // raw.nbytes)
    return Weights(name, [pack(raw, form) for _ in range(count)], times(lambda: pack(raw, form), SECONDS))


def few_tokens(weights: Weights, T: int) -> Times:
    """Return how long products of T tokens with all copies take."""
    multiply = weights.product(random_floats(T, COLUMNS))

    def work() -> None:
        for copy in weights.copies:
            multiply(copy)

    return times(work, SECONDS)


def many_tokens(weights: Weights, T: int) -> Times:
    """Return how long the product of T tokens with one copy takes."""
    return times(partial(weights.product(random_floats(T, COLUMNS)), weights.copies[0]), SECONDS)


def products(names: list[str], ceilings: Ceilings) -> list[Table]:
    """Return the tables of packing and of products with few and with many tokens."""
    packing = new_table("packing, GB/s of the file", ["packed / file", "speed"])
    few = new_table("products with few tokens, GB/s of weights", [f"T = {T}" for T in FEW])
    many = new_table("products with many tokens, GOP/s", [f"T = {T}" for T in MANY])
    for name in names:
        print(f"products: {name}", file=sys.stderr)
        weights = make_weights(name)
        copy_bytes, work = weights.copies[0].nbytes, 2 * ROWS * COLUMNS
        if weights.packing is not None:
            packing.add_row(name, f"{copy_bytes / weights.file_bytes:.3f}", cell(weights.packing, weights.file_bytes))
        ring_bytes = copy_bytes * len(weights.copies)
        few.add_row(name, *[cell(few_tokens(weights, T), ring_bytes, ceilings.bytes_per_s) for T in FEW])
        many.add_row(name, *[cell(many_tokens(weights, T), T * work, ceilings.operations_per_s) for T in MANY])
    return [packing, few, many]


# --- attention ------------------------------------------------------------------------------------------------------


def attention(ceilings: Ceilings) -> Table:
    """Return the speed of attention: one token in every layer, and a batch of 512 in one."""
    shown = new_table(
        f"attention, {HEADS} heads over {KV_HEADS} of {HEAD_SIZE}, float16",
        [f"one token, {LAYERS} layers: GB/s of the cache", "512 tokens, one layer: GFLOP/s"],
    )
    for context in CONTEXTS:
        print(f"attention: {context}", file=sys.stderr)
        one = attention_times(context, 1, LAYERS)
        cache_bytes = LAYERS * context * KV_HEADS * HEAD_SIZE * 2 * 2  # keys and values of 2 bytes
        many = attention_times(context, 512, 1)
        pairs = sum(range(context - 512 + 1, context + 1))  # of tokens and what they see
        shown.add_row(
            f"{context:,} positions",
            cell(one, cache_bytes, ceilings.bytes_per_s),
            cell(many, 4 * pairs * HEADS * HEAD_SIZE),
        )
    return shown


def attention_times(context: int, T: int, layers: int) -> Times:
    """Return how long the last T tokens of a context take in some layers."""
    layout = [CacheLayer(KV_HEADS, HEAD_SIZE, HEAD_SIZE, Causal())] * layers
    cache = Cache(layout, "f16", Capacity(context, 1, context))
    table = cache.blocks.table()
    table.reserve(context)
    for count in (context - T, T):  # what came before, and the step
        step = StepView(cache, [Rows(table, 0, count)])
        heads = random_floats(count, KV_HEADS, HEAD_SIZE)
        seen = [layer.extend(heads, heads) for layer in step.cache]
        table.advance([0] * context, count)
    q = random_floats(T, HEADS, HEAD_SIZE)

    def work() -> None:
        for layer in seen:
            attend(q, layer, scale=HEAD_SIZE**-0.5)

    return times(work, SECONDS)


# --- what lies between ----------------------------------------------------------------------------------------------


def activations() -> Table:
    """Return the speed of what is done to activations between products."""
    shown = new_table("activations, between products", ["T", "µs", "GB/s"])
    for T in (1, 512):
        x, up = random_floats(T, COLUMNS), random_floats(T, ROWS)
        gate = np.zeros_like(up)  # which remain zeros: other numbers would shrink from call to call
        weight, heads = random_floats(COLUMNS), x.reshape(T, HEADS, HEAD_SIZE)
        turn = rotations(np.arange(T, dtype=np.int32), rope_table(HEAD_SIZE, base=10000.0, pairing="interleaved"))
        jobs: dict[str, tuple[Callable[[], object], int]] = {  # and the bytes of activations read and written
            "quantise by 32": (partial(quantise, x, 32), x.nbytes),
            "quantise by 256": (partial(quantise, x, 256), x.nbytes),
            "gate": (partial(activate_in_place, gate, "silu", up), 3 * up.nbytes),
            "norm": (partial(rms_norm, x, weight, 1e-5), 2 * x.nbytes),
            "rope": (partial(rope, heads, turn), 2 * x.nbytes),
        }
        for name, (work, nbytes) in jobs.items():
            found = times(work, SECONDS)
            microseconds = f"{readable(found.median * 1e6)} / {readable(found.least * 1e6)}"
            shown.add_row(name, f"{T}", microseconds, cell(found, nbytes))
    return shown


# --- tables ---------------------------------------------------------------------------------------------------------


def random_floats(*shape: int) -> Floats:
    """Return normally distributed numbers."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def cell(found: Times, amount: float, limit: float | None = None) -> str:
    """Return how much is done in a second, in billions: in the median, at best, and the median's share of a limit."""
    median, best = amount / found.median, amount / found.least
    share = "" if limit is None else f", {median / limit:.0%}"
    return f"{readable(median / 1e9)} / {readable(best / 1e9)}{share}"


def new_table(title: str, columns: list[str]) -> Table:
    """Return an empty table whose figures stand to the right."""
    shown = Table("", title=title, title_justify="left")
    for column in columns:
        shown.add_column(column, justify="right")
    return shown


def main() -> None:
    """Measure and print the tables that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=some_of(KINDS), default=list(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--formats", type=some_of(KNOWN), default=FORMATS, help=f"some of {','.join(KNOWN)}")
    parser.add_argument("--threads", type=int, default=default_threads())
    given = parser.parse_args()
    ceilings = measure_ceilings(given.threads)
    use_threads(given.threads)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    reads, multiplies = giga(ceilings.bytes_per_s, "bytes"), giga(ceilings.operations_per_s, "operations")
    console.print(f"{given.threads} threads: median / best, share of the limit. The machine: {reads}, {multiplies}.")
    if "products" in given.only:
        for shown in products(given.formats, ceilings):
            console.print(shown)
    if "attention" in given.only:
        console.print(attention(ceilings))
    if "activations" in given.only:
        console.print(activations())


if __name__ == "__main__":
    main()
