"""Llama 4 against the reference: sizes from every kind of file, pictures, and prompts with pictures.

Text alone is compared in test_parity.py. Files come in three namings: checkpoints, the pair of GGUF files that
llama.cpp wants, and the single GGUF file that holds everything, which is written here. The pair does not say after how
many tokens a chunk ends: it is read as published models have it, for which the reference has results of its own.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gguf
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from puna.core.errors import BadModel
from puna.core.keys import Keys
from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.model import LoadedModel, check_table, load_model, read_config, read_vision_config
from puna.core.pictures import Picture, open_picture
from puna.core.plugin import Prepared
from puna.core.plugin import Rows as Place
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Media, Placed
from puna.core.scheduler.plan import Limits
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.source import WeightSource
from puna.core.tensor.weights import open_weights
from puna.plugins import llama4, llama4_pictures
from puna.plugins.llama4_pictures import best_grid, fitted_size, parts_of, resized, tiles_of
from puna.plugins.llama4_sizes import Config
from puna.plugins.llama4_vision import Vision
from puna.plugins.llama4_vision_sizes import VisionConfig
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES, SIXTEEN, cases, expected, relative
from .serving import running_server, upload
from .test_engine import TEXT, reply

ATOL = 1e-3  # what the reference states for engines that work in float32
SCOUT = FIXTURES / "llama4-scout"
KNOWN = cases("llama4-scout")
WANTED = expected("llama4-scout")
IMAGES = {image["name"]: image for image in KNOWN["images"]}
PAIR = {name: SCOUT / "gguf" / name for name in ("model-f32.gguf", "mmproj-f32.gguf")}
KINDS = ("checkpoint", "pair", "single")
TALKS = [case["name"] for case in KNOWN["multimodal"]]
(ARCHITECTURE,) = llama4.architectures()
R = TypeVar("R")

kinds = pytest.mark.parametrize("kind", KINDS)
images = pytest.mark.parametrize("image", IMAGES)
talks = pytest.mark.parametrize("talk", TALKS)

# ---- files ---------------------------------------------------------------------------------------------------------

IN_ONE_FILE = (  # what the single file calls tensors of the pair
    ("v.patch_embd.", "v.patch_embedding."), ("v.class_embd", "v.class_embedding"),
    ("v.position_embd.weight", "v.positional_embedding_vlm"), ("v.pre_ln.", "v.layernorm_pre."),
    ("v.post_ln.", "v.layernorm_post."), (".ln1.", ".attn_norm."), (".ln2.", ".ffn_norm."),
    (".attn_out.", ".attn_output."), (".ffn_up.", ".mlp.fc1."), (".ffn_down.", ".mlp.fc2."),
    ("mm.model.mlp.", "v.vision_adapter.mlp.fc"), ("mm.model.fc.", "mm.linear_1."),
)  # fmt: skip


def write_single(path: Path) -> None:
    """Write the pair's weights as one file, with the names and keys of those, and the sizes of the checkpoint."""
    text, eye = (gguf.GGUFReader(file) for file in PAIR.values())
    writer = gguf.GGUFWriter(path, "llama4")
    sizes = {
        "block_count": 5, "context_length": 32768, "embedding_length": 48, "feed_forward_length": 80,
        "expert_feed_forward_length": 40, "expert_count": 4, "expert_used_count": 1, "interleave_moe_layer_step": 1,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "attention.head_dim": 16, "attention.chunk_size": 16, "no_rope_interval": 4,
        "rope.dimension_count": 16, "vision.block_count": 3, "vision.embedding_length": 32,
        "vision.feed_forward_length": 128, "vision.image_size": 36, "vision.patch_size": 6, "vision.num_channels": 3,
        "vision.attention.head_count": 2, "vision.max_upscaling_size": 448,
    }  # fmt: skip
    for name, size in sizes.items():
        writer.add_uint32(f"llama4.{name}", size)
    numbers = {
        "rope.freq_base": 5e5, "attention.layer_norm_rms_epsilon": 1e-5, "attention.scale": 0.1,
        "attention.floor_scale": 8.0, "vision.rope.freq_base": 1e4, "vision.layer_norm_epsilon": 1e-5,
        "vision.pixel_shuffle_ratio": 0.5,
    }  # fmt: skip
    for name, number in numbers.items():
        writer.add_float32(f"llama4.{name}", number)
    writer.add_bool("llama4.use_qk_norm", True)
    writer.add_bool("llama4.attention.temperature_tuning", True)
    for name, field in text.fields.items():
        if name.startswith("tokenizer."):
            _copy(writer, name, field.contents())
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


