"""How many threads compute: physical cores within the container's quota, unless the operator says otherwise.

Hyper-threads share one multiply unit, and a quota that is ignored makes every parallel region wait for throttled
threads, which costs a factor of ten and more.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Return the number of threads to compute with on this machine."""
    import psutil  # not above: a runner is told how many threads it has, and never asks

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    quota = cpu_quota()
    return max(1, min(usable, physical, math.floor(quota) if quota is not None else usable))


def cpu_quota(root: Path = CGROUP) -> float | None:
    """Return the cores that the control group may use; None without a limit. Reads cgroup v2, then v1."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota == "max" or int(quota) <= 0 or int(period) <= 0:
        return None
    return int(quota) / int(period)
