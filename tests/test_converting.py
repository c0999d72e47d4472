"""Models converted when they are made: what is written reads and computes as the files it was made of."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core import converting
from puna.core.kernel import find_plugins
from puna.core.keys import Keys
from puna.core.memory.cache import Cache, Capacity, Insert, Rows, StepView
from puna.core.model import LoadedModel, find_architecture, load_model
from puna.core.pictures import open_picture
from puna.core.tensor import Linear, Llama3
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.rope import NoScaling, Yarn
from puna.core.tensor.weights import open_weights
from puna.plugins import (
    gemma3,
    gemma3_vision,
    llama,
    llama4_sizes,
    llama4_vision_sizes,
    mistral_small,
    mistral_small_vision,
    qwen2,
    qwen3,
    qwen3vl,
    qwen3vl_sizes,
    qwen25vl,
    qwen25vl_vision,
)
from puna.store import CreateRequest, Store, chat_template, digest_of, show
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES, cases, expected, text_cases
from .serving import converter, running_server, upload
from .test_api_vision import as_openai, talks_of, words

ATOL = 1e-3  # of logits, as everywhere
SEEING = ["gemma3-vl", "qwen2.5-vl", "mistral3", "llama4-scout", "qwen3-vl"]
SPELLED = {"checkpoint": "hf", "pair": "gguf"}
PAIRLESS = ("qwen3-vl", "pair")  # its own tests write one
SHOWN = [
    *[(variant, kind) for variant in SEEING for kind in SPELLED if (variant, kind) != PAIRLESS],
    *[(variant, "checkpoint") for variant in ("llava", "llava-mistral", "llava-next")],
]


# ---- making them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A model that a store made, and what it said meanwhile."""

    store: Store
    statuses: list[str]

    @property
    def file(self) -> Path:
        (path,) = self.store.open("made").weights.values()
        return path


def files_of(variant: str, kind: str) -> dict[str, Path]:
    """Return the files of a fixture that stand for one model in floats."""
    paths = sorted((FIXTURES / variant / SPELLED[kind]).iterdir())
    return {path.name: path for path in paths if kind == "checkpoint" or path.stem.endswith("f32")}


def make(root: Path, files: dict[str, Path], quantize: str | None, **fields: Any) -> Made:
    store = Store(root, converter())
    for path in files.values():
        asyncio.run(upload(store, path))
    body = {"model": "made", "quantize": quantize, **fields}
    if files:
        body["files"] = {name: str(digest_of(path)) for name, path in files.items()}
    return Made(store, [step.status for step in store.create(msgspec.convert(body, CreateRequest))])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that makes a fixture's model, once."""

    @cache
    def once(variant: str, kind: str, form: str) -> Made:
        return make(tmp_path_factory.mktemp("store"), files_of(variant, kind), form)

    return once


@cache
def loaded(file: Path) -> LoadedModel:
    source = open_weights(file)
    architectures = [a for report in find_plugins() for a in report.architectures]
    return load_model(find_architecture(architectures, source), source, CpuLoader(precise=True))


# ---- what they compute ---------------------------------------------------------------------------------------------


def logits(
    model: LoadedModel, ids: list[int], x: np.ndarray | None = None, inserts: Sequence[Insert] = (), **rows: Any
) -> np.ndarray:
    """Return the logits of a prompt. x: what enters the first block, if that is not the tokens' own embeddings."""
    cache = Cache(model.cache, "f32", Capacity(len(ids), 1, len(ids)))
    table = cache.blocks.table()
    assert table.reserve(len(ids))
    share = Rows(table, 0, len(ids), **rows)
    step = StepView(cache, [share], streams=model.architecture.streams, inserts=inserts)
    x = np.asarray(model.model.embed(np.array(ids, np.int32))) if x is None else x
    return np.asarray(model.model.logits(model.model.forward(x, step)))


def encoded(model: LoadedModel, variant: str, name: str) -> np.ndarray:
    """Return the rows of one of a fixture's images, given the reference's pixels."""
    (image,) = [image for image in cases(variant)["images"] if image["name"] == name]
    prepared = model.vision.prepare(open_picture((FIXTURES / variant / image["file"]).read_bytes()))
    pixels = expected(variant)[image["pixel_values"]]
    np.testing.assert_allclose(prepared.pixels, pixels.reshape(prepared.pixels.shape), atol=1e-5)
    work = model.vision.encode([prepared])
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return np.asarray(finished.value[0])


