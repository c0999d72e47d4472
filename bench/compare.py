"""Compare Puna with llama.cpp on one file: `python -m bench.compare --model FILE.gguf [--threads 2] [--repeats 3]`.

The engines take turns, each run in a fresh process with nothing else running, so that no engine's waiting threads take
time from the other and both see the same weather on the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from .worker import DECODED, PROMPTS, Measurement

OURS, THEIRS = "puna", "llama.cpp"
ROOT = Path(__file__).parents[1]
QUIET_LOAD = 0.5  # processes that compute; above it others are at work

# The rows of the table: a label and the number it shows.
METRICS: dict[str, Callable[[Measurement], float]] = {
    **{f"prefill {n}, tokens/s": partial(Measurement.prefill_rate, tokens=n) for n in PROMPTS},
    f"decode {DECODED}, tokens/s": lambda m: m.decode,
    "load, s": lambda m: m.load_s,
    "peak memory, GB": lambda m: m.peak_bytes / 1e9,
}


def compare(model: Path, threads: int, repeats: int) -> dict[str, list[Measurement]]:
    """Return each engine's measurements, taken in turns."""
    results: dict[str, list[Measurement]] = {OURS: [], THEIRS: []}
    for run in range(repeats):
        for engine, measurements in results.items():
            print(f"run {run + 1} of {repeats}: {engine}", file=sys.stderr)
            measurements.append(run_worker(engine, model, threads, run))
    return results


def run_worker(engine: str, model: Path, threads: int, run: int) -> Measurement:
    """Return the measurement of one engine in a process of its own; end the program if that fails."""
    command = [sys.executable, "-m", "bench.worker", "--engine", engine, "--model", str(model.resolve())]
    command += ["--threads", str(threads), "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{engine} failed with status {done.returncode}:\n{done.stderr}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measurement)


def table(results: dict[str, list[Measurement]]) -> Table:
    """Return medians, their ranges and the ratio Puna / llama.cpp, which is of the medians."""
    shown = Table("", OURS, THEIRS, "ratio")
    for column in shown.columns[1:]:
        column.justify = "right"
    for label, metric in METRICS.items():
        ours, theirs = ([metric(m) for m in results[engine]] for engine in (OURS, THEIRS))
        ratio = statistics.median(ours) / statistics.median(theirs)
        shown.add_row(label, spread(ours), spread(theirs), f"{ratio:.2f}")
    return shown


def spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the range."""
    return f"{readable(statistics.median(values))} ({readable(min(values))}–{readable(max(values))})"


def readable(value: float) -> str:
    """Return three digits of a number, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Compare as the command line says and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file; bench.make_model writes one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        parser.error(f"{arguments.model} is not a file; python -m bench.make_model writes one")
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("The comparison needs llama-cpp-python: pip install 'puna[bench]'")
    if (load := os.getloadavg()[0]) > QUIET_LOAD:
        print(f"warning: the load average is {load:.1f}; what else is running makes the ratios noisy", file=sys.stderr)
    results = compare(arguments.model, arguments.threads, arguments.repeats)
    console = Console()
    console.print(f"{arguments.model.name}, {arguments.threads} threads, {arguments.repeats} runs: median (range)")
    console.print(table(results))


if __name__ == "__main__":
    main()
