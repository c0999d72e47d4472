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


class Media(msgspec.Struct, frozen=True):
    """An image, or a video: its frames, of which each is an image file."""

    frames: list[bytes]
    video: bool = False  # which may have one frame only

    @property
    def kind(self) -> str:
        """What a model has to read for it: "image" or "video"."""
        return "video" if self.video else "image"


class Sight(msgspec.Struct, frozen=True):
    """What stands for media in a prompt: text, control tokens written out, and numbers of rows in place of tokens."""

    parts: list[str | int]
    placeholder: int  # the token id to put in place of each row


class Placed(msgspec.Struct, frozen=True):
    """Media in a prompt."""

    media: Media
    at: list[tuple[int, int]]  # where in the prompt each stretch of its rows begins, and how many rows that has

    @property
    def start(self) -> int:
        """The first token that stands for a row."""
        return self.at[0][0]

    @property
    def stop(self) -> int:
        """The token behind the last that stands for a row."""
        return sum(self.at[-1])

    def moved(self, by: int) -> Placed:
        """Return the same media so many tokens later."""
        return Placed(self.media, [(start + by, count) for start, count in self.at])


def cut(prompt: list[int], media: list[Placed], *, limit: int, keep: int) -> tuple[list[int], list[Placed]]:
    """Return the first keep tokens and as many of the last as fit in limit; keep below 0 means as many as can be.

    Of media nothing is left if a part has to go.
    """
    if len(prompt) <= limit:
        return prompt, media
    start = limit - 1 if keep < 0 else min(keep, limit - 1)
    stop = len(prompt) - (limit - start)
    torn = [placed for placed in media if placed.start < stop and start < placed.stop]
    start, stop = min([start, *(placed.start for placed in torn)]), max([stop, *(placed.stop for placed in torn)])
    before = [placed for placed in media if placed.stop <= start]
    behind = [placed.moved(start - stop) for placed in media if placed.start >= stop]
    return prompt[:start] + prompt[stop:], before + behind


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """Start one reply. A prompt that is too long is cut at once, so that nobody has to hold or send what is not read.

    Raises BadRequest for numbers below the least that has a meaning, ContextTooLong for a prompt that must not be cut.
    """

    prompt: list[int]
    media: list[Placed] = []  # in the order of the prompt
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
        if len(self.prompt) > self.num_ctx:
            if not self.truncate:
                raise ContextTooLong(tokens=len(self.prompt), limit=self.num_ctx)
            prompt, media = cut(self.prompt, self.media, limit=self.num_ctx, keep=self.num_keep)
            if not prompt:
                raise ContextTooLong(tokens=len(self.prompt), limit=self.num_ctx)
            truncated = self.truncated + len(self.prompt) - len(prompt)
            for name, found in (("prompt", prompt), ("media", media), ("truncated", truncated)):
                msgspec.structs.force_setattr(self, name, found)


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
