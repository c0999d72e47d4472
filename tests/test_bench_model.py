"""The random models of the benchmark are real files: types by the recipe, sane scales, a complete vocabulary."""

import importlib
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf.quants import dequantize

from puna.core.tensor.weights import open_weights
from puna.text.tokenizers import open_tokenizer

ROOT = Path(__file__).parents[1]


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


def types_of(bench, shape, recipe):
    shapes = bench("shapes")
    return {t.name: t.type for t in shapes.tensors(shapes.SHAPES[shape], shapes.RECIPES[recipe])}


def test_a_file_opens_with_the_types_and_shapes_of_its_recipe(bench, tiny):
    source = open_weights(tiny)
    shapes = bench("shapes")
    wanted = shapes.tensors(shapes.SHAPES["tiny"], shapes.RECIPES["Q4_K_M"])
    assert [(t.name, t.format.name, t.shape, t.nbytes) for t in source.tensors.values()] == [
        (t.name, t.type.name, t.shape, t.nbytes) for t in wanted
    ]
    assert source.metadata["general.architecture"] == "llama"
    assert len(source.metadata["tokenizer.ggml.tokens"]) == 768
    source.close()


def test_weights_lie_around_zero_with_the_deviation_of_a_trained_layer(tiny):
    for tensor in GGUFReader(tiny).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type != Type.F32:
            assert values.std() == pytest.approx(values.shape[-1] ** -0.5, rel=0.05), tensor.name
            assert abs(values.mean()) < 0.15 * values.std(), tensor.name


FLOATS, SMALL = ["F16", "BF16"], ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]
LARGE = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]


@pytest.mark.parametrize("name", [*FLOATS, *SMALL, *LARGE])
def test_random_weights_of_every_type_have_the_deviation_asked_for(bench, name):
    kind = Type[name]
    data = bench("random_weights").random_weights(kind, 1 << 16, 0.02, np.random.default_rng(1))
    values = dequantize(data.view(np.float16) if kind == Type.F16 else data, kind)
    assert values.size == 1 << 16
    assert values.std() == pytest.approx(0.02, rel=0.05)
    assert abs(values.mean()) < 0.02 * values.std()  # else sums over thousands of columns have a direction


def test_files_with_equal_arguments_are_equal(bench, tiny, tmp_path):
    bench("make_model").make_model(tmp_path / "again.gguf", "tiny", "Q4_K_M")
    assert (tmp_path / "again.gguf").read_bytes() == tiny.read_bytes()


def test_q4_k_m_raises_the_layers_that_the_recipe_names(bench):
    raised = {layer for layer in range(32) if bench("shapes").gets_more_bits(layer, 32)}
    assert raised == {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}
    types = types_of(bench, "llama-3.1-8b", "Q4_K_M")
    assert types["blk.6.attn_v.weight"] == types["blk.6.ffn_down.weight"] == types["output.weight"] == Type.Q6_K
    assert types["blk.5.attn_v.weight"] == types["blk.6.ffn_up.weight"] == types["token_embd.weight"] == Type.Q4_K


def test_a_mixture_of_experts_computes_with_as_many_as_a_token_asks(bench, tmp_path):
    path, work = tmp_path / "moe.gguf", bench("work")
    bench("make_model").make_model(path, "tiny-moe", "Q4_K_M")
    with closing(open_weights(path)) as source:
        matrices = {name: info for name, info in source.tensors.items() if len(info.shape) > 1}
    gates = [info for name, info in matrices.items() if name.endswith("ffn_gate_exps.weight")]
    assert [(info.format.name, info.shape) for info in gates] == [("Q4_K", (8, 256, 256))] * 4
    experts = [info for info in matrices.values() if len(info.shape) == 3]
    every = sum(info.nbytes for info in matrices.values())
    found = work.read_work(path)
    assert found.read_bytes == every - sum(info.nbytes for info in experts) * 6 // 8  # two of eight are read
    layer = 256 * 256 + 256 * 128 * 2 + 256 * 256 + 8 * 256 + (1 + 2) * 3 * 256 * 256  # one expert is shared
    assert found.operations == 2 * 4 * layer


def test_a_tied_model_has_its_embedding_table_in_the_output_type(bench):
    types = types_of(bench, "llama-3.2-1b", "Q4_0")
    assert types["token_embd.weight"] == Type.Q6_K
    assert "output.weight" not in types


def test_rows_that_no_super_block_divides_fall_back_to_small_blocks(bench):
    types = types_of(bench, "qwen2.5-0.5b", "Q4_K_M")  # 896 is three and a half super-blocks
    assert types["blk.3.attn_q.weight"] == Type.Q5_0
    assert types["blk.0.attn_v.weight"] == types["token_embd.weight"] == Type.Q8_0
    assert types["blk.0.ffn_down.weight"] == Type.Q6_K
    assert Counter(types.values())[Type.F32] == 24 * 5 + 1


@pytest.mark.parametrize(("architecture", "size"), [("llama", 768), ("llama", 128256), ("qwen2", 151936)])
def test_every_merge_makes_a_token_of_two_earlier_ones(bench, architecture, size):
    vocabulary = bench("vocabulary").make_vocabulary(architecture, size)
    ids = {token: n for n, token in enumerate(vocabulary.tokens)}
    assert len(vocabulary.tokens) == len(vocabulary.types) == len(ids) == size
    for rank, merge in enumerate(vocabulary.merges):
        left, right = merge.split(" ")
        made = ids[left + right]
        assert made == 256 + rank
        assert ids[left] < made
        assert ids[right] < made


def test_every_text_has_tokens_that_give_it_back(tiny):
    source = open_weights(tiny)
    tokenizer = open_tokenizer(source)
    text = "The test of 1234 things:\n\n\tnaïve 日本語 🙂 <|eot_id|>"
    ids = tokenizer.encode(text, special=False, start=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())  # some merges apply
    start, *_, end = tokenizer.encode("text<|eot_id|>", special=True, start=True)
    assert (start, end) == (512, 521)
    assert end in tokenizer.stop_ids
    source.close()


def test_rotary_divisors_leave_fast_frequencies_and_stretch_slow_ones(bench):
    shape = bench("shapes").SHAPES["llama-3.2-1b"]
    divisors = bench("random_weights").rope_divisors(shape)
    assert divisors.shape == (32,)
    assert divisors[0] == 1
    assert divisors[-1] == pytest.approx(32)
    assert (np.diff(divisors) >= 0).all()
