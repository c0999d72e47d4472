"""Llama 3.2 Vision against the reference: from a checkpoint, and from single files of Puna's and of Ollama's naming.

Text alone is compared in test_parity.py. What the reference is, and where transformers is not it, is said in
oracle/mllama.py.
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

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from puna.core.converting import Converter
from puna.core.errors import BadModel, BadRequest
from puna.core.keys import Keys
from puna.core.memory.cache import Cache, Capacity, StepView
from puna.core.memory.images import Image
from puna.core.model import LoadedModel, find_architecture, load_model, read_config, read_vision_config
from puna.core.pictures import Picture, open_picture
from puna.core.plugin import Causal, Media, Prepared, Rows
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.messages import Finished, Generate, Placed
from puna.core.scheduler.messages import Media as File
from puna.core.scheduler.plan import Limits
from puna.core.scheduler.sequence import Sequence
from puna.core.scheduler.spans import Spans, spans_of
from puna.core.tensor import cpu
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.floats import F32
from puna.core.tensor.source import WeightSource
from puna.core.tensor.weights import open_weights
from puna.plugins import mllama, mllama_vision
from puna.plugins.mllama_pictures import best_canvas, canvases, fitted_size
from puna.plugins.mllama_sizes import Config
from puna.plugins.mllama_vision_sizes import VisionConfig
from puna.text.tokenizers import open_tokenizer, tokenizer_keys

from .reference import FIXTURES, cases, expected
from .serving import running_server, upload
from .test_api_vision import as_openai
from .test_engine import GREEDY, TEXT
from .test_plugin_contract import MemorySource

ATOL = 1e-3  # of logits and rows; pixels: 1e-5
NAME = "mllama"
HF = FIXTURES / NAME / "hf"
IMAGES = {case["name"]: case for case in cases(NAME)["images"]}
TALKS = {case["name"]: case for case in cases(NAME)["multimodal"]}
WANTED = expected(NAME)
KINDS = ("checkpoint", "single", "older single")
(MLLAMA,) = mllama.architectures()
R = TypeVar("R")

kinds = pytest.mark.parametrize("kind", KINDS)
images = pytest.mark.parametrize("image", IMAGES)
talks = pytest.mark.parametrize("talk", TALKS)

# ---- files ---------------------------------------------------------------------------------------------------------

OLDER = (  # what files from before the encoders' names were those of decoders call them
    (".attn_norm.", ".ln1."), (".attn_output.", ".attn_out."), (".ffn_norm.", ".ln2."),
    (".ffn_up.", ".ffn_first."), (".ffn_down.", ".ffn_up."), (".ffn_first.", ".ffn_down."),
)  # fmt: skip


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


def older(name: str) -> str:
    if name.startswith("v."):
        for new, old in OLDER:
            name = name.replace(new, old)
    return name


def newer(name: str) -> str:
    """What later checkpoints call tensors."""
    if name.startswith("language_model.lm_head."):
        return name.replace("language_model.", "")
    return "model." + name.replace("language_model.model.", "language_model.")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint as one GGUF file."""
    path = tmp_path_factory.mktemp(NAME) / "single.gguf"
    conversion = Converter([MLLAMA], tokenizer_keys).open(open_weights(HF), F32, {})
    path.write_bytes(b"".join(bytes(piece) for piece in conversion.pieces()))
    return path


@pytest.fixture(scope="module")
def source(single: Path) -> Callable[[str], WeightSource]:
    """Return a function that opens a kind."""

    def opened(kind: str) -> WeightSource:
        whole = open_weights(HF if kind == "checkpoint" else single)
        return Renamed(whole, older) if kind == "older single" else whole

    return opened


def load(source: WeightSource) -> LoadedModel:
    return load_model(MLLAMA, source, CpuLoader(precise=True))


@pytest.fixture(scope="module")
def loaded(source: Callable[[str], WeightSource]) -> Callable[[str], LoadedModel]:
    """Return a function that loads a kind."""
    return cache(lambda kind: load(source(kind)))


@kinds
def test_nothing_of_a_file_is_left_over(kind: str, source: Any, caplog: pytest.LogCaptureFixture) -> None:
    load(source(kind))
    assert caplog.text == ""


@kinds
def test_each_kind_of_file_finds_its_plugin(kind: str, source: Any) -> None:
    assert find_architecture([MLLAMA], source(kind)) is MLLAMA


