"""LLaVA 1.5 and 1.6 against the reference: from checkpoints, pairs of GGUF files, and one file that Puna wrote.

Text alone is compared in test_parity.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from puna.core.converting import Converter
from puna.core.errors import BadModel
from puna.core.memory.cache import Cache, Capacity, StepView
from puna.core.memory.cache import Rows as Share
from puna.core.model import LoadedModel, check_table, find_architecture, load_model, read_config, read_vision_config
from puna.core.pictures import Picture, open_picture
from puna.core.plugin import Causal, Keys, Prepared, Rows, Window
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Generate, Media, Placed
from puna.core.scheduler.plan import Limits
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.floats import F32
from puna.core.tensor.source import WeightSource
from puna.core.tensor.weights import open_weights
from puna.plugins import llama, llava, mistral_small
from puna.plugins.llava import Config, cache_layout
from puna.plugins.llava_pictures import LARGEST_SIDE, Preparation
from puna.plugins.llava_tiles import Tiling, best_size, tiles
from puna.plugins.llava_vision import Vision, VisionConfig
from puna.store import chat_template
from puna.text.tokenizers import open_tokenizer, tokenizer_keys

from .reference import FIXTURES, cases, expected
from .serving import running_server, upload
from .test_api_vision import as_openai
from .test_engine import GREEDY, TEXT
from .test_plugin_contract import MemorySource

ATOL = 1e-3  # of logits and rows, as for every engine that works in float32; pixels: 1e-5
NAME, OTHER, NEXT = "llava", "llava-mistral", "llava-next"
KINDS = [(NAME, "checkpoint"), (NAME, "pair"), (NAME, "older pair"), (NAME, "single"),
         (OTHER, "checkpoint"), (OTHER, "single"),
         (NEXT, "checkpoint"), (NEXT, "pair"), (NEXT, "single")]  # fmt: skip
(LLAVA,) = llava.architectures()
R = TypeVar("R")

kinds = pytest.mark.parametrize(("variant", "kind"), KINDS)
images = pytest.mark.parametrize("image", ["gradient", "alpha", "wide"])
talks = pytest.mark.parametrize("talk", ["one", "two", "text-image-text"])


def hf(variant: str) -> Path:
    return FIXTURES / variant / "hf"


def image_case(variant: str, name: str) -> dict[str, Any]:
    return next(case for case in cases(variant)["images"] if case["name"] == name)


def talk_case(variant: str, name: str) -> dict[str, Any]:
    return next(case for case in cases(variant)["multimodal"] if case["name"] == name)


# ---- files ---------------------------------------------------------------------------------------------------------

TILINGS = {"gradient": (2, 1, 2, 0), "alpha": (2, 2, 1, 0), "wide": (3, 1, 0, 1)}  # columns, lines, bare on each side
EYE_KEYS = ("image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count", "image_mean",
            "image_std", "attention.head_count", "attention.layer_norm_epsilon")  # fmt: skip


def write_single(variant: str, path: Path) -> Path:
    """Write the model as one file."""
    source = open_weights(hf(variant))
    more = {"tokenizer.chat_template": chat_template(source)}
    with path.open("wb") as file:
        for piece in Converter([LLAVA], tokenizer_keys).open(source, F32, more).pieces():
            file.write(piece)
    return path


class Copy:
    """A GGUF file in which parts of another stand under other names."""

    def __init__(self, source: Path, path: Path, architecture: str) -> None:
        self.reader, self.writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, architecture)

    def key(self, old: str, new: str) -> None:
        field = self.reader.fields[old]
        self.writer.add_key_value(new, field.contents(), field.types[0], *field.types[1:2])

    def finish(self, rename: Callable[[str], str | None]) -> None:
        """Write the file with those tensors that are given a name."""
        for tensor in self.reader.tensors:
            if (name := rename(tensor.name)) is not None:
                self.writer.add_tensor(name, tensor.data)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def is_of_eye(name: str) -> bool:
    return name.startswith(("v.", "mm.", "model.", "llava.vision.", "llava.mm."))


def write_pair(single: Path, folder: Path, *, typed: bool) -> dict[str, Path]:
    """Write the same model as others' converters do: the decoder as a file of Llama's, the encoder in one of its own.

    typed: whether the latter names its projector, which the first of such files did not.
    """
    folder.mkdir()
    text = Copy(single, folder / "model.gguf", "llama")
    for key in text.reader.fields:
        if key.startswith(("llava.", "tokenizer.")) and not is_of_eye(key):
            text.key(key, key.replace("llava.", "llama."))
    text.finish(lambda name: None if is_of_eye(name) else name)
    eye = Copy(single, folder / "mmproj.gguf", "clip")
    for key in EYE_KEYS:
        eye.key(f"llava.vision.{key}", f"clip.vision.{key}")
    eye.writer.add_uint32("clip.vision.projection_dim", 24)
    eye.writer.add_bool("clip.has_vision_encoder", True)
    eye.writer.add_bool("clip.has_text_encoder", False)
    eye.writer.add_bool("clip.has_llava_projector", True)
    eye.writer.add_bool("clip.use_gelu", False)
    if typed:
        eye.writer.add_string("clip.projector_type", "mlp")
    if (tiled := "llava.vision.image_grid_pinpoints") in eye.reader.fields:
        eye.key(tiled, "clip.vision.image_grid_pinpoints")
        eye.writer.add_string("clip.vision.image_aspect_ratio", "anyres")
        eye.writer.add_string("clip.vision.mm_patch_merge_type", "spatial_unpad")
    eye.finish(lambda name: exchanged(name) if is_of_eye(name) else None)
    return {"model.gguf": folder / "model.gguf", "mmproj.gguf": folder / "mmproj.gguf"}


def exchanged(name: str) -> str:
    """Return a tensor's name as the converter writes it, which has up and down the wrong way round."""
    if "ffn_up" in name:
        return name.replace("ffn_up", "ffn_down")
    return name.replace("ffn_down", "ffn_up")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Path]]:
    """Return the files of each kind."""
    made = tmp_path_factory.mktemp(NAME)
    single = {variant: write_single(variant, made / f"{variant}.gguf") for variant in (NAME, OTHER, NEXT)}
    found = {(variant, "single"): {"model.gguf": path} for variant, path in single.items()}
    for variant in single:
        found[variant, "checkpoint"] = {path.name: path for path in sorted(hf(variant).iterdir())}
    found[NAME, "pair"] = write_pair(single[NAME], made / "pair", typed=True)
    found[NEXT, "pair"] = write_pair(single[NEXT], made / "tiles", typed=True)
    found[NAME, "older pair"] = write_pair(single[NAME], made / "older", typed=False)
    return found


