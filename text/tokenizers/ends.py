"""Which tokens end a reply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Markers that end a turn or a message wherever they are control tokens. A GGUF file names one or two of its end tokens
# and many checkpoints forget some, so a model that emits another would run on.
END_MARKERS = frozenset(
    {
        "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>",
        "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<EOT>", "<|return|>",
        "<|call|>", "<｜end▁of▁sentence｜>",
    }
)  # fmt: skip


def find_ends(named: Iterable[int], control: Mapping[str, int]) -> frozenset[int]:
    """Return the ids that end a reply: those that the file names, and the control tokens known to be end markers."""
    markers = END_MARKERS & control.keys()
    if {"<|return|>", "<|call|>"} <= markers:
        markers -= {"<|end|>"}  # here it only ends one of the several messages in a reply
    return frozenset(named) | {control[marker] for marker in markers}
