"""Reads a tokenizer from the side files of a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from ...core.decoding import MALFORMED
from ...core.errors import BadFile, BadModel
from ...core.keys import Keys
from ...core.tensor.source import WeightSource
from .huggingface import Parts, bos_eos, build, parse
from .tokenizer import TextTokenizer
from .vocabulary import check_ids

_SETTINGS = "tokenizer_config.json"


def open_tokenizer(source: WeightSource) -> TextTokenizer:
    """Return the tokenizer of a checkpoint; see `puna.text.tokenizers.open_tokenizer`."""
    parts = read_parts(source)
    return build(parts, parse(parts))


def read_parts(source: WeightSource) -> Parts:
    """Return what a checkpoint says of its tokenizer. Raises BadModel."""
    data = source.side_file("tokenizer.json")
    if data is None:
        raise BadModel("the checkpoint has no tokenizer.json")
    settings = _read_json(source, _SETTINGS)
    return Parts(
        data,
        _names(source, settings),
        Keys(settings, origin=_SETTINGS),
        partial(_named_ends, source),
        _vocab_size(source.metadata),
    )


def read_bos_eos(source: WeightSource) -> tuple[str, str]:
    """Return the texts of two tokens; see `puna.text.tokenizers.read_bos_eos`."""
    return bos_eos(_names(source, _read_json(source, _SETTINGS)))


def _names(source: WeightSource, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens that have a role, by its name. settings: the file that has the last word."""
    return {**_read_json(source, "special_tokens_map.json"), **settings}


def _read_json(source: WeightSource, name: str) -> dict[str, Any]:
    """Return a side file's object; {} if there is no such file."""
    try:
        return msgspec.json.decode(source.side_file(name) or b"{}", type=dict[str, Any])
    except MALFORMED as error:
        raise BadFile(name, str(error)) from error


def _named_ends(source: WeightSource, size: int) -> set[int]:
    """Return the ids under `eos_token_id`, a number or a list, in generation_config.json and config.json."""
    ends: set[int] = set()
    for origin, settings in (
        ("generation_config.json", _read_json(source, "generation_config.json")),
        ("config.json", source.metadata),
        ("config.json: text_config", source.metadata.get("text_config") or {}),
    ):
        value = settings.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        ends.update(check_ids(Keys(settings, origin=origin), "eos_token_id", listed, size=size))
    return ends


def _vocab_size(config: Mapping[str, Any]) -> int:
    """Return the rows of the embedding; 0 if config.json leaves them to the architecture's default."""
    keys = Keys(config, origin="config.json")
    return (keys.section("text_config") or keys).integer("vocab_size", 0, low=0)
