"""What a plugin declares and what the core makes of it: names, sizes, the tensor table, and errors by name."""

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from puna.core.errors import BadModel
from puna.core.model import check_table, find_architecture, load_model, read_config, read_vision_config
from puna.core.plugin import (
    Architecture,
    Array,
    CacheLayer,
    Causal,
    Keys,
    Matrix,
    Module,
    Window,
    layers,
    tensor,
)
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import CpuLoader, CpuMatrix
from puna.core.tensor.source import TensorInfo
from puna.core.tensor.weights import open_weights
from puna.plugins import llama, llava, mistral, mistral_small, mllama, qwen2, qwen3, qwen3vl, qwen25vl

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass
class MemorySource:
    """Weights that a test writes down."""

    kind: str
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def tensors(self):
        return {name: TensorInfo(name, by_name("F32"), a.shape, a.nbytes) for name, a in self.arrays.items()}

    def raw(self, name):
        array = self.arrays[name]
        raw = array.reshape(-1, array.shape[-1]).view(np.uint8)
        raw.flags.writeable = False
        return raw

    def release(self, name):
        pass

    def side_file(self, name):
        return self.files.get(name)

    def close(self):
        pass


# ---- a toy architecture --------------------------------------------------------------------------------------------


class Config(msgspec.Struct, frozen=True, kw_only=True):
    layers: int
    width: int
    vocabulary: int = 5
    context_length: int = 16

    @property
    def pairs(self) -> int:
        return self.width // 2

    @classmethod
    def from_gguf(cls, keys: Keys) -> "Config":
        return cls(layers=keys.integer("block_count"), width=keys.integer("embedding_length"))

    @classmethod
    def from_hf(cls, keys: Keys) -> "Config":
        return cls(layers=keys.integer("num_hidden_layers"), width=keys.integer("hidden_size"))


class Block(Module):
    config: Config
    weight: Matrix = tensor("width", "width", gguf="w.weight", hf="proj.weight")
    bias: Array | None = tensor("width", gguf="w.bias", hf="proj.bias", optional=True)
    gguf_only: Array | None = tensor("pairs", gguf="freqs", optional=True)

    def ready(self) -> None:
        self.sum = float(self.bias.sum()) if self.bias is not None else None


class Toy(Module):
    config: Config
    embedding: Matrix = tensor("vocabulary", "width", gguf="embd.weight", hf="embed.weight")
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", hf="model.layers.{}.")
    output: Matrix = tensor("vocabulary", "width", gguf="output.weight", hf="head.weight", tied="embedding")
    scale: Array = tensor(3, gguf="scale", hf="scale")

    def ready(self) -> None:
        self.sums = [block.sum for block in self.blocks]


def cache_layout(config):
    return [CacheLayer(1, config.width, config.width, Causal())] * config.layers


TOY = Architecture(gguf=("toy",), hf=("ToyForCausalLM",), config=Config, model=Toy, cache=cache_layout)


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def toy_gguf(**changes):
    """A well-formed file; changes by tensor name with __ for a dot, None removes one."""
    arrays = {
        "embd.weight": numbers(5, 4), "output.weight": -numbers(5, 4), "scale": numbers(3),
        "blk.0.w.weight": numbers(4, 4), "blk.0.w.bias": numbers(4),
        "blk.1.w.weight": numbers(4, 4) + 1, "blk.1.freqs": numbers(2),
    }  # fmt: skip
    arrays |= {name.replace("__", "."): array for name, array in changes.items()}
    metadata = {"general.architecture": "toy", "toy.block_count": 2, "toy.embedding_length": 4}
    return MemorySource("gguf", metadata, {name: array for name, array in arrays.items() if array is not None})


def load(source):
    return load_model(find_architecture([TOY], source), source, CpuLoader(precise=True))


def wide(matrix: CpuMatrix):
    return matrix.data.view(np.float32).reshape(matrix.shape)


# ---- the tensor table ----------------------------------------------------------------------------------------------