def test_later_names_of_tensors_make_no_difference(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = load(Renamed(open_weights(HF), newer))
    assert caplog.text == ""
    found, before = (encoded(which, stored("wide"))[0] for which in (model, loaded("checkpoint")))
    np.testing.assert_array_equal(found, before)


def test_a_single_file_has_ollamas_names_and_what_gates_let_through(single: Path) -> None:
    file, checkpoint = open_weights(single), open_weights(HF)
    assert {
        "v.class_embd", "v.patch_embd.weight", "v.position_embd.gate", "v.tile_position_embd.gate", "v.pre_ln.bias",
        "v.pre_tile_position_embd.weight", "v.post_tile_position_embd.gate", "v.blk.2.ffn_down.bias", "mm.0.bias",
        "v.global.blk.1.attn_gate", "v.global.blk.1.ffn_gate", "blk.1.cross_attn_q_norm.weight",
        "blk.2.cross_attn_k_proj.weight", "blk.2.cross_attn_attn_gate", "blk.0.attn_q.weight", "rope_freqs.weight",
    } <= file.tensors.keys()  # fmt: skip

    def number(source: WeightSource, name: str) -> float:
        return float(source.raw(name).view(np.float32).item() if source is file else bf16(source.raw(name)))

    def bf16(raw: np.ndarray) -> np.ndarray:
        return (raw.reshape(-1).view(np.uint16).astype(np.uint32) << 16).view(np.float32)[0]

    gate = np.tanh(number(checkpoint, "vision_model.gated_positional_embedding.gate"))
    assert number(file, "v.position_embd.gate") == pytest.approx(1 - gate)
    assert number(file, "v.tile_position_embd.gate") == pytest.approx(gate)
    raw = number(checkpoint, "language_model.model.layers.2.cross_attn_attn_gate")
    assert number(file, "blk.2.cross_attn_attn_gate") == raw
    assert list(file.metadata["mllama.attention.cross_attention_layers"]) == [1, 2]
    assert list(file.metadata["mllama.vision.intermediate_layers_indices"]) == [1, 2]


def test_a_file_converts_to_itself(single: Path) -> None:
    conversion = Converter([MLLAMA], tokenizer_keys).open(open_weights(single), F32, {})
    conversion.check(open_weights(single))
    assert b"".join(bytes(piece) for piece in conversion.pieces()) == single.read_bytes()


def test_a_text_alone_sees_nothing(single: Path) -> None:
    whole = open_weights(single)
    text = {key: value for key, value in whole.metadata.items() if ".vision." not in key}
    assert read_vision_config(VisionConfig, MemorySource("gguf", text)) is None
    config = {name: value for name, value in written().items() if name != "vision_config"}
    assert read_vision_config(VisionConfig, MemorySource("safetensors", config)) is None


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


def file(name: str) -> bytes:
    return (FIXTURES / NAME / IMAGES[name]["file"]).read_bytes()


def stored(name: str) -> Prepared:
    """Return a picture with the reference's own pixels."""
    rows = Rows(IMAGES[name]["n_image_tokens"], beside=True)
    return Prepared(WANTED[IMAGES[name]["pixel_values"]], (rows,), tuple(IMAGES[name]["canvas"]))


@kinds
@images
def test_pictures_are_prepared_as_the_reference_does(kind: str, image: str, loaded: Any) -> None:
    found, wanted = loaded(kind).vision.prepare(open_picture(file(image))), stored(image)
    np.testing.assert_allclose(found.pixels, wanted.pixels, rtol=0, atol=1e-5)
    assert (found.parts, found.grid) == (wanted.parts, wanted.grid)


def canvas(width: int, height: int) -> tuple[int, int]:
    return best_canvas(width, height, side=560, most=4)


def test_the_canvas_is_the_one_that_shows_most_and_of_those_the_smallest() -> None:
    assert canvas(560, 560) == canvas(100, 100) == canvas(1, 1) == (1, 1)
    assert canvas(1120, 560) == canvas(600, 300) == (1, 2)
    assert canvas(560, 1120) == (2, 1)
    assert canvas(561, 561) == canvas(3000, 3000) == (2, 2)
    assert canvas(5000, 1000) == (1, 4)
    assert canvas(1000, 3000) == (3, 1)


def test_pictures_grow_no_further_than_one_tile_and_keep_their_proportions() -> None:
    assert fitted_size(100, 50, (1, 1), 560) == (560, 280)
    assert fitted_size(600, 300, (1, 2), 560) == (600, 300)  # wider than a tile: it stays as it is
    assert fitted_size(1000, 500, (1, 2), 560) == (1000, 500)
    assert fitted_size(3000, 1000, (1, 3), 560) == (1680, 560)
    assert fitted_size(5000, 1, (1, 4), 560) == (2240, 1)  # not 0


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_every_picture_fits_its_canvas(width: int, height: int) -> None:
    rows, columns = canvas(width, height)
    fitted = fitted_size(width, height, (rows, columns), 560)
    assert (rows, columns) in canvases(4)
    assert 1 <= fitted[0] <= columns * 560
    assert 1 <= fitted[1] <= rows * 560


@pytest.mark.parametrize(("width", "height", "tiles"), [(1, 1, 1), (5000, 40, 4), (64, 64, 4), (20, 90, 3)])
def test_pictures_of_any_size_are_encoded(width: int, height: int, tiles: int, loaded: Any) -> None:
    prepared = loaded("checkpoint").vision.prepare(Picture(Pillow.new("RGB", (width, height), (200, 30, 90))))
    assert prepared.pixels.shape == (tiles, 3, 32, 32)
    (rows,) = encoded(loaded("checkpoint"), prepared)
    assert rows.shape == (tiles * 17, 64)
    assert np.isfinite(rows).all()


# ---- encoder and projector -----------------------------------------------------------------------------------------


@kinds
@images
def test_pictures_are_encoded_as_the_reference_does(kind: str, image: str, loaded: Any) -> None:
    pieces, _ = drained(loaded(kind).vision.encoded(stored(image)))
    np.testing.assert_allclose(np.concatenate(pieces), WANTED[IMAGES[image]["tower"]], rtol=0, atol=ATOL)
    (rows,) = encoded(loaded(kind), stored(image))
    np.testing.assert_allclose(rows, WANTED[IMAGES[image]["projected"]], rtol=0, atol=ATOL)


@pytest.mark.parametrize("most", [1, 7, 17, 40])
def test_pieces_of_any_size_make_the_same_rows(monkeypatch: pytest.MonkeyPatch, most: int, loaded: Any) -> None:
    vision = loaded("checkpoint").vision
    at_once, few = drained(vision.encode([stored("tall")]))
    monkeypatch.setattr(mllama_vision, "PIECE", most)
    found, many = drained(vision.encode([stored("tall")]))
    np.testing.assert_allclose(found[0], at_once[0], rtol=0, atol=1e-4)
    assert many > few


def test_the_rows_of_an_image_are_bit_for_bit_the_same_in_any_company(
    monkeypatch: pytest.MonkeyPatch, loaded: Any
) -> None:
    """With products row by row: sums of the matrix library depend on how many rows it is given."""
    monkeypatch.setattr(cpu, "FEW", 1 << 30)
    prepared = [stored(name) for name in IMAGES]
    together = encoded(loaded("checkpoint"), *prepared)
    for image, rows in zip(prepared, together, strict=True):
        np.testing.assert_array_equal(rows, encoded(loaded("checkpoint"), image)[0])


def test_products_in_8_bits_are_near_the_reference() -> None:
    (rows,) = encoded(load_model(MLLAMA, open_weights(HF), CpuLoader()), stored("gradient"))
    wanted = WANTED[IMAGES["gradient"]["projected"]]
    assert np.linalg.norm(rows - wanted) <= 0.02 * np.linalg.norm(wanted)


# ---- prompts with pictures -----------------------------------------------------------------------------------------


def places(case: dict[str, Any]) -> list[int]:
    return [at for at, token in enumerate(case["ids"]) if token == case["image_token_id"]]


class Talk:
    """A conversation with a cache to itself."""

    def __init__(self, model: LoadedModel, case: dict[str, Any], element: Any = "f32") -> None:
        self.model, shown = model.model, []
        for name, at in zip(case["images"], places(case), strict=True):
            (rows,) = encoded(model, stored(name))
            shown += spans_of(Image(name.encode(), stored(name), rows), [at])
        self.cache = Cache(model.cache, element, Capacity(512, 1, 512, 200))
        request, spans = Generate(prompt=case["ids"], num_ctx=512), Spans(shown)
        self.talk = Sequence(request, None, self.cache.blocks.table(), None, spans=spans)  # type: ignore[arg-type]

    def read(self, most: int) -> np.ndarray:
        """Return the logits of all that is unread, which is read in steps of up to so many tokens."""
        found, talk = [], self.talk
        assert talk.table.reserve(len(talk.tokens))
        while talk.unread:
            start = talk.table.length
            count = talk.spans.cut(start, min(most, talk.unread))
            x = self.model.embed(np.array(talk.tokens[start : start + count], np.int32))
            x = self.model.forward(x, StepView(self.cache, [talk.part(0, count)]))
            talk.advance(count)
            found.append(np.asarray(self.model.logits(x)))
        return np.concatenate(found)


@kinds
@talks
@pytest.mark.parametrize("most", [1, 7, 512])
def test_logits_of_prompts_with_pictures_are_the_reference_s(kind: str, talk: str, most: int, loaded: Any) -> None:
    found = Talk(loaded(kind), TALKS[talk]).read(most)[TALKS[talk]["rows"]]
    np.testing.assert_allclose(found, WANTED[TALKS[talk]["logits"]], rtol=0, atol=ATOL)


@kinds
@talks
def test_replies_to_pictures_are_the_reference_s(kind: str, talk: str, loaded: Any) -> None:
    case, conversation = TALKS[talk], Talk(loaded(kind), TALKS[talk])
    while conversation.talk.tokens[len(case["ids"]) :] != case["greedy"]:
        token = int(conversation.read(512)[-1].argmax())
        conversation.talk.tokens.append(token)
        assert token == case["greedy"][len(conversation.talk.tokens) - len(case["ids"]) - 1]


def test_what_no_token_sees_changes_no_logits(loaded: Any) -> None:
    """A text before its picture has the logits that it has without one, of which prefixes that are shared depend."""
    case, model = TALKS["text-image-text"], loaded("checkpoint")
    (at,) = places(case)
    alone = {"ids": case["ids"][:at], "images": [], "image_token_id": -1}
    np.testing.assert_array_equal(Talk(model, case).read(at)[:at], Talk(model, alone).read(at))


def test_a_cache_of_half_the_bits_is_near_the_reference(loaded: Any) -> None:
    found = Talk(loaded("checkpoint"), TALKS["beside"], "f16").read(512)[TALKS["beside"]["rows"]]
    np.testing.assert_allclose(found, WANTED[TALKS["beside"]["logits"]], rtol=0, atol=0.1)


# ---- in company ----------------------------------------------------------------------------------------------------


def asked(case: dict[str, Any], **more: Any) -> Generate:
    media = [Placed(File([file(name)]), [(at, 1)]) for name, at in zip(case["images"], places(case), strict=True)]
    return Generate(prompt=case["ids"], media=media, sampling=GREEDY, **{"num_ctx": 512, "max_tokens": 16} | more)


def opened(limits: Limits = Limits(64, 8), positions: int = 4096) -> InlineRunner:  # noqa: B008 - frozen
    return InlineRunner(HF, [MLLAMA], TEXT, EngineOptions(limits, 2, "f32", positions, precise=True))


async def reply(runner: InlineRunner, request: Generate) -> tuple[list[int], Finished]:
    *pieces, end = [event async for event in runner.generate(request)]
    assert isinstance(end, Finished)
    return [token for piece in pieces for token in piece.tokens], end  # type: ignore[union-attr]


def replies(runner: InlineRunner, *rounds: list[Generate]) -> list[list[tuple[list[int], Finished]]]:
    """Return the replies to what is asked, all of a round at once."""

    async def all_of_them() -> list[list[tuple[list[int], Finished]]]:
        try:
            return [await asyncio.gather(*(reply(runner, request) for request in round_)) for round_ in rounds]
        finally:
            await runner.close()

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("limits", [Limits(5, 8), Limits(64, 8), Limits(512, 2)])
def test_replies_to_picture_files_are_the_reference_s_in_any_company(limits: Limits) -> None:
    cases_asked = [*TALKS.values(), TALKS["two"], TALKS["one"]]
    runner = opened(limits)
    (found,) = replies(runner, [asked(case) for case in cases_asked])
    assert [tokens for tokens, _ in found] == [case["greedy"] for case in cases_asked]
    assert runner.stats.images.prepared == runner.stats.images.encoded == len(IMAGES)


def test_replies_that_were_set_aside_are_the_reference_s() -> None:
    cases_asked = [*TALKS.values()] * 2
    runner = opened(Limits(16, 4), positions=1)  # and as many as the longest reply alone needs
    requests = [asked(case, num_ctx=200, max_tokens=90) for case in cases_asked]
    (found,) = replies(runner, requests)
    assert runner.stats.preemptions > 0
    assert [tokens[:16] for tokens, _ in found] == [case["greedy"] for case in cases_asked]
    assert runner.stats.images.encoded == len(IMAGES)
    (unhurried,) = replies(opened(Limits(512, 8)), requests)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in unhurried]


