"""Making models: from GGUF files, from Hugging Face checkpoints, from other models; and what is refused."""

import hashlib
import json
import threading
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest

from puna.core.errors import BadModel, BadRequest, Unsupported
from puna.store import CreateRequest, Digest, InvalidName, Message, ModelNotFound, Store, chat_template, gather, show
from puna.store.blobs import Blobs
from puna.store.folder import Folder
from puna.store.modelfile import parse

FIXTURES = Path(__file__).parent / "fixtures"
QUANTISED = FIXTURES / "llama-quant/gguf/model-Q4_K_M.gguf"
CHECKPOINT = FIXTURES / "llama-bpe/hf"
IMAGE = "application/vnd.ollama.image."


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def upload(store: Store, data: bytes) -> str:
    return str(Blobs(Folder(store.root)).put(data)[0])


def files(store: Store, *paths: Path) -> dict[str, str]:
    return {path.name: upload(store, path.read_bytes()) for path in paths}


def create(store: Store, **fields) -> list[str]:
    request = msgspec.convert({"model": "mine"} | fields, CreateRequest)
    return [progress.status for progress in store.create(request)]


def quantised(store: Store, **fields) -> list[str]:
    return create(store, files=files(store, QUANTISED), **fields)


def manifest(store: Store, name: str = "mine", tag: str = "latest") -> dict:
    return json.loads((store.root / "manifests/registry.ollama.ai/library" / name / tag).read_bytes())


def blob_count(store: Store) -> int:
    return len(list((store.root / "blobs").iterdir()))