def test_annotated_attributes_are_filled_from_the_file():
    source = toy_gguf()
    model = load(source).model
    np.testing.assert_array_equal(wide(model.embedding), numbers(5, 4))
    np.testing.assert_array_equal(model.scale, numbers(3))
    np.testing.assert_array_equal(wide(model.blocks[1].weight), numbers(4, 4) + 1)
    np.testing.assert_array_equal(model.blocks[0].bias, numbers(4))
    np.testing.assert_array_equal(model.blocks[1].gguf_only, numbers(2))
    assert model.blocks[1].bias is None
    assert model.blocks[0].config is model.config


def test_a_module_is_ready_after_its_tensors_and_the_modules_below_it():
    assert load(toy_gguf()).model.sums == [6.0, None]


def test_the_same_table_reads_a_checkpoint_by_its_other_names():
    arrays = {
        "embed.weight": numbers(5, 4), "scale": numbers(3), "model.layers.0.proj.weight": numbers(4, 4),
        "model.layers.0.proj.bias": numbers(4),
    }  # fmt: skip
    metadata = {"architectures": ["ToyForCausalLM"], "num_hidden_layers": 1, "hidden_size": 4}
    model = load(MemorySource("safetensors", metadata, arrays)).model
    np.testing.assert_array_equal(model.blocks[0].bias, numbers(4))
    assert model.blocks[0].gguf_only is None


def test_a_tied_tensor_is_the_other_one_unless_the_file_has_its_own():
    tied = load(toy_gguf(output__weight=None)).model
    assert tied.output is tied.embedding
    np.testing.assert_array_equal(wide(load(toy_gguf()).model.output), -numbers(5, 4))


def test_weight_bytes_count_each_tensor_once():
    whole = sum(array.nbytes for array in toy_gguf().arrays.values())
    assert load(toy_gguf()).weight_bytes == whole
    assert load(toy_gguf(output__weight=None)).weight_bytes == whole - numbers(5, 4).nbytes


def test_the_cache_layout_comes_with_the_model():
    assert load(toy_gguf()).cache == [CacheLayer(1, 4, 4, Causal())] * 2


def test_every_missing_and_misshapen_tensor_is_named_in_one_error():
    with pytest.raises(BadModel) as caught:
        load(toy_gguf(embd__weight=numbers(4, 5), blk__1__w__weight=None, blk__0__w__bias=numbers(1, 4)))
    message = str(caught.value)
    assert "embd.weight is [4, 5], expected [5, 4]" in message
    assert "blk.1.w.weight is missing (expected [4, 4])" in message
    assert "blk.0.w.bias is [1, 4], expected [4]" in message


def test_a_count_of_layers_from_a_hostile_file_ends_in_an_error_and_soon():
    source = toy_gguf()
    source.metadata["toy.block_count"] = 1 << 31
    with pytest.raises(BadModel, match=r"blk\.2\.w\.weight is missing .*; and \d+ more$"):
        load(source)


def test_tensors_that_nothing_asks_for_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="puna"):
        load(toy_gguf(blk__7__w__weight=numbers(4, 4)))
    assert "1 tensors are not used by this architecture: blk.7.w.weight" in caplog.text


def test_tensors_that_need_not_be_used_are_passed_over_in_silence(caplog):
    source, other = toy_gguf(old__7__w=numbers(4), rest=numbers(4)), architecture(prefixes={"old.": "new."})
    for spare, left in (((), "old.7.w, rest"), (("new.",), "rest"), (("new.", "rest"), None), (("old.",), "old.7.w")):
        caplog.clear()
        load_model(replace(other, spare=spare), source, CpuLoader(precise=True))
        assert (left or "") in caplog.text
        assert (left is None) == (caplog.text == "")


def test_a_missing_size_is_named():
    source = toy_gguf()
    del source.metadata["toy.embedding_length"]
    with pytest.raises(BadModel, match=r"^GGUF metadata: key toy\.embedding_length is missing$"):
        load(source)


