"""The store on disk: it reads what Ollama wrote, changes atomically, and lets no name or link lead out of it."""

import errno
import fcntl
import hashlib
import json
import math
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from puna.core.errors import BadModel, Busy, NotFound
from puna.store import (
    Digest,
    DigestMismatch,
    Message,
    ModelNotFound,
    Store,
    chat_template,
    human_count,
    show,
)
from puna.store.blobs import Blobs
from puna.store.folder import Folder, Writer
from puna.store.manifests import Manifests

FIXTURES = Path(__file__).parent / "fixtures"
GGUF = FIXTURES / "llama-quant/gguf/model-Q4_K_M.gguf"
IMAGE = "application/vnd.ollama.image."
HOUR = 3600


def put(root: Path, data: bytes) -> str:
    """Store a blob the way Ollama lays it out, without our code."""
    name = hashlib.sha256(data).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{name}").write_bytes(data)
    return f"sha256:{name}"


def layer(root: Path, kind: str, data: bytes, **more) -> dict:
    return {"mediaType": IMAGE + kind, "digest": put(root, data), "size": len(data), **more}


def manifest_path(root: Path, name: str = "demo", tag: str = "latest") -> Path:
    return root / "manifests/registry.ollama.ai/library" / name / tag


def write_manifest(root: Path, manifest: object, name: str = "demo", tag: str = "latest") -> Path:
    path = manifest_path(root, name, tag)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode())
    return path


def demo(
    root: Path, name: str = "demo", tag: str = "latest", extra: tuple[dict, ...] = (), weights: bytes = b""
) -> dict:
    """Write a model as Ollama 0.7 does."""
    config = {"model_format": "gguf", "model_family": "llama", "model_families": ["llama"], "model_type": "1.2M"}
    config |= {"file_type": "Q4_K_M", "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}
    data = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": put(root, data),
            "size": len(data),
        },
        "layers": [
            layer(root, "model", weights or GGUF.read_bytes(), **{"from": "/home/someone/model.gguf"}),
            layer(root, "template", b"{{ .Prompt }}"),
            layer(root, "system", b"Be brief."),
            layer(root, "params", b'{"stop":["<a>","<b>"],"temperature":0.5}\n'),
            layer(root, "messages", b'[{"role":"user","content":"Hello"}]'),
            layer(root, "license", b"MIT"),
            layer(root, "license", b"and more"),
            *extra,
        ],
    }
    write_manifest(root, manifest, name, tag)
    return manifest


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").iterdir()}


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


# Reading


def test_a_model_that_ollama_wrote_is_read_whole(store, tmp_path):
    manifest = demo(tmp_path)
    model = store.open("demo")
    assert model.name.short == "demo:latest"
    assert model.digest.hex == hashlib.sha256(manifest_path(tmp_path).read_bytes()).hexdigest()
    assert model.size == manifest["config"]["size"] + sum(layer["size"] for layer in manifest["layers"])
    assert model.modified_at.timestamp() == pytest.approx(manifest_path(tmp_path).stat().st_mtime, abs=1e-5)
    assert model.modified_at.tzinfo is not None
    assert (model.template, model.system) == ("{{ .Prompt }}", "Be brief.")
    assert model.params == {"stop": ["<a>", "<b>"], "temperature": 0.5}
    assert model.messages == (Message("user", "Hello"),)
    assert model.licenses == ("MIT", "and more")
    assert [path.read_bytes()[:4] for path in model.weights.values()] == [b"GGUF"]
    assert msgspec.to_builtins(model.details) == {
        "parent_model": "/home/someone/model.gguf",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "1.2M",
        "quantization_level": "Q4_K_M",
    }


def test_the_weights_of_a_stored_model_open(store, tmp_path):
    demo(tmp_path)
    source = store.open("demo").open_weights()
    assert source.metadata["general.architecture"] == "llama"
    assert chat_template(source)
    source.close()


def test_the_old_name_of_a_template_layer_is_read(store, tmp_path):
    manifest = demo(tmp_path)
    manifest["layers"][1]["mediaType"] = IMAGE + "prompt"
    write_manifest(tmp_path, manifest)
    assert store.open("demo").template == "{{ .Prompt }}"


def test_a_model_without_texts_has_none(store, tmp_path):
    manifest = demo(tmp_path)
    write_manifest(tmp_path, manifest | {"layers": manifest["layers"][:1]})
    model = store.open("demo")
    assert (model.template, model.system, model.params, model.messages, model.licenses) == (None, None, {}, (), ())


