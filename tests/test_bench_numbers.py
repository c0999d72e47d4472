"""What the benchmark computes from its measurements: ratios, shares of the machine's limits, distances of logits."""

import importlib
import math
from argparse import ArgumentTypeError, Namespace
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from puna.core.tensor.weights import open_weights

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def bench():
    """Import a module of bench/, which is a folder beside the package and not a part of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield lambda name: importlib.import_module(f"bench.{name}")


@pytest.fixture(scope="module")
def tiny(bench, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    bench("make_model").make_model(path, "tiny", "Q4_K_M")
    return path


def row(bench, name):
    return next(row for row in bench("rows").ROWS if row.name == name)


def make_report(bench, *ratios):
    report, ceilings = bench("report"), bench("ceilings").Ceilings(20e9, 1000e9)
    lines = [report.Line(f"row {n}", "tokens/s", [ratio], [1.0], ratio) for n, ratio in enumerate(ratios)]
    comparison = report.Comparison("<a & b>.gguf", bench("work").Work(10**9, 2 * 10**9), [ceilings], lines)
    return report.Report("2026-01-01", "processor", 2, {}, [comparison])


@pytest.mark.parametrize(("name", "ours", "theirs"), [("decode", 30, 20), ("load", 2, 3), ("peak memory", 1, 1.5)])
def test_a_ratio_above_one_means_that_puna_is_better(bench, name, ours, theirs):
    line = bench("report").make_line(row(bench, name), [ours, 100 * ours, ours], [theirs])
    assert line.ratio == 1.5  # of medians: the one slow or fast run does not count


def test_a_file_is_read_with_its_output_layer_and_multiplied_without(bench, tiny):
    shapes = bench("shapes")
    wanted = shapes.tensors(shapes.SHAPES["tiny"], shapes.RECIPES["Q4_K_M"])  # its embedding table is its output layer
    matrices = [t for t in wanted if len(t.shape) == 2]
    work = bench("work").read_work(tiny)
    assert work.read_bytes == sum(t.nbytes for t in matrices)
    assert work.operations == 2 * sum(math.prod(t.shape) for t in matrices if t.name != "token_embd.weight")


def test_speeds_are_shares_of_what_the_machine_can_do(bench):
    used, (comparison,) = bench("report").used, make_report(bench, 1.0).models
    assert used(row(bench, "decode"), [9, 10, 50], comparison) == "10 GB/s, 50%"
    assert used(row(bench, "8 replies at once"), [80], comparison) == "10 GB/s, 50%"  # a pass serves all eight
    assert used(row(bench, "prefill 512"), [125], comparison) == "250 GOP/s, 25%"
    assert used(row(bench, "whole prompt 8,192"), [125], comparison) == "250 GOP/s, 25%"
    assert used(row(bench, "load"), [3], comparison) == ""


def test_the_plot_has_a_bar_for_each_row_that_passes_the_line_where_puna_is_better(bench):
    root = ElementTree.fromstring(bench("plot").draw(make_report(bench, 0.5, 1.0, 2.0)))
    (line,) = root.iter(f"{SVG}line")
    one = float(line.attrib["x1"])
    _, *bars = root.iter(f"{SVG}rect")  # the first is the paper
    ends = [float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in bars]
    assert ends[0] < one < ends[2] < float(root.attrib["width"])
    assert ends[1] == pytest.approx(one, abs=0.1)
    assert "<a & b>.gguf" in [text.text for text in root.iter(f"{SVG}text")]


def test_groups_are_chosen_by_name_and_keep_the_order_of_the_table(bench):
    read = bench("options").some_of(bench("rows").GROUPS)
    assert read("load,prefill") == ["prefill", "load"]
    with pytest.raises(ArgumentTypeError, match="speed: expected some of prefill,decode"):
        read("load,speed")


@pytest.mark.parametrize("group", ["decode", "streams", "load"])
def test_punas_side_of_the_comparison_gives_a_number_for_each_row(bench, tiny, group):
    numbers = bench("compare").run_worker("puna", tiny, threads=1, group=group, run=0)
    assert list(numbers) == [row.name for row in bench("rows").rows_of(group)]
    assert all(number > 0 for number in numbers.values())


def test_every_kernel_is_measured(bench, monkeypatch):
    kernels = bench("kernels")
    small = {"ROWS": 64, "COLUMNS": 256, "HEADS": 4, "KV_HEADS": 2, "RING_BYTES": 1 << 15, "SECONDS": 0.0}
    for name, value in small.items():
        monkeypatch.setattr(kernels, name, value)
    ceilings = bench("ceilings").Ceilings(20e9, 1000e9)
    packing, few, many = kernels.products(["F16", "Q4_K"], ceilings)
    assert [list(table.columns[0].cells) for table in (packing, few, many)] == [
        ["F16", "Q4_K"],
        ["F16", "Q4_K"],
        ["F16", "Q4_K"],
    ]
    assert list(packing.columns[1].cells) == [
        "1.031",
        "1.028",
    ]  # of the file's bytes: with scales, and with scales that become bytes
    assert kernels.attention(ceilings).row_count == 3
    assert kernels.activations().row_count == 10


@pytest.mark.parametrize("threads", [1, 2])
def test_the_ceilings_are_of_work_that_is_all_done(bench, threads):
    ceilings = bench("ceilings")
    buffer = np.random.default_rng(0).integers(0, 256, 1 << 14, np.uint8)
    sums = np.zeros(threads * 16, np.int32)
    ceilings.read_memory(buffer, threads, sums)
    assert sums.sum(dtype=np.int32) == buffer.view(np.int32).sum(dtype=np.int32)
    codes = np.ones(ceilings.PLACES * ceilings.LEFT * 64, np.uint8)
    ceilings.multiply_bytes(codes, threads, 100, sums)
    assert sums.tolist() == [4 * 100 * ceilings.LEFT * ceilings.RIGHT] * threads * 16


def test_logits_that_differ_by_a_constant_do_not_diverge(bench):
    logits = np.random.default_rng(0).standard_normal((40, 50), np.float32)
    found = bench("accuracy").Divergence()
    found.add(logits, logits + np.float32(2))
    assert found.agreed == [True] * 40
    assert max(map(abs, found.divergence)) < 1e-6
    assert found.error == pytest.approx(2 / logits.std(axis=1), rel=1e-5)


def test_divergence_is_that_of_the_engine_from_the_reference(bench):
    found = bench("accuracy").Divergence()
    found.add(np.log(np.array([[0.25, 0.75]], np.float32)), np.log(np.array([[0.5, 0.5001]], np.float32)))
    assert found.divergence == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)], abs=1e-3)
    found.add(np.array([[1, 2]], np.float32), np.array([[2, 1]], np.float32))
    assert found.agreed == [True, False]


def test_punas_quantised_products_stay_close_to_its_precise_ones(bench, tiny):
    accuracy, prompts = bench("accuracy"), bench("worker").Prompts(0)
    sequences = [prompts.next(150), prompts.next(20)]  # one is a whole chunk and a part
    with closing(open_weights(tiny)) as source:
        exact, again, default = (accuracy.puna_engine(source, precise=precise) for precise in (True, True, False))
        found = accuracy.compare(exact, {"precise": again, "default": default}, sequences)
    assert found["precise"].divergence == pytest.approx([0] * 170, abs=1e-9)
    assert len(found["default"].divergence) == 170
    assert 0 < np.mean(found["default"].divergence) < 0.005


def test_both_engines_give_nearly_the_same_logits(bench, tiny):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an optional dependency")
    accuracy, prompts = bench("accuracy"), bench("worker").Prompts(0)
    found = accuracy.measure(tiny, [prompts.next(20), prompts.next(20)], threads=1)
    for engine in ("puna", "llama.cpp"):
        assert len(found[engine].divergence) == 40
        assert 0 < np.mean(found[engine].divergence) < 0.005


def test_the_table_has_a_row_for_each_engine_of_each_model(bench):
    accuracy = bench("accuracy")
    far = accuracy.Divergence(divergence=[0.1, 0.3], error=[0.5, 1.5], agreed=[True, False])
    shown = accuracy.table({"a": {"puna": far, "llama.cpp": far}, "b": {"puna": far}})
    rows = list(zip(*(column.cells for column in shown.columns), strict=True))
    assert [row[:2] for row in rows] == [("a", "puna"), ("a", "llama.cpp"), ("b", "puna")]
    assert {row[2:] for row in rows} == {("0.2", "0.3", "1", "1.5", "50.00%")}


def test_random_models_of_the_types_asked_for_are_measured_one_at_a_time(bench):
    given = Namespace(model=None, shape="tiny", types=["Q8_0", "Q4_0"])
    sizes = {path.name: path.stat().st_size for path in bench("accuracy").models(given) if path.exists()}
    assert list(sizes) == ["tiny Q8_0", "tiny Q4_0"]
    assert sizes["tiny Q8_0"] > sizes["tiny Q4_0"]
