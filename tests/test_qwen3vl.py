"""Qwen 3 VL against the reference implementation, from a checkpoint and from both kinds of GGUF file."""

import asyncio
import base64
import json
from dataclasses import dataclass, replace
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from puna.core.errors import BadModel, BadRequest
from puna.core.memory.cache import Cache, Capacity, StepView
from puna.core.memory.cache import Rows as Share
from puna.core.model import LoadedModel, find_architecture, load_model, read_config, read_vision_config
from puna.core.pictures import Picture, open_picture
from puna.core.plugin import Keys, Prepared, Rows
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Generate, Media, Placed
from puna.core.scheduler.plan import Limits
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.weights import open_weights
from puna.plugins import qwen3vl, qwen3vl_sizes, qwen3vl_vision
from puna.plugins.qwen3vl_pictures import fitting_size, stretches, times_of
from puna.text.tokenizers import open_tokenizer

from .qwen3vl_files import DEEP, HF, write_pair, write_single
from .reference import FIXTURES, cases, expected
from .serving import running_server, upload
from .test_api_videos import video
from .test_api_vision import as_openai
from .test_engine import GREEDY, TEXT
from .test_plugin_contract import MemorySource
from .toy_vision import png

FIXTURE = FIXTURES / "qwen3-vl"
IMAGES = {case["name"]: case for case in cases("qwen3-vl")["images"]}
TALKS = {case["name"]: case for case in cases("qwen3-vl")["multimodal"]}
TEXTS = {case["name"]: case for case in cases("qwen3-vl")["text"]}
WANTED = expected("qwen3-vl")
QWEN = qwen3vl.architectures()[0]
ATOL = 1e-3  # of logits and rows; pixels: 1e-5
D = 48

ORIGINS = ["checkpoint", "two files", "one file"]
images, talks = pytest.mark.parametrize("image", IMAGES), pytest.mark.parametrize("talk", TALKS)


# ---- the model, from each kind of file -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return what to open for each origin."""
    folder = tmp_path_factory.mktemp("qwen3vl")
    return dict(zip(ORIGINS, (HF, write_pair(folder), write_single(folder / "all.gguf")), strict=True))


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
    return replace(checkpoint().vision.prepare(picture(name)), pixels=WANTED[IMAGES[name]["pixel_values"]])


def rows_of(name: str) -> np.ndarray:
    """Return the reference's rows of a picture: the one in the prompt, then those of the decoder's first layers."""
    return np.concatenate([WANTED[IMAGES[name]["projected"]], WANTED[IMAGES[name]["deep"]]], axis=1)


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_tensor_of_a_file_is_used(files, origin, caplog):
    load_model(QWEN, open_weights(files[origin]), CpuLoader(precise=True))
    assert caplog.messages == []


# ---- pictures --------------------------------------------------------------------------------------------------------


@images
def test_a_picture_becomes_the_reference_s_patches(image):
    case, prepared = IMAGES[image], checkpoint().vision.prepare(picture(image))
    assert prepared.grid == tuple(case["image_grid_thw"])
    np.testing.assert_allclose(prepared.pixels, WANTED[case["pixel_values"]], rtol=0, atol=1e-5)
    start, rows, end = prepared.parts
    assert (start, rows.count, end) == ("<|vision_start|>", case["n_image_tokens"], "<|vision_end|>")
    assert not rows.atomic


def size(width, height, least=1 << 16, most=1 << 24, frames=None):
    return fitting_size(width, height, factor=32, least=least, most=most, frames=frames)


def test_sizes_are_rounded_to_whole_units():
    assert size(320, 480) == (320, 480)
    assert size(335, 463) == (320, 448)
    assert size(338, 465) == (352, 480)
    assert size(304, 336) == (320, 320)  # halves go to the even neighbour: 9.5 and 10.5 units


def test_small_pictures_grow_and_large_ones_shrink():
    assert size(1, 1) == (256, 256)
    assert size(40, 30) == (320, 224)
    assert size(8000, 6000) == (4704, 3520)
    assert size(32 * 200, 32, most=1 << 12) == (896, 32)  # never less than a unit