def test_names_are_looked_up_in_any_letter_case(store, tmp_path):
    demo(tmp_path, "Llama3", "8B")
    assert store.open("LLAMA3:8b").name.short == "Llama3:8B"
    assert store.open("Registry.Ollama.AI/Library/llama3:8B").name.short == "Llama3:8B"


def test_of_two_spellings_the_exact_one_is_taken(store, tmp_path):
    demo(tmp_path, "m", "a")
    demo(tmp_path, "m", "A", weights=b"other")
    assert store.open("m:a").digest != store.open("m:A").digest


def test_a_model_that_is_not_there_is_named_as_the_client_wrote_it(store):
    for act in (store.open, store.delete, lambda name: store.copy(name, "other")):
        with pytest.raises(ModelNotFound, match=r"^model 'NoSuch' not found$") as caught:
            act("NoSuch")
        assert caught.value.name == "NoSuch"


def test_the_list_is_newest_first_and_leaves_out_what_cannot_be_read(store, tmp_path):
    for age, name in enumerate(["new", "middle", "old"]):
        demo(tmp_path, name)
        os.utime(manifest_path(tmp_path, name), (10**9 - age, 10**9 - age))
    write_manifest(tmp_path, b"not json", "broken")
    write_manifest(tmp_path, b"{}", ".hidden")
    demo(tmp_path, "configless")
    manifest = json.loads(manifest_path(tmp_path, "configless").read_bytes())
    manifest["config"]["digest"] = f"sha256:{'0' * 64}"
    write_manifest(tmp_path, manifest, "configless")
    (tmp_path / "manifests/stray").write_text("a file where a folder should be")
    assert [model.name.short for model in store.list()] == ["new:latest", "middle:latest", "old:latest"]


def test_an_empty_or_missing_folder_holds_no_models(tmp_path):
    assert Store(tmp_path / "nowhere").list() == []
    assert not (tmp_path / "nowhere").exists()


def test_split_weights_get_the_names_that_splits_have(store, tmp_path):
    manifest = demo(tmp_path)
    second = layer(tmp_path, "model", b"second")
    write_manifest(tmp_path, manifest | {"layers": [manifest["layers"][0], second]})
    assert list(store.open("demo").weights) == ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]


# Blobs


@pytest.mark.asyncio
async def test_an_upload_is_stored_under_its_digest_for_its_owner_alone(store, tmp_path):
    pieces = [b"x" * 700_000] * 3
    digest = Digest.of(b"".join(pieces))
    assert await store.add_blob(digest, chunks(*pieces))
    path = store.blob_path(digest)
    assert path.read_bytes() == b"".join(pieces)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert blobs(tmp_path) == {f"sha256-{digest.hex}"}


@pytest.mark.asyncio
async def test_an_empty_upload_is_a_blob_too(store):
    assert await store.add_blob(Digest.of(b""), chunks())
    assert store.has_blob(Digest.of(b""))


@pytest.mark.asyncio
async def test_a_blob_that_is_there_is_not_read_again(store):
    async def unread() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    digest = Digest.of(b"x")
    assert await store.add_blob(digest, chunks(b"x"))
    assert not await store.add_blob(digest, unread())


@pytest.mark.asyncio
async def test_an_upload_with_other_bytes_leaves_nothing(store, tmp_path):
    expected, actual = Digest.of(b"expected"), Digest.of(b"actual")
    with pytest.raises(DigestMismatch) as caught:
        await store.add_blob(expected, chunks(b"act", b"ual"))
    assert str(caught.value) == f'digest mismatch, expected "{expected}", got "{actual}"'
    assert blobs(tmp_path) == set()


@pytest.mark.asyncio
async def test_an_upload_that_breaks_off_leaves_nothing(store, tmp_path):
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await store.add_blob(Digest.of(b"x" * (4 << 20)), broken())
    assert blobs(tmp_path) == set()


@pytest.mark.asyncio
async def test_an_upload_touches_the_disk_in_worker_threads_only(tmp_path):
    threads: list[int] = []

    class Watched(Folder):
        @contextmanager
        def writer(self, *folder: str) -> Iterator[Writer]:
            threads.append(threading.get_ident())
            with super().writer(*folder) as writer:
                yield writer
            threads.append(threading.get_ident())

    with pytest.raises(DigestMismatch):
        await Blobs(Watched(tmp_path)).add(Digest.of(b"expected"), chunks(b"actual"))
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    assert blobs(tmp_path) == set()


