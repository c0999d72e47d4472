"""Mistral Small 3.1 against the reference: from a checkpoint, from pairs of GGUF files old and new, and from one file.

Text alone is compared in test_parity.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
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

from puna.core.memory.cache import Cache, Capacity, StepView
from puna.core.memory.cache import Rows as Share
from puna.core.model import LoadedModel, check_table, find_architecture, load_model, read_config, read_vision_config
from puna.core.pictures import Picture, open_picture
from puna.core.plugin import Prepared, Rows
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Generate, Media, Placed
from puna.core.scheduler.plan import Limits
from puna.core.tensor import cpu
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.source import WeightSource
from puna.core.tensor.weights import open_weights
from puna.plugins import llama, mistral_small, mistral_small_vision
from puna.plugins.mistral_small import Config
from puna.plugins.mistral_small_pictures import Cut, fitting_size
from puna.plugins.mistral_small_vision import Vision, VisionConfig
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES, cases, expected
from .serving import running_server, upload
from .test_api_vision import as_openai
from .test_engine import GREEDY, TEXT
from .test_plugin_contract import MemorySource

ATOL = 1e-3  # of logits and rows, as the reference states it for engines that work in float32; pixels: 1e-5
NAME = "mistral3"
HF, TEXT_FILE, EYE_FILE = (FIXTURES / NAME / file for file in ("hf", "gguf/model-f32.gguf", "gguf/mmproj-f32.gguf"))
IMAGES = {case["name"]: case for case in cases(NAME)["images"]}
TALKS = {case["name"]: case for case in cases(NAME)["multimodal"]}
WANTED = expected(NAME)
KINDS = ("checkpoint", "pair", "older pair", "single")
(MISTRAL,) = mistral_small.architectures()
R = TypeVar("R")

kinds = pytest.mark.parametrize("kind", KINDS)
images = pytest.mark.parametrize("image", IMAGES)
talks = pytest.mark.parametrize("talk", TALKS)

# ---- files ---------------------------------------------------------------------------------------------------------

IN_ONE_FILE = (  # what the single file calls tensors of the pair
    ("v.patch_embd.", "v.patch_conv."), ("v.pre_ln.", "v.encoder_norm."), (".ln1.", ".attn_norm."),
    (".ln2.", ".ffn_norm."), (".attn_out.", ".attn_output."), ("mm.input_norm.", "mm.norm."),
    ("mm.patch_merger.", "mm.patch_merger.merging_layer."), ("mm.1.", "mm.linear_1."), ("mm.2.", "mm.linear_2."),
)  # fmt: skip
EYE_SIZES = {
    "block_count": 3, "embedding_length": 32, "feed_forward_length": 56, "attention.head_count": 2,
    "attention.key_length": 16, "image_size": 128, "patch_size": 8, "num_channels": 3,
}  # fmt: skip


def renamed(name: str) -> str:
    for old, new in IN_ONE_FILE:
        name = name.replace(old, new)
    return name


def unpaired(rows: np.ndarray) -> np.ndarray:
    """Return q or k of the encoder with the halves of its pairs in halves of the heads again, not side by side."""
    return rows.reshape(2, 8, 2, 32).swapaxes(1, 2).reshape(32, 32)


def write_text(path: Path, name: str, *, eye: bool = False) -> Path:
    """Write the decoder as a file of this architecture; eye: with the encoder in it, as single files have that."""
    reader, writer = gguf.GGUFReader(TEXT_FILE), gguf.GGUFWriter(path, name)
    for key, value in open_weights(TEXT_FILE).metadata.items():
        if key.startswith("mistral3."):
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(key.replace("mistral3.", f"{name}."), value)
        elif key.startswith("tokenizer.") and not isinstance(value, np.ndarray):
            writer.add_key_value(key, value, reader.fields[key].types[0], *reader.fields[key].types[1:2])
    writer.add_token_types(reader.fields["tokenizer.ggml.token_type"].contents())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    if eye:
        for size, number in EYE_SIZES.items():
            writer.add_uint32(f"{name}.vision.{size}", number)
        writer.add_float32(f"{name}.vision.rope.freq_base", 10000.0)
        writer.add_uint32(f"{name}.spatial_merge_size", 2)
        writer.add_string(f"{name}.mm.projector_hidden_act", "gelu")
        for tensor in gguf.GGUFReader(EYE_FILE).tensors:
            if tensor.name != "v.token_embd.img_break":
                turned = tensor.name.endswith(("attn_q.weight", "attn_k.weight"))
                writer.add_tensor(renamed(tensor.name), unpaired(tensor.data) if turned else tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Return the files of each kind."""
    made = tmp_path_factory.mktemp(NAME)
    return {
        "checkpoint": {path.name: path for path in sorted(HF.iterdir())},
        "pair": {"model.gguf": TEXT_FILE, "mmproj.gguf": EYE_FILE},
        "older pair": {"model.gguf": write_text(made / "older.gguf", "llama"), "mmproj.gguf": EYE_FILE},
        "single": {"model.gguf": write_text(made / "single.gguf", "mistral3", eye=True)},
    }