class Halves(Module):
    """One tensor of a checkpoint is two here, and the config does not say how wide they are."""

    config: Config
    left: Matrix = tensor("width", "inner", hf="both.weight", hf_part=(0, 2))
    right: Matrix = tensor("width", "inner", hf="both.weight", hf_part=(1, 2))
    left_bias: Array = tensor("width", hf="both.bias", hf_part=(0, 2))
    right_bias: Array = tensor("width", hf="both.bias", hf_part=(1, 2))


class OpenConfig(Config, frozen=True):
    inner: None = None


def load_halves(**arrays):
    given = {"both.weight": numbers(8, 3), "both.bias": numbers(8)} | arrays
    metadata = {"architectures": ["ToyForCausalLM"], "num_hidden_layers": 1, "hidden_size": 4}
    source = MemorySource("safetensors", metadata, given)
    return load_model(
        architecture(gguf=(), hf=("ToyForCausalLM",), config=OpenConfig, model=Halves), source, CpuLoader(precise=True)
    )


def test_parts_of_a_tensor_s_rows_are_tensors_of_their_own():
    model = load_halves().model
    np.testing.assert_array_equal(wide(model.left), numbers(8, 3)[:4])
    np.testing.assert_array_equal(wide(model.right), numbers(8, 3)[4:])
    np.testing.assert_array_equal(model.left_bias, numbers(8)[:4])
    np.testing.assert_array_equal(model.right_bias, numbers(8)[4:])


def test_a_size_that_the_config_leaves_open_is_the_file_s():
    assert load_halves(**{"both.weight": numbers(8, 5)}).model.left.shape == (4, 5)
    with pytest.raises(BadModel, match=r"both\.weight is \[3, 5\], expected \[4, any\]"):
        load_halves(**{"both.weight": numbers(6, 5)})


class Turned(Module):
    """What checkpoints alone hold the other way round, two tensors in one."""

    config: Config
    left: Matrix = tensor("pairs", "width", gguf="left", hf="both", hf_part=(0, 2), transposed="hf")
    right: Matrix = tensor("pairs", "width", gguf="right", hf="both", hf_part=(1, 2), transposed="hf")


def test_a_tensor_may_lie_the_other_way_round_in_checkpoints_alone():
    made = architecture(model=Turned)
    file = MemorySource("gguf", toy_gguf().metadata, {"left": numbers(2, 4), "right": numbers(2, 4) + 9})
    config = {"architectures": ["ToyForCausalLM"], "num_hidden_layers": 1, "hidden_size": 4}
    both = np.ascontiguousarray(np.concatenate([numbers(2, 4), numbers(2, 4) + 9]).T)
    for source in (file, MemorySource("safetensors", config, {"both": both})):
        model = load_model(made, source, CpuLoader(precise=True)).model
        np.testing.assert_array_equal(wide(model.left), numbers(2, 4))
        np.testing.assert_array_equal(wide(model.right), numbers(2, 4) + 9)
    with pytest.raises(BadModel, match=r"both is \[2, 2\], expected \[4, 2\]"):
        load_model(made, MemorySource("safetensors", config, {"both": numbers(2, 4)}), CpuLoader(precise=True))


class OddConfig(Config, frozen=True):
    @property
    def odd(self) -> tuple[int, ...]:
        return tuple(range(1, self.layers, 2))


class Mixed(Module):
    """Every layer has a weight, some have another."""

    config: OddConfig
    blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.")
    others: list[Block] = layers(Block, count="odd", gguf="other.{}.")


def test_layers_of_another_kind_are_those_of_the_numbers_that_the_config_names():
    arrays = {f"blk.{layer}.w.weight": numbers(4, 4) for layer in range(5)}
    arrays |= {f"other.{layer}.w.weight": numbers(4, 4) + layer for layer in (1, 3)}
    metadata = toy_gguf().metadata | {"toy.block_count": 5}
    made = architecture(config=OddConfig, model=Mixed, hf=())
    model = load_model(made, MemorySource("gguf", metadata, arrays), CpuLoader(precise=True)).model
    assert [wide(block.weight)[0, 0] for block in model.others] == [1, 3]
    del arrays["other.3.w.weight"]
    with pytest.raises(BadModel, match=r"other\.3\.w\.weight is missing"):
        load_model(made, MemorySource("gguf", metadata, arrays), CpuLoader(precise=True))


