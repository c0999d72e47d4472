"""Makes a tokenizer of a whole tokenizer.json, wherever it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from ...core.errors import BadFile, Unsupported
from ...core.keys import Keys
from . import pieces as spelling
from .ends import find_ends
from .engine import Engine
from .pieces import Pieces, Spelling, Texts
from .tokenizer import Frame, TextTokenizer

LARGEST_ID = 1 << 22  # sixteen times the largest vocabulary so far; tables are as long as the largest id


@dataclass(frozen=True)
class Parts:
    """A tokenizer.json, and what else there is to know of the tokenizer."""

    data: bytes
    names: Mapping[str, Any]  # the tokens that have a role, by its name: "bos_token", "eos_token", ...
    settings: Keys  # "add_bos_token" and "add_eos_token" have the last word on what goes around a text
    ends: Callable[[int], Iterable[int]]  # returns the ids that end a reply, if there are so many ids
    vocab_size: int  # rows of the embedding; 0 if that is not known


class _Layout(msgspec.Struct):
    """The part of a tokenizer.json that the library does not let one ask for."""

    decoder: dict[str, Any] | None = None


def parse(parts: Parts) -> Tokenizer:
    """Return the library's tokenizer. Raises BadFile."""
    try:
        tokenizer = Tokenizer.from_buffer(parts.data)
    except Exception as error:  # the library raises nothing more precise
        raise BadFile("tokenizer.json", str(error)) from error
    _make_control(tokenizer, parts.names)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def build(parts: Parts, tokenizer: Tokenizer) -> TextTokenizer:
    """Return the tokenizer of which `parse` returned the library's. Raises BadModel and Unsupported."""
    engine = Engine(tokenizer)
    control = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    pieces = _pieces(tokenizer, control, *_spelling(parts.data))
    bos_token, eos_token = bos_eos(parts.names)
    ends = set(parts.ends(max(len(pieces.texts), parts.vocab_size)))
    eos = tokenizer.token_to_id(eos_token)
    return TextTokenizer(
        engine,
        pieces,
        _frame(tokenizer, parts.settings, tokenizer.token_to_id(bos_token), eos),
        stop_ids=find_ends(ends if eos is None else ends | {eos}, control),
        bos_token=bos_token,
        eos_token=eos_token,
        vocab_size=parts.vocab_size,
    )


def bos_eos(names: Mapping[str, Any]) -> tuple[str, str]:
    """Return the texts of the tokens that begin and end a sequence; "" for one that there is not."""
    return token_text(names, "bos_token"), token_text(names, "eos_token")


def token_text(names: Mapping[str, Any], role: str) -> str:
    """Return a token that is written as a text, or as an object with its options; "" if it is null or missing."""
    value = names.get(role)
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _make_control(tokenizer: Tokenizer, names: Mapping[str, Any]) -> None:
    """Make control tokens of the added tokens that have a role, such as Gemma's "boi_token", as transformers does."""
    roles = {name: value for name, value in names.items() if name.endswith("_token")}
    extra = names.get("extra_special_tokens")
    if isinstance(extra, dict):
        roles |= extra
    texts = {token_text(roles, role) for role in roles}
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