@pytest.fixture(scope="module")
def loaded(files: dict[str, dict[str, Path]]) -> Callable[[str], LoadedModel]:
    """Return a function that loads a kind."""
    return cache(lambda kind: load(open_weights(files[kind])))


def load(source: WeightSource) -> LoadedModel:
    return load_model(MISTRAL, source, CpuLoader(precise=True))


def test_the_tensor_tables_are_well_formed() -> None:
    check_table(mistral_small.MistralSmall)
    check_table(Vision)


@kinds
def test_nothing_of_a_file_is_left_over(kind: str, files: Any, caplog: pytest.LogCaptureFixture) -> None:
    load(open_weights(files[kind]))
    assert caplog.text == ""


@kinds
def test_each_kind_of_file_finds_its_plugin_beside_that_of_llama(kind: str, files: Any) -> None:
    for plugins in ([*llama.architectures(), MISTRAL], [MISTRAL, *llama.architectures()]):
        assert find_architecture(plugins, open_weights(files[kind])) is MISTRAL


def test_a_text_that_calls_itself_llama_is_one_where_no_encoder_of_ours_is_beside_it(files: Any) -> None:
    (other,) = llama.architectures()
    alone = open_weights(files["older pair"]["model.gguf"])
    beside = MemorySource("gguf", dict(alone.metadata) | {"clip.projector_type": "mlp"})
    for source in (alone, beside):
        assert find_architecture([MISTRAL, other], source) is other


def test_a_text_file_alone_sees_nothing() -> None:
    assert load(open_weights(TEXT_FILE)).vision is None
    config = {name: value for name, value in written().items() if name != "vision_config"}
    assert read_vision_config(VisionConfig, MemorySource("safetensors", config)) is None


class Renamed:
    """A source with other names for its tensors."""

    def __init__(self, whole: WeightSource, rename: Callable[[str], str]) -> None:
        self.kind, self.metadata = whole.kind, whole.metadata
        self._whole, self._names = whole, {rename(name): name for name in whole.tensors}
        self.tensors = {new: replace(whole.tensors[old], name=new) for new, old in self._names.items()}

    def raw(self, name: str) -> np.ndarray:
        return self._whole.raw(self._names[name])

    def release(self, name: str) -> None: ...

    def side_file(self, name: str) -> bytes | None:
        return self._whole.side_file(name)

    def close(self) -> None: ...


def newer(name: str) -> str:
    """What later checkpoints call tensors."""
    if name.startswith("language_model.lm_head."):
        return name.replace("language_model.", "")
    return "model." + name.replace("language_model.model.", "language_model.")


