"""How many threads compute, and where compiled kernels are kept."""

import pytest

from puna.core.tensor.jit import cache_folder
from puna.core.tensor.threads import cpu_quota, default_threads


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000\n", 1.5), ("400000 100000\n", 4.0), ("max 100000\n", None), ("max\n", None)]
)
def test_a_quota_of_the_second_version_is_read(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("50000\n", 0.5), ("-1\n", None), ("0\n", None)])
def test_a_quota_of_the_first_version_is_read(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == cores


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


def test_at_least_one_thread_computes():
    assert default_threads() >= 1


def test_compiled_kernels_lie_where_the_operator_says_under_a_name_of_this_build(monkeypatch, tmp_path):
    monkeypatch.setenv("PUNA_KERNEL_CACHE", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert cache_folder() == folder
    monkeypatch.setattr("sys.version", "another Python")
    assert cache_folder() != folder