@pytest.fixture(scope="module")
def loaded(files: Any) -> Callable[[str, str], LoadedModel]:
    """Return a function that loads a kind."""
    return cache(lambda variant, kind: load(open_weights(files[variant, kind])))


def load(source: WeightSource) -> LoadedModel:
    return load_model(LLAVA, source, CpuLoader(precise=True))


def test_the_tensor_tables_are_well_formed() -> None:
    check_table(llava.Llava)
    check_table(Vision)


@kinds
def test_nothing_of_a_file_is_left_over(variant: str, kind: str, files: Any, caplog: pytest.LogCaptureFixture) -> None:
    load(open_weights(files[variant, kind]))
    assert caplog.text == ""


@kinds
def test_each_kind_of_file_finds_its_plugin_beside_others_of_its_name(variant: str, kind: str, files: Any) -> None:
    others = [*llama.architectures(), *mistral_small.architectures()]
    for plugins in ([*others, LLAVA], [LLAVA, *others]):
        assert find_architecture(plugins, open_weights(files[variant, kind])) is LLAVA


def test_a_text_that_calls_itself_llama_is_one_where_no_encoder_of_ours_is_beside_it(files: Any) -> None:
    (other,) = llama.architectures()
    alone = open_weights(files[NAME, "pair"]["model.gguf"])
    beside = dict(alone.metadata) | {"clip.has_vision_encoder": True, "clip.projector_type": "ldp"}
    for source in (alone, MemorySource("gguf", beside)):
        assert find_architecture([LLAVA, other], source) is other


