"""Qwen 2.5 VL against the reference implementation, from a checkpoint and from both kinds of GGUF file."""

import asyncio
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from puna.core.errors import BadRequest
from puna.core.memory.cache import Cache, Capacity, StepView
from puna.core.memory.cache import Rows as Share
from puna.core.model import LoadedModel, load_model, read_config, read_vision_config
from puna.core.pictures import Picture, open_picture
from puna.core.plugin import Module, Prepared, Rows
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Generate, Media, Placed
from puna.core.scheduler.plan import Limits
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.weights import open_weights
from puna.plugins import qwen25vl, qwen25vl_vision
from puna.plugins.qwen25vl_pictures import fitting_size, stretches
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES, cases, expected
from .test_engine import GREEDY, TEXT
from .test_plugin_contract import MemorySource

FIXTURE = FIXTURES / "qwen2.5-vl"
HF, TEXT_FILE, EYE_FILE = FIXTURE / "hf", FIXTURE / "gguf" / "model-f32.gguf", FIXTURE / "gguf" / "mmproj-f32.gguf"
PAIR = {"model.gguf": TEXT_FILE, "mmproj.gguf": EYE_FILE}
IMAGES = {case["name"]: case for case in cases("qwen2.5-vl")["images"]}
TALKS = {case["name"]: case for case in cases("qwen2.5-vl")["multimodal"]}
WANTED = expected("qwen2.5-vl")
QWEN = qwen25vl.architectures()[0]
ATOL = 1e-3  # of logits and rows; pixels: 1e-5

ORIGINS = ["checkpoint", "two files", "one file"]
images, talks = pytest.mark.parametrize("image", IMAGES), pytest.mark.parametrize("talk", TALKS)


# ---- the model, from each kind of file -----------------------------------------------------------------------------

TO_ONE_FILE = {
    "v.patch_embd.weight": "v.patch_embd_0.weight",
    "v.patch_embd.weight.1": "v.patch_embd_1.weight",
    "v.post_ln.weight": "v.merger.ln_q.weight",
    **{f"mm.{i}.{kind}": f"v.merger.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")},
}