def _copy(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    else:
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the single file."""
    path = tmp_path_factory.mktemp("llama4") / "single.gguf"
    write_single(path)
    return path


@pytest.fixture(scope="module")
def opened(single: Path) -> Callable[[str], WeightSource]:
    """Return a function that opens the model with pictures as one of the KINDS."""
    files: dict[str, Any] = dict(zip(KINDS, (SCOUT / "hf", PAIR, single), strict=True))
    return cache(lambda kind: open_weights(files[kind]))


@pytest.fixture(scope="module")
def loaded(opened: Callable[[str], WeightSource]) -> Callable[[str], LoadedModel]:
    """Return a function that loads it."""
    return cache(lambda kind: load(opened(kind)))


def load(source: WeightSource, *, precise: bool = True) -> LoadedModel:
    return load_model(ARCHITECTURE, source, CpuLoader(precise=precise))


def talk_of(kind: str, name: str) -> dict[str, Any]:
    """Return a conversation as the reference holds it with the sizes that a kind of file gives."""
    reading = KNOWN["gguf"] if kind == "pair" else KNOWN
    return next(case for case in reading["multimodal"] if case["name"] == name)


def test_the_tensor_tables_are_well_formed() -> None:
    check_table(llama4.Llama4)
    check_table(Vision)


@kinds
def test_nothing_of_a_file_is_left_over(kind: str, opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert load(opened(kind)).vision is not None
    assert caplog.text == ""


def test_models_without_an_encoder_see_nothing() -> None:
    maverick = FIXTURES / "llama4-maverick"
    for path in (maverick / "hf", maverick / "gguf" / "model-f32.gguf", PAIR["model-f32.gguf"]):
        assert load(open_weights(path)).vision is None


def test_experts_are_packed_out_of_a_checkpoint_s_tensors(opened: Any, loaded: Any) -> None:
    """Rows and columns exchanged, gate and up apart, in the checkpoint's own format."""
    exact, packed = loaded("checkpoint"), load(opened("checkpoint"), precise=False)
    experts = packed.model.mixtures[0].gate.each
    assert (len(experts), experts[0].shape, experts[0].rows.format.name) == (4, (40, 48), "BF16")
    tokens = np.arange(20, dtype=np.int32)
    # Products in a row: queries, output, gate and down of five layers, and the head.
    assert relative(Talk(packed).logits(tokens), Talk(exact).logits(tokens)) <= 21 * SIXTEEN


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_and_a_file_that_says_everything_give_the_same_sizes(opened: Any) -> None:
    for kind, read in ((Config, read_config), (VisionConfig, read_vision_config)):
        wanted, found = (msgspec.structs.asdict(read(kind, opened(name))) for name in ("checkpoint", "single"))
        # The scaling is a tensor of the file, the adapter's width is that of its tensors, and numbers are rounded.
        differ = {"scaling", "adapter", "eps", "sharpening"} & {*wanted}
        assert {n: v for n, v in found.items() if n not in differ} == {
            n: v for n, v in wanted.items() if n not in differ
        }
        assert [found[n] for n in ("eps", "sharpening") if n in found] == pytest.approx(
            [wanted[n] for n in ("eps", "sharpening") if n in wanted]
        )


def test_a_file_of_llama_cpp_is_read_as_published_models_are(opened: Any) -> None:
    found = read_config(Config, opened("pair"))
    assert (found.floor, found.sharpening, found.qk_norm) == (8192, 0.1, True)
    assert found.chunks == (8192, 8192, 8192, None, 8192)
    assert found.rope_layers == (True, True, True, False, True)
    maverick = read_config(Config, open_weights(FIXTURES / "llama4-maverick" / "gguf" / "model-f32.gguf"))
    assert (maverick.experts, maverick.qk_norm, maverick.moe_layers, maverick.dense_layers) == (
        128,
        False,
        (1, 3),
        (0, 2),
    )


def test_the_encoder_of_another_model_is_refused(opened: Any) -> None:
    values = dict(opened("pair").metadata) | {"clip.projector_type": "pixtral"}
    with pytest.raises(BadModel, match=r"clip\.projector_type is 'pixtral', expected one of llama4"):
        VisionConfig.from_gguf(Keys(values, prefix="llama4."))
    values |= {"clip.projector_type": "llama4", "clip.use_gelu": False}
    with pytest.raises(BadModel, match=r"clip\.use_gelu is False, expected true"):
        VisionConfig.from_gguf(Keys(values, prefix="llama4."))
    values |= {"clip.use_gelu": True, "clip.vision.projector.scale_factor": 4}
    with pytest.raises(BadModel, match="scale_factor is 4, expected a divisor of 6"):
        VisionConfig.from_gguf(Keys(values, prefix="llama4."))


# ---- pictures ------------------------------------------------------------------------------------------------------


def run(generator: Generator[None, None, R]) -> tuple[R, int]:
    """Return what a generator returns, and how often it yields."""
    for yields in itertools.count():
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value, yields
    raise AssertionError("unreachable")


def prepared(loaded: LoadedModel, name: str) -> Prepared:
    assert loaded.vision is not None
    return loaded.vision.prepare(open_picture((SCOUT / IMAGES[name]["file"]).read_bytes()))


@kinds
@images
def test_pictures_are_prepared_as_the_reference_does(kind: str, image: str, loaded: Any) -> None:
    case, found = IMAGES[image], prepared(loaded(kind), image)
    np.testing.assert_array_equal(found.pixels, WANTED[case["pixel_values"]])
    rows = [part for part in found.parts if isinstance(part, Place)]
    assert len(rows) == len(found.pixels)
    assert sum(row.count for row in rows) == case["n_image_tokens"]
    assert found.parts == parts_of(tuple(case["aspect_ratio"]), Place(9))  # which may be cut anywhere, and see causally


def test_tiles_stand_row_by_row_between_their_separators_and_the_whole_behind_them() -> None:
    tile = Place(144)
    assert parts_of((1, 1), tile) == ("<|image_start|>", "<|image|>", tile, "<|image_end|>")
    x, y = "<|tile_x_separator|>", "<|tile_y_separator|>"
    whole = ("<|image|>", tile, "<|image_end|>")
    assert parts_of((2, 1), tile) == ("<|image_start|>", tile, y, tile, y, *whole)
    assert parts_of((2, 3), tile) == ("<|image_start|>", *(tile, x, tile, x, tile, y) * 2, *whole)


@pytest.mark.parametrize(
    ("size", "grid", "fitted"),
    [
        ((336, 336), (1, 1), (336, 336)),
        ((10, 10), (1, 1), (336, 336)),  # grows to a tile
        ((337, 336), (1, 2), (337, 336)),  # the smallest canvas that holds it; it does not grow
        ((672, 672), (2, 2), (672, 672)),
        ((300, 400), (2, 1), (300, 400)),
        ((50, 400), (2, 1), (50, 400)),
        ((3000, 3000), (4, 4), (1344, 1344)),  # no canvas holds it
        ((4000, 1000), (2, 8), (2688, 672)),
        ((100_000, 1), (1, 16), (5376, 1)),
    ],
)
def test_a_picture_has_the_canvas_that_shows_most_of_it(
    size: tuple[int, int], grid: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert best_grid(*size, side=336, most=16) == grid
    assert fitted_size(*size, grid, 336) == fitted
    assert fitted_size(size[1], size[0], grid[::-1], 336) == fitted[::-1]


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 20))
def test_a_picture_lies_on_its_canvas_and_fills_it_one_way(width: int, height: int, most: int) -> None:
    rows, columns = best_grid(width, height, side=28, most=most)
    assert rows * columns <= most
    wide, high = fitted_size(width, height, (rows, columns), 28)
    assert 1 <= wide <= columns * 28
    assert 1 <= high <= rows * 28
    shrunk = min(columns * 28 / width, rows * 28 / height)
    if shrunk < 1:  # then as large as it can be
        assert wide == columns * 28 or high == rows * 28


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(0, 99))
def test_resizing_is_pillows_to_the_next_shade(width: int, height: int, wide: int, high: int, seed: int) -> None:
    noise = Picture(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)))
    found, known = (
        np.asarray(one.image, int) for one in (resized(noise, wide, high), noise.resized(wide, high, "bilinear"))
    )
    assert found.shape == (high, wide, 3)
    assert np.abs(found - known).max() <= 2  # one for each direction


