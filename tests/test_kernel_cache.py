"""The cache of compiled kernels, which several processes fill at once."""

import os
import subprocess
import sys
import threading

from filelock import FileLock
from numba.core.caching import IndexDataCacheFile

from puna.core.tensor.jit import KERNELS


def test_entries_are_added_and_found_by_one_process_at_a_time(tmp_path):
    """Two that took the same number for their code would each run the other's."""
    file = IndexDataCacheFile(str(tmp_path), "kernel", ("a stamp",))
    found = []

    def add_and_find():
        file.save("signature", "code")
        found.append(file.load("signature"))

    KERNELS.mkdir(parents=True, exist_ok=True)
    worker = threading.Thread(target=add_and_find)
    with FileLock(KERNELS / "lock"):
        worker.start()
        worker.join(0.3)
        assert worker.is_alive()
        assert list(tmp_path.iterdir()) == []
    worker.join()
    assert found == ["code"]


KERNELS_OF_A_MODULE = """
import numpy as np
from puna.core.tensor.jit import kernel

@kernel
def count(n):
    return np.ones(n)

@kernel
def total(n):
    return count(n).sum()
"""


def run(code, folder):
    """Return what Python prints, in a process of its own whose kernels are kept in the folder."""
    environment = {**os.environ, "PUNA_KERNEL_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_cached_kernels_run_without_the_compiler_and_others_can_still_be_compiled_from_them(tmp_path):
    (tmp_path / "some_kernels.py").write_text(KERNELS_OF_A_MODULE)
    counted = "import sys, some_kernels as s; print(s.count(3).sum(), 'numba.cpython.setobj' in sys.modules)"
    assert run(counted, tmp_path) == ["3.0", "True"]
    assert run(counted + "; print(s.total(4), s.total.stats.cache_misses)", tmp_path)[:3] == ["3.0", "False", "4.0"]
    assert run("import some_kernels as s; print(s.total(5), len(s.total.stats.cache_misses))", tmp_path) == ["5.0", "0"]


KERNELS_OF_RECORDS = """
import numpy as np
from puna.core.tensor.jit import kernel

SHORT, LONG = np.dtype([("x", "i4")]), np.dtype([("before", "i4"), ("x", "i4")])

@kernel
def inner(records, last):  # calls itself twice, so that it does not become part of its caller
    return 0 if last < 0 else records[last].x + inner(records, last - 1) + inner(records, last - 2)

@kernel
def outer(records):
    return inner(records, len(records) - 1)

def of(dtype):
    records = np.zeros(9, dtype)
    records["x"] = 1
    return outer(records)
"""


def test_a_kernel_for_two_kinds_of_records_that_two_processes_compiled_is_two_kernels(tmp_path):
    """If both had one name, the first that a process loads would run for the other kind too."""
    (tmp_path / "some_kernels.py").write_text(KERNELS_OF_RECORDS)
    for kinds in ("SHORT", "LONG", "SHORT LONG", "LONG SHORT"):
        results = ", ".join(f"s.of(s.{kind})" for kind in kinds.split())
        assert run(f"import some_kernels as s; print({results})", tmp_path) == ["88"] * len(kinds.split())