def test_a_text_alone_sees_nothing() -> None:
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
    whole = open_weights(hf(NAME))
    assert "language_model.model.norm.weight" in whole.tensors
    model = load(Renamed(whole, newer))
    assert caplog.text == ""
    found, before = (encoded(which, stored(NAME, "wide"))[0] for which in (model, loaded(NAME, "checkpoint")))
    np.testing.assert_array_equal(found, before)


def test_layers_behind_those_that_are_listened_to_are_not_loaded(loaded: Any) -> None:
    assert "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight" in open_weights(hf(NAME)).tensors
    assert len(loaded(NAME, "checkpoint").vision.blocks) == 3
    assert len(loaded(OTHER, "checkpoint").vision.blocks) == 2


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


def picture(variant: str, name: str) -> Picture:
    return open_picture((FIXTURES / variant / image_case(variant, name)["file"]).read_bytes())


def plain(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 90)) -> Picture:
    return Picture(Image.new("RGB", (width, height), colour))


def stored(variant: str, name: str) -> Prepared:
    """Return a picture with the reference's own pixels."""
    case = image_case(variant, name)
    pixels = expected(variant)[case["pixel_values"]].reshape(-1, 3, 24, 24)
    return Prepared(pixels, (Rows(case["n_image_tokens"]),), TILINGS[name] if variant == NEXT else ())


@pytest.mark.parametrize(("variant", "kind"), [key for key in KINDS if key[0] == NEXT or "pair" not in key[1]])
@images
def test_pictures_are_prepared_as_the_reference_does(variant: str, kind: str, image: str, loaded: Any) -> None:
    found, wanted = loaded(variant, kind).vision.prepare(picture(variant, image)), stored(variant, image)
    np.testing.assert_allclose(found.pixels, wanted.pixels, rtol=0, atol=1e-5)
    assert (found.parts, found.grid) == (wanted.parts, wanted.grid)


def test_pairs_see_squares_as_the_reference_does_and_others_whole(loaded: Any) -> None:
    vision = loaded(NAME, "pair").vision
    np.testing.assert_allclose(
        vision.prepare(picture(NAME, "gradient")).pixels, stored(NAME, "gradient").pixels, rtol=0, atol=1e-5
    )
    assert vision.config.pictures.shape == "pad"


def preparation(**changes: Any) -> Preparation:
    usual = {"side": 24, "shape": "crop", "edge": 24, "mean": (0.5, 0.25, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preparation(**{**usual, **changes})  # type: ignore[arg-type]


def test_what_is_missing_to_a_square_has_the_mean_colour() -> None:
    square = np.asarray(preparation(shape="pad").squared(plain(24, 8)).image)
    assert square[:4].reshape(-1, 3).tolist() == [[127, 63, 0]] * 4 * 24
    assert square[12, 12].tolist() == [200, 30, 90]


def test_a_stretched_picture_is_seen_whole_and_a_cropped_one_in_its_middle() -> None:
    left = plain(60, 20)
    left.image.paste((0, 0, 255), (0, 0, 20, 20))
    assert np.asarray(preparation(shape="stretch").squared(left).image)[12, 2].tolist() == [0, 0, 255]
    assert np.asarray(preparation(shape="crop").squared(left).image)[12, 2].tolist() == [200, 30, 90]


def test_a_longer_edge_leaves_more_to_cut_off() -> None:
    inner = plain(24, 24)
    inner.image.paste((0, 0, 255), (6, 6, 18, 18))
    assert np.asarray(preparation(edge=48).squared(inner).image)[2, 2].tolist() == [0, 0, 255]


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["crop", "pad", "stretch"]))
def test_every_picture_becomes_a_square(width: int, height: int, shape: str) -> None:
    assert preparation(shape=shape).squared(plain(width, height)).image.size == (24, 24)