def test_a_full_disk_is_reported_as_such(tmp_path):
    with Folder(tmp_path).writer("blobs") as writer:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer._file.fileno())
        os.close(full)
        with pytest.raises(Busy, match="the disk that holds the models is full"):
            writer.write(b"x" * (1 << 20))
    assert blobs(tmp_path) == set()


def test_other_failures_of_the_disk_are_not_called_full(tmp_path):
    with Folder(tmp_path).writer("blobs") as writer, pytest.raises(OSError, match="Is a directory") as caught:
        (tmp_path / "blobs/name").mkdir()
        writer.commit("name")
    assert caught.value.errno == errno.EISDIR


def test_blobs_with_the_old_colon_in_their_name_are_adopted(store, tmp_path):
    digest = Digest(put(tmp_path, b"x"))
    (tmp_path / "blobs" / f"sha256-{digest.hex}").rename(tmp_path / "blobs" / digest)
    assert not store.has_blob(digest)
    store.adopt()
    assert store.has_blob(digest)
    assert blobs(tmp_path) == {f"sha256-{digest.hex}"}


# Copy, delete, prune


def test_a_copy_is_the_same_model_under_another_name(store, tmp_path):
    demo(tmp_path)
    store.copy("DEMO", "me/copy:v2")
    assert store.open("me/copy:v2").digest == store.open("demo").digest
    path = tmp_path / "manifests/registry.ollama.ai/me/copy/v2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.delete("demo")
    assert store.open("me/copy:v2").system == "Be brief."


def test_a_copy_onto_a_name_in_other_letters_replaces_that_model(store, tmp_path):
    demo(tmp_path, "one")
    demo(tmp_path, "Two", weights=b"other")
    store.copy("one", "tWO")
    assert [model.name.short for model in store.list()] == ["Two:latest", "one:latest"]
    assert store.open("two").digest == store.open("one").digest


def test_a_copy_onto_itself_changes_nothing(store, tmp_path):
    demo(tmp_path)
    os.utime(manifest_path(tmp_path), (10**9, 10**9))
    store.copy("demo", "DEMO:latest")
    assert manifest_path(tmp_path).stat().st_mtime == 10**9


def test_deleting_removes_the_blobs_and_folders_that_nothing_else_uses(store, tmp_path):
    manifest = demo(tmp_path, "one")
    demo(tmp_path, "two", weights=b"weights of two")
    store.delete("one")
    assert [model.name.short for model in store.list()] == ["two:latest"]
    assert store.open("two").system == "Be brief."
    assert manifest["layers"][0]["digest"].replace(":", "-") not in blobs(tmp_path)
    assert len(blobs(tmp_path)) == len(manifest["layers"]) + 1
    store.delete("two")
    assert blobs(tmp_path) == set()
    assert list((tmp_path / "manifests").iterdir()) == []


def test_nothing_but_the_manifest_goes_while_another_one_cannot_be_read(store, tmp_path):
    demo(tmp_path, "one")
    write_manifest(tmp_path, b"garbage", "broken")
    before = blobs(tmp_path)
    store.delete("one")
    assert blobs(tmp_path) == before
    assert store.prune(grace_s=0) == []
    assert blobs(tmp_path) == before


def test_a_model_with_a_broken_manifest_can_be_deleted(store, tmp_path):
    write_manifest(tmp_path, b"garbage", "broken")
    store.delete("broken")
    assert not manifest_path(tmp_path, "broken").exists()


def test_pruning_spares_what_is_used_and_what_is_young(store, tmp_path):
    demo(tmp_path)
    used = blobs(tmp_path)
    old = time.time() - 2 * HOUR
    for name in (f"sha256-{'1' * 64}", f"sha256-{'2' * 64}-partial-0", ".unfinished", "stranger"):
        (tmp_path / "blobs" / name).write_bytes(b"")
        os.utime(tmp_path / "blobs" / name, (old, old))
    (tmp_path / "blobs" / f"sha256-{'3' * 64}").write_bytes(b"young")
    for name in used:
        os.utime(tmp_path / "blobs" / name, (old, old))
    leftover = manifest_path(tmp_path, tag=".unfinished")
    leftover.write_bytes(b"")
    os.utime(leftover, (old, old))
    (tmp_path / "manifests/registry.ollama.ai/empty/folder").mkdir(parents=True)

    assert len(store.prune()) == 4
    assert blobs(tmp_path) == used | {f"sha256-{'3' * 64}"}
    assert not leftover.exists()
    assert not (tmp_path / "manifests/registry.ollama.ai/empty").exists()
    assert store.open("demo")