def test_later_names_of_tensors_make_no_difference(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = load(Renamed(open_weights(HF), newer))
    assert caplog.text == ""
    found, before = (encoded(which, stored("wide"))[0] for which in (model, loaded("checkpoint")))
    np.testing.assert_array_equal(found, before)


# ---- pictures ------------------------------------------------------------------------------------------------------


def drained(work: Generator[None, None, R]) -> tuple[R, int]:
    """Return what a generator returns, and how often it yields."""
    yields = 0
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value, yields
        yields += 1


def encoded(model: LoadedModel, *prepared: Prepared) -> list[np.ndarray]:
    assert model.vision is not None
    return drained(model.vision.encode(prepared))[0]  # type: ignore[return-value]


def picture(name: str) -> Picture:
    return open_picture((FIXTURES / NAME / IMAGES[name]["file"]).read_bytes())


def layout(columns: int, rows: int) -> tuple[str | Rows, ...]:
    return (*(Rows(columns), "[IMG_BREAK]") * (rows - 1), Rows(columns), "[IMG_END]")


def stored(name: str) -> Prepared:
    """Return a picture with the reference's own pixels."""
    height, width = IMAGES[name]["image_sizes"]
    return Prepared(
        WANTED[IMAGES[name]["pixel_values"]][0], layout(width // 16, height // 16), (height // 8, width // 8)
    )


@kinds
@images
def test_pictures_are_prepared_as_the_reference_does(kind: str, image: str, loaded: Any) -> None:
    found, wanted = loaded(kind).vision.prepare(picture(image)), stored(image)
    np.testing.assert_allclose(found.pixels, wanted.pixels, rtol=0, atol=1e-5)
    assert (found.parts, found.grid) == (wanted.parts, wanted.grid)
    assert sum(part.count for part in found.parts if isinstance(part, Rows)) == IMAGES[image]["n_image_tokens"]


def size(width: int, height: int) -> tuple[int, int]:
    return fitting_size(width, height, longest=1540, factor=28)


def test_sizes_are_rounded_up_to_whole_squares_and_large_pictures_shrink_before() -> None:
    assert size(280, 140) == (280, 140)
    assert size(281, 141) == (308, 168)
    assert size(1540, 1540) == (1540, 1540)
    assert size(3080, 1000) == (1540, 504)
    assert size(1000, 3081) == (504, 1540)  # 499.8 is cut to 499, and that rounded up
    assert size(1, 1) == (28, 28)
    assert size(200_000, 1) == (1540, 28)  # would round to no height at all


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_every_picture_gets_a_size_that_the_encoder_can_cut(width: int, height: int) -> None:
    assert all(28 <= side <= 1540 and side % 28 == 0 for side in size(width, height))


@pytest.mark.parametrize(("width", "height", "grid"), [(1, 1, (2, 2)), (5000, 4000, (14, 16)), (900, 1, (2, 16))])
def test_pictures_of_any_size_are_encoded(width: int, height: int, grid: tuple[int, int], loaded: Any) -> None:
    prepared = loaded("checkpoint").vision.prepare(Picture(Image.new("RGB", (width, height), (200, 30, 90))))
    assert prepared.grid == grid
    (rows,) = encoded(loaded("checkpoint"), prepared)
    assert rows.shape == (grid[0] * grid[1] // 4, 48)
    assert np.isfinite(rows).all()


# ---- encoder and projector -----------------------------------------------------------------------------------------


@kinds
@images
def test_pictures_are_encoded_as_the_reference_does(kind: str, image: str, loaded: Any) -> None:
    ((pieces, sizes),) = Cut(8, 2, 512).groups([stored(image)])
    (tower,), _ = drained(loaded(kind).vision.tower(pieces, sizes))
    np.testing.assert_allclose(tower, WANTED[IMAGES[image]["tower"]], rtol=0, atol=ATOL)
    (rows,) = encoded(loaded(kind), stored(image))
    np.testing.assert_allclose(rows, WANTED[IMAGES[image]["projected"]], rtol=0, atol=ATOL)


@kinds
def test_images_of_different_sizes_are_encoded_together_and_do_not_see_each_other(kind: str, loaded: Any) -> None:
    found, yields = drained(loaded(kind).vision.encode([stored(name) for name in IMAGES]))
    for rows, name in zip(found, IMAGES, strict=True):
        np.testing.assert_allclose(rows, WANTED[IMAGES[name]["projected"]], rtol=0, atol=ATOL)
        assert rows.base is None  # the cache keeps each for itself
    assert yields == 3 + 2


def test_the_rows_of_an_image_are_bit_for_bit_the_same_in_any_company(
    monkeypatch: pytest.MonkeyPatch, loaded: Any
) -> None:
    """With products row by row: sums of the matrix library depend on how many rows it is given."""
    monkeypatch.setattr(cpu, "FEW", 1 << 30)
    model, prepared = loaded("checkpoint"), [stored(name) for name in IMAGES]
    alone = [encoded(model, image)[0] for image in prepared]
    for order in itertools.permutations(range(len(prepared))):
        together = encoded(model, *(prepared[i] for i in order))
        for i, rows in zip(order, together, strict=True):
            np.testing.assert_array_equal(rows, alone[i])


@pytest.mark.parametrize("most", [1, 40, 64, 100, 150])
def test_large_images_are_encoded_in_strips(monkeypatch: pytest.MonkeyPatch, most: int, loaded: Any) -> None:
    vision, prepared = loaded("checkpoint").vision, [stored(name) for name in (*IMAGES, *reversed(IMAGES))]
    at_once, few = drained(vision.encode(prepared))
    monkeypatch.setattr(mistral_small_vision, "PIECE", most)
    found, many = drained(vision.encode(prepared))
    for rows, others in zip(found, at_once, strict=True):
        np.testing.assert_allclose(rows, others, rtol=0, atol=1e-5)
    assert many > few


def test_products_in_8_bits_are_near_the_reference() -> None:
    (rows,) = encoded(load_model(MISTRAL, open_weights(HF), CpuLoader()), stored("gradient"))
    wanted = WANTED[IMAGES["gradient"]["projected"]]
    assert np.linalg.norm(rows - wanted) <= 0.01 * np.linalg.norm(wanted)


# ---- prompts with pictures -----------------------------------------------------------------------------------------


def stretches(case: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield where rows of images begin in a prompt, and how many there are."""
    start = 0
    for row, group in itertools.groupby(token == case["image_token_id"] for token in case["ids"]):
        count = len(list(group))
        if row:
            yield start, count
        start += count


def placed(case: dict[str, Any]) -> list[Placed]:
    """Return the images of a prompt and their places."""
    left, found = stretches(case), []
    for name in case["images"]:
        lines = sum(isinstance(part, Rows) for part in stored(name).parts)
        file = (FIXTURES / NAME / IMAGES[name]["file"]).read_bytes()
        found.append(Placed(Media([file]), list(itertools.islice(left, lines))))
    assert next(left, None) is None
    return found


@pytest.mark.parametrize("file", ["hf", "gguf/model-f32.gguf"])
@talks
def test_what_stands_for_a_picture_becomes_the_tokens_of_the_reference(file: str, talk: str, loaded: Any) -> None:
    case, tokenizer, vision = TALKS[talk], open_tokenizer(open_weights(FIXTURES / NAME / file)), loaded("pair").vision
    text, *after = case["rendered"].split(vision.marker)
    said: list[str | Rows] = [text]
    for name, text in zip(case["images"], after, strict=True):
        said += [*vision.prepare(picture(name)).parts, text]
    (row,) = tokenizer.encode(vision.placeholder, special=True, start=False)
    found: list[int] = []
    for is_text, group in itertools.groupby(said, lambda part: isinstance(part, str)):
        parts = list(group)
        if is_text:
            found += tokenizer.encode("".join(map(str, parts)), special=True, start=not found)
        else:
            found += [row] * sum(part.count for part in parts if isinstance(part, Rows))
    assert found == case["ids"]


class Talk:
    """A conversation with a cache to itself."""

    def __init__(self, model: LoadedModel, case: dict[str, Any]) -> None:
        self.model, self.case = model, case
        self.cache = Cache(model.cache, "f32", Capacity(512, 1, 512))
        self.table = self.cache.blocks.table()
        self.tokens: list[int] = []

    def embeddings(self) -> np.ndarray:
        """Return what enters the first block: rows of images in place of their tokens."""
        ids = np.array(self.case["ids"], np.int32)
        x = np.array(self.model.model.embed(ids))
        rows = encoded(self.model, *(stored(name) for name in self.case["images"]))
        x[ids == self.case["image_token_id"]] = np.concatenate(rows)
        return x

    def feed(self, x: np.ndarray, tokens: list[int]) -> np.ndarray:
        """Return the logits of tokens that come next, given what enters the first block for them."""
        assert self.table.reserve(len(self.tokens) + len(tokens))
        hidden = self.model.model.forward(x, StepView(self.cache, [Share(self.table, 0, len(tokens))]))
        self.tokens += tokens
        self.table.advance(self.tokens, len(tokens))
        return np.asarray(self.model.model.logits(hidden))

    def read(self, chunk: int) -> np.ndarray:
        """Return the logits of the whole prompt."""
        x, ids = self.embeddings(), self.case["ids"]
        parts = [slice(at, at + chunk) for at in range(0, len(ids), chunk)]
        return np.concatenate([self.feed(x[part], ids[part]) for part in parts])


@kinds
@talks
@pytest.mark.parametrize("chunk", [7, 512])
def test_logits_of_prompts_with_pictures_are_the_reference_s(kind: str, talk: str, chunk: int, loaded: Any) -> None:
    found = Talk(loaded(kind), TALKS[talk]).read(chunk)
    np.testing.assert_allclose(found, WANTED[TALKS[talk]["logits"]], rtol=0, atol=ATOL)


@kinds
@talks
def test_replies_to_pictures_are_the_reference_s(kind: str, talk: str, loaded: Any) -> None:
    case, model = TALKS[talk], loaded(kind)
    conversation, reply = Talk(model, case), list[int]()
    logits = conversation.read(512)
    while len(reply) < len(case["greedy"]):
        reply.append(int(logits[-1].argmax()))
        logits = conversation.feed(np.asarray(model.model.embed(np.array(reply[-1:], np.int32))), reply[-1:])
    assert case["greedy_margin"] > 2 * ATOL
    assert reply == case["greedy"]


@pytest.mark.parametrize("step_tokens", [5, 64])
def test_replies_to_picture_files_are_the_reference_s_in_any_company(step_tokens: int) -> None:
    """All at once, some of them twice, in steps that cut rows of pictures in two."""
    asked = [*TALKS.values(), TALKS["two"], TALKS["one"]]
    options = EngineOptions(Limits(step_tokens, 8), 2, "f32", 4096, precise=True)
    runner = InlineRunner(HF, [MISTRAL], TEXT, options)

    async def reply(case: dict[str, Any]) -> list[int]:
        request = Generate(prompt=case["ids"], media=placed(case), sampling=GREEDY, num_ctx=512, max_tokens=16)
        *pieces, _ = [event async for event in runner.generate(request)]
        return [token for piece in pieces for token in piece.tokens]

    async def all_of_them() -> list[list[int]]:
        try:
            return await asyncio.gather(*map(reply, asked))
        finally:
            await runner.close()

    assert asyncio.run(all_of_them()) == [case["greedy"] for case in asked]
    assert runner.stats.images.prepared == runner.stats.images.encoded == len(IMAGES)


@pytest.mark.asyncio
@kinds
async def test_replies_over_http_are_the_reference_s(tmp_path: Path, kind: str, files: Any) -> None:
    tokenizer = open_tokenizer(open_weights(files[kind]))
    async with running_server(tmp_path, precise=True) as live:
        digests = {name: await upload(live.store, path) for name, path in files[kind].items()}
        answer = await live.http.post("/api/create", json={"model": "m", "files": digests, "stream": False})
        assert answer.json() == {"status": "success"}, answer.text
        assert "vision" in (await live.http.post("/api/show", json={"model": "m"})).json()["capabilities"]
        for case in TALKS.values():
            body = {"model": "m", "messages": as_openai(NAME, case), "temperature": 0, "max_tokens": 16}
            answer = await live.http.post("/v1/chat/completions", json=body)
            assert answer.json()["usage"]["prompt_tokens"] == len(case["ids"]), answer.text
            assert answer.json()["choices"][0]["message"]["content"] == tokenizer.decode(case["greedy"])


# ---- sizes ---------------------------------------------------------------------------------------------------------


def written(**changes: Any) -> dict[str, Any]:
    """Return the fixture's config.json with changes."""
    return json.loads((HF / "config.json").read_text()) | changes  # type: ignore[no-any-return]


def test_every_kind_of_file_gives_the_same_sizes(files: Any) -> None:
    rounded = {"eps", "output_eps", "rope_base", "mean", "std", "pairing"}
    for read, config in ((read_config, Config), (read_vision_config, VisionConfig)):
        wanted, *others = (msgspec.structs.asdict(read(config, open_weights(files[kind]))) for kind in KINDS)
        for found in others:
            assert {n: v for n, v in found.items() if n not in rounded} == {
                n: v for n, v in wanted.items() if n not in rounded
            }
            for name in rounded - {"pairing"} & wanted.keys():
                assert found[name] == pytest.approx(wanted[name], rel=1e-6)


def test_single_files_need_not_say_what_all_published_models_have(files: Any) -> None:
    metadata = dict(open_weights(files["single"]).metadata)
    least = {k: v for k, v in metadata.items() if not k.endswith(("spatial_merge_size", "image_size", "freq_base"))}
    found = read_vision_config(VisionConfig, MemorySource("gguf", least))
    assert (found.merge, found.longest, found.rope_base) == (2, 1540, 10000.0)
