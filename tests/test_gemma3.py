"""Gemma 3 against the reference: sizes from every kind of file, pictures, and prompts with pictures.

Text alone is compared in test_parity.py. Files come in three namings: checkpoints, the pair of GGUF files that
llama.cpp wants, and the single GGUF file that holds everything, which is written here.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gguf
import msgspec
import numpy as np
import pytest
from PIL import Image

from puna.core.keys import Keys
from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.model import LoadedModel, check_table, load_model, read_config, read_vision_config
from puna.core.pictures import Picture, open_picture
from puna.core.plugin import Causal, Prepared, Window
from puna.core.plugin import Rows as Place
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Media, Placed
from puna.core.scheduler.plan import Limits
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.source import WeightSource
from puna.core.tensor.weights import open_weights
from puna.plugins import gemma3, gemma3_vision
from puna.plugins.gemma3 import Config, cache_layout
from puna.plugins.gemma3_vision import PanAndScan, Vision, VisionConfig
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES, cases, expected
from .test_engine import TEXT, reply

ATOL = 1e-3  # what the reference states for engines that work in float32
VL = FIXTURES / "gemma3-vl"
KINDS = ("checkpoint", "pair", "single")
(ARCHITECTURE,) = gemma3.architectures()
R = TypeVar("R")

kinds = pytest.mark.parametrize("kind", KINDS)
images = pytest.mark.parametrize("image", cases("gemma3-vl")["images"], ids=lambda image: image["name"])
prompts = pytest.mark.parametrize("case", cases("gemma3-vl")["multimodal"], ids=lambda case: case["name"])

# ---- files ---------------------------------------------------------------------------------------------------------

IN_ONE_FILE = (  # what the single file calls tensors of the pair
    ("v.patch_embd.", "v.patch_embedding."), ("v.position_embd.", "v.position_embedding."),
    (".ln1.", ".layer_norm1."), (".ln2.", ".layer_norm2."), ("v.post_ln.", "v.post_layernorm."),
    (".attn_out.", ".attn_output."), (".ffn_up.", ".mlp.fc1."), (".ffn_down.", ".mlp.fc2."),
    ("mm.soft_emb_norm.", "mm.mm_soft_emb_norm."), ("mm.input_projection.", "mm.mm_input_projection."),
)  # fmt: skip


def write_single(path: Path) -> None:
    """Write the pair's weights and sizes as one file, with the names and keys of those."""
    text, eye = (gguf.GGUFReader(VL / "gguf" / name) for name in ("model-f32.gguf", "mmproj-f32.gguf"))
    writer = gguf.GGUFWriter(path, "gemma3")
    sizes = {
        "block_count": 7, "context_length": 131072, "embedding_length": 48, "feed_forward_length": 80,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "attention.sliding_window": 20, "mm.tokens_per_image": 16,
        "vision.block_count": 3, "vision.embedding_length": 32, "vision.feed_forward_length": 56,
        "vision.image_size": 64, "vision.patch_size": 4, "vision.num_channels": 3, "vision.attention.head_count": 2,
    }  # fmt: skip
    for name, size in sizes.items():
        writer.add_uint32(f"gemma3.{name}", size)
    numbers = {
        "rope.local.freq_base": 1e4, "rope.global.freq_base": 1e6, "rope.scaling.factor": 8.0,
        "vision.attention.layer_norm_epsilon": 1e-6,
    }  # fmt: skip
    for name, number in numbers.items():
        writer.add_float32(f"gemma3.{name}", number)
    writer.add_string("gemma3.rope.scaling.type", "linear")
    writer.add_token_list(text.fields["tokenizer.ggml.tokens"].contents())
    for tensor in text.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    for tensor in eye.tensors:
        name = tensor.name
        for old, new in IN_ONE_FILE:
            name = name.replace(old, new)
        assert name != tensor.name or ".attn_" in name
        writer.add_tensor(name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], WeightSource]:
    """Return a function that opens the model with pictures as one of the KINDS."""

    @cache
    def open_kind(kind: str) -> WeightSource:
        if kind == "checkpoint":
            return open_weights(VL / "hf")
        if kind == "pair":
            return open_weights({name: VL / "gguf" / name for name in ("model-f32.gguf", "mmproj-f32.gguf")})
        path = tmp_path_factory.mktemp("gemma3") / "single.gguf"
        write_single(path)
        return open_weights(path)

    return open_kind