def logits_with_images(model: LoadedModel, variant: str, case: dict[str, Any]) -> np.ndarray:
    is_row = np.array(case["ids"]) == case["image_token_id"]
    x = np.array(model.model.embed(np.where(is_row, 0, case["ids"]).astype(np.int32)))
    rows = np.concatenate([encoded(model, variant, name) for name in case["images"]])
    x[is_row] = rows[:, : x.shape[1]]
    if "position_ids" in case:
        at = np.flatnonzero(is_row).tolist()  # each row by itself, which comes to the same
        inserts = [(token, rows[i : i + 1]) for i, token in enumerate(at)]
        return logits(model, case["ids"], x, inserts, positions=expected(variant)[case["position_ids"]])
    if not model.vision.most_atomic:
        return logits(model, case["ids"], x)
    until: list[int] = []  # rows of an image see each other
    for row, group in groupby(is_row.tolist()):
        count = len(list(group))
        until += [len(until) + count - 1] * count if row else range(len(until), len(until) + count)
    return logits(model, case["ids"], x, until=np.array(until, np.int32))


TEXTS = [
    *[(variant, "checkpoint", form) for variant in ("llama-bpe", "qwen2", "gemma3-text") for form in ("f32", "f16")],
    ("llama-bpe", "pair", "f32"), ("llama-bpe", "checkpoint", "bf16"), ("llama-spm", "checkpoint", "f16"),
    ("qwen3", "checkpoint", "f32"), ("mistral-v3", "checkpoint", "f32"), ("mistral-v3", "checkpoint", "f16"),
    ("llama4-maverick", "checkpoint", "f32"), ("llama4-maverick", "checkpoint", "bf16"),
    ("llama4-maverick", "pair", "f16"),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "kind", "form"), TEXTS)
def test_text_models_compute_what_the_reference_does(made, variant, kind, form):
    model, of_kind = loaded(made(variant, kind, form).file), {"checkpoint": "hf", "pair": "model-f32.gguf"}[kind]
    known = [case for case in text_cases((variant,)) if case.file.name == of_kind]
    assert known
    for case in known:
        np.testing.assert_allclose(case.kept(logits(model, case.case["ids"])), case.logits, rtol=0, atol=ATOL)


@pytest.mark.parametrize("form", ["f32", "f16"])
@pytest.mark.parametrize(("variant", "kind"), SHOWN)
def test_models_that_see_compute_what_the_reference_does(made, variant, kind, form):
    model = loaded(made(variant, kind, form).file)
    assert {len(case["images"]) for case in talks_of(variant, kind)} >= {1, 2}
    for case in talks_of(variant, kind):
        wanted, found = expected(variant)[case["logits"]], logits_with_images(model, variant, case)
        np.testing.assert_allclose(found[case.get("rows", slice(None))], wanted, rtol=0, atol=ATOL)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("variant", "kind", "form"),
    [("gemma3-vl", "checkpoint", "F16"), ("gemma3-vl", "pair", "f32"), ("qwen2.5-vl", "checkpoint", "f32"),
     ("qwen2.5-vl", "pair", "F16"), ("qwen3-vl", "checkpoint", "f32"), ("mistral3", "checkpoint", "F16"),
     ("mistral3", "pair", "f32"), ("llama4-scout", "checkpoint", "bf16"), ("llama4-scout", "pair", "F16")],
)  # fmt: skip
async def test_clients_get_the_reference_s_replies_to_pictures(tmp_path, variant, kind, form):
    async with running_server(tmp_path, precise=True) as live:
        digests = {name: await upload(live.store, path) for name, path in files_of(variant, kind).items()}
        body = {"model": "made", "files": digests, "quantize": form, "stream": False}
        assert (await live.http.post("/api/create", json=body)).json() == {"status": "success"}
        shown = (await live.http.post("/api/show", json={"model": "made"})).json()
        assert "vision" in shown["capabilities"]
        assert (shown["details"]["format"], shown["details"]["quantization_level"]) == ("gguf", form.upper())
        assert "projector_info" not in shown
        for case in talks_of(variant, kind):
            body = {"model": "made", "messages": as_openai(variant, case), "temperature": 0, "max_tokens": 16}
            answer = (await live.http.post("/v1/chat/completions", json=body)).json()
            assert answer["usage"]["prompt_tokens"] == len(case["ids"]), answer
            assert answer["choices"][0]["message"]["content"] == words(variant, case["greedy"], kind)


