"""One engine's numbers for one group of rows, in a process of their own: prints them as JSON on its last line."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from .engines import BATCH, ENGINES, Engine, Setting
from .rows import BEHIND, DECODED, GROUPS, WHOLE, Group, rows_of
from .timing import repeat

Numbers = dict[str, float]  # by the row's name, in the row's unit

STEADY_S = 1.0  # a short measurement is repeated for about that long, and its median counts
IDS = 512  # the first ids, which every vocabulary has, none of them special


class Prompts:
    """Random prompts that differ from run to run and share no beginning, so that no cache of prefixes can help."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def next(self, size: int) -> list[int]:
        """Return a new prompt of that many tokens."""
        return list(map(int, self._rng.integers(0, IDS, size)))


def measure(engine: str, model: Path, threads: int, group: Group, run: int) -> Numbers:
    """Load the model and return the numbers of a group's rows."""
    prompts = Prompts(run)
    largest = max(row.size for row in rows_of(group))
    if group == "load":
        return measure_load(engine, model, Setting(threads, BATCH + 2 * DECODED), prompts)
    if group == "streams":
        made = ENGINES[engine](model, Setting(threads, 4 * DECODED, sequences=largest))
    else:
        made = ENGINES[engine](model, Setting(threads, largest + 2 * DECODED, long=group == "context"))
    made.reply(prompts.next(DECODED), 4)  # the first reply warms caches and threads up
    numbers = {}
    if group == "context":
        return measure_context(made, [row.size for row in rows_of(group)], prompts)
    for row in rows_of(group):
        numbers[row.name] = statistics.median(repeat(partial(speed, made, group, row.size, prompts), STEADY_S))
    return numbers


def measure_context(engine: Engine, sizes: Iterable[int], prompts: Prompts) -> Numbers:
    """Return how fast long prompts are read and decoded behind: both of the same reply, as each takes minutes."""
    numbers = {}
    for size in sorted(set(sizes)):
        reply = engine.reply(prompts.next(size), DECODED)
        numbers |= {f"{WHOLE} {size:,}": size / reply.prompt_s, f"{BEHIND} {size:,}": reply.rate}
    return numbers


def speed(engine: Engine, group: Group, size: int, prompts: Prompts) -> float:
    """Return tokens per second, once."""
    if group == "prefill":
        return size / engine.reply(prompts.next(size), 0).prompt_s
    if group == "streams":
        return engine.together(prompts.next(size), DECODED)
    return engine.reply(prompts.next(max(1, size)), DECODED).rate


def measure_load(engine: str, model: Path, setting: Setting, prompts: Prompts) -> Numbers:
    """Return how long loading and a first token took, and the memory of a full batch and a reply behind it."""
    read_through(model)
    start = time.perf_counter()
    made = ENGINES[engine](model, setting)
    loaded = time.perf_counter()
    made.reply(prompts.next(1), 0)
    first = time.perf_counter()
    made.reply(prompts.next(BATCH), DECODED)
    return {"load": loaded - start, "first token": first - start, "peak memory": peak_bytes() / 1e9}


def read_through(path: Path) -> None:
    """Read a whole file, so that it is in the system's cache."""
    with path.open("rb") as file:
        while file.read(16 << 20):
            pass


def peak_bytes() -> int:
    """Return the most memory this process has had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage, on Linux, also remembers the parent from before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--group", choices=GROUPS, required=True)
    parser.add_argument("--run", type=int, required=True)
    given = parser.parse_args(arguments)
    print(msgspec.json.encode(measure(given.engine, given.model, given.threads, given.group, given.run)).decode())


if __name__ == "__main__":
    main()