class Third(Module):
    """A part of one tensor in some files, and by itself in others, under prefixes of both."""

    config: Config
    weight: Matrix = tensor("pairs", "width", gguf=("own", "all"), gguf_part=(1, 3), hf="w")
    bias: Array = tensor("pairs", gguf=("own.bias", "all.bias"), gguf_part=(1, 3), hf="b")


class Thirds(Module):
    config: OddConfig
    odd: list[Third] = layers(Third, count="odd", gguf=("new.{place}.", "old.{}."), hf="listed.{place}.")


def load_thirds(kind="gguf", **arrays):
    metadata = {**toy_gguf().metadata, "toy.block_count": 5}
    if kind == "safetensors":
        metadata = {"architectures": ["ToyForCausalLM"], "num_hidden_layers": 5, "hidden_size": 4}
    made = architecture(config=OddConfig, model=Thirds)
    return load_model(made, MemorySource(kind, metadata, arrays), CpuLoader(precise=True)).model.odd


def test_a_gguf_file_may_hold_a_tensor_by_itself_or_as_a_part_of_another():
    own = {f"old.{layer}.own": numbers(2, 4) + layer for layer in (1, 3)}
    own |= {f"old.{layer}.own.bias": numbers(2) + layer for layer in (1, 3)}
    both = {f"old.{layer}.all": np.pad(numbers(2, 4) + layer, ((2, 2), (0, 0))) for layer in (1, 3)}
    both |= {f"old.{layer}.all.bias": np.pad(numbers(2) + layer, 2) for layer in (1, 3)}
    for arrays in (own, both):
        for layer, third in zip((1, 3), load_thirds(**arrays), strict=True):
            np.testing.assert_array_equal(wide(third.weight), numbers(2, 4) + layer)
            np.testing.assert_array_equal(third.bias, numbers(2) + layer)
    with pytest.raises(BadModel, match=r"old\.1\.all is \[5, 4\], expected 3 equal parts of dimension 0"):
        load_thirds(**both | {"old.1.all": numbers(5, 4)})
    with pytest.raises(BadModel, match=r"old\.1\.own is \[3, 4\], expected \[2, 4\]"):
        load_thirds(**own | {"old.1.own": numbers(9, 4)})


def test_files_name_parts_by_their_layer_or_number_them():
    newer, listed = {}, {}
    for place in (0, 1):
        newer |= {f"new.{place}.own": numbers(2, 4), f"new.{place}.own.bias": numbers(2) + place}
        listed |= {f"listed.{place}.w": numbers(2, 4), f"listed.{place}.b": numbers(2) + place}
    for kind, arrays in (("gguf", newer), ("safetensors", listed)):
        found = [third.bias for third in load_thirds(kind, **arrays)]
        np.testing.assert_array_equal(found, [numbers(2), numbers(2) + 1])
    del newer["new.1.own.bias"]
    with pytest.raises(BadModel, match=r"new\.1\.own\.bias or old\.3\.own\.bias or .*old\.3\.all\.bias is missing"):
        load_thirds(**newer)


class Crossed(Module):
    """Some files call each of two tensors what others call the other one."""

    config: Config
    up: Matrix = tensor("pairs", "width", gguf=("up", "down", "first"))
    down: Matrix = tensor("width", "pairs", gguf=("down", "up", "second"))
    bias: Array = tensor("pairs", gguf=("up.bias", "bias"))


def load_crossed(**arrays):
    metadata = {"general.architecture": "toy", "toy.block_count": 1, "toy.embedding_length": 4}
    source = MemorySource("gguf", metadata, {name.replace("__", "."): array for name, array in arrays.items()})
    return load_model(architecture(model=Crossed), source, CpuLoader(precise=True)).model


