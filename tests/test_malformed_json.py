"""JSON files that are no UTF-8, or nested without end, are errors that name the file: nothing else breaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from puna.core.errors import BadFile, BadModel
from puna.core.tensor.source import WeightSource
from puna.store import Store, facts
from puna.text.tokenizers import open_tokenizer

NOT_UTF8 = b'{"schemaVersion": 2, "mediaType": "\xff"}'
NESTED = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
SPOILT = pytest.mark.parametrize("data", [NOT_UTF8, NESTED], ids=["not UTF-8", "nested"])

FIXTURE = Path(__file__).parent / "fixtures" / "llama-bpe" / "hf"


def checkpoint(side_files: Mapping[str, bytes]) -> WeightSource:
    source = SimpleNamespace(kind="safetensors", metadata={}, tensors={}, side_file=side_files.get)
    return cast(WeightSource, source)


@SPOILT
def test_a_store_with_a_spoilt_manifest_still_starts_lists_and_deletes_it(tmp_path: Path, data: bytes) -> None:
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "spoilt" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(data)
    store = Store(tmp_path)
    assert list(store.prune()) == []
    assert store.list() == []
    with pytest.raises(BadFile, match="not a valid manifest"):
        store.open("spoilt")
    store.delete("spoilt")
    assert not manifest.exists()


@SPOILT
def test_a_spoilt_side_file_is_named(data: bytes) -> None:
    with pytest.raises(BadModel, match=r"tokenizer_config\.json"):
        facts.chat_template(checkpoint({"tokenizer_config.json": data}))
    tokenizer = (FIXTURE / "tokenizer.json").read_bytes()
    with pytest.raises(BadFile, match=r"generation_config\.json"):
        open_tokenizer(checkpoint({"tokenizer.json": tokenizer, "generation_config.json": data}))


def test_a_chat_template_is_found_beside_one_whose_name_is_no_text() -> None:
    config = b'{"chat_template": [{"name": ["odd"]}, {"name": "default", "template": "{{ messages }}"}]}'
    assert facts.chat_template(checkpoint({"tokenizer_config.json": config})) == "{{ messages }}"