def test_frames_of_a_video_share_the_pixels():
    least, most = qwen3vl_vision.VIDEO_LEAST, qwen3vl_vision.VIDEO_MOST
    assert size(1280, 720, least, most, frames=2) == (1280, 704)
    assert size(1280, 720, least, most, frames=46) == (960, 544)
    assert size(1280, 720, least, most, frames=5) == size(1280, 720, least, most, frames=4)
    assert size(10, 10, least, most, frames=1) == (64, 64)
    assert size(10, 10, least, most, frames=8) == (32, 32)


@given(st.integers(1, 9000), st.integers(1, 9000), st.none() | st.integers(1, 200))
def test_every_size_that_is_not_refused_is_one_that_the_encoder_can_cut(width, height, frames):
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(BadRequest, match=f"an image of {width} x {height} pixels: no side may be more than 200"):
            size(width, height, frames=frames)
        return
    found = size(width, height, frames=frames)
    assert all(side >= 32 and side % 32 == 0 for side in found)
    if frames is None:
        assert 1 << 16 <= found[0] * found[1] <= 1 << 24


@pytest.mark.parametrize(
    ("width", "height", "grid"), [(1, 1, (1, 6, 6)), (500, 400, (1, 8, 10)), (200, 1, (1, 2, 80)), (6, 9, (1, 8, 6))]
)
def test_pictures_of_any_size_are_encoded(width, height, grid):
    prepared = checkpoint().vision.prepare(Picture(Image.new("RGB", (width, height), (200, 30, 90))))
    assert prepared.grid == grid
    (rows,) = encoded(checkpoint(), prepared)
    assert rows.shape == (grid[1] * grid[2] // 4, 3 * D)
    assert np.isfinite(rows).all()


# ---- encoder and projectors ------------------------------------------------------------------------------------------


@images
def test_the_rows_of_an_image_are_the_reference_s_for_every_layer(model, image):
    (rows,) = encoded(model, stored(image))
    np.testing.assert_allclose(rows, rows_of(image), rtol=0, atol=ATOL)
    assert model.vision.deeper == len(DEEP)


@images
def test_the_encoder_s_output_is_the_reference_s(monkeypatch, image):
    left = []
    block, forward = checkpoint().vision.blocks[-1], qwen3vl_vision.VisionBlock.forward

    def watched(self, *given):
        out = yield from forward(self, *given)
        if self is block:
            left.extend(out)
        return out

    monkeypatch.setattr(qwen3vl_vision.VisionBlock, "forward", watched)
    encoded(checkpoint(), stored(image))
    np.testing.assert_allclose(np.concatenate(left), WANTED[IMAGES[image]["tower"]], rtol=0, atol=ATOL)


def test_rows_of_an_image_are_bit_for_bit_the_same_in_any_company():
    """Where products are those of packed weights, as models are served."""
    served = load_model(QWEN, open_weights(HF), CpuLoader())
    shapes = ((1, 40, 40), (2, 16, 64), (3, 40, 32), (4, 33, 60))
    prepared = [served.vision.prepare(frame(*shape)) for shape in shapes]
    alone = [encoded(served, image)[0] for image in prepared]
    for company in ([0, 1, 2, 3], [1, 2], [3, 2, 1, 0]):
        found = encoded(served, *[prepared[number] for number in company])
        for number, rows in zip(company, found, strict=True):
            np.testing.assert_array_equal(rows, alone[number])


def test_images_of_different_sizes_are_encoded_together(model):
    found, yields = drained(model.vision.encode([stored(name) for name in IMAGES]))
    for rows, name in zip(found, IMAGES, strict=True):
        np.testing.assert_allclose(rows, rows_of(name), rtol=0, atol=ATOL)
        assert rows.base is None  # the cache keeps each for itself
    assert 4 <= yields <= 2 * 4 + 3


@pytest.mark.parametrize("most", [1, 6, 16, 48, 64])
def test_large_images_are_encoded_in_parts(monkeypatch, most):
    prepared = [stored(name) for name in IMAGES]
    at_once, few = drained(checkpoint().vision.encode(prepared))
    monkeypatch.setattr(qwen3vl_vision, "PIECE", most)
    found, many = drained(checkpoint().vision.encode(prepared))
    for rows, others in zip(found, at_once, strict=True):
        np.testing.assert_allclose(rows, others, rtol=0, atol=1e-5)
    assert many > 2 * few


def test_products_in_8_bits_are_near_the_reference():
    (rows,) = encoded(load_model(QWEN, open_weights(HF), CpuLoader()), stored("gradient"))
    wanted = rows_of("gradient")
    assert np.linalg.norm(rows - wanted) <= 0.01 * np.linalg.norm(wanted)


def test_patches_have_places_unit_by_unit_and_the_corners_of_the_learned_grid():
    image = Prepared(np.zeros((16, 3), np.float32), (), (1, 2, 8))
    (stretch,) = stretches([image], merge=2, side=6, most=100)
    rows, columns = stretch.places
    assert rows.tolist() == [0, 0, 1, 1] * 4
    assert columns.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7]
    np.testing.assert_allclose(stretch.learned, [rows * 5.0, columns * np.float32(5 / 7)], rtol=1e-6)
    assert stretch.learned.max() == 5.0