def test_a_beginning_is_shared_where_the_pictures_are_the_same_and_nowhere_else() -> None:
    case = TALKS["text-image-text"]
    other = case | {"images": ["gradient"]}
    runner = opened()
    (first,), (again,), (changed,) = replies(runner, [asked(case)], [asked(case)], [asked(other)])
    (alone,) = replies(opened(), [asked(other)])
    shared = (len(case["ids"]) - 1) // 32 * 32
    assert (first[1].cached_tokens, again[1].cached_tokens, changed[1].cached_tokens) == (0, shared, 0)
    assert first[0] == again[0] == case["greedy"]
    assert changed[0] == alone[0][0] != case["greedy"]


def test_keys_and_values_of_a_picture_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    keep = mllama.Looking.keep

    def counting(self: mllama.Looking, rows: Any) -> Any:
        made.append(len(rows))
        return keep(self, rows)

    monkeypatch.setattr(mllama.Looking, "keep", counting)
    one = asked(TALKS["one"])
    found = replies(opened(), [one, one, one], [one])
    assert {tuple(tokens) for round_ in found for tokens, _ in round_} == {tuple(TALKS["one"]["greedy"])}
    assert made == [IMAGES["gradient"]["n_image_tokens"]] * 2  # of two layers


def test_steps_of_replies_that_look_at_pictures_are_recorded() -> None:
    runner = opened()
    replies(runner, [asked(TALKS["one"]), asked(TALKS["two"])])
    recordings = runner._engine._steps._recordings
    assert any(looks and recording is not None for (_, _, looks), recording in recordings.items())