def test_a_large_picture_is_resized_in_bands_to_the_same_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Picture(Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)))
    whole = np.asarray(resized(noise, 40, 50).image)
    monkeypatch.setattr(llama4_pictures, "BAND", 7)
    np.testing.assert_array_equal(np.asarray(resized(noise, 40, 50).image), whole)


def test_what_a_picture_leaves_of_its_canvas_is_black() -> None:
    white = Picture(Image.new("RGB", (50, 30), (255, 255, 255)))
    tiles = [np.asarray(tile.image) for tile in tiles_of(white, (1, 2), 36)]
    assert len(tiles) == 3
    canvas = np.concatenate(tiles[:2], axis=1)
    wide, high = fitted_size(50, 30, (1, 2), 36)
    assert (canvas[:high, :wide] == 255).all()
    assert canvas.sum() == 255 * 3 * wide * high
    assert (tiles[2] == 255).all()


# ---- encoder and projector -----------------------------------------------------------------------------------------


def stored(loaded: LoadedModel, name: str) -> Prepared:
    """Return a picture with the reference's own pixels."""
    return Prepared(WANTED[IMAGES[name]["pixel_values"]], prepared(loaded, name).parts)


@kinds
@images
def test_tiles_are_encoded_as_the_reference_does(kind: str, image: str, loaded: Any) -> None:
    eye, pixels = loaded(kind).vision, WANTED[IMAGES[image]["pixel_values"]]
    found = [run(eye.encoded(pixels[tile : tile + 1]))[0] for tile in range(len(pixels))]
    np.testing.assert_allclose(np.stack(found), WANTED[IMAGES[image]["tower"]], rtol=0, atol=ATOL)