# ---- videos ----------------------------------------------------------------------------------------------------------


def frame(seed, width=64, height=48):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Picture(Image.fromarray(noise))


def test_frames_are_paired_and_an_odd_last_one_is_doubled(monkeypatch):
    vision = checkpoint().vision
    monkeypatch.setattr(qwen3vl_vision, "VIDEO_LEAST", 1)
    a, b, c = (vision.prepare_video([frame(seed)]).pixels.reshape(-1, 3, 2, 4, 4)[:, :, 0] for seed in (1, 2, 3))
    video = vision.prepare_video([frame(seed) for seed in (1, 2, 3)])
    assert video.grid == (2, 12, 16)
    pairs = video.pixels.reshape(2, -1, 3, 2, 4, 4)
    for pair, (first, second) in zip(pairs, [(a, b), (c, c)], strict=True):
        np.testing.assert_array_equal(pair[:, :, 0], first)
        np.testing.assert_array_equal(pair[:, :, 1], second)


def test_a_video_of_equal_frames_has_the_rows_of_its_images():
    vision = checkpoint().vision
    stills = encoded(checkpoint(), *(vision.prepare_video([frame(seed)]) for seed in (1, 2)))
    (rows,) = encoded(checkpoint(), vision.prepare_video([frame(seed, 64, 48) for seed in (1, 1, 2)]))
    np.testing.assert_allclose(rows, np.concatenate(stills), rtol=0, atol=1e-5)


def test_each_pair_of_frames_comes_with_its_time_and_positions_of_a_picture():
    prepared = checkpoint().vision.prepare_video([frame(seed) for seed in range(5)])
    texts = [part for part in prepared.parts if isinstance(part, str)]
    assert "".join(texts) == "".join(
        f"<{time} seconds><|vision_start|><|vision_end|>" for time in ("0.2", "1.2", "2.0")
    )
    pairs = [part for part in prepared.parts if isinstance(part, Rows)]
    assert [prepared.parts.index(texts[0]), len(prepared.parts), len(pairs)] == [0, 9, 3]
    for rows in pairs:
        time, row, column = rows.positions.reshape(3, 6, 8)
        assert not time.any()
        np.testing.assert_array_equal(row, np.broadcast_to(np.arange(6)[:, None], (6, 8)))
        np.testing.assert_array_equal(column, np.broadcast_to(np.arange(8), (6, 8)))
        assert rows.length == 8


def test_times_are_the_means_of_two_frames_of_half_a_second():
    assert times_of(1) == [0.0]
    assert times_of(2) == [0.25]
    assert times_of(4) == [0.25, 1.25]
    assert times_of(5) == [0.25, 1.25, 2.0]


def test_frames_that_make_no_video_are_refused():
    vision = checkpoint().vision
    with pytest.raises(BadRequest, match="a video without frames"):
        vision.prepare_video([])
    with pytest.raises(BadRequest, match="frame 1 of a video is 64 x 40 pixels, expected 64 x 48 as the first"):
        vision.prepare_video([frame(1), frame(1, height=40)])


