"""`puna warmup`: compiles the kernels before a server needs them, in an image's build for one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..core.tensor.jit import KERNELS
from ..core.tensor.warmup import READY, Job, helper, missing, warm_up
from .progress import Progress

_COMPILING = "compiling kernels for this processor, once"


def compile_kernels(wanted: Sequence[Job], ready: Path = READY) -> None:
    """Do the jobs that are missing, and print where the kernels lie and how long it took."""
    begun, todo = time.monotonic(), missing(wanted, ready)
    if not todo:
        print(f"all kernels are ready, in {KERNELS}")
        return
    make_ready(todo, ready)
    print(f"all kernels are ready, in {KERNELS}, after {time.monotonic() - begun:.0f} s")


def make_ready(wanted: Sequence[Job], ready: Path = READY) -> None:
    """Do all the jobs, with a progress line if kernels have to be compiled."""
    if missing(wanted, ready):
        with Progress() as progress, helper(missing(wanted, ready)):
            warm_up(wanted, ready, lambda done, total: progress.tally(_COMPILING, done, total))
    else:
        warm_up(wanted, ready)