def test_a_write_that_a_crash_cut_short_is_invisible(store, tmp_path):
    demo(tmp_path)
    whole = manifest_path(tmp_path).read_bytes()
    with pytest.raises(KeyboardInterrupt), Folder(tmp_path).writer("manifests", "h", "n", "m") as writer:
        writer.write(whole[:100])
        writer._file.flush()
        assert [model.name.short for model in store.list()] == ["demo:latest"]
        raise KeyboardInterrupt
    manifest_path(tmp_path, tag=".0123").write_bytes(whole[:100])  # what a power cut would leave
    assert [model.name.short for model in store.list()] == ["demo:latest"]
    assert Manifests(Folder(tmp_path)).references() is not None


def test_one_holder_of_the_lock_at_a_time(tmp_path):
    with Folder(tmp_path).locked("manifests"):
        other = os.open(tmp_path / "manifests", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


# Showing


def test_everything_about_a_model_is_shown(store, tmp_path):
    demo(tmp_path)
    info = show(store.open("demo"))
    assert info.license == "MIT\nand more"
    assert info.template == "{{ .Prompt }}"
    assert info.parameters.splitlines() == [
        'stop                           "<a>"',
        'stop                           "<b>"',
        "temperature                    0.5",
    ]
    assert info.messages == [Message("user", "Hello")]
    assert info.model_info["general.architecture"] == "llama"
    assert isinstance(info.model_info["llama.context_length"], int)
    assert isinstance(info.model_info["llama.embedding_length"], int)
    assert info.model_info["tokenizer.ggml.tokens"] is None
    assert "general.name" not in info.model_info
    assert "tokenizer.chat_template" not in info.model_info
    assert info.projector_info is None
    assert {"name", "type", "shape"} == set(msgspec.to_builtins(info.tensors[0]))
    assert sum(math.prod(line.shape) for line in info.tensors) == info.model_info["general.parameter_count"]
    msgspec.json.encode(info)


def test_arrays_are_shown_on_demand(store, tmp_path):
    demo(tmp_path)
    info = show(store.open("demo"), verbose=True)
    assert isinstance(info.model_info["tokenizer.ggml.tokens"][0], str)
    assert isinstance(info.model_info["tokenizer.ggml.token_type"][0], int)
    msgspec.json.encode(info)


def test_names_in_a_gguf_file_that_are_no_utf8_are_shown_all_the_same(store, tmp_path):
    spoilt = GGUF.read_bytes().replace(b"general.name", b"general.nam\xff").replace(b"output_norm", b"output_nor\xff")
    demo(tmp_path, weights=spoilt)
    info = show(store.open("demo"))
    assert "general.nam?" in info.model_info
    assert "output_nor?.weight" in [line.name for line in info.tensors]
    msgspec.json.encode(info)


def test_the_shown_modelfile_may_be_altered_for_the_occasion(store, tmp_path):
    demo(tmp_path)
    model = store.open("demo")
    text = show(model, system="Be long.", options={"temperature": 1, "top_k": 9}).modelfile
    (path,) = model.weights.values()
    assert text.splitlines()[2:5] == ["# FROM demo:latest", "", f"FROM {path}"]
    for line in (
        "SYSTEM Be long.",
        "PARAMETER temperature 1",
        "PARAMETER top_k 9",
        "PARAMETER stop <a>",
        "LICENSE MIT",
    ):
        assert line in text.splitlines()


def test_a_model_that_runs_elsewhere_is_shown_without_weights(store, tmp_path):
    manifest = demo(tmp_path)
    write_manifest(tmp_path, manifest | {"layers": manifest["layers"][1:]})
    info = show(store.open("demo"))
    assert (info.model_info, info.tensors) == ({}, [])
    with pytest.raises(BadModel, match="no layer of weights"):
        store.open("demo").open_weights()


@pytest.mark.parametrize(
    ("count", "text"),
    [(8 * 10**9, "8B"), (8_030_261_248, "8.0B"), (7_615_616_512, "7.6B"), (137 * 10**6, "137M"), (22_565_376, "22.57M"),
     (12_345, "12K"), (640, "640")],
)  # fmt: skip
def test_a_number_of_parameters_is_written_as_people_say_it(count, text):
    assert human_count(count) == text


def test_a_blob_that_is_not_there_is_not_found(store):
    with pytest.raises(NotFound, match="does not exist"):
        store.blob_path(f"sha256:{'0' * 64}")
