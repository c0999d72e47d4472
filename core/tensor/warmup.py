"""Compiles the kernels ahead of the first request, or loads them from the cache on disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from .activations import layer_norm_rows, norm_rows, rotate
from .attention import attend_spans
from .attention_block import Sight
from .blocks import by_name
from .experts import find_largest, mix
from .jit import KERNELS
from .kernels import few_rows_product, gather_rows, widen_rows
from .layouts import FORMATS
from .packing import get_ready_to_pack, pack
from .pointwise import activate_in_place
from .product import job_of, multiply_all
from .team import TEAM
from .threads import default_threads
from .tiles import SUB, ElementType, new_tiles, store

USUAL = ("Q4_K", "Q6_K", "Q8_0", "F16")  # formats that most files are made of
READY = KERNELS / "ready"  # has an empty file for each job that was done: a cache may have been left half full


@dataclass(frozen=True)
class Job:
    """Kernels that are made ready together."""

    name: str  # also a file's
    run: Callable[[], object]


Report = Callable[[int, int], None]  # how many jobs are done, how many there are


def jobs(formats: Iterable[str] = USUAL, elements: Iterable[ElementType] = ("f16", "f32")) -> list[Job]:
    """Return what makes the kernels ready that every model needs, for weights and caches of these formats.

    Those for others are compiled when the first model that has them is loaded.
    """
    return [
        Job("products", _plain),
        *(Job(f"products-{name}", partial(_packed, name)) for name in formats),
        *(Job(f"attention-{element}", partial(_attention, element)) for element in elements),
        Job("activations", _activations),
        Job("experts", _experts),
    ]


def every_job() -> list[Job]:
    """Return what makes ready all kernels that there are."""
    return jobs(FORMATS, get_args(ElementType))


def missing(wanted: Sequence[Job], ready: Path = READY) -> list[Job]:
    """Return the jobs that were never finished on this machine for this build and processor."""
    return [job for job in wanted if not (ready / job.name).exists()]


def warm_up(wanted: Sequence[Job], ready: Path = READY, report: Report = lambda done, total: None) -> None:
    """Do the jobs: each takes seconds if its kernels have to be compiled, milliseconds if they are in the cache."""
    ready.mkdir(parents=True, exist_ok=True)
    for done, job in enumerate(wanted):
        report(done, len(wanted))
        job.run()
        (ready / job.name).touch()
    report(len(wanted), len(wanted))


@contextmanager
def helper(wanted: Sequence[Job]) -> Iterator[None]:
    """Have another process do the same jobs from the last one on, meanwhile: compiling holds a lock within one."""
    names = [job.name for job in wanted]
    if len(names) < 3 or default_threads() < 2 or not {job.name for job in every_job()}.issuperset(names):
        yield
        return
    command = [sys.executable, "-c", f"import sys, {__name__} as here; here.do_backwards(sys.argv[1:])", *names]
    process = subprocess.Popen(  # noqa: S603 - this very interpreter, and names of ours
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def do_backwards(names: Sequence[str], ready: Path = READY) -> None:
    """Do the jobs of these names that nobody has finished, the last first."""
    for job in reversed(every_job()):
        if job.name in names and missing([job], ready):
            job.run()


def _plain() -> None:
    weight = np.zeros((1, 128), np.uint8)
    weight.flags.writeable = False
    line, kind = np.zeros((1, 32), np.float32), by_name("F32").id
    few_rows_product(kind, weight, line, np.empty((1, 1), np.float32))
    widen_rows(kind, weight, 0, line)
    gather_rows(kind, weight, np.zeros(1, np.int32), line)


def _packed(name: str) -> None:
    form = by_name(name)
    get_ready_to_pack([form])  # many rows, which threads share, and below the last few
    data = pack(np.zeros((1, form.row_bytes(256)), np.uint8), form)
    multiply_all(np.zeros((1, 256), np.float32), [job_of(data, 1)])


def _experts() -> None:
    form, size = by_name(USUAL[0]), 256
    job = job_of(pack(np.zeros((size, form.row_bytes(size)), np.uint8), form), size)  # whose weights stay as it does
    line, one = np.zeros((1, size), np.float32), np.ones((1, 1), np.float32)
    find_largest(one, np.zeros((1, 1), np.int32), one)
    mix(line, np.zeros((1, 1), np.int32), one, (job.row, job.row, job.row), 0, False, line.copy())


def _attention(element: ElementType) -> None:
    numbers, none = np.zeros((1, 1, SUB), np.float32), np.zeros(1, np.int32)
    tiles = new_tiles(1, 1, SUB, SUB, element)
    store(numbers, numbers, none, tiles)
    spans, sight = np.array([[0, 1, 0, 0]], np.int32), Sight(0, 0, none[:0])
    work = numbers, tiles, spans, none, sight, np.float32(1), np.float32(0)
    attend_spans(TEAM.ready(), *work, numbers.copy())


def _activations() -> None:
    line, three = np.zeros((1, 16), np.float32), np.zeros((1, 1, 16), np.float32)
    activate_in_place(line[0], "silu", times=line[0])
    norm_rows(line, line[0], np.float32(1), line)
    layer_norm_rows(line, line[0], line[0], np.float32(1), line)
    rotate(three, line[:, :8].copy(), line[:, :8].copy(), True, three)