@pytest.mark.parametrize("size", [(65000, 2), (3, 40000)])
@pytest.mark.parametrize("shape", ["crop", "pad"])
def test_long_strips_take_no_more_memory_than_a_large_square(
    size: tuple[int, int], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noted(kind: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
        def made(*args: Any, **more: Any) -> Image.Image:
            found = kind(*args, **more)
            seen.append(found.width * found.height)
            return found

        return made

    strip = plain(*size)
    monkeypatch.setattr(Image, "new", noted(Image.new))
    monkeypatch.setattr(Image.Image, "resize", noted(Image.Image.resize))
    assert preparation(shape=shape).squared(strip).image.size == (24, 24)
    assert max(seen) <= LARGEST_SIDE**2


# ---- encoder and projector -----------------------------------------------------------------------------------------


@kinds
@images
def test_pictures_are_encoded_as_the_reference_does(variant: str, kind: str, image: str, loaded: Any) -> None:
    model, case, prepared = loaded(variant, kind), image_case(variant, image), stored(variant, image)
    towers = [drained(model.vision.tower(view[None]))[0] for view in prepared.pixels]
    wanted = expected(variant)[case["tower"]].reshape(np.shape(towers))
    np.testing.assert_allclose(towers, wanted, rtol=0, atol=ATOL)
    (rows,) = encoded(model, prepared)
    np.testing.assert_allclose(rows, expected(variant)[case["projected"]], rtol=0, atol=ATOL)


def test_others_have_their_turn_twice_a_layer(loaded: Any) -> None:
    _, yields = drained(loaded(NAME, "checkpoint").vision.encode([stored(NAME, "gradient"), stored(NAME, "wide")]))
    assert yields == 2 * 2 * 3


def test_products_in_8_bits_are_near_the_reference() -> None:
    (rows,) = encoded(load_model(LLAVA, open_weights(hf(NAME)), CpuLoader()), stored(NAME, "gradient"))
    wanted = expected(NAME)[image_case(NAME, "gradient")["projected"]]
    assert np.linalg.norm(rows - wanted) <= 0.02 * np.linalg.norm(wanted)


# ---- prompts with pictures -----------------------------------------------------------------------------------------


def placed(variant: str, case: dict[str, Any]) -> list[Placed]:
    """Return the images of a prompt and their places."""
    found, start = [], 0
    names = iter(case["images"])
    for row, group in itertools.groupby(token == case["image_token_id"] for token in case["ids"]):
        count = len(list(group))
        if row:
            file = (FIXTURES / variant / image_case(variant, next(names))["file"]).read_bytes()
            found.append(Placed(Media([file]), [(start, count)]))
        start += count
    assert next(names, None) is None
    return found


@kinds
@talks
def test_what_stands_for_a_picture_becomes_the_tokens_of_the_reference(
    variant: str, kind: str, talk: str, files: Any, loaded: Any
) -> None:
    case, vision = talk_case(variant, talk), loaded(variant, kind).vision
    tokenizer = open_tokenizer(open_weights(files[variant, kind]))
    first, *after = case["rendered"].split(vision.marker)
    (row,) = tokenizer.encode(vision.placeholder, special=True, start=False)
    found = tokenizer.encode(first, special=True, start=True)
    for name, text in zip(case["images"], after, strict=True):
        (part,) = vision.prepare(picture(variant, name)).parts
        found += [row] * part.count + tokenizer.encode(text, special=True, start=False)
    assert found == case["ids"]


class Talk:
    """A conversation with a cache to itself."""

    def __init__(self, model: LoadedModel, variant: str, case: dict[str, Any]) -> None:
        self.model, self.variant, self.case = model, variant, case
        self.cache = Cache(model.cache, "f32", Capacity(512, 1, 512))
        self.table = self.cache.blocks.table()
        self.tokens: list[int] = []

    def embeddings(self) -> np.ndarray:
        """Return what enters the first block: rows of images in place of their tokens."""
        ids = np.array(self.case["ids"], np.int32)
        x = np.array(self.model.model.embed(ids))
        rows = encoded(self.model, *(stored(self.variant, name) for name in self.case["images"]))
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
def test_logits_of_prompts_with_pictures_are_the_reference_s(
    variant: str, kind: str, talk: str, chunk: int, loaded: Any
) -> None:
    case = talk_case(variant, talk)
    found = Talk(loaded(variant, kind), variant, case).read(chunk)
    assert found.shape[0] == len(case["ids"]) > 20  # longer than the window
    np.testing.assert_allclose(found[case["rows"]], expected(variant)[case["logits"]], rtol=0, atol=ATOL)


@kinds
@talks
def test_replies_to_pictures_are_the_reference_s(variant: str, kind: str, talk: str, loaded: Any) -> None:
    case, model = talk_case(variant, talk), loaded(variant, kind)
    conversation, reply = Talk(model, variant, case), list[int]()
    logits = conversation.read(512)
    while len(reply) < len(case["greedy"]):
        reply.append(int(logits[-1].argmax()))
        logits = conversation.feed(np.asarray(model.model.embed(np.array(reply[-1:], np.int32))), reply[-1:])
    assert case["greedy_margin"] > 2 * ATOL
    assert reply == case["greedy"]


@pytest.mark.parametrize("variant", [NAME, OTHER, NEXT])
@pytest.mark.parametrize("step_tokens", [5, 64])
def test_replies_to_picture_files_are_the_reference_s_in_any_company(variant: str, step_tokens: int) -> None:
    """All at once, some of them twice, in steps that cut rows of pictures in two."""
    known = {case["name"]: case for case in cases(variant)["multimodal"]}
    asked = [*known.values(), known["two"], known["one"]]
    options = EngineOptions(Limits(step_tokens, 8), 2, "f32", 4096, precise=True)
    runner = InlineRunner(hf(variant), [LLAVA], TEXT, options)

    async def reply(case: dict[str, Any]) -> list[int]:
        media = placed(variant, case)
        request = Generate(prompt=case["ids"], media=media, sampling=GREEDY, num_ctx=512, max_tokens=16)
        *pieces, _ = [event async for event in runner.generate(request)]
        return [token for piece in pieces for token in piece.tokens]

    async def all_of_them() -> list[list[int]]:
        try:
            return await asyncio.gather(*map(reply, asked))
        finally:
            await runner.close()

    assert asyncio.run(all_of_them()) == [case["greedy"] for case in asked]
    assert runner.stats.images.prepared == runner.stats.images.encoded == 3


def said(variant: str, case: dict[str, Any]) -> str:
    """Return what the reference says after a prompt, up to the end of its reply."""
    tokenizer = open_tokenizer(open_weights(hf(variant)))
    detokenizer = tokenizer.detokenizer(case["ids"])
    reply = itertools.takewhile(lambda token: token not in tokenizer.stop_ids, case["greedy"])
    return "".join(map(detokenizer.push, reply)) + detokenizer.flush()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        (NAME, "checkpoint"),
        (NAME, "pair"),
        (NAME, "single"),
        (OTHER, "checkpoint"),
        (NEXT, "checkpoint"),
        (NEXT, "pair"),
    ],
)
async def test_replies_over_http_are_the_reference_s(tmp_path: Path, variant: str, kind: str, files: Any) -> None:
    async with running_server(tmp_path, precise=True) as live:
        digests = {name: await upload(live.store, path) for name, path in files[variant, kind].items()}
        answer = await live.http.post("/api/create", json={"model": "m", "files": digests, "stream": False})
        assert answer.json() == {"status": "success"}, answer.text
        assert "vision" in (await live.http.post("/api/show", json={"model": "m"})).json()["capabilities"]
        for case in cases(variant)["multimodal"]:
            if (variant, kind) == (NAME, "pair") and case["images"] != ["gradient"]:
                continue  # pairs see other pictures whole, where the reference crops them
            body = {"model": "m", "messages": as_openai(variant, case), "temperature": 0, "max_tokens": 16}
            answer = await live.http.post("/v1/chat/completions", json=body)
            assert answer.json()["usage"]["prompt_tokens"] == len(case["ids"]), answer.text
            assert answer.json()["choices"][0]["message"]["content"] == said(variant, case)


