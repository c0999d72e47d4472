"""One engine's measurements on one model, in a process of their own: prints a Measurement as JSON on its last line."""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import msgspec
import numpy as np

from .engines import ENGINES

PROMPTS = (32, 128, 512)  # tokens
DECODE_PROMPT, DECODED = 32, 64  # tokens


class Measurement(msgspec.Struct, frozen=True):
    """What one run of one engine gave."""

    load_s: float
    prefill: dict[int, float]  # tokens per second, by the prompt's tokens
    decode: float  # tokens per second
    peak_bytes: int  # resident memory, mapped weights included

    def prefill_rate(self, tokens: int) -> float:
        """Return tokens per second for a prompt of that many."""
        return self.prefill[tokens]


def measure(engine_name: str, model: Path, threads: int, run: int) -> Measurement:
    """Load the model and time it. Prompts differ from run to run and share no beginning, so no cache can help."""
    rng = np.random.default_rng(run)

    def prompt(size: int) -> list[int]:
        return list(map(int, rng.integers(0, 512, size)))  # ids that every vocabulary has, none of them special

    start = time.perf_counter()
    engine = ENGINES[engine_name](model, threads)
    load_s = time.perf_counter() - start
    engine.reply(prompt(DECODE_PROMPT), 4)  # the first reply warms caches and threads up
    prefill = {size: size / engine.reply(prompt(size), 0).prompt_s for size in PROMPTS}
    reply = engine.reply(prompt(DECODE_PROMPT), DECODED)
    return Measurement(load_s, prefill, reply.decoded / reply.decode_s, peak_bytes())


def peak_bytes() -> int:
    """Return the most memory this process has had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage, on Linux, also remembers the parent from before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--run", type=int, required=True)
    arguments = parser.parse_args()
    measurement = measure(arguments.engine, arguments.model, arguments.threads, arguments.run)
    print(msgspec.json.encode(measurement).decode())


if __name__ == "__main__":
    main()
