"""What a step costs besides its arithmetic: `python -m bench.overhead`.

A model of sixteen layers is made so thin that there is next to nothing to compute: what its steps take is Python,
planning, sampling, detokenising, and calling kernels. With n replies at once a step is the time between two of
their tokens, in the engine as the server runs it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from .engines import Puna, Setting
from .kernels import new_table
from .make_model import make_model

COUNTS = (1, 2, 4, 8, 16)  # replies at once
TOKENS, REPEATS = 200, 5


def step_seconds(model: Path, count: int, threads: int) -> float:
    """Return what one step of so many replies takes, at best."""
    engine = Puna(model, Setting(threads, context=1024, sequences=count))
    rates = [engine.together([*range(5, 5 + count)], TOKENS) for _ in range(REPEATS)]
    return count / max(rates)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    shown = new_table("a step of sixteen layers with next to nothing to compute", ["µs", "of which each reply more"])
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "thin.gguf"
        make_model(model, "thin", "Q8_0")
        alone = 0.0
        for count in COUNTS:
            print(f"{count} replies", file=sys.stderr)
            seconds = step_seconds(model, count, arguments.threads)
            alone = alone or seconds
            more = f"{(seconds - alone) / (count - 1) * 1e6:.0f}" if count > 1 else ""
            shown.add_row(f"{count} at once", f"{seconds * 1e6:.0f}", more)
    Console().print(shown)


if __name__ == "__main__":
    main()