# ---- sizes ---------------------------------------------------------------------------------------------------------


def written(variant: str = NAME, **changes: Any) -> dict[str, Any]:
    """Return a fixture's config.json with changes."""
    return json.loads((hf(variant) / "config.json").read_text()) | changes  # type: ignore[no-any-return]


def text_of(variant: str = NAME, **changes: Any) -> Config:
    text = written(variant)["text_config"] | changes
    return Config.from_hf(Keys(written(variant, text_config=text), origin="config.json"))


def eye_of(eye: dict[str, Any] | None = None, *, processor: dict[str, Any] | None = None, **changes: Any) -> Any:
    files = {} if processor is None else {"preprocessor_config.json": json.dumps(processor).encode()}
    config = written(vision_config=written()["vision_config"] | (eye or {}), **changes)
    return read_vision_config(VisionConfig, MemorySource("safetensors", config, files=files))


def test_what_published_configs_leave_out_is_as_in_the_reference_s_classes() -> None:
    vicuna = Config.from_hf(Keys({"text_config": {"vocab_size": 32064, "max_position_embeddings": 4096}}))
    sizes = (vicuna.layers, vicuna.hidden, vicuna.inner, vicuna.heads, vicuna.kv_heads, vicuna.head_size)
    assert sizes == (32, 4096, 11008, 32, 32, 128)
    mistral = Config.from_hf(Keys({"text_config": {"model_type": "mistral"}}))
    assert (mistral.inner, mistral.kv_heads, mistral.context_length, mistral.window) == (14336, 8, 131072, 4096)
    found = VisionConfig.from_hf(Keys({"vision_config": {"hidden_size": 64, "num_attention_heads": 4}}))
    assert found is not None
    sizes = (found.layers, found.inner, found.pictures.side, found.patch_size, found.output)
    assert sizes == (11, 3072, 224, 32, 4096)
    assert (found.activation, found.projector_activation, found.heard, found.rows) == ("gelu_quick", "gelu", (11,), 49)