def written(
    path: Path, arch: str = "llama", kind: str = "", keys=(), tensors=("token_embd.weight",), **options
) -> Path:
    """Write a GGUF file, or the splits of one, and return its path or their folder."""
    writer = gguf.GGUFWriter(path, arch, **options)
    if kind:
        writer.add_type(kind)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    for key, value in keys:
        writer.add_uint32(key, value)
    for name in tensors:
        writer.add_tensor(name, np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# GGUF files


def test_a_gguf_file_becomes_a_model(store):
    digest = Digest.of(QUANTISED.read_bytes())
    assert quantised(store, system="Be brief.") == [
        "parsing GGUF",
        f"using existing layer {digest}",
        f"creating new layer {Digest.of(b'Be brief.')}",
        "writing manifest",
        "success",
    ]
    model = store.open("mine")
    assert model.system == "Be brief."
    assert (model.details.format, model.details.family, model.details.families) == ("gguf", "llama", ["llama"])
    assert model.details.quantization_level == "Q4_K_M"
    assert model.details.parent_model == ""
    info = show(model).model_info
    assert model.config.context_length == info["llama.context_length"]
    assert model.config.embedding_length == info["llama.embedding_length"]


def test_the_files_on_disk_are_those_that_ollama_writes(store):
    quantised(store, parameters={"top_k": 5, "stop": ["<a>"]}, license="MIT", template="{{ .Prompt }}")
    made = manifest(store)
    assert made["schemaVersion"] == 2
    assert made["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert made["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    kinds = [layer["mediaType"].removeprefix(IMAGE) for layer in made["layers"]]
    assert kinds == ["model", "template", "params", "license"]
    assert all(set(layer) == {"mediaType", "digest", "size"} for layer in made["layers"])
    for layer in (made["config"], *made["layers"]):
        data = (store.root / "blobs" / layer["digest"].replace(":", "-")).read_bytes()
        assert layer["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert layer["size"] == len(data)
    params = store.blob_path(made["layers"][2]["digest"]).read_bytes()
    assert params == b'{"stop":["<a>"],"top_k":5}\n'
    config = json.loads(store.blob_path(made["config"]["digest"]).read_bytes())
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    assert config["rootfs"] == {"type": "layers", "diff_ids": [layer["digest"] for layer in made["layers"]]}
    assert config["model_type"].endswith(("K", "M"))


def test_a_file_without_a_suffix_is_known_by_its_first_bytes(store):
    create(store, files={"weights": upload(store, QUANTISED.read_bytes())})
    assert store.open("mine").details.family == "llama"


def test_splits_become_one_model_whatever_their_order(store, tmp_path):
    tensors = ("token_embd.weight", "blk.0.a.weight", "blk.0.b.weight")
    written(tmp_path / "m.gguf", tensors=tensors, split_max_tensors=1)
    paths = sorted(tmp_path.glob("m-*.gguf"), reverse=True)
    assert len(paths) == 3
    statuses = create(store, files=files(store, *paths))
    assert statuses[:3] == ["parsing GGUF"] * 3
    assert [layer["name"] for layer in manifest(store)["layers"]] == sorted(path.name for path in paths)
    source = store.open("mine").open_weights()
    assert set(source.tensors) == set(tensors)
    source.close()


def test_a_missing_split_is_reported_by_file_name(store, tmp_path):
    written(tmp_path / "m.gguf", tensors=("token_embd.weight", "b", "c"), split_max_tensors=1)
    first, second, _ = sorted(tmp_path.glob("m-*.gguf"))
    with pytest.raises(BadRequest, match=r"^m-00001-of-00003\.gguf: .*3.*2.*given"):
        create(store, files=files(store, first, second))


@pytest.mark.parametrize(("kind", "arch"), [("mmproj", "clip"), ("projector", "llama"), ("", "clip")])
def test_a_projector_is_stored_as_one(store, tmp_path, kind, arch):
    projector = written(tmp_path / "a-mmproj.gguf", arch=arch, kind=kind, tensors=("v.patch",))
    create(store, files=files(store, projector, QUANTISED))
    model = store.open("mine")
    assert [layer["mediaType"] for layer in manifest(store)["layers"]] == [IMAGE + "model", IMAGE + "projector"]
    assert model.details.families == ["llama", arch]
    assert [source.metadata["general.architecture"] for source in model.open_projectors()] == [arch]
    assert show(model).projector_info["general.architecture"] == arch


def test_a_model_with_its_vision_tower_inside_is_a_model(store, tmp_path):
    whole = written(tmp_path / "whole.gguf", arch="gemma3", keys=[("gemma3.vision.block_count", 2)])
    create(store, files=files(store, whole))
    assert [layer["mediaType"] for layer in manifest(store)["layers"]] == [IMAGE + "model"]


def test_an_adapter_among_the_files_is_refused(store, tmp_path):
    adapter = written(tmp_path / "lora.gguf", kind="adapter")
    with pytest.raises(Unsupported, match="adapters are not supported"):
        create(store, files=files(store, adapter, QUANTISED))


def test_files_that_do_not_hold_exactly_one_model_are_refused(store, tmp_path):
    other = written(tmp_path / "other.gguf")
    with pytest.raises(BadRequest, match="hold 2 models"):
        create(store, files=files(store, other, QUANTISED))
    projector = written(tmp_path / "mmproj.gguf", arch="clip", tensors=("v",))
    with pytest.raises(BadRequest, match="hold 0 models"):
        create(store, files=files(store, projector))


@pytest.mark.parametrize("cut", [3, 4, 12, 100, -1, -4096])
def test_a_truncated_file_is_refused_without_telling_where_the_store_lies(store, cut):
    digest = upload(store, QUANTISED.read_bytes()[:cut])
    with pytest.raises(BadRequest) as caught:
        create(store, files={"my model.gguf": digest})
    assert str(store.root) not in str(caught.value)
    assert store.list() == []


def test_a_file_that_is_no_gguf_is_refused(store):
    with pytest.raises(BadRequest, match=r"^supplied file was not in GGUF format$"):
        create(store, files={"m.gguf": upload(store, b"PK\3\4 something else")})


@pytest.mark.parametrize(
    ("file_type", "formats", "label"),
    [
        (gguf.LlamaFileType.MOSTLY_F16, {"blk.0.a": np.float32, "blk.0.b": np.float32}, "F32"),
        (gguf.LlamaFileType.MOSTLY_F16, {"blk.0.a": np.float16, "token_embd": np.float32}, "F16"),
        (gguf.LlamaFileType.GUESSED, {"blk.0.a": np.float16, "blk.0.b": np.float16}, "F16"),
        (None, {"token_embd": np.float16}, "F16"),
    ],
)
def test_the_tensors_of_the_blocks_decide_what_a_model_is_said_to_be_stored_in(
    store, tmp_path, file_type, formats, label
):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    if file_type is not None:
        writer.add_file_type(file_type)
    for name, dtype in ({"token_embd": np.float16} | formats).items():
        writer.add_tensor(f"{name}.weight", np.zeros((4, 32), dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    create(store, files=files(store, tmp_path / "m.gguf"))
    assert store.open("mine").details.quantization_level == label


# Checkpoints


def test_a_checkpoint_is_stored_as_it_is(store):
    paths = sorted(CHECKPOINT.iterdir())
    statuses = create(store, files=files(store, *paths))
    assert statuses[0] == "reading checkpoint"
    layers = manifest(store)["layers"]
    assert {layer["mediaType"] for layer in layers} == {"application/vnd.puna.image.checkpoint"}
    assert [layer["name"] for layer in layers] == [path.name for path in paths]
    model = store.open("mine")
    assert {name: path.read_bytes() for name, path in model.weights.items()} == {
        path.name: path.read_bytes() for path in paths
    }
    details = model.details
    assert (details.format, details.family, details.quantization_level) == ("safetensors", "llama", "BF16")


def test_a_stored_checkpoint_opens_with_its_side_files(store):
    create(store, files=files(store, *CHECKPOINT.iterdir()))
    source = store.open("mine").open_weights()
    assert source.side_file("tokenizer.json") == (CHECKPOINT / "tokenizer.json").read_bytes()
    assert chat_template(source) == json.loads((CHECKPOINT / "tokenizer_config.json").read_bytes())["chat_template"]
    source.close()


@pytest.mark.parametrize(
    ("side_files", "template"),
    [
        ({}, None),
        ({"tokenizer_config.json": '{"model_max_length": 1000000000000000019884624838656}'}, None),
        ({"tokenizer_config.json": '{"chat_template": "inside"}'}, "inside"),
        ({"tokenizer_config.json": '{"chat_template": "inside"}', "chat_template.jinja": "beside ü"}, "beside ü"),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "x", "template": "X"}]}'}, None),
        (
            {"tokenizer_config.json": "{}", "chat_template.json": '{"chat_template": "of the processor"}'},
            "of the processor",
        ),
        ({"tokenizer_config.json": '{"chat_template": "a"}', "chat_template.json": '{"chat_template": "b"}'}, "a"),
        (
            {
                "tokenizer_config.json": '{"chat_template": [{"name": "tool_use", "template": "T"},'
                ' {"name": "default", "template": "D"}]}'
            },
            "D",
        ),
    ],
)
def test_a_checkpoints_own_chat_template_is_found(store, side_files, template):
    given = files(store, CHECKPOINT / "config.json", CHECKPOINT / "model.safetensors")
    create(store, files=given | {name: upload(store, text.encode()) for name, text in side_files.items()})
    source = store.open("mine").open_weights()
    assert chat_template(source) == template
    source.close()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
@pytest.mark.parametrize("text", [b'{"chat_template": 7}', b"{", b"[]", b"\xff"])
def test_a_chat_template_that_is_no_text_is_refused(store, text, name):
    given = files(store, CHECKPOINT / "config.json", CHECKPOINT / "model.safetensors")
    create(store, files=given | {name: upload(store, text)})
    source = store.open("mine").open_weights()
    with pytest.raises(BadModel):
        chat_template(source)
    source.close()


def test_what_a_checkpoint_says_is_shown_under_the_names_of_gguf(store):
    create(store, files=files(store, *CHECKPOINT.iterdir()))
    config = json.loads((CHECKPOINT / "config.json").read_bytes())
    info = show(store.open("mine"))
    assert info.model_info["general.architecture"] == "llama"
    assert info.model_info["llama.context_length"] == config["max_position_embeddings"]
    assert info.model_info["llama.embedding_length"] == config["hidden_size"]
    assert info.model_info["llama.block_count"] == config["num_hidden_layers"]
    assert info.model_info["llama.attention.head_count_kv"] == config["num_key_value_heads"]
    assert info.model_info["general.parameter_count"] > config["vocab_size"] * config["hidden_size"]
    assert "FROM mine:latest" in info.modelfile.splitlines()


def test_a_multimodal_configs_own_parts_are_read(store):
    config = {
        "model_type": "gemma3",
        "text_config": {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 99},
        "vision_config": {"num_hidden_layers": 3, "image_size": 64},
    }
    weights = files(store, CHECKPOINT / "model.safetensors")
    create(store, files=weights | {"config.json": upload(store, json.dumps(config).encode())})
    info = show(store.open("mine")).model_info
    assert info["gemma3.context_length"] == 99
    assert info["gemma3.vision.block_count"] == 3


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_part_is_refused(store, name):
    with pytest.raises(BadRequest):
        create(store, files=files(store, *(path for path in CHECKPOINT.iterdir() if path.name != name)))


@pytest.mark.parametrize("config", [b"{}", b'{"model_type": 7}', b'{"model_type": ""}', b"[]", b"{", b"\xff"])
def test_a_config_without_an_architecture_is_refused(store, config):
    given = files(store, *CHECKPOINT.iterdir()) | {"config.json": upload(store, config)}
    with pytest.raises(BadRequest):
        create(store, files=given)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x/weights.PT", "consolidated.00.pth", "data.pkl"])
def test_pickles_are_refused(store, name):
    with pytest.raises(Unsupported, match="may hold Python code"):
        create(store, files=files(store, *CHECKPOINT.iterdir()) | {name: upload(store, b"x")})


def test_code_beside_a_checkpoint_is_refused(store):
    with pytest.raises(BadRequest, match=r"'modeling\.py' is no part of a checkpoint"):
        create(store, files=files(store, *CHECKPOINT.iterdir()) | {"modeling.py": upload(store, b"x")})


# From another model


def test_a_model_inherits_from_the_one_it_is_made_from(store):
    quantised(
        store,
        model="base",
        system="one",
        template="{{ .Prompt }}",
        parameters={"top_k": 5, "stop": ["<a>"]},
        license=["MIT"],
        messages=[{"role": "user", "content": "Hello"}],
    )
    create(store, **{"from": "BASE"}, system="two", parameters={"top_k": 7, "num_ctx": 99.9}, license="more")
    base, model = store.open("base"), store.open("mine")
    assert model.weights.keys() == base.weights.keys()
    assert (model.system, model.template) == ("two", "{{ .Prompt }}")
    assert model.params == {"num_ctx": 99, "stop": ["<a>"], "top_k": 7}
    assert model.messages == (Message("user", "Hello"),)
    assert model.licenses == ("MIT", "more")
    assert model.details.parent_model == "base:latest"
    assert model.details.family == base.details.family
    assert sum(layer["mediaType"] == IMAGE + "system" for layer in manifest(store)["layers"]) == 1


def test_only_layers_that_came_from_the_base_say_so(store):
    quantised(store, model="base", system="one")
    create(store, **{"from": "base"}, system="two")
    assert [layer.get("from") for layer in manifest(store)["layers"]] == ["base:latest", None]


def test_null_and_empty_fields_change_nothing(store):
    quantised(store, model="base", system="one", template="{{ .Prompt }}", license="MIT")
    nothing = dict.fromkeys(["template", "parameters", "messages", "adapters", "quantize", "files"])
    create(store, **{"from": "base"}, **nothing, system="", license=["", "MIT"])
    model = store.open("mine")
    assert (model.system, model.template, model.licenses) == ("one", "{{ .Prompt }}", ("MIT",))


def test_a_base_that_is_not_there_is_named(store):
    with pytest.raises(ModelNotFound, match=r"^model 'NoSuch' not found$"):
        create(store, **{"from": "NoSuch"})


def test_a_model_may_be_made_from_itself(store):
    quantised(store, system="one")
    create(store, **{"from": "mine"}, system="two")
    assert store.open("mine").system == "two"


def test_a_minimum_version_is_kept(store):
    quantised(store, requires="0.14.0")
    assert store.open("mine").config.requires == "0.14.0"


def test_the_modelfile_that_show_writes_makes_the_model_again(store, tmp_path):
    written(tmp_path / "m.gguf", tensors=("token_embd.weight", "b"), split_max_tensors=1)
    parameters = {"temperature": 0.5, "stop": ["<a>", "two\nlines"]}
    create(
        store,
        files=files(store, *tmp_path.glob("m-*.gguf")),
        system='say "x"\n',
        parameters=parameters,
        messages=[{"role": "user", "content": " Hello "}],
    )
    first = store.open("mine")
    gathered = gather(parse(show(first).modelfile), tmp_path)
    digests = {path: Digest.of(path.read_bytes()) for path in gathered.paths}
    list(store.create(gathered.request("again", digests)))
    second = store.open("again")
    assert (second.system, second.params, second.messages) == (first.system, parameters, first.messages)
    assert sorted(second.weights.values()) == sorted(first.weights.values())


# What is refused


@pytest.mark.parametrize("name", ["", "../x", "a/../../b", "m:..", "a b", "/etc/passwd"])
def test_a_name_that_is_none_is_refused(store, name):
    with pytest.raises(InvalidName, match="invalid model name"):
        quantised(store, model=name)
    if name:
        with pytest.raises(InvalidName, match="invalid model name"):
            create(store, **{"from": name})


@pytest.mark.parametrize(
    "name", ["../x.gguf", "/etc/passwd", "a/../../x.gguf", "./x.gguf", "..", "", "a\\b.gguf", "a\0"]
)
def test_a_file_name_that_is_no_clean_relative_path_is_refused(store, name):
    with pytest.raises(BadRequest, match=r"^file path must be relative$"):
        create(store, files={name: upload(store, QUANTISED.read_bytes())})


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "sha256:../../../../../../etc/passwd", "sha256:" + "a" * 63]
)
def test_a_digest_that_is_none_is_refused(store, digest):
    with pytest.raises(BadRequest, match=r"^invalid digest format$"):
        create(store, files={"m.gguf": digest})