@pytest.mark.parametrize("up, down", [("up", "down"), ("down", "up"), ("first", "second")])
def test_of_several_names_the_first_whose_tensor_fits_counts(up, down, caplog):
    model = load_crossed(**{up: numbers(2, 4), down: -numbers(4, 2)}, bias=numbers(2), up__bias=numbers(4))
    np.testing.assert_array_equal(wide(model.up), numbers(2, 4))
    np.testing.assert_array_equal(wide(model.down), -numbers(4, 2))
    np.testing.assert_array_equal(model.bias, numbers(2))
    assert "1 tensors are not used by this architecture: up.bias" in caplog.text


def test_of_several_names_none_of_which_fits_the_first_is_complained_of():
    with pytest.raises(BadModel) as caught:
        load_crossed(up=numbers(2, 5), first=numbers(5, 2), bias=numbers(2))
    message = str(caught.value)
    assert "up is [2, 5], expected [2, 4]" in message
    assert "up is [2, 5], expected [4, 2]" in message
    with pytest.raises(BadModel, match=r"down or up or second is missing \(expected \[4, 2\]\)"):
        load_crossed(first=numbers(2, 4), bias=numbers(2))


class Look(msgspec.Struct):
    mean: float

    @classmethod
    def from_hf(cls, keys):
        processor = keys.section("preprocessor")
        return None if processor is None else cls(processor.number("mean"))


def test_the_config_of_an_encoder_reads_the_processor_s_file():
    def look(**files):
        source = MemorySource("safetensors", {}, files={name + ".json": data for name, data in files.items()})
        return read_vision_config(Look, source)

    assert look(preprocessor_config=b'{"mean": 0.5}') == Look(0.5)
    assert look() is None
    with pytest.raises(BadModel, match=r"^config\.json: preprocessor: key mean is 'a', expected a number$"):
        look(preprocessor_config=b'{"mean": "a"}')
    with pytest.raises(BadModel, match=r"^preprocessor_config\.json is not JSON"):
        look(preprocessor_config=b"[")
    with pytest.raises(BadModel, match=r"^preprocessor_config\.json holds a list; expected an object$"):
        look(preprocessor_config=b"[]")


class Wrong(Module):
    config: Config
    size: int


class HoldsWrong(Module):
    config: Config
    blocks: list[Wrong] = layers(Wrong, count="layers", gguf="blk.{}.")


def test_an_attribute_that_is_neither_tensor_nor_layers_is_refused():
    check_table(Toy)
    for kind in (Wrong, HoldsWrong):
        with pytest.raises(TypeError, match=r"Wrong\.size is neither tensor\(\.\.\.\) nor layers\(\.\.\.\)"):
            check_table(kind)


# ---- names ---------------------------------------------------------------------------------------------------------


def architecture(**changes):
    return Architecture(**{"gguf": ("toy",), "config": Config, "model": Toy, "cache": cache_layout} | changes)


def test_the_first_architecture_that_answers_is_chosen():
    other = architecture(gguf=("other", "toy"))
    assert find_architecture([other, TOY], toy_gguf()) is other
    assert other.answers_to("gguf", {"general.architecture": "other"})
    assert TOY.answers_to("safetensors", {"architectures": ["Strange", "ToyForCausalLM"]})


@pytest.mark.parametrize("key", ["clip.projector_type", "clip.vision.projector_type"])
def test_a_pair_of_files_is_for_who_answers_to_both_and_else_for_who_answers_to_the_text(key):
    seeing, metadata = architecture(gguf=("seeing", "toy+eye")), {"general.architecture": "toy"}
    pair, other_pair = metadata | {key: "eye"}, metadata | {key: "ear"}
    for both in ([TOY, seeing], [seeing, TOY]):
        chosen = [find_architecture(both, MemorySource("gguf", found)) for found in (metadata, pair, other_pair)]
        assert chosen == [TOY, seeing, TOY]
    assert find_architecture([TOY], MemorySource("gguf", pair)) is TOY
    assert seeing.answers_to("gguf", pair)
    assert not seeing.answers_to("gguf", other_pair)
    with pytest.raises(BadModel, match=r"general.architecture = 'toy'; installed: seeing, toy\+eye"):
        find_architecture([seeing], MemorySource("gguf", metadata | {key: 5}))


