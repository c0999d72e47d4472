"""What a reply consists of: the request for it, its pieces, its end.

Every message is a msgspec struct, so it crosses a socket as MessagePack (`wire.py`) and a function call as it is. A
`Generate` is answered with `Piece`s and then exactly one `Finished` or `Failed`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..errors import BadRequest, ContextTooLong
from ..tensor.sampling import SamplingParams

VERSION = 1  # of everything that crosses a socket

FinishReason = Literal["stop", "length", "cancelled"]
FailureKind = Literal["bad_request", "bad_model", "internal"]


def cut(prompt: list[int], *, limit: int, keep: int) -> list[int]:
    """Return the first keep tokens and as many of the last as fit in limit; keep below 0 means as many as can be."""
    if len(prompt) <= limit:
        return prompt
    head = limit - 1 if keep < 0 else min(keep, limit - 1)
    return prompt[:head] + prompt[len(prompt) - (limit - head) :]


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """Start one reply. A prompt that is too long is cut at once, so that nobody has to hold or send what is not read.

    Raises BadRequest for numbers below the least that has a meaning, ContextTooLong for a prompt that must not be cut.
    """

    prompt: list[int]
    sampling: SamplingParams = SamplingParams()
    stop: list[str] = []
    max_tokens: int | None = None  # None: until the model stops or the context ends the reply
    num_ctx: int  # tokens this reply may hold, prompt included
    num_keep: int = 4  # leading tokens that survive truncation and shifting
    num_batch: int | None = None  # prompt tokens of this reply per step; None: the engine's limit
    truncate: bool = True  # a prompt that is too long: cut its middle, or refuse it
    shift: bool = True  # a reply that fills the context: drop the middle and go on, or stop
    guess: int | None = None  # most tokens to guess ahead in one step; 0: none; None: as many as pay
    schema: str | None = None  # the text of a JSON Schema that the reply must follow; None: it is free
    logprobs: int | None = None  # None: none; k: the token's own log probability and the k likeliest
    client: str = ""  # who asks: places are dealt out evenly among clients
    truncated: int = 0  # tokens that were cut from the prompt

    def __post_init__(self) -> None:
        for name, low in (("num_ctx", 1), ("num_batch", 1), ("max_tokens", 1), ("logprobs", 0), ("guess", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise BadRequest(f"{name} is {value}: expected a whole number from {low}")
        if (excess := len(self.prompt) - self.num_ctx) > 0:
            if not self.truncate:
                raise ContextTooLong(tokens=len(self.prompt), limit=self.num_ctx)
            msgspec.structs.force_setattr(self, "prompt", cut(self.prompt, limit=self.num_ctx, keep=self.num_keep))
            msgspec.structs.force_setattr(self, "truncated", self.truncated + excess)


class TokenLogprob(msgspec.Struct, frozen=True):
    """One candidate: natural logarithm of its softmax over the raw logits."""

    token: int
    text: str
    data: bytes  # the token's bytes, which need not be UTF-8
    logprob: float


class SampledLogprob(msgspec.Struct, frozen=True):
    """A sampled token and the likeliest candidates at its place."""

    chosen: TokenLogprob
    top: list[TokenLogprob] = []


class Piece(msgspec.Struct, frozen=True, tag=True):
    """Text that became final, in order. Its tokens may be several, or none if only held-back text came free."""

    text: str
    tokens: list[int] = []
    logprobs: list[SampledLogprob] = []


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The last message of a reply that ended as it should. Durations in nanoseconds."""

    reason: FinishReason
    prompt_tokens: int  # after truncation
    prompt_ns: int  # from admission until the first token was sampled
    tokens: int  # sampled, the end token included
    decode_ns: int  # since the first token
    truncated: int = 0  # prompt tokens that were cut
    shifted: int = 0  # tokens dropped to make room while generating
    cached_tokens: int = 0  # of the prompt, that the cache had already
    queue_ns: int = 0  # until the first token of the prompt was computed; part of prompt_ns
    guessed: int = 0  # tokens that were guessed ahead, ...
    accepted: int = 0  # and how many of those came true
    preempted: int = 0  # times the reply was set aside and computed again, for want of memory


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The last message of a reply that could not be finished."""

    kind: FailureKind
    message: str


Event = Piece | Finished | Failed