@pytest.fixture(scope="module")
def loaded(opened: Callable[[str], WeightSource]) -> Callable[[str], LoadedModel]:
    """Return a function that loads it."""
    return cache(lambda kind: load(opened(kind)))


def load(source: WeightSource) -> LoadedModel:
    return load_model(ARCHITECTURE, source, CpuLoader(precise=True))


class Changed:
    """A source with other names for its tensors, or other settings."""

    def __init__(self, whole: WeightSource, rename: Callable[[str], str] = str, **settings: Any) -> None:
        self.kind, self.metadata = whole.kind, {**whole.metadata, **settings}
        self._whole, self._names = whole, {rename(name): name for name in whole.tensors}
        self.tensors = {new: replace(whole.tensors[old], name=new) for new, old in self._names.items()}

    def raw(self, name: str) -> np.ndarray:
        return self._whole.raw(self._names[name])

    def release(self, name: str) -> None: ...

    def side_file(self, name: str) -> bytes | None:
        return self._whole.side_file(name)

    def close(self) -> None: ...


def test_the_tensor_tables_are_well_formed() -> None:
    check_table(gemma3.Gemma3)
    check_table(Vision)


@kinds
def test_nothing_of_a_file_is_left_over(kind: str, opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    load(opened(kind))
    assert caplog.text == ""


def test_a_checkpoint_of_the_decoder_alone_and_a_file_without_its_encoder_see_nothing() -> None:
    for path in (FIXTURES / "gemma3-text" / "hf", VL / "gguf" / "model-f32.gguf"):
        assert load(open_weights(path)).vision is None


def newer(name: str) -> str:
    """What later checkpoints call tensors."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.")
    return "model." + name


def exchanged(name: str) -> str:
    """What early converters of encoders called tensors."""
    others = {"up": "down", "down": "up"}
    return re.sub(r"^(v\.blk\.\d+\.ffn_)(up|down)", lambda found: found[1] + others[found[2]], name)


@pytest.mark.parametrize(("kind", "rename"), [("checkpoint", newer), ("pair", exchanged)], ids=["newer", "exchanged"])
def test_other_names_of_tensors_make_no_difference(kind: str, rename: Any, opened: Any, loaded: Any) -> None:
    source = Changed(opened(kind), rename)
    assert {n: t.shape for n, t in source.tensors.items()} != {n: t.shape for n, t in opened(kind).tensors.items()}
    model, image = load(source), expected("gemma3-vl")["image.wide.pixel_values"]
    for found, wanted in zip(seen(model, image), seen(loaded(kind), image), strict=True):
        np.testing.assert_array_equal(found, wanted)
    tokens = np.arange(20, dtype=np.int32)
    np.testing.assert_array_equal(Talk(model).logits(tokens), Talk(loaded(kind)).logits(tokens))


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_sizes(opened: Any) -> None:
    for kind, read in itertools.product(KINDS, (read_config, read_vision_config)):
        config_type = Config if read is read_config else VisionConfig
        wanted, found = (msgspec.to_builtins(read(config_type, opened(k)), enc_hook=repr) for k in ("checkpoint", kind))
        assert (found.pop("missing_one"), wanted.pop("missing_one")) == (kind == "checkpoint", 1.0)
        assert found.pop("eps") == pytest.approx(wanted.pop("eps"), rel=1e-6)  # which the file rounds
        assert found == wanted


def test_both_files_of_the_decoder_alone_give_the_same_sizes() -> None:
    base = FIXTURES / "gemma3-text"
    hf, file = (read_config(Config, open_weights(base / name)) for name in ("hf", "gguf/model-f32.gguf"))
    assert msgspec.structs.replace(file, missing_one=1.0, eps=hf.eps) == hf
    assert hf.windows == (16, 16, 16, 16, 16, None, 16, 16)
    assert [layer.kind for layer in cache_layout(hf)] == [Window(16)] * 5 + [Causal()] + [Window(16)] * 2


def test_capped_logits_are_bent(opened: Any) -> None:
    tokens = np.arange(30, dtype=np.int32)
    text = dict(opened("checkpoint").metadata["text_config"])
    plain = Talk(load(opened("checkpoint"))).logits(tokens)
    capped = load(Changed(opened("checkpoint"), text_config=text | {"final_logit_softcapping": 2.0}))
    np.testing.assert_allclose(Talk(capped).logits(tokens), 2.0 * np.tanh(plain / 2.0), rtol=1e-5, atol=1e-6)
    loose, tight = (
        load(Changed(opened("checkpoint"), text_config=text | {"attn_logit_softcapping": cap})) for cap in (1e4, 0.1)
    )
    np.testing.assert_allclose(Talk(loose).logits(tokens), plain, atol=1e-3)
    assert np.abs(Talk(tight).logits(tokens) - plain).max() > 0.1


# ---- pictures ------------------------------------------------------------------------------------------------------


def run(generator: Generator[None, None, R]) -> R:
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def seen(loaded: LoadedModel, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what leaves the encoder for a picture, [P, D], and its rows."""
    eye: Any = loaded.vision
    tower = run(eye.encoded(pixels))
    return tower, eye.projected(tower)


def prepared(loaded: LoadedModel, image: dict[str, Any]) -> Prepared:
    assert loaded.vision is not None
    return loaded.vision.prepare(open_picture((VL / image["file"]).read_bytes()))


@kinds
@images
def test_pictures_are_prepared_as_the_reference_does(kind: str, image: dict[str, Any], loaded: Any) -> None:
    found = prepared(loaded(kind), image)
    np.testing.assert_allclose(found.pixels, expected("gemma3-vl")[image["pixel_values"]], atol=1e-5)
    rows = Place(image["n_image_tokens"], atomic=True, both_ways=True)
    assert found.parts == ("\n\n<start_of_image>", rows, "<end_of_image>\n\n")
    assert loaded(kind).vision.most_atomic == image["n_image_tokens"]


@kinds
@images
def test_pictures_are_encoded_as_the_reference_does(kind: str, image: dict[str, Any], loaded: Any) -> None:
    given = expected("gemma3-vl")
    tower, rows = seen(loaded(kind), given[image["pixel_values"]])
    np.testing.assert_allclose(tower, given[image["tower"]][0], atol=ATOL)
    np.testing.assert_allclose(rows, given[image["projected"]], atol=ATOL)


def test_others_have_their_turn_the_more_often_the_larger_the_picture(loaded: Any, monkeypatch: Any) -> None:
    eye, image = loaded("checkpoint").vision, cases("gemma3-vl")["images"][0]
    picture, parts = prepared(loaded("checkpoint"), image), 4
    assert sum(1 for _ in eye.encode([picture, picture])) == 2 * 3 * eye.config.layers
    whole = seen(loaded("checkpoint"), picture.pixels)
    monkeypatch.setattr(gemma3_vision, "AT_ONCE", eye.config.patches // parts)
    assert sum(1 for _ in eye.encode([picture])) == (2 * parts + 1) * eye.config.layers
    for found, before in zip(seen(loaded("checkpoint"), picture.pixels), whole, strict=True):
        np.testing.assert_allclose(found, before, atol=1e-5)


# ---- pan and scan --------------------------------------------------------------------------------------------------


def picture_of(width: int, height: int) -> Picture:
    """A picture each of whose pixels says where it is."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Picture(Image.fromarray(np.stack([x >> 8, x & 255, y & 255], axis=-1).astype(np.uint8)))


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        ((1000, 1000), []),
        ((1199, 1000), []),  # less than 1.2 times as wide as high
        ((1200, 1000), [(600, 1000)] * 2),
        ((1000, 1600), [(1000, 800)] * 2),
        ((2400, 1000), [(1200, 1000)] * 2),  # 2.4 is rounded to 2
        ((2500, 1000), [(834, 1000)] * 2 + [(832, 1000)]),  # 2.5 to 3; the last gets what is left
        ((600, 400), [(300, 400)] * 2),
        ((510, 400), []),  # parts of 255 pixels would be too small
        ((5000, 255), []),
        ((9000, 500), [(2250, 500)] * 4),  # no more than 4
    ],
)
def test_long_pictures_are_cut_along_their_length(size: tuple[int, int], parts: list[tuple[int, int]]) -> None:
    found = PanAndScan().crops(picture_of(*size))
    assert [part.image.size for part in found] == parts
    if found:
        axis = 1 if size[0] >= size[1] else 0
        again = np.concatenate([np.asarray(part.image) for part in found], axis=axis)
        np.testing.assert_array_equal(again, np.asarray(picture_of(*size).image))


def test_parts_of_a_picture_follow_it_in_the_words_of_the_reference(loaded: Any) -> None:
    eye: Any = Vision()
    eye.config = msgspec.structs.replace(loaded("checkpoint").vision.config, scan=PanAndScan(min_side=16))
    found = eye.prepare(picture_of(150, 50))
    rows = Place(16, atomic=True, both_ways=True)
    assert found.parts == (
        "Here is the original image \n\n<start_of_image>", rows,
        "<end_of_image>\n\n and here are some crops to help you see better \n\n<start_of_image>", rows,
        "<end_of_image>\n\n \n\n<start_of_image>", rows,
        "<end_of_image>\n\n \n\n<start_of_image>", rows,
        "<end_of_image>\n\n",
    )  # fmt: skip
    eye.config = msgspec.structs.replace(eye.config, scan=None)
    whole, second = eye.prepare(picture_of(150, 50)), eye.prepare(picture_of(150, 50).cropped(50, 0, 50, 50))
    np.testing.assert_array_equal(found.pixels[[0, 2]], np.concatenate([whole.pixels, second.pixels]))


def test_the_rows_of_a_picture_and_of_its_parts_are_each_as_if_alone(loaded: Any) -> None:
    eye = loaded("checkpoint").vision
    pixels = [expected("gemma3-vl")[image["pixel_values"]] for image in cases("gemma3-vl")["images"]]
    together, alone = run(eye.encode([Prepared(np.concatenate(pixels), ()), Prepared(pixels[1], ())]))
    each = [seen(loaded("checkpoint"), one)[1] for one in pixels]
    np.testing.assert_array_equal(together, np.concatenate(each))
    np.testing.assert_array_equal(alone, each[1])


def test_pictures_are_cut_where_a_checkpoint_s_processor_asks_for_it() -> None:
    def scan(**processor: Any) -> PanAndScan | None:
        values = {"vision_config": {"image_size": 64, "patch_size": 4}, "mm_tokens_per_image": 16}
        found = VisionConfig.from_hf(Keys(values | {"preprocessor": processor}))
        assert found is not None
        return found.scan

    assert scan() is scan(do_pan_and_scan=None) is scan(do_pan_and_scan=False, pan_and_scan_max_num_crops=2) is None
    assert scan(do_pan_and_scan=True, pan_and_scan_max_num_crops=None) == PanAndScan(
        min_ratio=1.2, min_side=256, most=4
    )
    sizes = {
        "pan_and_scan_max_num_crops": 2, "pan_and_scan_min_crop_size": 100, "pan_and_scan_min_ratio_to_activate": 1.5,
    }  # fmt: skip
    assert scan(do_pan_and_scan=True, **sizes) == PanAndScan(min_ratio=1.5, min_side=100, most=2)


# ---- prompts with pictures -----------------------------------------------------------------------------------------


class Talk:
    """A sequence with a cache to itself."""

    def __init__(self, loaded: LoadedModel, positions: int = 300) -> None:
        self.loaded = loaded
        self.cache = Cache(loaded.cache, "f32", Capacity(positions, 1, positions))
        self.table = self.cache.blocks.table()
        self.tokens: list[int] = []

    def logits(self, tokens: Any, rows: np.ndarray | None = None, stops: list[int] | None = None) -> np.ndarray:
        """Return the logits of the tokens that come next. rows: in the places of tokens below zero.

        stops: for each token the number of the last that it sees; itself if there are none.
        """
        tokens, start = np.asarray(tokens, np.int32), self.table.length
        x = np.array(self.loaded.model.embed(np.maximum(tokens, 0)))
        if rows is not None:
            x[tokens < 0] = rows
        assert self.table.reserve(start + len(tokens))
        until = None if stops is None else np.array(stops, np.int32)
        step = StepView(self.cache, [Rows(self.table, 0, len(tokens), until=until)])
        hidden = self.loaded.model.forward(x, step)
        self.tokens += tokens.tolist()
        self.table.advance(self.tokens, len(tokens))
        return np.asarray(self.loaded.model.logits(hidden))


def pieces(case: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield text and pictures of a prompt by turns: tokens, -1 for rows, and how far each sees."""
    ids = np.array(case["ids"])
    is_row, start = ids == case["image_token_id"], 0
    for row, group in itertools.groupby(is_row.tolist()):
        stop = start + len(list(group))
        yield (
            ([-1] * (stop - start), [stop - 1] * (stop - start))
            if row
            else (ids[start:stop].tolist(), [*range(start, stop)])
        )
        start = stop


def rows_of(case: dict[str, Any]) -> np.ndarray:
    return np.concatenate([expected("gemma3-vl")[f"image.{name}.projected"] for name in case["images"]])


@kinds
@prompts
def test_logits_of_prompts_with_pictures_match_the_reference(kind: str, case: dict[str, Any], loaded: Any) -> None:
    parts = list(pieces(case))
    tokens, stops = (list(itertools.chain(*lists)) for lists in zip(*parts, strict=True))
    given = expected("gemma3-vl")
    rows = np.concatenate([seen(loaded(kind), given[f"image.{name}.pixel_values"])[1] for name in case["images"]])
    talk = Talk(loaded(kind))
    found = talk.logits(tokens, rows, stops)
    assert np.abs(found - given[case["logits"]]).max() <= ATOL
    assert case["greedy_margin"] > 2 * ATOL
    reply = [int(found[-1].argmax())]
    while len(reply) < 16:
        reply.append(int(talk.logits(reply[-1:])[-1].argmax()))
    assert reply == case["greedy"]


@prompts
def test_prompts_may_be_cut_between_text_and_pictures_and_anywhere_in_text(case: dict[str, Any], loaded: Any) -> None:
    talk, rows, found = Talk(loaded("pair")), rows_of(case), []
    for tokens, stops in pieces(case):
        if tokens[0] < 0:
            found.append(talk.logits(tokens, rows[: len(tokens)], stops))
            rows = rows[len(tokens) :]
        else:
            found += [talk.logits(tokens[at : at + 3]) for at in range(0, len(tokens), 3)]
    assert len(rows) == 0
    assert np.abs(np.concatenate(found) - expected("gemma3-vl")[case["logits"]]).max() <= ATOL


def test_the_rows_of_a_picture_see_each_other(loaded: Any) -> None:
    """Otherwise the tests above would prove little."""
    case = cases("gemma3-vl")["multimodal"][0]
    tokens = list(itertools.chain(*(tokens for tokens, _ in pieces(case))))
    found = Talk(loaded("pair")).logits(tokens, rows_of(case))
    apart = np.abs(found - expected("gemma3-vl")[case["logits"]]).max(axis=1)
    first = tokens.index(-1)
    assert apart[:first].max() <= ATOL < 0.1 < apart[first]


@pytest.mark.parametrize("file", ["hf", "gguf/model-f32.gguf"])
@prompts
def test_what_stands_for_a_picture_becomes_the_tokens_of_the_reference(
    file: str, case: dict[str, Any], loaded: Any
) -> None:
    tokenizer, eye = open_tokenizer(open_weights(VL / file)), loaded("checkpoint").vision
    files = {image["name"]: image for image in cases("gemma3-vl")["images"]}
    text, *after = case["rendered"].split(eye.marker)
    said: list[str | Place] = [text]
    for name, text in zip(case["images"], after, strict=True):
        said += [*prepared(loaded("checkpoint"), files[name]).parts, text]
    (row,) = tokenizer.encode(eye.placeholder, special=True, start=False)
    found: list[int] = []
    for is_text, group in itertools.groupby(said, lambda part: isinstance(part, str)):
        parts = list(group)
        if is_text:
            found += tokenizer.encode("".join(map(str, parts)), special=True, start=not found)
        else:
            found += [row] * sum(part.count for part in parts if isinstance(part, Place))
    assert found == case["ids"]


@pytest.mark.parametrize("step_tokens", [5, 512])
@prompts
def test_the_engine_replies_to_picture_files_as_the_reference_does(case: dict[str, Any], step_tokens: int) -> None:
    files = {image["name"]: VL / image["file"] for image in cases("gemma3-vl")["images"]}
    places = [(stops[0] - len(stops) + 1, len(stops)) for tokens, stops in pieces(case) if tokens[0] < 0]
    media = [
        Placed(Media([files[name].read_bytes()]), [place]) for name, place in zip(case["images"], places, strict=True)
    ]
    options = EngineOptions(Limits(step_tokens, 4), 2, "f32", 400, precise=True)
    runner = InlineRunner(VL / "hf", [ARCHITECTURE], TEXT, options)
    try:
        assert reply(runner, case["ids"], media=media).tokens == case["greedy"]
    finally:
        asyncio.run(runner.close())
