"""How text is cut before byte-level BPE merges: the patterns behind the names in `tokenizer.ggml.pre`.

The patterns are those of the published tokenizer.json files, in the syntax of the tokenizers library (Oniguruma), not
llama.cpp's rewritings: these lose the case of letters outside ASCII and combining marks. Which families share a
pattern is llama.cpp's knowledge (llama-vocab.cpp).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ...core.errors import BadModel

log = logging.getLogger(__name__)

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"

# Words of mixed case are cut where lower case meets upper; letters without case count as both.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAPITALISED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SYMBOLS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACE}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACE}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}"
)
_O200K = rf"{_CAPITALISED}{_CONTRACTION}?|{_CAPITALS}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SYMBOLS_SLASH}|{_SPACE}"
_TEKKEN = rf"{_CAPITALISED}|{_CAPITALS}|\p{{N}}|{_SYMBOLS_SLASH}|{_SPACE}"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}"
)


@dataclass(frozen=True)
class Split:
    """How a family cuts text, and what else its name implies."""

    patterns: tuple[str, ...]  # each cuts what the ones before it left whole; matches and gaps are both kept
    ignore_merges: bool = False  # a cut that is in the vocabulary is one token, whatever the merges say
    nfc: bool = False  # text is composed (Unicode NFC) first
    add_bos: bool = False  # for files without tokenizer.ggml.add_bos_token


_PLAIN = Split((GPT2,))
_DIGITS = Split((r"\p{N}", GPT2))
_LLAMA = Split((_LLAMA3,), ignore_merges=True, add_bos=True)
_GPT4 = Split((_LLAMA3,))
_QWEN = Split((_QWEN2,), nfc=True)
_GPT4O = Split((_O200K,), ignore_merges=True)

SPLITS = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "jais", "phi-2", "mellum", "granite-docling"), _PLAIN),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _GPT4),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN),
    **dict.fromkeys(("stablelm2", "hunyuan", "megrez", "grok-2"), Split((_QWEN2,))),
    "qwen35": Split((_QWEN35,), nfc=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "tekken": Split((_TEKKEN,), ignore_merges=True, add_bos=True),
    "deepseek-llm": Split(
        # Cased letters stand for the published list of their ranges, which predates a few scripts.
        (
            r"[\r\n]",
            r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Split((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3))),
    "falcon": Split((r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]")),
}


def find_split(name: str, *, fallback: str | None) -> Split:
    """Return the split called name in a GGUF file; an unknown name is logged and treated as fallback or "default".

    fallback also replaces "default" itself, which converters write for patterns they do not know. Raises BadModel if
    fallback is not known either.
    """
    if name in SPLITS and name != "default":
        return SPLITS[name]
    chosen = fallback or "default"
    if chosen not in SPLITS:
        raise BadModel(f"the architecture names the split pattern {chosen!r}, expected one of {', '.join(SPLITS)}")
    if name != "default":
        log.warning("tokenizer.ggml.pre is %r, which is not known: text is split as for %r", name, chosen)
    return SPLITS[chosen]