def test_a_long_video_has_small_frames_and_a_longer_one_is_refused(monkeypatch):
    vision, still = checkpoint().vision, Picture(Image.new("RGB", (80, 80)))
    monkeypatch.setattr(qwen3vl_vision, "VIDEO_MOST", 20_000)
    monkeypatch.setattr(qwen3vl_vision, "LIMIT", 200 * 8 * 8)
    assert vision.prepare_video([still] * 2).grid == (1, 20, 20)
    assert vision.prepare_video([still] * 20).grid == (10, 6, 6)
    assert vision.prepare_video([still] * 400).grid == (200, 2, 2)
    with pytest.raises(BadRequest, match="a video of 401 frames of 8 x 8 pixels is too long"):
        vision.prepare_video([still] * 401)


# ---- prompts ---------------------------------------------------------------------------------------------------------


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

    def __init__(self, model: LoadedModel, prompt: Prompt, rows: list[np.ndarray]) -> None:
        self.model, self.prompt, self.rows = model, prompt, rows
        self.cache = Cache(model.cache, "f32", Capacity(512, 1, 512))
        self.table = self.cache.blocks.table()
        self.tokens: list[int] = []

    def inserts(self, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """Return the rows among tokens start..stop of the prompt, and where they begin in it."""
        found = []
        for (first, count), rows in zip(self.prompt.spans, self.rows, strict=True):
            low, high = max(start, first), min(stop, first + count)
            if low < high:
                found.append((low - start, rows[low - first : high - first]))
        return found

    def feed(self, tokens: list[int], positions: np.ndarray, inserts=()) -> np.ndarray:
        """Return the logits of tokens that come next."""
        x = np.array(self.model.model.embed(np.array(tokens, np.int32)))
        for at, rows in inserts:
            x[at : at + len(rows)] = rows[:, :D]
        assert self.table.reserve(len(self.tokens) + len(tokens))
        share = Share(self.table, 0, len(tokens), positions)
        hidden = self.model.model.forward(x, StepView(self.cache, [share], streams=3, inserts=inserts))
        self.tokens += tokens
        self.table.advance(self.tokens, len(tokens))
        return np.asarray(self.model.model.logits(hidden))

    def read(self, chunk: int) -> np.ndarray:
        """Return the logits of the whole prompt."""
        p, found = self.prompt, []
        for start in range(0, len(p.tokens), chunk):
            stop = min(start + chunk, len(p.tokens))
            given = p.tokens[start:stop], p.positions[:, start:stop], self.inserts(start, stop)
            found.append(self.feed(*given))
        return np.concatenate(found)

    def say(self, token: int) -> np.ndarray:
        """Return the logits behind a token of the reply."""
        return self.feed([token], np.full((3, 1), len(self.tokens) + self.prompt.delta, np.int32))

    def reply(self, logits: np.ndarray, count: int) -> list[int]:
        """Return the likeliest tokens behind a prompt that was read."""
        found: list[int] = []
        for _ in range(count):
            found.append(int(logits[-1].argmax()))
            logits = self.say(found[-1])
        return found


def talk_of(model: LoadedModel, case) -> Talk:
    return Talk(model, prompt_of(case), encoded(model, *map(stored, case["images"])))


def text_of(model: LoadedModel, case) -> Talk:
    positions = np.tile(np.arange(len(case["ids"]), dtype=np.int32), (3, 1))
    return Talk(model, Prompt(case["ids"], positions, []), [])


def assert_logits(found: np.ndarray, case) -> None:
    wanted = WANTED[case["logits"]]
    np.testing.assert_allclose(found[case.get("rows", slice(None))], wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_text_alone_gives_the_reference_s_logits_and_reply(model, text, chunk):
    case = TEXTS[text]
    talk = text_of(model, case)
    logits = talk.read(chunk)
    assert_logits(logits, case)
    assert talk.reply(logits, 16) == case["greedy"]


@talks
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_images_give_the_reference_s_logits_and_reply(model, talk, chunk):
    case = TALKS[talk]
    conversation = talk_of(model, case)
    logits = conversation.read(chunk)
    assert_logits(logits, case)
    assert case["greedy_margin"] > 2 * ATOL
    assert conversation.reply(logits, 16) == case["greedy"]


@talks
@pytest.mark.parametrize("step_tokens", [5, 64])
def test_the_engine_replies_to_images_as_the_reference_does(talk, step_tokens):
    case = TALKS[talk]
    pictures = [(FIXTURE / IMAGES[name]["file"]).read_bytes() for name in case["images"]]
    options = EngineOptions(Limits(step_tokens, 4), 2, "f32", 1024, precise=True)

    async def ask():
        runner = InlineRunner(HF, [QWEN], TEXT, options)
        try:
            spans = prompt_of(case).spans
            media = [Placed(Media([file]), [span]) for file, span in zip(pictures, spans, strict=True)]
            request = Generate(prompt=case["ids"], media=media, sampling=GREEDY, num_ctx=512, max_tokens=16)
            *pieces, _ = [event async for event in runner.generate(request)]
            return [token for piece in pieces for token in piece.tokens]
        finally:
            await runner.close()

    assert asyncio.run(ask()) == case["greedy"]


@pytest.mark.asyncio
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("form", [None, "f32"])
async def test_clients_get_the_reference_s_replies_whatever_the_model_was_made_of(tmp_path, files, origin, form):
    """With a form it is converted to a single file first."""
    path = files[origin]
    given = path if isinstance(path, dict) else {file.name: file for file in (path.iterdir() if path is HF else [path])}
    async with running_server(tmp_path, precise=True) as live:
        digests = {name: await upload(live.store, path) for name, path in given.items()}
        body = {"model": "made", "files": digests, "stream": False} | ({"quantize": form} if form else {})
        assert (await live.http.post("/api/create", json=body)).json() == {"status": "success"}
        assert "vision" in (await live.http.post("/api/show", json={"model": "made"})).json()["capabilities"]
        for case in TALKS.values():
            body = {"model": "made", "messages": as_openai("qwen3-vl", case), "temperature": 0, "max_tokens": 16}
            answer = (await live.http.post("/v1/chat/completions", json=body)).json()
            assert answer["usage"]["prompt_tokens"] == len(case["ids"]), answer
            assert answer["choices"][0]["message"]["content"] == tokenizer().decode(case["greedy"])


@pytest.mark.asyncio
async def test_a_video_is_read_with_the_times_of_its_frames(tmp_path):
    frames = [base64.b64encode(png(seed, width=64, height=48)).decode() for seed in range(3)]
    async with running_server(tmp_path, precise=True) as live:
        digests = {path.name: await upload(live.store, path) for path in HF.iterdir()}
        body = {"model": "made", "files": digests, "stream": False}
        assert (await live.http.post("/api/create", json=body)).json() == {"status": "success"}
        found = []
        for part in (video(*frames), {"type": "text", "text": "<0.2 seconds><1.0 seconds>"}):
            body = {"model": "made", "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
            answer = (await live.http.post("/v1/chat/completions", json=body)).json()
            found.append(answer["usage"]["prompt_tokens"])
    assert found[0] == found[1] + 2 * (6 * 8 + 2)  # rows, and what stands around them


# ---- configs ---------------------------------------------------------------------------------------------------------


def written(**text):
    """Return the fixture's config.json with changes in the decoder's section."""
    config = json.loads((HF / "config.json").read_text())
    return config | {"text_config": config["text_config"] | text}


def eye(**changes):
    config = written()
    return config | {"vision_config": config["vision_config"] | changes}


def source(config, **processor):
    files = {"preprocessor_config.json": json.dumps(processor).encode()} if processor else {}
    return MemorySource("safetensors", config, files=files)


def vision_of(config, **processor):
    return read_vision_config(qwen3vl_sizes.VisionConfig, source(config, **processor))


def test_every_kind_of_file_gives_the_same_sizes(files):
    found = [read_config(qwen3vl.Config, open_weights(files[origin])) for origin in ORIGINS]
    for name in msgspec.structs.asdict(found[0]):
        values = [getattr(config, name) for config in found]
        assert values[1:] == ([pytest.approx(values[0])] * 2 if name == "eps" else [values[0]] * 2)
    eyes = [read_vision_config(qwen3vl_sizes.VisionConfig, open_weights(files[origin])) for origin in ORIGINS]
    for name in set(msgspec.structs.asdict(eyes[0])) - {"inner", "eps"}:
        assert len({getattr(config, name) for config in eyes}) == 1, name
    assert [config.inner for config in eyes] == [40, 40, None]


def test_a_text_file_alone_sees_nothing(files):
    alone = load_model(QWEN, open_weights(files["two files"]["model.gguf"]), CpuLoader(precise=True))
    assert alone.vision is None
    talk = text_of(alone, TEXTS["short"])
    assert_logits(talk.read(512), TEXTS["short"])


def test_files_that_say_no_limits_have_the_published_ones(files):
    metadata = dict(open_weights(files["two files"]).metadata)
    for side in ("min", "max"):
        del metadata[f"clip.vision.image_{side}_pixels"]
    found = read_vision_config(qwen3vl_sizes.VisionConfig, MemorySource("gguf", metadata))
    assert found.limits == (1 << 16, 1 << 24)


def test_limits_come_from_the_processor_s_file():
    assert vision_of(written()).limits == (1 << 16, 1 << 24)
    assert vision_of(written(), size={"shortest_edge": 784, "longest_edge": 1000}).limits == (784, 1000)
    assert vision_of(written(), min_pixels=784, max_pixels=1000).limits == (784, 1000)
    assert vision_of(written(), size={"shortest_edge": 4, "longest_edge": 1000}).limits == (4, 1000)
    assert vision_of(written(), size={"longest_edge": 1000}).limits == (1000, 1000)
    assert vision_of(written(), size={"longest_edge": 1 << 31}).limits == (1 << 16, 1 << 24)  # as memory has it


def test_what_configs_leave_out_is_what_their_class_assumes():
    found = vision_of({"text_config": {"hidden_size": 4096, "num_hidden_layers": 36}, "vision_config": {}})
    assert (found.layers, found.hidden, found.inner, found.heads, found.patch, found.merge) == (
        27,
        1152,
        4304,
        16,
        16,
        2,
    )
    assert (found.side, found.deep, found.mean, found.std) == (48, (8, 16, 24), (0.5,) * 3, (0.5,) * 3)
    text = written()
    for name in ("head_dim", "rope_theta", "rms_norm_eps", "max_position_embeddings", "rope_scaling"):
        del text["text_config"][name]
    config = read_config(qwen3vl.Config, source(text))
    assert (config.head_size, config.rope_base, config.eps, config.context_length) == (128, 5e6, 1e-6, 128000)
    assert config.sections == (24, 20, 20)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"rope_scaling": {"mrope_section": [6, 2, 3]}},
            r"mrope_section is \[6, 2, 3\], expected three numbers of pairs",
        ),
        ({"rope_scaling": {"mrope_section": [13, -3, 0]}}, "mrope_section is"),
        ({"rope_scaling": {"mrope_section": [8, 2]}}, "mrope_section is"),
        ({"rope_scaling": {"mrope_section": [6, 2, "x"]}}, "mrope_section is"),
        ({"rope_scaling": {"mrope_section": [2, 4, 4]}}, "no more than every third of 10 pairs"),
        (
            {"rope_scaling": {"mrope_section": [6, 2, 2], "mrope_interleaved": False}},
            "mrope_interleaved is False, expected true",
        ),
        ({"attention_bias": True}, "attention_bias is True, expected false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu"),
    ],
)
def test_a_text_config_that_makes_no_sense_is_refused_by_key(changes, complaint):
    with pytest.raises(BadModel, match=complaint):
        qwen3vl.Config.from_hf(Keys(written(**changes), origin="config.json"))