def test_memory_for_pictures_counts_and_is_given_back() -> None:
    runner = opened(Limits(64, 2))
    before = runner.stats.resident_bytes
    replies(runner, [asked(TALKS["two"])])
    stats = runner.stats
    assert stats.held_bytes == stats.held_blocks == before == 0
    kept = 2 * 2 * 2 * 16 * 4  # bytes that both layers that look keep of a row
    assert stats.resident_bytes >= (IMAGES["gradient"]["n_image_tokens"] + IMAGES["wide"]["n_image_tokens"]) * kept


def test_more_pictures_side_by_side_than_the_context_holds_are_refused() -> None:
    case = TALKS["beside"]
    with pytest.raises(BadRequest, match="images that are seen together have 102 rows, and the context holds 101"):
        replies(opened(), [asked(case, num_ctx=101)])
    ((found,),) = replies(opened(), [asked(case, num_ctx=102)])
    assert found[0] == case["greedy"]


def test_one_picture_may_have_more_rows_than_the_context_has_tokens() -> None:
    case = TALKS["two"]  # with text between them
    ((found,),) = replies(opened(), [asked(case, num_ctx=60)])
    assert found[0] == case["greedy"]


@pytest.mark.asyncio
@pytest.mark.parametrize("quantize", [None, "f32"], ids=["checkpoint", "single"])
async def test_replies_over_http_are_the_reference_s(tmp_path: Path, quantize: str | None) -> None:
    tokenizer = open_tokenizer(open_weights(HF))
    async with running_server(tmp_path, precise=True) as live:
        digests = {path.name: await upload(live.store, path) for path in sorted(HF.iterdir())}
        body = {"model": "m", "files": digests, "quantize": quantize, "stream": False}
        answer = await live.http.post("/api/create", json=body)
        assert answer.json() == {"status": "success"}, answer.text
        assert "vision" in (await live.http.post("/api/show", json={"model": "m"})).json()["capabilities"]
        for case in TALKS.values():
            body = {"model": "m", "messages": as_openai(NAME, case), "temperature": 0, "max_tokens": 16}
            answer = await live.http.post("/v1/chat/completions", json=body)
            assert answer.json()["usage"]["prompt_tokens"] == len(case["ids"]), answer.text
            told = list(itertools.takewhile(lambda token: token not in tokenizer.stop_ids, case["greedy"]))
            assert answer.json()["choices"][0]["message"]["content"] == tokenizer.decode(told)


