"""What an engine has done, counted: for `ps`, logs and metrics."""

from __future__ import annotations

import msgspec

from ..memory.images import ImageStats


class EngineStats(msgspec.Struct, kw_only=True):
    """Sums since the model was loaded, and what is so now."""

    steps: int = 0
    step_ns: int = 0  # in the forward pass
    prompt_tokens: int = 0  # computed
    recomputed_tokens: int = 0  # of those, not for the first time: behind a preemption, or a dropped middle
    cached_tokens: int = 0  # of prompts, that need not be computed
    sampled_tokens: int = 0
    guessed_tokens: int = 0  # checked; not those that were computed for nothing because a reply ended
    accepted_tokens: int = 0
    preemptions: int = 0
    finished: int = 0  # replies, whatever ended them
    failed: int = 0
    running: int = 0
    waiting: int = 0
    blocks: int = 0  # of all groups of the key/value cache
    held_blocks: int = 0  # by sequences
    kept_blocks: int = 0  # by nobody, good for whoever begins alike
    held_bytes: int = 0  # of held blocks
    resident_bytes: int = 0  # of blocks that were ever used
    encode_ns: int = 0  # spent on encoding images
    images: ImageStats = ImageStats()
