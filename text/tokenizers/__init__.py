"""Tokenizers: text to token ids and back, for GGUF files and for Hugging Face checkpoints.

The splitting and merging is the `tokenizers` library's; what is ours is how a tokenizer is read from a GGUF file's
metadata, the rule that untrusted text never becomes a control token, and exact incremental decoding.
"""

from __future__ import annotations

from ...core.tensor.source import WeightSource
from .checkpoint import from_checkpoint
from .metadata import from_metadata
from .tokenizer import TextTokenizer

__all__ = ["TextTokenizer", "open_tokenizer"]


def open_tokenizer(source: WeightSource, *, pre: str | None = None) -> TextTokenizer:
    """Return the tokenizer of a model. Takes up to two seconds for the largest vocabularies: keep it off event loops.

    pre: the split pattern that the architecture prescribes, by its GGUF name ("tekken", "llama4"), for files that name
    none: some converters wrote "default" for every pattern they did not recognise. A pattern that the file names wins.

    Raises BadModel (BadFile for a side file) naming the key that is missing or absurd, and Unsupported for a
    tokenizer of a family that is not built in.
    """
    if source.kind == "gguf":
        return from_metadata(source.metadata, pre=pre)
    return from_checkpoint(source)