# ---- what the file says --------------------------------------------------------------------------------------------


def test_one_layer_takes_the_place_of_all_others_and_each_step_is_told(made):
    found = made("gemma3-vl", "pair", "f16")
    model = found.store.open("made")
    (layer,) = model.manifest.layers
    assert layer.media_type == "application/vnd.ollama.image.model"
    assert layer.digest == digest_of(found.file)
    assert layer.size == found.file.stat().st_size
    assert found.statuses == [
        "parsing GGUF", "parsing GGUF", "converting model", "verifying conversion",
        f"creating new layer {layer.digest}", "writing manifest", "success",
    ]  # fmt: skip
    assert (model.details.family, model.details.families, model.sees) == ("gemma3", ["gemma3"], True)
    assert made("gemma3-vl", "checkpoint", "f16").statuses[1:3] == ["converting model", "verifying conversion"]


def test_nothing_but_the_file_and_what_it_was_made_of_is_left_in_the_store(made):
    found = made("gemma3-vl", "pair", "f16")
    names = {path.name for path in (found.store.root / "blobs").iterdir()}
    uploaded = {digest_of(path).file_name for path in files_of("gemma3-vl", "pair").values()}
    assert names == uploaded | {found.file.name, found.store.open("made").manifest.config.digest.file_name}


@pytest.mark.parametrize("form", ["f16", "f32", "bf16"])
def test_matrices_have_the_format_that_was_asked_for_and_all_else_is_float32(made, form):
    tensors = open_weights(made("llama-bpe", "checkpoint", form).file).tensors
    assert tensors["blk.1.attn_q.weight"].format.name == tensors["token_embd.weight"].format.name == form.upper()
    assert {info.format.name for info in tensors.values() if len(info.shape) == 1} == {"F32"}