def test_a_window_is_mistral_s_and_null_is_none() -> None:
    assert {layer.kind for layer in cache_layout(text_of(OTHER))} == {Window(20)}
    assert {layer.kind for layer in cache_layout(text_of(OTHER, sliding_window=None))} == {Causal()}
    assert {layer.kind for layer in cache_layout(text_of(sliding_window=20))} == {Causal()}


@kinds
def test_every_kind_of_file_gives_the_same_sizes(variant: str, kind: str, files: Any) -> None:
    for read, config, rounded in (
        (read_config, Config, {"eps", "pairing"}),
        (read_vision_config, VisionConfig, {"eps", "pictures"}),
    ):
        wanted = read(config, open_weights(hf(variant)))
        found = read(config, open_weights(files[variant, kind]))
        for name in set(wanted.__struct_fields__) - rounded:
            assert getattr(found, name) == getattr(wanted, name), name
        assert found.eps == pytest.approx(wanted.eps, rel=1e-6)


def test_features_of_layers_are_counted_from_the_front_or_from_behind() -> None:
    assert eye_of(vision_feature_layer=-1).heard == (4,)
    assert eye_of(vision_feature_layer=1).heard == (1,)
    assert (eye_of(vision_feature_layer=[-2, 0, 3]).heard, eye_of().layers) == ((3, 0, 3), 3)


