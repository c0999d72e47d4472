"""Compare Puna with llama.cpp on the same files: `python -m bench.compare --model FILE.gguf [--only prefill,decode]`.

The engines take turns, each run in a fresh process with nothing else running, so that no engine's waiting threads take
time from the other and both see the same weather on the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console

import puna
from puna.core.tensor.threads import default_threads

from .ceilings import Ceilings
from .options import some_of
from .plot import draw
from .report import OURS, THEIRS, Comparison, Report, giga, make_line, table
from .rows import GROUPS, Group, rows_of
from .work import read_work
from .worker import Numbers

ROOT = Path(__file__).parents[1]
QUIET_LOAD = 0.5  # processes that compute; above it others are at work
WIDTH = 120  # characters of a table that goes to a file

T = TypeVar("T")


def compare(model: Path, groups: Sequence[Group], threads: int, repeats: int) -> Comparison:
    """Return the rows of some groups for one model, measured in turns; who is first changes from run to run."""
    ceilings: list[Ceilings] = []
    found: dict[str, dict[str, list[float]]] = {OURS: {}, THEIRS: {}}
    for run in range(repeats):
        ceilings.append(run_ceilings(threads))
        for group in groups:
            for engine in (OURS, THEIRS) if run % 2 == 0 else (THEIRS, OURS):
                print(f"{model.name}, run {run + 1} of {repeats}, {group}: {engine}", file=sys.stderr)
                for name, value in run_worker(engine, model, threads, group, run).items():
                    found[engine].setdefault(name, []).append(value)
    rows = [row for group in groups for row in rows_of(group)]
    lines = [make_line(row, found[OURS][row.name], found[THEIRS][row.name]) for row in rows]
    return Comparison(model.name, read_work(model), ceilings, lines)


def run_ceilings(threads: int) -> Ceilings:
    """Return the limits of the machine, measured in a process of their own."""
    return run_module("bench.ceilings", ["--threads", str(threads)], Ceilings)


def run_worker(engine: str, model: Path, threads: int, group: Group, run: int) -> Numbers:
    """Return the numbers of one engine, measured in a process of its own."""
    options = ["--engine", engine, "--model", str(model.resolve()), "--group", group]
    return run_module("bench.worker", [*options, "--threads", str(threads), "--run", str(run)], Numbers)


def run_module(module: str, options: Sequence[str], result: type[T]) -> T:
    """Return what a module of this folder prints, as JSON, on its last line; end the program if it fails."""
    done = subprocess.run([sys.executable, "-m", module, *options], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{module} {' '.join(options)} failed with status {done.returncode}:\n{done.stderr}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=result)


def processor() -> str:
    """Return the processor's name."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(report: Report) -> None:
    """Print a report."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for comparison in report.models:
        limits = comparison.ceiling
        reads, multiplies = giga(limits.bytes_per_s, "bytes"), giga(limits.operations_per_s, "operations")
        runs = len(comparison.ceilings)
        console.print(f"{comparison.model}: median (range) of {runs}, {report.threads} threads.", highlight=False)
        console.print(f"The machine reads {reads} and multiplies {multiplies}.", highlight=False)
        console.print(table(comparison))


def read_arguments() -> Any:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, action="append", required=True, help="a GGUF file; may be given repeatedly"
    )
    parser.add_argument("--only", type=some_of(GROUPS), default=list(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="write every number")
    parser.add_argument("--plot", type=Path, metavar="OUT.svg", help="draw the ratios")
    arguments = parser.parse_args()
    for model in arguments.model:
        if not model.is_file():
            parser.error(f"{model} is not a file; python -m bench.make_model writes one")
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("The comparison needs llama-cpp-python: pip install 'puna[bench]'")
    return arguments


def main() -> None:
    """Compare as the command line says, print the tables and write what was asked for."""
    arguments = read_arguments()
    if (load := os.getloadavg()[0]) > QUIET_LOAD:
        print(f"warning: the load average is {load:.1f}; what else is running makes the ratios noisy", file=sys.stderr)
    print("warming up: Puna compiles its kernels, once for each machine", file=sys.stderr)
    run_worker(OURS, arguments.model[0], arguments.threads, "load", run=0)
    models = [compare(model, arguments.only, arguments.threads, arguments.repeats) for model in arguments.model]
    versions = {OURS: puna.__version__, THEIRS: version("llama-cpp-python")}
    report = Report(datetime.now(UTC).isoformat("T", "seconds"), processor(), arguments.threads, versions, models)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    if arguments.plot is not None:
        arguments.plot.write_text(draw(report))
    show(report)


if __name__ == "__main__":
    main()