@pytest.mark.parametrize(
    ("changes", "processor", "complaint"),
    [
        ({"num_heads": 4}, {}, "num_heads is 4, expected a divisor of 24 / 4"),
        ({"num_position_embeddings": 35}, {}, "num_position_embeddings is 35, expected a square number"),
        ({"num_position_embeddings": 1 << 40}, {}, "num_position_embeddings is 1099511627776, expected a whole number"),
        (
            {"deepstack_visual_indexes": [2, 0]},
            {},
            r"deepstack_visual_indexes is \[2, 0\], expected .* in rising order",
        ),
        ({"deepstack_visual_indexes": [0, 0]}, {}, "deepstack_visual_indexes is"),
        ({"deepstack_visual_indexes": [0, 4]}, {}, "expected numbers of layers from 0 to 3"),
        ({"deepstack_visual_indexes": [-1]}, {}, "deepstack_visual_indexes is"),
        ({"deepstack_visual_indexes": ["a"]}, {}, "deepstack_visual_indexes is"),
        ({"depth": 9, "deepstack_visual_indexes": [0, 1, 2, 3, 4]}, {}, "5 layers of the encoder .* which has 4"),
        ({"depth": 1 << 40}, {}, "depth is"),
        ({"temporal_patch_size": 1}, {}, "temporal_patch_size is 1"),
        ({"in_channels": 4}, {}, "in_channels is 4"),
        ({"out_hidden_size": 64}, {}, "out_hidden_size is 64, expected a whole number from 48 to 48"),
        ({"hidden_act": "silu"}, {}, "hidden_act is 'silu', expected one of gelu_pytorch_tanh"),
        ({}, {"min_pixels": 10, "max_pixels": 9}, "key min_pixels is 10, expected a whole number from 1 to 9"),
        ({}, {"image_mean": [0.5, 0.5]}, "image_mean is .*, expected three positive numbers"),
        ({}, {"image_std": [0.5, 0.5, 0]}, "image_std is"),
        ({}, {"image_std": [0.5, 0.5, "a"]}, "image_std is"),
    ],
)
def test_a_vision_config_that_makes_no_sense_is_refused_by_key(changes, processor, complaint):
    with pytest.raises(BadModel, match=complaint):
        vision_of(eye(**changes), **processor)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"clip.projector_type": "qwen2.5vl_merger"},
            r"projector_type is 'qwen2\.5vl_merger', expected .* qwen3vl_merger",
        ),
        ({"clip.vision.projection_dim": 64}, "projection_dim is 64"),
        ({"clip.vision.is_deepstack_layers": [True]}, "is_deepstack_layers is .*, expected 4 entries"),
        ({"clip.vision.is_deepstack_layers": [True, True, True, False]}, "n_deepstack_layers is 2, expected .* from 3"),
        ({"qwen3vl.n_deepstack_layers": 1}, "n_deepstack_layers is 1, expected a whole number from 2 to 2"),
        ({"clip.vision.image_size": 3}, "image_size is 3, expected a whole number from 4"),
        ({"qwen3vl.rope.dimension_sections": [6, 2, 2, 1]}, "dimension_sections is"),
    ],
)
def test_a_pair_whose_parts_do_not_belong_together_is_refused_by_key(files, changes, complaint):
    metadata = dict(open_weights(files["two files"]).metadata) | changes
    with pytest.raises(BadModel, match=complaint):
        pair = MemorySource("gguf", metadata)
        read_config(qwen3vl.Config, pair)
        read_vision_config(qwen3vl_sizes.VisionConfig, pair)


@pytest.mark.parametrize("missing", [["v.patch_embd.weight"], ["v.patch_embd.weight.1"]])
def test_an_encoder_without_its_first_kernels_is_refused(files, missing):
    known = open_weights(files["two files"])
    arrays = {
        name: decode_tensor(known.raw(name), info.format, info.shape)
        for name, info in known.tensors.items()
        if name not in missing
    }
    with pytest.raises(BadModel, match=r"v\.patch_embed\.weight, or v\.patch_embd\.weight and .*1, is missing"):
        load_model(QWEN, MemorySource("gguf", dict(known.metadata), arrays), CpuLoader(precise=True))


@pytest.mark.parametrize(
    ("kind", "metadata"),
    [
        ("gguf", {"general.architecture": "qwen3vlmoe"}),
        ("safetensors", {"architectures": ["Qwen3VLMoeForConditionalGeneration"]}),
    ],
)
def test_mixtures_of_experts_are_refused_by_name(kind, metadata):
    with pytest.raises(BadModel, match=r"no plugin provides .* = .*(qwen3vlmoe|Qwen3VLMoeForConditionalGeneration)"):
        find_architecture([QWEN], MemorySource(kind, metadata))