def test_older_processors_give_a_length_as_one_number() -> None:
    found = eye_of(processor={"size": 32, "crop_size": 24}).pictures
    assert (found.shape, found.edge, found.side) == ("crop", 32, 24)
    assert eye_of(processor={"size": {"height": 24, "width": 24}}).pictures.shape == "stretch"
    assert eye_of().pictures.shape == "crop"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2', expected one of llama, mistral"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of 4"),
        ({"attention_bias": True}, "attention_bias is True, expected false"),
        ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        text_of(**changes)


@pytest.mark.parametrize(
    ("eye", "changes", "complaint"),
    [
        ({"model_type": "pixtral"}, {}, "model_type is 'pixtral', expected one of clip_vision_model"),
        ({"hidden_act": "silu"}, {}, "hidden_act is 'silu', expected one of quick_gelu, gelu"),
        ({"num_attention_heads": 3}, {}, "num_attention_heads is 3, expected a divisor of 32"),
        ({"num_channels": 4}, {}, "num_channels is 4"),
        ({"patch_size": 5}, {}, "image_size is 24, expected a multiple of 5"),
        ({"image_size": 1 << 13}, {}, "image_size is 8192"),
        ({}, {"vision_feature_layer": -6}, "vision_feature_layer is -6"),
        ({}, {"vision_feature_layer": [5]}, r"vision_feature_layer is \[5\], expected numbers of layers"),
        ({}, {"vision_feature_layer": []}, r"vision_feature_layer is \[\], expected numbers of layers"),
        ({}, {"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy is 'cls'"),
        ({}, {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({}, {"processor": {"do_resize": False}}, "do_resize is False, expected true"),
        ({}, {"processor": {"crop_size": 30}}, "crop_size is 30, expected 24"),
        ({}, {"processor": {"size": 20}}, "size is 20, expected a length from 24"),
        ({}, {"processor": {"size": {"height": 24, "width": 48}}}, "size is .*, expected a length"),
        ({}, {"processor": {"resample": 2}}, "resample is 2"),
        ({}, {"processor": {"image_std": [0.5, 0.5, 0]}}, "image_std is .*, expected three numbers"),
    ],
)
def test_an_encoder_that_makes_no_sense_is_refused_by_key(eye: Any, changes: Any, complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        eye_of(eye, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"clip.projector_type": "ldp"}, "clip.projector_type is 'ldp', expected one of mlp"),
        ({"clip.use_silu": True}, "clip.use_silu is True, expected false"),
        (
            {"clip.vision.image_grid_pinpoints": [24, 48]},
            "mm_patch_merge_type is 'flat', expected one of spa",
        ),
        ({"clip.vision.mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type is 'spatial_unpad'"),
        ({"clip.vision.image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'"),
        ({"clip.vision.attention.head_count": 5}, "head_count is 5, expected a divisor of 32"),
        ({"clip.vision.feature_layer": [9]}, r"feature_layer is \[9\], expected numbers of layers, of which there are"),
        ({"clip.vision.image_mean": [0.5]}, "image_mean is .*, expected three numbers"),
        ({"llama.rope.dimension_count": 4}, "dimension_count is 4"),
    ],
)
def test_a_pair_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str, files: Any) -> None:
    metadata = dict(open_weights(files[NAME, "pair"]).metadata)
    source = MemorySource("gguf", metadata | changes)
    with pytest.raises(BadModel, match=complaint):
        read_config(Config, source)
        read_vision_config(VisionConfig, source)


# ---- tiles ---------------------------------------------------------------------------------------------------------

SIZES = ((672, 336), (336, 672), (672, 672), (1008, 336), (336, 1008))


def next_of(processor: dict[str, Any] | None = None, **changes: Any) -> Any:
    files = {} if processor is None else {"preprocessor_config.json": json.dumps(processor).encode()}
    return read_vision_config(VisionConfig, MemorySource("safetensors", written(NEXT, **changes), files=files))


@pytest.mark.parametrize(
    ("picture", "size"),
    [((400, 200), (672, 336)), ((200, 400), (336, 672)), ((500, 500), (672, 672)), ((2000, 300), (1008, 336)),
     ((10, 10), (672, 336)), ((1, 60000), (672, 336))],  # so thin that nothing of the last is seen in any of them
)  # fmt: skip
def test_a_picture_gets_the_size_in_which_most_of_it_is_seen(picture: Any, size: Any) -> None:
    assert best_size(plain(*picture), SIZES) == size


def test_tiles_are_those_of_a_picture_in_the_middle_of_black() -> None:
    left, right = tiles(plain(40, 10), (48, 24), 24)
    for tile in (left, right):
        found = np.asarray(tile.image)
        assert found.shape == (24, 24, 3)
        assert not found[:6].any() and not found[18:].any()
        assert found[12, 12].tolist() == [200, 30, 90]


def test_rows_follow_lines_of_patches_across_tiles() -> None:
    order = Tiling(columns=2, lines=1, left=1, top=0).order(2)
    assert order.tolist() == [0, 1, 2, 3, 5, 8, -1, 7, 10, -1]
    assert Tiling(columns=1, lines=2, left=0, top=1).order(2).tolist() == [0, 1, 2, 3, 6, 7, -1, 8, 9, -1]
    assert Tiling(columns=1, lines=1, left=0, top=1).order(2).tolist() == [0, 1, 2, 3]  # too thin to be seen


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_rows_of_any_picture_can_be_put_together(width: int, height: int) -> None:
    vision = Vision()
    vision.config = next_of()
    size = vision.config.pictures.size(plain(width, height))
    tiling = Tiling.of(plain(width, height), size, 24, 4)
    count = tiling.columns * tiling.lines
    assert (tiling.columns * 24, tiling.lines * 24) == size
    order = tiling.order(4)
    assert order[:16].tolist() == list(range(16)) and order.max() < 16 * (1 + count)
    assert len(order) == 16 + (4 * tiling.lines - 2 * tiling.top) * (4 * tiling.columns - 2 * tiling.left + 1)


def test_sizes_are_the_usual_ones_where_a_config_has_none() -> None:
    eye = written(NEXT)["vision_config"] | {"image_size": 336, "patch_size": 14}
    assert set(next_of(image_grid_pinpoints=None, vision_config=eye).pictures.sizes) == set(SIZES)
    assert next_of().pictures.sizes == ((48, 24), (24, 48), (48, 48), (72, 24))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        *[
            ({"image_grid_pinpoints": sizes}, "image_grid_pinpoints is .*, expected up to 256 sizes")
            for sizes in ([[24, 30]], [[24]], [24, 48], [[24, 48], [24]], [[24.0, 48.0]], [["24", "48"]], [[0, 24]],
                          [[-24, 24]], [[24, 24 * 65]], [[24 * 9, 24 * 8]], [[24, 1 << 70]], [[24, 24]] * 300, [None])
        ],
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'full', expected one of def"),
        ({"use_image_newline_parameter": False}, "use_image_newline_parameter is False"),
        ({"processor": {"size": 30}}, "size is 30, expected a length from 24 to 24"),
        ({"model_type": "llava_onevision"}, "model_type is 'llava_onevision'"),
    ],
)  # fmt: skip
def test_tiles_that_make_no_sense_are_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        next_of(**changes)


def test_what_lines_end_in_must_be_in_the_file() -> None:
    source = open_weights(hf(NEXT))
    with pytest.raises(BadModel, match=r"image_newline or model.image_newline is missing \(expected \[48\]\)"):
        load(Renamed(source, lambda name: name.replace("image_newline", "other")))