def write_one_file(path: Path) -> Path:
    """Write the fixture as one file with everything in it, with the names and keys such files have."""
    source, writer = open_weights(PAIR), gguf.GGUFWriter(path, "qwen25vl")
    known = source.metadata
    for key, value in known.items():
        name = key.removeprefix("qwen2vl.")
        if name == key or name == "rope.dimension_sections":
            continue
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"qwen25vl.{name}", value)
    writer.add_array("qwen25vl.rope.mrope_section", [2, 3, 3])
    writer.add_array("tokenizer.ggml.tokens", known["tokenizer.ggml.tokens"])
    numbers = {
        "block_count": 4, "embedding_length": 32, "attention.head_count": 2, "num_channels": 3, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112, "temporal_patch_size": 2,
    }  # fmt: skip
    for name, value in numbers.items():
        writer.add_uint32(f"qwen25vl.vision.{name}", value)
    writer.add_float32("qwen25vl.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_float32("qwen25vl.vision.rope.freq_base", 10000.0)
    writer.add_array("qwen25vl.vision.fullatt_block_indexes", [1, 3])
    for name, info in source.tensors.items():
        writer.add_tensor(TO_ONE_FILE.get(name, name), decode_tensor(source.raw(name), info.format, info.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return what to open for each origin."""
    return dict(zip(ORIGINS, (HF, PAIR, write_one_file(tmp_path_factory.mktemp("one") / "all.gguf")), strict=True))


@pytest.fixture(scope="module", params=ORIGINS)
def model(request, files) -> LoadedModel:
    return load_model(QWEN, open_weights(files[request.param]), CpuLoader(precise=True))


@cache
def checkpoint() -> LoadedModel:
    return load_model(QWEN, open_weights(HF), CpuLoader(precise=True))


def picture(name: str) -> Picture:
    return open_picture((FIXTURE / IMAGES[name]["file"]).read_bytes())


def drained(work):
    """Return what a generator returns, and how often it yields."""
    yields = 0
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value, yields
        yields += 1


def encoded(model: LoadedModel, *prepared: Prepared) -> list[np.ndarray]:
    return drained(model.vision.encode(prepared))[0]


def stored(name: str) -> Prepared:
    """Return a picture with the reference's own pixels."""
    case = IMAGES[name]
    return replace(
        checkpoint().vision.prepare(picture(name)),
        pixels=WANTED[case["pixel_values"]],
        grid=tuple(case["image_grid_thw"]),
    )


def test_every_kind_of_file_gives_the_same_sizes(files):
    found = [read_config(qwen25vl.Config, open_weights(files[origin])) for origin in ORIGINS]
    for name in msgspec.structs.asdict(found[0]):
        values = [getattr(config, name) for config in found]
        assert values[1:] == ([pytest.approx(values[0])] * 2 if name in ("eps", "rope_base") else [values[0]] * 2)
    eyes = [read_vision_config(qwen25vl_vision.VisionConfig, open_weights(files[origin])) for origin in ORIGINS]
    for name in set(msgspec.structs.asdict(eyes[0])) - {"limits", "inner", "mean", "std", "eps"}:
        assert len({getattr(config, name) for config in eyes}) == 1
    assert [config.inner for config in eyes] == [56, 56, None]
    assert [config.limits for config in eyes] == [(3136, 25088), (3136, 1003520), (3136, 1003520)]
    for config in eyes[1:]:
        assert (*config.mean, *config.std, config.eps) == pytest.approx((*eyes[0].mean, *eyes[0].std, 1e-6))


# ---- pictures ------------------------------------------------------------------------------------------------------


@images
def test_a_picture_becomes_the_reference_s_patches(image):
    case, prepared = IMAGES[image], checkpoint().vision.prepare(picture(image))
    assert prepared.grid == tuple(case["image_grid_thw"])
    np.testing.assert_allclose(prepared.pixels, WANTED[case["pixel_values"]], rtol=0, atol=1e-5)
    start, rows, end = prepared.parts
    assert (start, rows.count, end) == ("<|vision_start|>", case["n_image_tokens"], "<|vision_end|>")
    assert not rows.atomic
    assert not rows.both_ways


def size(width, height, least=56 * 56, most=28 * 28 * 1280):
    return fitting_size(width, height, factor=28, least=least, most=most)


def test_sizes_are_rounded_to_whole_units():
    assert size(280, 140) == (280, 140)
    assert size(281, 153) == (280, 140)
    assert size(295, 155) == (308, 168)
    assert size(70, 98) == (56, 112)  # halves go to the even neighbour: 2.5 and 3.5 units
    assert size(112, 42) == (112, 56)


def test_small_pictures_grow_and_large_ones_shrink():
    assert size(1, 1) == (56, 56)
    assert size(13, 600) == (28, 392)  # rounds to no width at all
    assert size(4000, 3000) == (1148, 840)
    assert size(28 * 200, 28, most=3136) == (784, 28)  # never less than a unit


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_every_size_that_is_not_refused_is_one_that_the_encoder_can_cut(width, height):
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(BadRequest, match=f"an image of {width} x {height} pixels: no side may be more than 200"):
            size(width, height)
        return
    found = size(width, height)
    assert all(side >= 28 and side % 28 == 0 for side in found)
    assert 56 * 56 <= found[0] * found[1] <= 28 * 28 * 1280


@pytest.mark.parametrize(("width", "height"), [(20000, 1), (1, 20000), (201, 1)])
def test_pictures_of_absurd_shape_are_refused(width, height):
    with pytest.raises(BadRequest, match="no side may be more than 200 times the other"):
        checkpoint().vision.prepare(Picture(Image.new("RGB", (width, height))))


@pytest.mark.parametrize(
    ("width", "height", "grid"), [(1, 1, (1, 4, 4)), (5000, 4000, (1, 10, 12)), (200, 1, (1, 2, 58)), (3, 2, (1, 4, 6))]
)
def test_pictures_of_any_size_are_encoded(width, height, grid):
    prepared = checkpoint().vision.prepare(Picture(Image.new("RGB", (width, height), (200, 30, 90))))
    assert prepared.grid == grid
    (rows,) = encoded(checkpoint(), prepared)
    assert rows.shape == (grid[1] * grid[2] // 4, 48)
    assert np.isfinite(rows).all()


# ---- encoder and projector -----------------------------------------------------------------------------------------


@images
def test_the_encoder_s_output_is_the_reference_s(model, image):
    prepared = stored(image)
    (stretch,) = stretches([prepared], window=4, merge=2, most=1024)
    pieces, _ = drained(model.vision.tower(stretch))
    found = np.concatenate(pieces)[np.argsort(stretch.order)]
    np.testing.assert_allclose(found, WANTED[IMAGES[image]["tower"]], rtol=0, atol=ATOL)


@images
def test_the_rows_of_an_image_are_the_reference_s(model, image):
    (rows,) = encoded(model, stored(image))
    np.testing.assert_allclose(rows, WANTED[IMAGES[image]["projected"]], rtol=0, atol=ATOL)


def test_rows_of_an_image_are_bit_for_bit_the_same_in_any_company():
    """Where products are those of packed weights, as models are served."""
    served = load_model(QWEN, open_weights(HF), CpuLoader())
    prepared = [served.vision.prepare(frame(*size)) for size in ((1, 56, 56), (2, 28, 112), (3, 224, 112), (4, 60, 33))]
    alone = [encoded(served, image)[0] for image in prepared]
    for company in ([0, 1, 2, 3], [1, 2], [3, 2, 1, 0]):
        found = encoded(served, *[prepared[number] for number in company])
        for number, rows in zip(company, found, strict=True):
            np.testing.assert_array_equal(rows, alone[number])


def test_images_of_different_sizes_are_encoded_together(model):
    prepared = [stored(name) for name in IMAGES]
    found, yields = drained(model.vision.encode(prepared))
    for rows, name in zip(found, IMAGES, strict=True):
        np.testing.assert_allclose(rows, WANTED[IMAGES[name]["projected"]], rtol=0, atol=ATOL)
        assert rows.base is None  # the cache keeps each for itself
    assert 4 <= yields <= 2 * 4 + 2


@pytest.mark.parametrize("most", [1, 64, 65, 100])
def test_large_images_are_encoded_in_parts(monkeypatch, most):
    prepared = [stored(name) for name in IMAGES]
    at_once, few = drained(checkpoint().vision.encode(prepared))
    monkeypatch.setattr(qwen25vl_vision, "PIECE", most)
    found, many = drained(checkpoint().vision.encode(prepared))
    for rows, others in zip(found, at_once, strict=True):
        np.testing.assert_allclose(rows, others, rtol=0, atol=1e-5)
    assert many > 2 * few


def test_products_in_8_bits_are_near_the_reference():
    loaded = load_model(QWEN, open_weights(HF), CpuLoader())
    (rows,) = encoded(loaded, stored("gradient"))
    wanted = WANTED[IMAGES["gradient"]["projected"]]
    assert np.linalg.norm(rows - wanted) <= 0.01 * np.linalg.norm(wanted)


# ---- who sees whom -------------------------------------------------------------------------------------------------


class Nothing(Module):
    """A text model without tensors."""


@dataclass
class NoText:
    hidden: int

    @classmethod
    def from_hf(cls, keys):
        return cls(keys.integer("hidden_size"))


SIDE, NUMBERS = 4, 3 * 2 * 4 * 4  # pixels along a patch's side, numbers of a patch


def watcher(*whole: int):
    """Return an encoder of one layer that adds to each patch the mean of all that it sees, and changes nothing else.

    Its windows are two by two units, of two by two patches each. whole: (0,) if it sees whole frames instead.
    """
    one, none, unit = np.eye(NUMBERS, dtype=np.float32), np.zeros((NUMBERS, NUMBERS), np.float32), 4 * NUMBERS
    layer = {
        "norm1.weight": np.full(NUMBERS, NUMBERS**-0.5, np.float32),  # undoes the norm of what has one 1
        "attn.qkv.weight": np.concatenate([none, none, one]), "attn.qkv.bias": np.zeros(3 * NUMBERS, np.float32),
        "attn.proj.weight": one, "attn.proj.bias": none[0], "norm2.weight": none[0],
        **{f"mlp.{part}_proj.weight": none for part in ("gate", "up", "down")},
        **{f"mlp.{part}_proj.bias": none[0] for part in ("gate", "up", "down")},
    }  # fmt: skip
    arrays = {
        "patch_embed.proj.weight": one.reshape(NUMBERS, 3, 2, SIDE, SIDE),
        **{f"blocks.0.{name}": array for name, array in layer.items()},
        "merger.ln_q.weight": np.ones(NUMBERS, np.float32),
        "merger.mlp.0.weight": np.eye(unit, dtype=np.float32), "merger.mlp.0.bias": np.zeros(unit, np.float32),
        "merger.mlp.2.weight": np.eye(unit, dtype=np.float32), "merger.mlp.2.bias": np.zeros(unit, np.float32),
    }  # fmt: skip
    eye = {
        "depth": 1, "hidden_size": NUMBERS, "intermediate_size": NUMBERS, "num_heads": 2, "patch_size": SIDE,
        "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": list(whole) or [7],
    }  # fmt: skip
    config = {"hidden_size": unit, "vision_config": eye}
    source = MemorySource("safetensors", config, {f"visual.{name}": array for name, array in arrays.items()})
    blind = replace(QWEN, gguf=(), config=NoText, model=Nothing, cache=lambda config: [])
    return load_model(blind, source, CpuLoader(precise=True)).vision


def numbered(grid, first=0):
    """Return an image whose patches have a 1 each in a place of their own, from `first` on."""
    count = grid[0] * grid[1] * grid[2]
    return Prepared(np.eye(count, NUMBERS, first, dtype=np.float32), (), grid)


def places(grid):
    """Return the frame, row and column of each patch, in the order in which patches are listed: unit by unit."""
    return [
        (t, r + dr, c + dc)
        for t in range(grid[0])
        for r in range(0, grid[1], 2)
        for c in range(0, grid[2], 2)
        for dr in (0, 1)
        for dc in (0, 1)
    ]


def seen_by(rows):
    """Return for each patch of an image's rows which patches it sees; itself, where it sees none other twice."""
    patches = rows.reshape(-1, NUMBERS)
    return [(int(patch.argmax()), set(np.flatnonzero(patch > 1e-4).tolist())) for patch in patches]


GRIDS = [(1, 6, 10), (1, 2, 2), (1, 8, 8), (1, 4, 14), (2, 6, 6), (3, 2, 10)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_patches_see_those_in_their_window(grid):
    rows, where = drained(watcher().encode([numbered(grid)]))[0][0], places(grid)
    for i, (own, seen) in enumerate(seen_by(rows)):
        assert own == i
        assert seen == {
            j
            for j, (t, r, c) in enumerate(where)
            if (t, r // 4, c // 4) == (where[i][0], where[i][1] // 4, where[i][2] // 4)
        }


@pytest.mark.parametrize("piece", [1, 1024])
def test_patches_of_some_layers_see_their_frame_and_no_other_image(monkeypatch, piece):
    monkeypatch.setattr(qwen25vl_vision, "PIECE", piece)
    grids, start = [(2, 4, 4), (1, 2, 10), (1, 6, 6)], 0
    images = []
    for grid in grids:
        images.append(numbered(grid, start))
        start += len(images[-1].pixels)
    assert start <= NUMBERS
    start = 0
    for grid, rows in zip(grids, drained(watcher(0).encode(images))[0], strict=True):
        where = places(grid)
        for i, (own, seen) in enumerate(seen_by(rows)):
            assert own == start + i
            assert seen == {start + j for j, place in enumerate(where) if place[0] == where[i][0]}
        start += len(where)


# ---- videos --------------------------------------------------------------------------------------------------------


def frame(seed, width=224, height=112):  # as many pixels as the fixture's limit, so that it keeps its size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Picture(Image.fromarray(noise))


def test_frames_are_paired_and_an_odd_last_one_is_doubled():
    vision = checkpoint().vision
    a, b, c = (vision.prepare(frame(seed)).pixels.reshape(-1, 3, 2, 14, 14)[:, :, 0] for seed in (1, 2, 3))
    video = vision.prepare_video([frame(seed) for seed in (1, 2, 3)])
    assert video.grid == (2, 8, 16)
    pairs = video.pixels.reshape(2, -1, 3, 2, 14, 14)
    for pair, (first, second) in zip(pairs, [(a, b), (c, c)], strict=True):
        np.testing.assert_array_equal(pair[:, :, 0], first)
        np.testing.assert_array_equal(pair[:, :, 1], second)


def test_a_video_of_equal_frames_has_the_rows_of_its_images():
    vision = checkpoint().vision
    stills = encoded(checkpoint(), *(vision.prepare(frame(seed)) for seed in (1, 2)))
    (rows,) = encoded(checkpoint(), vision.prepare_video([frame(seed) for seed in (1, 1, 2)]))
    np.testing.assert_allclose(rows, np.concatenate(stills), rtol=0, atol=1e-5)


def test_time_goes_on_in_a_video():
    rows = checkpoint().vision.prepare_video([frame(1)] * 7).parts[1]
    time, row, column = rows.positions.reshape(3, 4, 4, 8)
    assert time[:, 0, 0].tolist() == [0, 2, 4, 6]  # two positions a second, and a pair is a second
    assert (time == time[:, :1, :1]).all()
    np.testing.assert_array_equal(row, np.broadcast_to(np.arange(4)[:, None], (4, 4, 8)))
    np.testing.assert_array_equal(column, np.broadcast_to(np.arange(8), (4, 4, 8)))
    assert rows.length == 8
    assert checkpoint().vision.prepare_video([frame(1)] * 10).parts[1].length == 9


def test_frames_that_make_no_video_are_refused():
    vision = checkpoint().vision
    with pytest.raises(BadRequest, match="a video without frames"):
        vision.prepare_video([])
    with pytest.raises(BadRequest, match="frame 1 of a video is 224 x 100 pixels, expected 224 x 112 as the first"):
        vision.prepare_video([frame(1), frame(1, height=100)])


def test_a_long_video_has_small_frames_and_a_longer_one_is_refused(monkeypatch):
    vision, still = checkpoint().vision, Picture(Image.new("RGB", (300, 300)))
    monkeypatch.setattr(qwen25vl_vision, "VIDEO_PIXELS", 60_000)
    monkeypatch.setattr(qwen25vl_vision, "LIMIT", 40 * 28 * 28)
    assert vision.prepare_video([still] * 2).grid == (1, 10, 10)
    assert vision.prepare_video([still] * 20).grid == (10, 4, 4)
    assert vision.prepare_video([still] * 80).grid == (40, 2, 2)
    with pytest.raises(BadRequest, match="a video of 81 frames of 28 x 28 pixels is too long"):
        vision.prepare_video([still] * 81)


# ---- prompts with images -------------------------------------------------------------------------------------------


@cache
def tokenizer():
    return open_tokenizer(open_weights(HF))


@dataclass
class Prompt:
    """A rendered conversation with its images in it."""

    tokens: list[int]
    positions: np.ndarray  # [3, T]
    spans: list[tuple[int, int]]  # where rows begin, and how many

    @property
    def delta(self) -> int:
        """What the next token's position is ahead of the number of tokens."""
        return int(self.positions.max()) + 1 - len(self.tokens)


def prompt_of(case) -> Prompt:
    vision, found, ends = checkpoint().vision, Prompt([], np.empty((3, 0), np.int32), []), 0
    texts = case["rendered"].split(vision.marker)
    parts = [[text] for text in texts[:1]]
    for name, text in zip(case["images"], texts[1:], strict=True):
        parts += [list(vision.prepare(picture(name)).parts), [text]]
    columns = []
    for part in (part for some in parts for part in some):
        if isinstance(part, Rows):
            found.spans.append((len(found.tokens), part.count))
            found.tokens += tokenizer().encode(vision.placeholder, special=True, start=False) * part.count
            columns.append(part.positions + ends)
            ends += part.length
        else:
            ids = tokenizer().encode(part, special=True, start=False)
            found.tokens += ids
            columns.append(np.tile(np.arange(ends, ends + len(ids)), (3, 1)))
            ends += len(ids)
    found.positions = np.concatenate(columns, axis=1).astype(np.int32)
    assert ends == found.positions.max() + 1
    return found


@talks
def test_a_prompt_has_the_reference_s_tokens_and_positions(talk):
    prompt = prompt_of(TALKS[talk])
    assert prompt.tokens == TALKS[talk]["ids"]
    np.testing.assert_array_equal(prompt.positions, WANTED[TALKS[talk]["position_ids"]])
    assert prompt.delta == TALKS[talk]["rope_delta"]


class Talk:
    """A conversation with a cache to itself."""

    def __init__(self, model: LoadedModel, case) -> None:
        self.model, self.case, self.prompt = model, case, prompt_of(case)
        self.cache = Cache(model.cache, "f32", Capacity(512, 1, 512))
        self.table = self.cache.blocks.table()
        self.tokens: list[int] = []

    def embeddings(self) -> np.ndarray:
        """Return what enters the first block: rows of images in place of their tokens."""
        x = np.asarray(self.model.model.embed(np.array(self.prompt.tokens, np.int32)))
        images = [stored(name) for name in self.case["images"]]
        for (start, count), rows in zip(self.prompt.spans, encoded(self.model, *images), strict=True):
            x[start : start + count] = rows
        return x

    def feed(self, x: np.ndarray, tokens: list[int], positions: np.ndarray) -> np.ndarray:
        """Return the logits of tokens that come next, given what enters the first block for them."""
        assert self.table.reserve(len(self.tokens) + len(tokens))
        step = StepView(self.cache, [Share(self.table, 0, len(tokens), positions)], streams=3)
        hidden = self.model.model.forward(x, step)
        self.tokens += tokens
        self.table.advance(self.tokens, len(tokens))
        return np.asarray(self.model.model.logits(hidden))

    def read(self, chunk: int) -> np.ndarray:
        """Return the logits of the whole prompt."""
        x, p = self.embeddings(), self.prompt
        parts = [slice(at, at + chunk) for at in range(0, len(p.tokens), chunk)]
        return np.concatenate([self.feed(x[part], p.tokens[part], p.positions[:, part]) for part in parts])

    def say(self, token: int) -> np.ndarray:
        """Return the logits behind a token of the reply."""
        at = np.full((3, 1), len(self.tokens) + self.prompt.delta, np.int32)
        return self.feed(np.asarray(self.model.model.embed(np.array([token], np.int32))), [token], at)


@talks
@pytest.mark.parametrize("chunk", [7, 512])
def test_logits_behind_images_are_the_reference_s(model, talk, chunk):
    found = Talk(model, TALKS[talk]).read(chunk)
    np.testing.assert_allclose(found, WANTED[TALKS[talk]["logits"]], rtol=0, atol=ATOL)


@talks
def test_the_reply_to_images_is_the_reference_s(model, talk):
    case = TALKS[talk]
    conversation, reply = Talk(model, case), []
    logits = conversation.read(512)
    for _ in case["greedy"]:
        reply.append(int(logits[-1].argmax()))
        logits = conversation.say(reply[-1])
    assert case["greedy_margin"] > 2 * ATOL
    assert reply == case["greedy"]


@talks
def test_the_engine_replies_to_images_as_the_reference_does(talk):
    case = TALKS[talk]
    files = [(FIXTURE / IMAGES[name]["file"]).read_bytes() for name in case["images"]]
    options = EngineOptions(Limits(64, 4), 2, "f32", 1024, precise=True)

    async def ask():
        runner = InlineRunner(HF, [QWEN], TEXT, options)
        try:
            sights = [await runner.look(Media([file])) for file in files]
            assert [sum(part for part in sight.parts if isinstance(part, int)) for sight in sights] == [
                count for _, count in prompt_of(case).spans
            ]
            media = [Placed(Media([f]), [span]) for f, span in zip(files, prompt_of(case).spans, strict=True)]
            request = Generate(prompt=case["ids"], media=media, sampling=GREEDY, num_ctx=512, max_tokens=16)
            *pieces, _ = [event async for event in runner.generate(request)]
            return [token for piece in pieces for token in piece.tokens]
        finally:
            await runner.close()

    assert asyncio.run(ask()) == case["greedy"]
