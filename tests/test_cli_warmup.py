"""`puna warmup`: what is compiled, what need not be, and what an interruption leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.cli.warmup import compile_kernels, make_ready
from puna.core.tensor.jit import KERNELS
from puna.core.tensor.layouts import FORMATS
from puna.core.tensor.warmup import Job, every_job, jobs, missing


def recorded(done: list[str], *names: str) -> list[Job]:
    """Return jobs that write down their names."""
    return [Job(name, lambda name=name: done.append(name)) for name in names]


def names(wanted: list[Job]) -> list[str]:
    return [job.name for job in wanted]


def test_what_is_missing_is_compiled_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    done: list[str] = []
    compile_kernels(recorded(done, "one", "two"), tmp_path / "ready")
    out, err = capsys.readouterr()
    assert done == ["one", "two"]
    assert out == f"all kernels are ready, in {KERNELS}, after 0 s\n"
    assert err == "compiling kernels for this processor, once\n"

    compile_kernels(recorded(done, "one", "two"), tmp_path / "ready")
    assert done == ["one", "two"]
    assert capsys.readouterr() == (f"all kernels are ready, in {KERNELS}\n", "")


def test_only_what_is_missing_is_compiled(tmp_path: Path):
    done: list[str] = []
    compile_kernels(recorded(done, "one"), tmp_path)
    compile_kernels(recorded(done, "one", "two"), tmp_path)
    assert done == ["one", "two"]


def test_a_server_loads_all_its_kernels_and_says_so_only_if_some_are_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    done: list[str] = []
    make_ready(recorded(done, "one", "two"), tmp_path)
    assert capsys.readouterr().err == "compiling kernels for this processor, once\n"
    make_ready(recorded(done, "one", "two"), tmp_path)
    assert capsys.readouterr().err == ""
    assert done == ["one", "two"] * 2


def test_a_job_that_did_not_end_is_done_again(tmp_path: Path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    wanted = [*recorded([], "one"), Job("two", interrupt), *recorded([], "three")]
    with pytest.raises(KeyboardInterrupt):
        compile_kernels(wanted, tmp_path)
    assert names(missing(wanted, tmp_path)) == ["two", "three"]


def test_a_cache_that_holds_some_kernels_does_not_count_as_warm(tmp_path: Path):
    (tmp_path / "product.nbi").touch()
    assert names(missing(jobs(), tmp_path / "ready")) == names(jobs())


def test_every_block_format_can_be_asked_for():
    usual, every = names(jobs()), names(every_job())
    assert set(usual) < set(every)
    assert {f"products-{name}" for name in FORMATS} < set(every)
