"""How kernels are compiled: by numba, for this processor, cached on disk, without the GIL.

numba keys its cache by the file of the kernel itself and does not notice a changed helper in another file, so the
cache lives in a folder named by a hash of every source of this package, the versions and the processor's features.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from ..settings import read_setting
from .kernel_cache import keep_kernels_in

# Named one by one: bare fastmath would also make isnan(x) and x == -inf false, and masks hold -inf.
FAST = {"reassoc", "contract", "arcp", "nsz"}


def cache_folder() -> Path:
    """Return where this build's compiled kernels belong on this machine."""
    state = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        state.update(source.name.encode() + b"\0" + source.read_bytes())
    for fact in (sys.version, numba.__version__, llvmlite.__version__, np.__version__, *_processor()):
        state.update(fact.encode() + b"\0")
    return Path(read_setting("kernel_cache")) / state.hexdigest()[:16]


def _processor() -> tuple[str, str]:
    """Return the name and the features of the processor to compile for: this one, unless numba is told another."""
    name = config.CPU_NAME or llvm.get_host_cpu_name()  # type: ignore[attr-defined]
    features = config.CPU_FEATURES  # type: ignore[attr-defined]
    return name, get_host_cpu_features() if features is None else features  # type: ignore[no-untyped-call]


KERNELS = cache_folder()  # of this process: the sources may change while it runs
keep_kernels_in(KERNELS)

kernel: Callable[..., Any] = partial(numba.njit, cache=True, nogil=True)


def specialised(template: Any, name: str, **constants: object) -> Any:
    """Return a function like template, with constants among its globals, under a name of its own.

    A closure would do, but numba does not find one in its cache again if it holds another kernel.
    """
    made = FunctionType(template.__code__, {**template.__globals__, **constants}, name)
    made.__qualname__, made.__module__ = name, template.__module__
    return made