@kinds
def test_the_rows_of_pictures_are_the_references(kind: str, loaded: Any) -> None:
    eye = loaded(kind).vision
    found, yields = run(eye.encode([stored(loaded(kind), name) for name in IMAGES]))
    for rows, name in zip(found, IMAGES, strict=True):
        np.testing.assert_allclose(rows, WANTED[IMAGES[name]["projected"]], rtol=0, atol=ATOL)
    assert yields == 2 * eye.config.layers * sum(len(WANTED[case["pixel_values"]]) for case in IMAGES.values())


def test_packed_weights_give_the_references_rows(opened: Any) -> None:
    model = load(opened("checkpoint"), precise=False)
    assert model.vision is not None
    (rows,), _ = run(model.vision.encode([stored(model, "wide")]))
    # Products in a row: the patches, four of each layer, and three of the adapter and the projector.
    assert relative(rows, WANTED[IMAGES["wide"]["projected"]]) <= (4 * model.vision.config.layers + 4) * SIXTEEN


# ---- prompts with pictures -----------------------------------------------------------------------------------------


class Talk:
    """A sequence with a cache to itself."""

    def __init__(self, loaded: LoadedModel, positions: int = 300) -> None:
        self.loaded = loaded
        self.cache = Cache(loaded.cache, "f32", Capacity(positions, 1, positions))
        self.table = self.cache.blocks.table()
        self.tokens: list[int] = []

    def hidden(self, tokens: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Return what leaves the last block for the tokens that come next. rows: in the places of tokens below 0."""
        tokens = np.asarray(tokens, np.int32)
        x = np.array(self.loaded.model.embed(np.maximum(tokens, 0)))
        if rows is not None:
            x[tokens < 0] = rows
        assert self.table.reserve(self.table.length + len(tokens))
        hidden = self.loaded.model.forward(x, StepView(self.cache, [Rows(self.table, 0, len(tokens))]))
        self.tokens += tokens.tolist()
        self.table.advance(self.tokens, len(tokens))
        return np.asarray(hidden)

    def logits(self, tokens: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Return their logits."""
        return np.asarray(self.loaded.model.logits(self.hidden(tokens, rows)))


def kept(case: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """Return the rows that the reference holds."""
    return logits[case["rows"]] if "rows" in case else logits


@kinds
@talks
@pytest.mark.parametrize("chunk", [7, 512])
def test_logits_of_prompts_with_pictures_match_the_reference(kind: str, talk: str, chunk: int, loaded: Any) -> None:
    case, model = talk_of(kind, talk), loaded(kind)
    tokens = np.where(np.array(case["ids"]) == case["image_token_id"], -1, case["ids"])
    rows = np.concatenate(run(model.vision.encode([stored(model, name) for name in case["images"]]))[0])
    conversation, found = Talk(model), []
    for at in range(0, len(tokens), chunk):
        part = tokens[at : at + chunk]
        count = int((part < 0).sum())
        found.append(conversation.logits(part, rows[:count]))
        rows = rows[count:]
    logits = np.concatenate(found)
    assert np.abs(kept(case, logits) - WANTED[case["logits"]]).max() <= ATOL
    assert case["greedy_margin"] > 2 * ATOL
    answer = [int(logits[-1].argmax())]
    while len(answer) < 16:
        answer.append(int(conversation.logits(answer[-1:])[-1].argmax()))
    assert answer == case["greedy"]


def test_a_prompt_longer_than_a_chunk_of_published_models_matches_the_reference(loaded: Any) -> None:
    """Behind position 8191 a chunk begins, and layers without positions get sharper."""
    case = KNOWN["gguf"]["very_long"]
    i = np.arange(case["length"])
    tokens = (7 * i * i + 13 * i + 5) % case["modulus"]
    tokens[0] = case["bos"]
    talk = Talk(loaded("pair"), case["length"])
    hidden = np.concatenate([talk.hidden(part) for part in np.split(tokens, range(1024, len(tokens), 1024))])
    found = np.asarray(loaded("pair").model.logits(hidden[case["rows"]]))
    assert max(case["rows"]) > 8192
    assert np.abs(found - WANTED[case["logits"]]).max() <= ATOL


@pytest.mark.parametrize("kind", ["checkpoint", "pair"])
@talks
def test_what_stands_for_a_picture_becomes_the_tokens_of_the_reference(
    kind: str, talk: str, opened: Any, loaded: Any
) -> None:
    case, tokenizer, eye = talk_of(kind, talk), open_tokenizer(opened(kind)), loaded(kind).vision
    text, *after = case["rendered"].split(eye.marker)
    said: list[str | Place] = [text]
    for name, text in zip(case["images"], after, strict=True):
        said += [*prepared(loaded(kind), name).parts, text]
    (row,) = tokenizer.encode(eye.placeholder, special=True, start=False)
    found: list[int] = []
    for is_text, group in itertools.groupby(said, lambda part: isinstance(part, str)):
        parts = list(group)
        if is_text:
            found += tokenizer.encode("".join(map(str, parts)), special=True, start=not found)
        else:
            found += [row] * sum(part.count for part in parts if isinstance(part, Place))
    assert found == case["ids"]


def up_to_end(tokenizer: Any, tokens: list[int]) -> list[int]:
    """Return a reply without what the reference says behind its end."""
    ends = [at for at, token in enumerate(tokens) if token in tokenizer.stop_ids]
    return tokens[: min(ends, default=len(tokens))]


@talks
def test_the_engine_replies_to_picture_files_as_the_reference_does(talk: str, loaded: Any) -> None:
    case = talk_of("checkpoint", talk)
    ids, media, at = np.array(case["ids"]), [], 0
    stretches = [
        (group[0], len(group))
        for row, places in itertools.groupby(range(len(ids)), lambda place: ids[place] == case["image_token_id"])
        if row and (group := list(places))
    ]
    for name in case["images"]:
        tiles = len(prepared(loaded("checkpoint"), name).pixels)
        media.append(Placed(Media([(SCOUT / IMAGES[name]["file"]).read_bytes()]), stretches[at : at + tiles]))
        at += tiles
    options = EngineOptions(Limits(16, 4), 2, "f32", 400, precise=True)
    runner = InlineRunner(SCOUT / "hf", [ARCHITECTURE], TEXT, options)
    try:
        tokenizer = open_tokenizer(open_weights(SCOUT / "hf"))
        assert reply(runner, case["ids"], media=media).tokens == up_to_end(tokenizer, case["greedy"])
    finally:
        asyncio.run(runner.close())


# ---- over HTTP -----------------------------------------------------------------------------------------------------


def as_openai(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a conversation with its pictures as data URLs."""
    urls = (
        "data:image/png;base64," + base64.b64encode((SCOUT / IMAGES[name]["file"]).read_bytes()).decode()
        for name in case["images"]
    )

    def part(given: dict[str, Any]) -> dict[str, Any]:
        return given if given["type"] == "text" else {"type": "image_url", "image_url": {"url": next(urls)}}

    return [
        {
            "role": m["role"],
            "content": m["content"][0]["text"] if m["role"] == "assistant" else list(map(part, m["content"])),
        }
        for m in case["messages"]
    ]


@kinds
@pytest.mark.asyncio
async def test_clients_get_the_references_replies_to_pictures(kind: str, tmp_path: Path, single: Path) -> None:
    files = {
        "checkpoint": {file.name: file for file in sorted((SCOUT / "hf").iterdir())}, "pair": PAIR,
        "single": {"model.gguf": single},
    }[kind]  # fmt: skip
    tokenizer = open_tokenizer(open_weights(files))
    async with running_server(tmp_path, precise=True) as live:
        digests = {name: await upload(live.store, path) for name, path in files.items()}
        made = await live.http.post("/api/create", json={"model": "scout", "files": digests, "stream": False})
        assert made.json() == {"status": "success"}, made.text
        shown = (await live.http.post("/api/show", json={"model": "scout"})).json()
        assert "vision" in shown["capabilities"]
        for name in TALKS:
            case = talk_of(kind, name)
            body = {"model": "scout", "messages": as_openai(case), "temperature": 0, "max_tokens": 16}
            answer = (await live.http.post("/v1/chat/completions", json=body)).json()
            assert answer["usage"]["prompt_tokens"] == len(case["ids"]), answer
            assert answer["choices"][0]["message"]["content"] == tokenizer.decode(up_to_end(tokenizer, case["greedy"]))
