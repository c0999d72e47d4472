"""What a store does not read: manifests that break the schema, other contents, links, and names that are paths."""

import json
import os

import pytest

from puna.core.errors import BadFile, BadModel, Failure
from puna.store import (
    Digest,
    InvalidDigest,
    InvalidName,
    Store,
)
from puna.store.blobs import Blobs
from puna.store.folder import Folder

from .test_store import demo, layer, manifest_path, write_manifest


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def altered(path: str, value: object):
    """Return a function that puts value at a path of keys in a manifest."""

    def alter(manifest: dict) -> dict:
        *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        inner = manifest
        for key in above:
            inner = inner[key]
        inner[last] = value
        return manifest

    return alter


@pytest.mark.parametrize(
    "alter",
    [
        altered("schemaVersion", 1),
        altered("schemaVersion", "2"),
        altered("config", None),
        altered("config.size", -1),
        altered("config.digest", "sha256:../../../../etc/passwd"),
        altered("layers", {}),
        altered("layers", None),
        altered("layers.0", []),
        altered("layers.0.size", -1),
        altered("layers.0.size", 1 << 60),
        altered("layers.0.size", 1 << 200),
        altered("layers.0.size", 1.5),
        altered("layers.0.size", "12"),
        altered("layers.0.digest", ""),
        altered("layers.0.digest", "../../../secret"),
        altered("layers.0.digest", f"sha256:{'A' * 64}"),
        altered("layers.0.mediaType", 7),
        lambda manifest: manifest | {"layers": manifest["layers"][:1] * 10_000},
        lambda manifest: b"[" * 1_000_000,
        lambda manifest: b'{"schemaVersion":2',
        lambda manifest: b"",
        lambda manifest: json.dumps(manifest).encode() + b" " * (5 << 20),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused(store, tmp_path, alter):
    write_manifest(tmp_path, alter(demo(tmp_path)))
    with pytest.raises(BadModel):
        store.open("demo")
    assert store.list() == []


@pytest.mark.parametrize("change", [1, -1, 1 << 40])
def test_a_layer_whose_size_is_not_the_manifests_is_refused(store, tmp_path, change):
    manifest = demo(tmp_path)
    manifest["layers"][0]["size"] += change
    write_manifest(tmp_path, manifest)
    with pytest.raises(BadModel, match="bytes, the manifest says"):
        store.open("demo")


def test_a_missing_layer_is_named(store, tmp_path):
    digest = demo(tmp_path)["layers"][2]["digest"]
    (tmp_path / "blobs" / digest.replace(":", "-")).unlink()
    with pytest.raises(BadModel, match=f"blob {digest} does not exist"):
        store.open("demo")


def test_a_text_that_was_altered_on_disk_is_refused(store, tmp_path):
    digest = demo(tmp_path)["layers"][2]["digest"]
    (tmp_path / "blobs" / digest.replace(":", "-")).write_bytes(b"Be cruel.")
    with pytest.raises(BadFile, match="do not have this digest"):
        _ = store.open("demo").system


def test_a_text_layer_too_long_to_be_one_is_not_read(store, tmp_path):
    manifest = demo(tmp_path)
    digest = Digest.of(b"huge")
    path = tmp_path / "blobs" / f"sha256-{digest.hex}"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    manifest["layers"][2] |= {"digest": digest, "size": 1 << 40}
    write_manifest(tmp_path, manifest)
    with pytest.raises(BadFile, match="at most 16777216 are allowed"):
        _ = store.open("demo").system


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("params", b"[1]"),
        ("params", b"{"),
        ("messages", b'{"role":1}'),
        ("messages", b"[" * 100_000),
        ("system", b"\xff"),
    ],
)
def test_a_layer_with_the_wrong_content_is_refused(store, tmp_path, kind, data):
    demo(tmp_path, extra=(layer(tmp_path, kind, data),))
    with pytest.raises(BadFile):
        getattr(store.open("demo"), kind)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a//b"])
def test_a_file_name_in_a_manifest_that_is_no_clean_path_is_refused(store, tmp_path, name):
    manifest = demo(tmp_path)
    manifest["layers"][0]["name"] = name
    write_manifest(tmp_path, manifest)
    with pytest.raises(BadModel, match="no clean path"):
        _ = store.open("demo").weights


# Links and other ways out


def test_a_link_among_the_blobs_is_not_followed(store, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-secret"
    outside.write_bytes(b"secret")
    digest = Digest.of(b"secret")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{digest.hex}").symlink_to(outside)
    assert not store.has_blob(digest)
    with pytest.raises(BadFile, match="not a regular file"):
        store.blob_path(digest)
    with pytest.raises(BadFile, match="symbolic link"):
        Blobs(Folder(tmp_path)).read(digest, 100)


def test_a_pipe_among_the_blobs_is_not_opened(store, tmp_path):
    (tmp_path / "blobs").mkdir()
    os.mkfifo(tmp_path / "blobs" / f"sha256-{'1' * 64}")
    assert not store.has_blob(f"sha256:{'1' * 64}")
    with pytest.raises(BadFile, match="not a regular file"):
        Blobs(Folder(tmp_path)).read(Digest(f"sha256:{'1' * 64}"), 100)


@pytest.mark.parametrize("linked", ["blobs", "manifests"])
def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path, linked):
    real = tmp_path / "real"
    demo(real)
    (real / linked).rename(tmp_path / "elsewhere")
    (real / linked).symlink_to(tmp_path / "elsewhere")
    store = Store(real)
    with pytest.raises(Failure):
        store.open("demo")
    with pytest.raises(Failure):
        store.delete("demo")
    assert any((tmp_path / "elsewhere").iterdir())


def test_a_linked_manifest_is_neither_read_nor_deleted_through(store, tmp_path):
    demo(tmp_path)
    manifest_path(tmp_path, "other").parent.mkdir(parents=True)
    manifest_path(tmp_path, "other").symlink_to(manifest_path(tmp_path))
    with pytest.raises(BadFile):
        store.open("other")
    store.delete("other")
    assert store.open("demo")


def test_the_store_itself_may_be_reached_through_a_link(tmp_path):
    demo(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Store(tmp_path / "link").open("demo").name.short == "demo:latest"


@pytest.mark.parametrize("name", ["../../../etc/passwd", "..", "a/../../b", "/etc/passwd", "m:../../x", "", "a\0b"])
def test_no_operation_takes_a_name_that_is_a_path(store, tmp_path, name):
    demo(tmp_path)
    for act in (store.open, store.delete, lambda name: store.copy(name, "x"), lambda name: store.copy("demo", name)):
        with pytest.raises(InvalidName):
            act(name)
    assert [model.name.short for model in store.list()] == ["demo:latest"]


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "../manifests/x", "", "sha256:" + "a" * 63])
def test_no_operation_takes_a_digest_that_is_a_path(store, digest):
    for act in (store.blob_path, store.has_blob):
        with pytest.raises(InvalidDigest):
            act(digest)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0"])
def test_the_folder_itself_takes_single_components_only(tmp_path, name):
    folder = Folder(tmp_path)
    for act in (
        lambda: folder.read(name, limit=1),
        lambda: folder.read(name, "x", limit=1),
        lambda: folder.write("a", name, data=b""),
        lambda: folder.remove("a", name),
    ):
        with pytest.raises(ValueError, match="not a single path component"):
            act()
