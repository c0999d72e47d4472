"""Tokenizers: text to token ids and back, for GGUF files and for Hugging Face checkpoints.

The splitting and merging is the `tokenizers` library's; what is ours is how a tokenizer is read from a GGUF file's
metadata, the rule that untrusted text never becomes a control token, and exact incremental decoding.
"""

from __future__ import annotations

from ...core.collection import no_collection
from ...core.tensor.source import WeightSource
from . import checkpoint, metadata
from .exporting import tokenizer_keys
from .tokenizer import TextTokenizer

__all__ = ["TextTokenizer", "open_tokenizer", "read_bos_eos", "tokenizer_keys"]


def open_tokenizer(source: WeightSource, *, pre: str | None = None) -> TextTokenizer:
    """Return the tokenizer of a model. Takes up to a second for the largest vocabularies: keep it off event loops.

    pre: the split pattern that the architecture prescribes, by its GGUF name ("tekken", "llama4"), for files that name
    none: some converters wrote "default" for every pattern they did not recognise. A pattern that the file names wins.

    Raises BadModel (BadFile for a side file) naming the key that is missing or absurd, and Unsupported for a
    tokenizer of a family that is not built in.
    """
    with no_collection():
        if source.kind == "gguf":
            return metadata.open_tokenizer(source.metadata, pre=pre)
        return checkpoint.open_tokenizer(source)


def read_bos_eos(source: WeightSource) -> tuple[str, str]:
    """Return the texts of the tokens that begin and end a sequence; "" for one that the model does not have.

    They are `bos_token` and `eos_token` of the tokenizer, which is not opened for them. Raises BadModel as it would.
    """
    if source.kind == "gguf":
        return metadata.read_bos_eos(source.metadata)
    return checkpoint.read_bos_eos(source)