def test_a_name_that_ends_in_a_plus_is_for_encoders_that_do_not_say_what_they_are():
    oldest, metadata = architecture(gguf=("oldest", "toy+")), {"general.architecture": "toy"}
    beside = metadata | {"clip.has_vision_encoder": True}
    others = [metadata, metadata | {"clip.has_vision_encoder": False}, beside | {"clip.projector_type": "eye"}]
    for both in ([TOY, oldest], [oldest, TOY]):
        assert find_architecture(both, MemorySource("gguf", beside)) is oldest
        assert [find_architecture(both, MemorySource("gguf", found)) for found in others] == [TOY] * 3
    assert find_architecture([TOY], MemorySource("gguf", beside)) is TOY


@pytest.mark.parametrize(
    ("kind", "metadata", "asked"),
    [
        ("gguf", {}, "general.architecture = None"),
        ("gguf", {"general.architecture": "to"}, "general.architecture = 'to'"),
        ("gguf", {"general.architecture": np.array([1, 2])}, r"general.architecture = array\(\[1, 2\]\)"),
        ("gguf", {"general.architecture": ["toy"]}, r"general.architecture = \['toy'\]"),
        ("gguf", {"architectures": ["ToyForCausalLM"]}, "general.architecture = None"),
        ("safetensors", {"architectures": "ToyForCausalLM"}, "architectures = 'ToyForCausalLM'"),
        ("safetensors", {"architectures": [["ToyForCausalLM"]]}, "architectures = "),
        ("safetensors", {"general.architecture": "toy"}, "architectures = None"),
    ],
)
def test_a_file_that_nobody_answers_to_is_refused_with_what_it_asked_for(kind, metadata, asked):
    with pytest.raises(BadModel, match=f"^no plugin provides {asked}.*; installed: [Tt]oy"):
        find_architecture([TOY], MemorySource(kind, metadata))


def test_with_no_plugins_at_all_the_error_says_so():
    with pytest.raises(BadModel, match=r"installed: none$"):
        find_architecture([], toy_gguf())


def test_an_architecture_is_shown_by_its_first_name():
    assert TOY.name == "toy"
    assert architecture(gguf=(), hf=("ToyForCausalLM",)).name == "ToyForCausalLM"


def test_an_architecture_without_a_name_is_refused():
    with pytest.raises(ValueError, match="needs a name to answer to"):
        architecture(gguf=())


def test_a_name_without_its_comma_is_refused():
    with pytest.raises(TypeError, match=r"gguf='toy' is one text, expected a tuple of names: \('toy',\)"):
        architecture(gguf="toy")


def test_a_config_needs_a_constructor_for_each_kind_of_file_answered_to():
    class OnlyGGUF(msgspec.Struct):
        @classmethod
        def from_gguf(cls, keys):
            return cls()

    architecture(config=OnlyGGUF)
    with pytest.raises(TypeError, match="OnlyGGUF needs a from_hf: the architecture answers to ToyForCausalLM"):
        architecture(config=OnlyGGUF, hf=("ToyForCausalLM",))


# ---- the plugins that come with Puna -------------------------------------------------------------------------------

OURS = [llama, llava, mistral, mistral_small, mllama, qwen2, qwen3, qwen3vl, qwen25vl]


@pytest.mark.parametrize("plugin", OURS, ids=lambda plugin: plugin.__name__)
def test_our_plugins_declare_well_formed_tables(plugin):
    for provided in plugin.architectures():
        check_table(provided.model)
        if provided.vision is not None:
            check_table(provided.vision)


@pytest.mark.parametrize("variant", ["llama-bpe", "llama-spm", "qwen2", "qwen3"])
def test_both_kinds_of_file_of_one_model_give_the_same_sizes(variant):
    plugin = next(p for p in OURS if p.__name__.endswith(variant.split("-")[0]))
    ours = plugin.architectures()[0]
    gguf = next((FIXTURES / variant / "gguf").glob("*f32.gguf"))
    found, expected = (read_config(ours.config, open_weights(path)) for path in (gguf, FIXTURES / variant / "hf"))
    differing = {"scaling", "pairing", "eps", "rope_base"}  # conversion rewrites the first two and rounds the others
    sizes = [{n: v for n, v in msgspec.structs.asdict(c).items() if n not in differing} for c in (found, expected)]
    assert sizes[0] == sizes[1]
    assert (found.eps, found.rope_base) == pytest.approx((expected.eps, expected.rope_base), rel=1e-6)