# ---- sizes ---------------------------------------------------------------------------------------------------------


def written(**changes: Any) -> dict[str, Any]:
    """Return the fixture's config.json with changes."""
    return json.loads((HF / "config.json").read_text()) | changes  # type: ignore[no-any-return]


def text_of(**changes: Any) -> Config:
    return Config.from_hf(Keys(written(text_config=written()["text_config"] | changes), origin="config.json"))


def eye_of(eye: dict[str, Any] | None = None, processor: dict[str, Any] | None = None) -> Any:
    files = {} if processor is None else {"preprocessor_config.json": json.dumps(processor).encode()}
    config = written(vision_config=written()["vision_config"] | (eye or {}))
    return read_vision_config(VisionConfig, MemorySource("safetensors", config, files=files))


def test_every_kind_of_file_gives_the_same_sizes(source: Any) -> None:
    rewritten = {"scaling", "pairing", "open_gates"}
    rounded = {"eps", "rope_base", "mean", "deviation"}
    for read, config in ((read_config, Config), (read_vision_config, VisionConfig)):
        wanted, found = (msgspec.structs.asdict(read(config, source(kind))) for kind in KINDS[:2])
        exact = wanted.keys() - rewritten - rounded
        assert {name: found[name] for name in exact} == {name: wanted[name] for name in exact}
        for name in rounded & wanted.keys():
            assert found[name] == pytest.approx(wanted[name], rel=1e-6)


