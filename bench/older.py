"""Products as processors without a dot unit compute them, beside numpy's float32: `python -m bench.older`.

Puna's kernels and numpy's OpenBLAS are both made to believe in the older processor, in a process of its own. The two
are timed one after the other with a rest between: OpenBLAS's threads go on waiting for work, at full speed, for a
while after each product, and would take the time from whoever comes next.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console

from puna.core.tensor.product import job_of, multiply_all
from puna.core.tensor.team import use_threads
from puna.core.tensor.threads import default_threads

from .kernels import COLUMNS, FORMATS, ROWS, make_weights, new_table, random_floats
from .timing import Times, times

ROOT = Path(__file__).parents[1]
OLDER = {  # processors: what numba and OpenBLAS call them
    "AVX2": ("haswell", "+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt", "HASWELL"),
    "SSE2": ("x86-64", "+sse2", "PRESCOTT"),
}
TOKENS = (1, 4, 16, 128, 512)
REST_S, SECONDS = 0.2, 0.5


def compute(formats: list[str], threads: int) -> dict[str, list[Times]]:
    """Return how long products of each number of tokens take, of each format and of numpy."""
    use_threads(threads)
    found: dict[str, list[Times]] = {}
    floats = random_floats(ROWS, COLUMNS)
    jobs = {name: job_of(make_weights(name).copies[0], ROWS) for name in formats}
    for T in TOKENS:
        x = random_floats(T, COLUMNS)
        for name, job in jobs.items():
            time.sleep(REST_S)
            found.setdefault(name, []).append(times(partial(multiply_all, x, [job]), SECONDS))
        found.setdefault("numpy", []).append(times(partial(x.__matmul__, floats.T), SECONDS))
    return found


def computed_by(processor: str, formats: list[str], threads: int) -> dict[str, list[Times]]:
    """Return the same, as computed in a process for an older processor."""
    name, features, theirs = OLDER[processor]
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "OPENBLAS_CORETYPE": theirs}
    environment |= {"OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "bench.older", "--here", *formats, "--threads", str(threads)]
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=dict[str, list[Times]])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.older", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["Q4_K", "Q8_0"])
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--here", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        sys.stdout.buffer.write(msgspec.json.encode(compute(arguments.here, arguments.threads)))
        return
    work = 2 * ROWS * COLUMNS
    shown = new_table("products, GOP/s, and how many times faster than float32 in numpy", [f"T = {T}" for T in TOKENS])
    for processor in OLDER:
        found = computed_by(processor, arguments.formats, arguments.threads)
        theirs = found["numpy"]
        for name, ours in found.items():
            speeds = [
                f"{T * work / mine.median / 1e9:.0f}, {its.median / mine.median:.2f}"
                for T, mine, its in zip(TOKENS, ours, theirs, strict=True)
            ]
            shown.add_row(f"{processor}, {name}", *speeds)
    Console(width=140).print(shown)


if __name__ == "__main__":
    main()