def test_a_blob_that_is_missing_and_one_that_is_a_link_look_the_same(store, tmp_path):
    """A server that tells them apart tells strangers which files exist."""
    secret = tmp_path / "secret"
    secret.write_bytes(QUANTISED.read_bytes())
    digest = Digest.of(secret.read_bytes())
    (store.root / "blobs").mkdir(parents=True)
    with pytest.raises(BadRequest) as missing:
        create(store, files={"m.gguf": digest})
    (store.root / "blobs" / f"sha256-{digest.hex}").symlink_to(secret)
    with pytest.raises(BadRequest) as linked:
        create(store, files={"m.gguf": digest})
    assert str(missing.value) == str(linked.value) == f"file 'm.gguf': blob {digest} was not uploaded"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "neither 'from' or 'files' was specified"),
        ({"files": {}}, "unknown type"),
        ({"files": {"a.txt": "TEXT"}}, "unknown type"),
        ({"files": {"a.json": "TEXT"}}, "unknown type"),
        ({"files": {"a.gguf": "GGUF", "b.json": "TEXT"}}, "unknown type"),
        ({"parameters": {"frobnicate": 1}}, "unknown parameter 'frobnicate'"),
        ({"parameters": {"top_k": "many"}}, 'option "top_k" must be of type integer'),
        ({"parameters": {"stop": "x"}}, 'option "stop" must be of type array'),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool', expected one of system, user, assistant"),
        ({"system": "x" * ((16 << 20) + 1)}, "at most 16777216 are allowed"),
    ],
)
def test_a_request_that_nobody_can_grant_is_refused(store, fields, problem):
    blobs = {"TEXT": upload(store, b"some text"), "GGUF": upload(store, QUANTISED.read_bytes())}
    if "files" in fields:
        fields = {"files": {name: blobs[kind] for name, kind in fields["files"].items()}}
    elif fields:
        fields = fields | {"files": {"m.gguf": blobs["GGUF"]}}
    with pytest.raises(BadRequest, match=problem.replace("'", ".").replace('"', ".")):
        create(store, **fields)
    assert store.list() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adapters", {"a": "b"}), ("quantize", "q4_K_M"), ("renderer", "x"), ("parser", "x"), ("remote_host", "x"),
        ("draft_quantize", "q4_0"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_before_anything_is_written(store, field, value):
    given = files(store, QUANTISED)
    request = msgspec.convert({"model": "mine", "files": given, field: value}, CreateRequest)
    with pytest.raises(Unsupported, match="not supported"):
        store.create(request)
    assert blob_count(store) == 1


def test_a_dead_parameter_is_left_out_of_a_new_model(store):
    quantised(store, parameters={"mirostat": 0, "top_k": 3})
    assert store.open("mine").params == {"top_k": 3}


# Interrupted and concurrent


def test_a_create_that_is_dropped_at_any_step_leaves_the_old_model(store):
    quantised(store, system="old")
    request = CreateRequest(model="mine", files=files(store, QUANTISED), system="new")
    steps = len(list(store.create(msgspec.structs.replace(request, model="other"))))
    for taken in range(steps):
        iterator = store.create(request)
        for _ in range(taken):
            next(iterator)
        iterator.close()
        assert store.open("mine").system == "old"
        assert [model.name.model for model in store.list()] == ["other", "mine"]


def test_what_a_dropped_create_left_is_pruned(store):
    quantised(store, system="old")
    before = blob_count(store)
    iterator = store.create(CreateRequest(model="x", from_="mine", system="new"))
    while next(iterator).status != "writing manifest":
        pass
    iterator.close()
    assert blob_count(store) == before + 1
    assert store.prune(grace_s=3600) == []
    assert store.prune(grace_s=-1) == [f"sha256-{Digest.of(b'new').hex}"]
    assert store.open("mine").system == "old"


def test_making_a_model_again_removes_layers_that_nothing_uses_any_more(store):
    quantised(store, system="old")
    before = blob_count(store)
    quantised(store, system="new")
    assert blob_count(store) == before
    assert not store.has_blob(Digest.of(b"old"))
    assert store.open("mine").system == "new"


def test_a_text_layer_that_vanishes_meanwhile_is_written_again(store):
    iterator = store.create(CreateRequest(model="mine", files=files(store, QUANTISED), system="new"))
    while next(iterator).status != "writing manifest":
        pass
    store.blob_path(Digest.of(b"new")).unlink()
    list(iterator)
    assert store.open("mine").system == "new"


def test_weights_that_vanish_meanwhile_are_reported(store):
    given = files(store, QUANTISED)
    steps = len(list(store.create(CreateRequest(model="mine", files=given))))
    store.delete("mine")
    for taken in range(1, steps):
        iterator = store.create(CreateRequest(model="mine", files=files(store, QUANTISED)))
        for _ in range(taken):
            status = next(iterator).status
        store.blob_path(given[QUANTISED.name]).unlink()
        with pytest.raises(BadRequest, match=r"no such file|was deleted while the model was made"):
            list(iterator)
        assert store.list() == []
    assert status == "writing manifest"


def test_concurrent_creates_of_one_name_leave_one_whole_model(store):
    given = files(store, QUANTISED)
    problems: list[BaseException] = []

    def make(number: int) -> None:
        try:
            for round_ in range(5):
                text = f"{number}.{round_}"
                list(Store(store.root).create(CreateRequest(model="mine", files=given, system=text, license=text)))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=make, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    model = store.open("mine")
    assert model.system == model.licenses[0]
    assert blob_count(store) == len(store.open("mine").manifest.digests)


def test_a_name_keeps_the_spelling_it_has_on_disk(store):
    quantised(store, model="Mine:Latest")
    quantised(store, model="mine:latest", system="new")
    assert [model.name.short for model in store.list()] == ["Mine:Latest"]
    assert store.open("mine").system == "new"


def test_the_folder_of_a_user_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="there is no such user"):
        gather(parse("FROM ~nobody-of-this-name/model.gguf"), tmp_path)
