"""Models with a draft, as they are made."""

import pytest

from puna.core.errors import BadRequest
from puna.store import Digest, ModelNotFound, Store, gather, show
from puna.store.modelfile import parse

from .test_create import CHECKPOINT, IMAGE, QUANTISED, blob_count, create, files, manifest, quantised, upload, written


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def kinds(store: Store, name: str = "mine") -> list[str]:
    return [layer["mediaType"].removeprefix(IMAGE) for layer in manifest(store, name)["layers"]]


def test_a_draft_is_stored_beside_the_model(store, tmp_path):
    small = written(tmp_path / "small.gguf")
    statuses = quantised(store, draft_files=files(store, small))
    assert statuses.count("parsing GGUF") == 2
    assert kinds(store) == ["model", "draft"]
    model = store.open("mine")
    assert {name: path.read_bytes() for name, path in model.drafts.items()} == {"draft.gguf": small.read_bytes()}
    assert list(model.weights) == ["model.gguf"]
    assert model.details.families == ["llama"]
    assert show(model).draft_info["llama.context_length"] == 64
    assert show(model).model_info["llama.context_length"] != 64
    quantised(store)
    assert show(store.open("mine")).draft_info is None


def test_a_draft_may_be_a_checkpoint(store):
    quantised(store, draft_files=files(store, *CHECKPOINT.iterdir()))
    model = store.open("mine")
    assert set(model.drafts) == {path.name for path in CHECKPOINT.iterdir()}
    assert show(model).draft_info["general.architecture"] == "llama"


def test_a_draft_is_inherited_until_another_takes_its_place(store, tmp_path):
    one, two = written(tmp_path / "one.gguf"), written(tmp_path / "two.gguf", tensors=("token_embd.weight", "b"))
    quantised(store, model="base", draft_files=files(store, one))
    create(store, **{"from": "base"}, draft_files={})
    assert store.open("mine").drafts == store.open("base").drafts
    create(store, **{"from": "base"}, draft_files=files(store, two))
    assert [path.read_bytes() for path in store.open("mine").drafts.values()] == [two.read_bytes()]


def test_a_model_can_be_the_draft_of_another(store, tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    written(splits / "m.gguf", tensors=("token_embd.weight", "b"), split_max_tensors=1)
    create(store, model="small", files=files(store, *splits.iterdir()), system="not taken", license="nor this")
    quantised(store, draft="SMALL")
    assert kinds(store) == ["model", "draft", "draft"]
    assert [layer.get("from") for layer in manifest(store)["layers"]] == [None, "small:latest", "small:latest"]
    model = store.open("mine")
    assert model.drafts == store.open("small").weights
    assert model.details.parent_model == ""


def test_a_draft_belongs_to_every_model_that_uses_it(store, tmp_path):
    small = written(tmp_path / "small.gguf")
    create(store, model="small", files=files(store, small))
    quantised(store, draft="small")
    store.copy("mine", "copy")
    store.delete("small")
    store.delete("mine")
    assert store.prune(grace_s=-1) == []
    assert [path.read_bytes() for path in store.open("copy").drafts.values()] == [small.read_bytes()]
    store.delete("copy")
    assert blob_count(store) == 0


@pytest.mark.parametrize("draft", ["one file", "a folder"])
def test_the_modelfile_that_show_writes_keeps_the_draft(store, tmp_path, draft):
    paths = [written(tmp_path / "small.gguf")] if draft == "one file" else CHECKPOINT.iterdir()
    quantised(store, draft_files=files(store, *paths))
    first = store.open("mine")
    gathered = gather(parse(show(first).modelfile), tmp_path)
    list(store.create(gathered.request("again", {path: Digest.of(path.read_bytes()) for path in gathered.paths})))
    again = store.open("again")
    assert (list(again.weights.values()), again.drafts) == (list(first.weights.values()), first.drafts)


def test_a_draft_that_is_no_model_is_refused(store, tmp_path):
    quantised(store, model="base")
    projector = written(tmp_path / "mmproj.gguf", arch="clip", tensors=("v",))
    missing = str(Digest.of(b"nowhere"))
    for fields, problem in (
        ({"draft_files": files(store, QUANTISED, projector)}, "^draft: the files hold a projector"),
        ({"draft_files": files(store, projector)}, "^draft: the files hold 0 models"),
        ({"draft_files": {"d.gguf": missing}}, f"^draft: file 'd.gguf': blob {missing} was not uploaded$"),
        ({"draft_files": {"d.gguf": upload(store, b"GGUF")}}, r"^draft: d\.gguf"),
        ({"draft_files": files(store, QUANTISED), "draft": "base"}, "both 'draft' and 'draft_files'"),
        ({"draft": "no such"}, "invalid model name"),
    ):
        with pytest.raises(BadRequest, match=problem):
            create(store, **{"from": "base"}, **fields)
    with pytest.raises(ModelNotFound, match=r"^model 'nobody' not found$"):
        create(store, **{"from": "base"}, draft="nobody")
    assert [model.name.model for model in store.list()] == ["base"]