def test_a_file_holds_what_another_converter_makes_of_the_same_checkpoint(made):
    ours = open_weights(made("llama-bpe", "checkpoint", "f32").file)
    theirs = open_weights(FIXTURES / "llama-bpe" / "gguf" / "model-f32.gguf")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, info in theirs.tensors.items():
        assert ours.tensors[name] == info
        found, wanted = (source.raw(name).view(np.float32) for source in (ours, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-6 if name == "rope_freqs.weight" else 0)
    for key, value in theirs.metadata.items():
        if not key.startswith(("general.name", "general.size", "general.sampling", "tokenizer.ggml.add_sep_token")):
            np.testing.assert_array_equal(ours.metadata[key], value, key)


def test_rows_that_only_the_encoder_s_own_file_has_side_by_side_are_put_apart(made):
    """The pair and the checkpoint become the same file of an encoder."""
    pair, checkpoint = (open_weights(made("mistral3", kind, "f32").file) for kind in ("pair", "checkpoint"))
    names = [name for name in pair.tensors if name.startswith(("v.", "mm."))]
    assert len(names) == 3 * 9 + 6
    for name in names:
        np.testing.assert_array_equal(pair.raw(name), checkpoint.raw(name))


def test_a_converted_file_converts_to_itself(made, tmp_path):
    first = made("qwen2.5-vl", "checkpoint", "f16").file
    assert make(tmp_path, {"again.gguf": first}, "f16").file.read_bytes() == first.read_bytes()


def test_pieces_of_any_size_make_the_same_file(made, tmp_path, monkeypatch):
    whole = made("llama-bpe", "checkpoint", "f16").file.read_bytes()
    monkeypatch.setattr(converting, "PIECE_BYTES", 1000)
    assert make(tmp_path, files_of("llama-bpe", "checkpoint"), "f16").file.read_bytes() == whole


TOKENIZERS = ["llama-bpe", "llama-spm", "qwen2", "qwen3", "gemma3-text", "mistral-v3", "llama4-maverick", *SEEING]
LISTED = {
    "llama-bpe", "qwen2", "qwen3", "qwen2.5-vl", "qwen3-vl", "mistral3", "llama4-maverick", "llama4-scout",
}  # fmt: skip
SAME_TOKENIZER = {"qwen3-vl": "qwen3"}  # whose cases are another variant's


@pytest.mark.parametrize("variant", TOKENIZERS)
def test_the_tokenizer_is_the_checkpoint_s(made, variant):
    before, after = open_weights(FIXTURES / variant / "hf"), open_weights(made(variant, "checkpoint", "f32").file)
    wanted, found = open_tokenizer(before), open_tokenizer(after)
    for case in cases(SAME_TOKENIZER.get(variant, variant))["tokenizer"]:
        assert found.encode(case["text"], special=True, start=False) == case["ids"]
        for special in (True, False):
            ids = [tokenizer.encode(case["text"], special=special, start=True) for tokenizer in (found, wanted)]
            assert ids[0] == ids[1]
    assert [found.piece(token) for token in range(found.size)] == [wanted.piece(token) for token in range(wanted.size)]
    assert (found.stop_ids, found.bos_token, found.eos_token) == (wanted.stop_ids, wanted.bos_token, wanted.eos_token)
    assert chat_template(after) == chat_template(before) is not None


def test_lists_of_tokens_are_written_where_they_say_all(made):
    for variant in TOKENIZERS:
        metadata = open_weights(made(variant, "checkpoint", "f32").file).metadata
        assert ("tokenizer.ggml.tokens" in metadata) == (variant in LISTED)
        assert json.loads(metadata["tokenizer.huggingface.json"])["model"]["type"] == "BPE"


def with_tokenizer(root: Path, variant: str, **changes: Any) -> dict[str, Path]:
    """Return a checkpoint's files with another tokenizer.json."""
    folder = root / "changed"
    shutil.copytree(FIXTURES / variant / "hf", folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return {file.name: file for file in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"added_tokens": [{"id": 400, "content": "<|endoftext|>", "single_word": False, "lstrip": True, "rstrip": False,
                           "normalized": False, "special": True}]},
    ],
)  # fmt: skip
def test_a_tokenizer_that_lists_do_not_describe_is_kept_whole(tmp_path, changes):
    files = with_tokenizer(tmp_path, "qwen2", **changes)
    source = open_weights(make(tmp_path / "store", files, "f16").file)
    assert "tokenizer.ggml.tokens" not in source.metadata
    found, wanted = open_tokenizer(source), open_tokenizer(open_weights(tmp_path / "changed"))
    for case in cases("qwen2")["tokenizer"]:
        assert found.encode(case["text"], special=True, start=True) == wanted.encode(
            case["text"], special=True, start=True
        )


def test_long_texts_of_the_tokenizer_are_shown_only_on_request(made):
    model = made("qwen2", "checkpoint", "f32").store.open("made")
    assert show(model).model_info["tokenizer.huggingface.json"] is None
    assert show(model, verbose=True).model_info["tokenizer.huggingface.json"].startswith("{")


# ---- models made from others ---------------------------------------------------------------------------------------


def test_a_model_in_the_store_is_converted_and_keeps_its_texts(tmp_path):
    base = make(tmp_path, files_of("gemma3-vl", "checkpoint"), None, system="Be brief.")
    assert base.store.open("made").details.format == "safetensors"
    steps = base.store.create(msgspec.convert({"model": "one", "from": "made", "quantize": "F32"}, CreateRequest))
    assert [step.status for step in steps][:2] == ["converting model", "verifying conversion"]
    model = base.store.open("one")
    assert (model.system, model.details.format, model.details.quantization_level) == ("Be brief.", "gguf", "F32")
    assert [layer.media_type.rpartition(".")[2] for layer in model.manifest.layers] == ["model", "system"]


def test_without_a_format_a_checkpoint_stays_as_it_is(tmp_path):
    found = make(tmp_path, files_of("qwen2", "checkpoint"), "")
    assert len(found.store.open("made").manifest.layers) == len(files_of("qwen2", "checkpoint"))


# ---- sizes, there and back -----------------------------------------------------------------------------------------

