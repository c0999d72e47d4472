"""Compiles the kernels ahead of the first request, or loads them from the cache on disk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .blocks import by_name
from .jit import cache_folder
from .kernels import attend_rows, few_rows_product, gather_rows, widen_rows

Report = Callable[[str, int, int], None]  # name of the kernel, how many are done, how many there are


def is_cold() -> bool:
    """Whether this build's kernels were never compiled on this machine."""
    return not any(cache_folder().rglob("*.nbi"))


def warm_up(report: Report = lambda name, done, total: None) -> None:
    """Make every kernel ready. Takes seconds to a minute on a cold machine, well under a second later."""
    weight = np.zeros((1, 128), np.uint8)
    weight.flags.writeable = False
    kind = by_name("F32").id
    line = np.zeros((1, 32), np.float32)
    heads = np.zeros((1, 1, 32), np.float32)
    scale = np.float32(1)
    jobs: list[tuple[str, Callable[[], None]]] = [
        ("product", lambda: few_rows_product(kind, weight, line, np.empty((1, 1), np.float32))),
        ("widening", lambda: widen_rows(kind, weight, 0, line)),
        ("embedding", lambda: gather_rows(kind, weight, np.zeros(1, np.int32), line)),
        ("attention, f16", lambda: attend_rows(heads, *[np.zeros((1, 1, 32), np.uint16)] * 2, 0, 0, scale, heads)),
        ("attention, f32", lambda: attend_rows(heads, heads, heads, 0, 0, scale, np.empty_like(heads))),
    ]
    for done, (name, job) in enumerate(jobs):
        report(name, done, len(jobs))
        job()
    report("", len(jobs), len(jobs))
