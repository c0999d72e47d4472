"""Reads a tokenizer from the side files of a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from ...core.decoding import MALFORMED
from ...core.errors import BadFile, BadModel, Unsupported
from ...core.keys import Keys
from ...core.tensor.source import WeightSource
from . import pieces as spelling
from .ends import find_ends
from .engine import Engine
from .pieces import Pieces, Spelling, Texts
from .tokenizer import Frame, TextTokenizer
from .vocabulary import check_ids

_SETTINGS = "tokenizer_config.json"
LARGEST_ID = 1 << 22  # sixteen times the largest vocabulary so far; tables are as long as the largest id


class _Layout(msgspec.Struct):
    """The part of a tokenizer.json that the library does not let one ask for."""

    decoder: dict[str, Any] | None = None


def open_tokenizer(source: WeightSource) -> TextTokenizer:
    """Return the tokenizer of a checkpoint; see `puna.text.tokenizers.open_tokenizer`."""
    data = source.side_file("tokenizer.json")
    if data is None:
        raise BadModel("the checkpoint has no tokenizer.json")
    settings = _read_json(source, _SETTINGS)
    names = _names(source, settings)
    tokenizer = _parse(data)
    _make_control(tokenizer, names)
    engine = Engine(tokenizer)
    control = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    pieces = _pieces(tokenizer, control, *_spelling(data))
    bos_token, eos_token = _bos_eos(names)
    vocab_size = _vocab_size(source.metadata)
    ends = _named_ends(source, size=max(len(pieces.texts), vocab_size))
    eos = tokenizer.token_to_id(eos_token)
    return TextTokenizer(
        engine,
        pieces,
        _frame(tokenizer, Keys(settings, origin=_SETTINGS), tokenizer.token_to_id(bos_token), eos),
        stop_ids=find_ends(ends if eos is None else ends | {eos}, control),
        bos_token=bos_token,
        eos_token=eos_token,
        vocab_size=vocab_size,
    )


def read_bos_eos(source: WeightSource) -> tuple[str, str]:
    """Return the texts of two tokens; see `puna.text.tokenizers.read_bos_eos`."""
    return _bos_eos(_names(source, _read_json(source, _SETTINGS)))


def _names(source: WeightSource, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens that have a role, by its name. settings: the file that has the last word."""
    return {**_read_json(source, "special_tokens_map.json"), **settings}


def _bos_eos(names: Mapping[str, Any]) -> tuple[str, str]:
    return _token_text(names, "bos_token"), _token_text(names, "eos_token")


def _parse(data: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing more precise
        raise BadFile("tokenizer.json", str(error)) from error


def _make_control(tokenizer: Tokenizer, names: Mapping[str, Any]) -> None:
    """Make control tokens of the added tokens that have a role, such as Gemma's "boi_token", as transformers does."""
    roles = {name: value for name, value in names.items() if name.endswith("_token")}
    extra = names.get("extra_special_tokens")
    if isinstance(extra, dict):
        roles |= extra
    texts = {_token_text(roles, role) for role in roles}
    known = [token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in known if text in texts])


def _pieces(tokenizer: Tokenizer, control: Mapping[str, int], reading: Spelling, dummy_prefix: bool) -> Pieces:
    by_id = {token: piece for piece, token in tokenizer.get_vocab(with_added_tokens=True).items()}
    if not by_id or max(by_id) > LARGEST_ID:
        raise BadFile("tokenizer.json", f"token ids up to {max(by_id, default=-1)}, expected 0 to {LARGEST_ID} at most")
    if reading is spelling.byte_level:
        for token, added in tokenizer.get_added_tokens_decoder().items():
            by_id[token] = spelling.in_byte_alphabet(added.content)
    ids = range(max(by_id) + 1)
    return Pieces(
        Texts([by_id.get(token, "") for token in ids]),
        reading,
        control=frozenset(control.values()),
        padding=frozenset(token for token in ids if token not in by_id),
        dummy_prefix=dummy_prefix,
    )


def _spelling(data: bytes) -> tuple[Spelling, bool]:
    """Return how the decoder of a tokenizer.json reads pieces, and whether it drops the first space of a text."""
    decoder = msgspec.json.decode(data, type=_Layout).decoder or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    by_type = {step.get("type"): step for step in steps}
    if "ByteLevel" in by_type:
        return spelling.byte_level, False
    if "WordPiece" in by_type:
        return partial(spelling.word_piece, tidy=bool(by_type["WordPiece"].get("cleanup", True))), True
    if "Metaspace" in by_type:
        return spelling.sentencepiece, by_type["Metaspace"].get("prepend_scheme", "always") != "never"
    if "ByteFallback" in by_type:
        return spelling.sentencepiece, by_type.get("Strip", {}).get("start", 0) > 0
    raise Unsupported(f"tokenizer.json has a decoder of type {decoder.get('type')!r}, which is not built in")


def _read_json(source: WeightSource, name: str) -> dict[str, Any]:
    """Return a side file's object; {} if there is no such file."""
    try:
        return msgspec.json.decode(source.side_file(name) or b"{}", type=dict[str, Any])
    except MALFORMED as error:
        raise BadFile(name, str(error)) from error


def _token_text(settings: Mapping[str, Any], name: str) -> str:
    """Return a token that is written as a text, or as an object with its options; "" if it is null or missing."""
    value = settings.get(name)
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _frame(tokenizer: Tokenizer, settings: Keys, bos: int | None, eos: int | None) -> Frame:
    """Return what the post-processor puts around a text, unless tokenizer_config.json says otherwise.

    Llama's tokenizer class builds its post-processor anew from that file, and some tokenizer.json rely on it.
    """
    probe = tokenizer.encode("a")
    text = [i for i, sequence in enumerate(probe.sequence_ids) if sequence is not None]
    before, after = (probe.ids[: text[0]], probe.ids[text[-1] + 1 :]) if text else (probe.ids, [])
    if "add_bos_token" in settings and bos is not None:
        before = [bos] if settings.flag("add_bos_token") else []
    if "add_eos_token" in settings and eos is not None:
        after = [eos] if settings.flag("add_eos_token") else []
    return Frame(before, after)


def _named_ends(source: WeightSource, *, size: int) -> set[int]:
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