few, sizes, numbers = st.integers(1, 80), st.integers(1, 1 << 20), st.floats(1.5, 1e7)
scalings = st.one_of(
    st.just(NoScaling()),
    st.builds(Linear, st.floats(1.0, 64.0)),
    st.builds(Yarn, st.just(4.0), sizes, st.just(0.1 * np.log(4.0) + 1.0), st.floats(2.0, 64.0), st.floats(0.1, 1.0)),
)


@st.composite
def texts(draw, kind, **more):
    """Draw sizes that a GGUF file can say."""
    kv_heads, head_size, layers = draw(few), 2 * draw(st.integers(1, 128)), draw(few)
    fields = {
        "layers": layers, "hidden": draw(sizes), "inner": draw(sizes), "heads": kv_heads * draw(st.integers(1, 8)),
        "kv_heads": kv_heads, "head_size": head_size, "vocabulary": draw(sizes), "context_length": draw(sizes),
        "eps": draw(st.floats(0.0, 1.0)), "rope_base": draw(numbers), "scaling": draw(scalings),
    }  # fmt: skip
    for name, make in more.items():
        fields[name] = make(draw, fields)
    return kind(**fields)


def whole(draw, fields):
    return (None,) * fields["layers"]


def sections(draw, fields):
    pairs = fields["head_size"] // 2
    first = draw(st.integers(0, pairs))
    second = draw(st.integers(0, pairs - first))
    return first, second, pairs - first - second


