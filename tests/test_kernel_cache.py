"""The cache of compiled kernels, which several processes fill at once."""

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