def hf(variant, **changes):
    """A fixture's config.json with changes."""
    config = json.loads((FIXTURES / variant / "hf" / "config.json").read_text())
    return Keys(config | changes, origin="config.json")


def test_a_window_of_mistral_is_every_layers():
    assert {layer.kind for layer in mistral.cache_layout(mistral.Config.from_hf(hf("mistral-swa")))} == {Window(12)}
    without = mistral.Config.from_hf(hf("mistral-swa", sliding_window=None))
    assert {layer.kind for layer in mistral.cache_layout(without)} == {Causal()}


@pytest.mark.parametrize(("plugin", "variant"), [(qwen2, "qwen2"), (qwen3, "qwen3")])
class TestWindowsOfQwen:
    def windows(self, plugin, variant, **changes):
        base = {"num_hidden_layers": 4, "layer_types": None, "sliding_window": 8, "use_sliding_window": True}
        return plugin.Config.from_hf(hf(variant, **base | changes)).windows

    def test_begin_at_a_layer_by_the_older_rule(self, plugin, variant):
        assert self.windows(plugin, variant, max_window_layers=2) == (None, None, 8, 8)
        assert self.windows(plugin, variant, max_window_layers=0) == (8, 8, 8, 8)

    def test_are_listed_by_the_newer_rule(self, plugin, variant):
        kinds = ["sliding_attention", "full_attention"] * 2
        assert self.windows(plugin, variant, layer_types=kinds) == (8, None, 8, None)

    def test_are_off_unless_switched_on(self, plugin, variant):
        assert self.windows(plugin, variant, use_sliding_window=False, max_window_layers=0) == (None,) * 4

    @pytest.mark.parametrize("kinds", [["full_attention"] * 3, ["chunked_attention"] * 4, [5] * 4])
    def test_are_refused_where_they_make_no_sense(self, plugin, variant, kinds):
        with pytest.raises(BadModel, match=r"layer_types is .*, expected 4 entries, each sliding_attention or full"):
            self.windows(plugin, variant, layer_types=kinds)

    def test_are_not_listed_for_an_absurd_number_of_layers(self, plugin, variant):
        with pytest.raises(BadModel, match="num_hidden_layers is 2147483648"):
            self.windows(plugin, variant, num_hidden_layers=1 << 31)
        source = open_weights(FIXTURES / variant / "gguf" / "model-f32.gguf")
        keys = Keys(dict(source.metadata) | {f"{variant}.block_count": 1 << 31}, prefix=f"{variant}.")
        with pytest.raises(BadModel, match="block_count is 2147483648"):
            plugin.Config.from_gguf(keys)


@pytest.mark.parametrize(
    ("plugin", "variant", "changes", "complaint"),
    [
        (llama, "llama-bpe", {"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of 4"),
        (llama, "llama-bpe", {"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu"),
        (llama, "llama-bpe", {"mlp_bias": True}, "mlp_bias is True, expected false"),
        (llama, "llama-bpe", {"rms_norm_eps": 2}, "rms_norm_eps is 2"),
        (llama, "llama-bpe", {"vocab_size": None}, "vocab_size is missing"),
        (llama, "llama-bpe", {"rope_scaling": {"rope_type": "dynamic"}}, "rope_type is 'dynamic', expected one of"),
        (mistral, "mistral-swa", {"sliding_window": 0}, "sliding_window is 0"),
        (qwen3, "qwen3", {"attention_bias": True}, "attention_bias is True, expected false"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_key(plugin, variant, changes, complaint):
    with pytest.raises(BadModel, match=complaint):
        plugin.Config.from_hf(hf(variant, **changes))