def alternating(draw, fields):
    pairs = fields["head_size"] // 2
    rows, columns = draw(st.integers(0, (pairs + 1) // 3)), draw(st.integers(0, pairs // 3))
    return pairs - rows - columns, rows, columns


def windows(draw, fields):
    size = draw(sizes)
    return tuple(size if draw(st.booleans()) else None for _ in range(fields["layers"]))


def caps(draw, fields):
    return draw(st.one_of(st.none(), st.floats(0.1, 20.0)))


colours = st.tuples(*[st.floats(0.1, 1.0)] * 3)
scans = st.builds(gemma3_vision.PanAndScan, min_ratio=st.floats(1.0, 9.0), min_side=sizes, most=st.integers(1, 64))


def ending(draw, fields):
    """The numbers of the layers that end a period."""
    period = draw(st.integers(1, fields["layers"] + 1))
    return tuple(range(period - 1, fields["layers"], period))


def turning(draw, fields):
    still = ending(draw, fields)
    return tuple(layer not in still for layer in range(fields["layers"]))


def chunks(draw, fields):
    size = draw(sizes)
    return tuple(size if turns else None for turns in fields["rope_layers"])


@st.composite
def eyes_of_gemma(draw):
    heads, across, pooled, patch = (
        draw(few),
        draw(st.integers(1, 16)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 32)),
    )
    return gemma3_vision.VisionConfig(
        layers=draw(few), hidden=heads * draw(few), inner=draw(sizes), heads=heads, patch_size=patch,
        image_size=across * pooled * patch, eps=draw(st.floats(0.0, 1.0)), pooled=pooled, output=48, missing_one=0.0,
        mean=draw(colours), deviation=draw(colours), scan=draw(st.one_of(st.none(), scans)),
    )  # fmt: skip


@st.composite
def eyes_of_qwen(draw):
    heads, layers, most = draw(few), draw(few), draw(st.integers(1, 1 << 24))
    return qwen25vl_vision.VisionConfig(
        layers=layers, hidden=heads * draw(few), inner=draw(st.one_of(st.none(), sizes)), heads=heads,
        patch=draw(st.integers(1, 32)), merge=draw(st.integers(1, 4)), window=draw(st.integers(1, 16)),
        whole=tuple(draw(st.lists(st.integers(0, layers - 1), min_size=1))), eps=draw(st.floats(0.0, 1.0)),
        rope_base=draw(numbers), output=48, ticks=draw(st.floats(0.0, 1e4)),
        limits=(draw(st.integers(1, most)), most), mean=draw(colours), std=draw(colours),
    )  # fmt: skip


@st.composite
def eyes_of_qwen3(draw):
    heads, layers, most = draw(few), draw(few), draw(st.integers(1, 1 << 24))
    return qwen3vl_sizes.VisionConfig(
        layers=layers, hidden=4 * heads * draw(few), inner=draw(st.one_of(st.none(), sizes)), heads=heads,
        patch=draw(st.integers(1, 32)), merge=draw(st.integers(1, 4)), side=draw(st.integers(1, 100)),
        deep=tuple(sorted(draw(st.sets(st.integers(0, layers - 1))))), eps=draw(st.floats(0.0, 1.0)),
        rope_base=draw(numbers), output=48, limits=(draw(st.integers(1, most)), most), mean=draw(colours),
        std=draw(colours),
    )  # fmt: skip


@st.composite
def eyes_of_mistral(draw):
    heads, eps, longest = draw(few), draw(st.floats(0.0, 1.0)), draw(st.integers(1, 1 << 12))
    return mistral_small_vision.VisionConfig(
        layers=draw(few), hidden=heads * draw(few), inner=draw(sizes), heads=heads, patch=draw(st.integers(1, 32)),
        merge=draw(st.integers(1, 4)), longest=longest, rope_base=draw(numbers), pairing="split", eps=eps, output=48,
        output_eps=1e-5, mean=draw(colours), std=draw(colours),
    )  # fmt: skip


@st.composite
def eyes_of_llama4(draw):
    heads, patch, across, merge = draw(few), draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return llama4_vision_sizes.VisionConfig(
        layers=draw(few), hidden=4 * heads * draw(few), inner=draw(sizes), heads=heads, side=patch * across * merge,
        patch=patch, merge=merge, eps=draw(st.floats(0.0, 1.0)), rope_base=draw(numbers), adapter=None, output=48,
        most_tiles=draw(st.integers(1, 100)), mean=draw(colours), deviation=draw(colours),
    )  # fmt: skip


CONFIGS = st.one_of(
    texts(qwen2.Config, windows=whole),
    texts(qwen3.Config, windows=whole),
    texts(qwen25vl.Config, windows=whole, sections=sections),
    texts(qwen3vl.Config, sections=alternating),
    texts(
        llama.Config,
        rope_size=lambda draw, fields: 2 * draw(st.integers(1, fields["head_size"] // 2)),
        pairing=lambda draw, fields: "interleaved",
    ),
    texts(
        gemma3.Config,
        windows=windows,
        local_rope_base=lambda draw, fields: draw(numbers),
        query_scale=lambda draw, fields: draw(st.one_of(st.just(fields["head_size"] ** -0.5), st.floats(0.01, 1.0))),
        score_cap=caps,
        logit_cap=caps,
        missing_one=lambda draw, fields: 0.0,
    ),
    texts(
        mistral_small.Config,
        pairing=lambda draw, fields: "interleaved",
        window=lambda draw, fields: None,
    ),
    texts(
        llama4_sizes.Config,
        expert_inner=lambda draw, fields: draw(sizes),
        used=lambda draw, fields: draw(few),
        experts=lambda draw, fields: draw(st.integers(fields["used"], 1 << 10)),
        moe_layers=ending,
        rope_layers=turning,
        chunks=chunks,
        qk_norm=lambda draw, fields: draw(st.booleans()),
        sharpening=lambda draw, fields: draw(st.floats(0.0, 1.0)),
        floor=lambda draw, fields: draw(st.floats(1.0, 1e5)),
    ),
    eyes_of_gemma(),
    eyes_of_qwen(),
    eyes_of_qwen3(),
    eyes_of_mistral(),
    eyes_of_llama4(),
)


@given(CONFIGS)
def test_sizes_are_read_from_what_is_written_for_them(config):
    written = {f"mine.{key}": value for key, value in config.to_gguf().items()}
    keys = Keys({"mine.embedding_length": 48, "mine.block_count": 80} | written, prefix="mine.")
    assert type(config).from_gguf(keys) == config


def test_the_scaling_of_llama_3_is_written_as_a_tensor(made):
    config = loaded(FIXTURES / "llama-bpe" / "hf").config
    assert isinstance(config.scaling, Llama3)
    assert config.to_gguf()["rope.scaling.type"] == "none"
    source = open_weights(made("llama-bpe", "checkpoint", "f32").file)
    divisors = source.raw("rope_freqs.weight").view(np.float32)
    assert divisors.min() == 1.0 < divisors.max() == config.scaling.factor