def test_layers_that_look_keep_what_they_see_and_the_others_tokens() -> None:
    layout = mllama.cache_layout(text_of())
    assert [layer.kind for layer in layout] == [Causal(), Media(), Media(), Causal()]
    assert text_of().vocabulary == written()["text_config"]["vocab_size"] + 8


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected one of silu"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of 4"),
        ({"cross_attention_layers": [1, 4]}, "cross_attention_layers is .*, expected rising numbers of layers, from 0"),
        ({"cross_attention_layers": [2, 1]}, "cross_attention_layers is"),
        ({"cross_attention_layers": [1, 1]}, "cross_attention_layers is"),
        ({"cross_attention_layers": ["1"]}, "cross_attention_layers is"),
        ({"cross_attention_layers": None}, "cross_attention_layers is None"),
        ({"num_hidden_layers": 1 << 20}, "num_hidden_layers is 1048576"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadModel, match=complaint):
        text_of(**changes)


@pytest.mark.parametrize(
    ("eye", "processor", "complaint"),
    [
        ({"hidden_act": "silu"}, None, "hidden_act is 'silu', expected one of gelu"),
        ({"attention_heads": 5}, None, "attention_heads is 5, expected a divisor of 32"),
        ({"image_size": 33}, None, "image_size is 33, expected a multiple of 8"),
        ({"image_size": 1 << 20}, None, "image_size is 1048576"),
        ({"max_num_tiles": 1 << 20}, None, "max_num_tiles is 1048576"),
        ({"intermediate_layers_indices": [3]}, None, "intermediate_layers_indices is"),
        ({"vision_output_dim": 64}, None, "vision_output_dim is 64, expected a whole number from 96 to 96"),
        ({"supported_aspect_ratios": [[1, 1], [2, 1]]}, None, "supported_aspect_ratios is .*, expected all canvases"),
        ({"supported_aspect_ratios": [1, "x"]}, None, "supported_aspect_ratios is"),
        ({}, {"size": {"height": 64, "width": 32}}, "height is 64, expected a whole number from 32 to 32"),
        ({}, {"max_image_tiles": 5}, "max_image_tiles is 5"),
        ({}, {"resample": 3}, "resample is 3"),
        ({}, {"image_std": [0.5, 0.5, 0]}, "image_std is .*, expected three numbers from 0.001 to 1"),
    ],
)
def test_an_encoder_that_makes_no_sense_is_refused_by_key(eye: Any, processor: Any, complaint: str) -> None:
    assert eye_of() is not None
    with pytest.raises(BadModel, match=complaint):
        eye_of(eye, processor)
