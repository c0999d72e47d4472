"""What the rest of Puna sees of a loaded model, wherever it runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import RunnerDied
from .messages import Finished, Generate, Media, Piece, Sight
from .stats import EngineStats


@dataclass(frozen=True)
class RunnerFacts:
    """What a runner knows about itself once its model is loaded."""

    architecture: str
    context_length: int  # tokens the model was trained for
    vocabulary: int
    weight_bytes: int  # the draft's included
    media: frozenset[str] = frozenset()  # kinds of media it reads: "image", "video"
    image_marker: str = ""  # what the model's own chat template writes where an image belongs


class Runner(Protocol):
    """A loaded model that serves replies."""

    @property
    def facts(self) -> RunnerFacts:
        """What was loaded."""

    @property
    def memory_bytes(self) -> int:
        """Bytes it holds now: weights, caches and buffers."""

    @property
    def stats(self) -> EngineStats:
        """What it has done, and what it holds now."""

    @property
    def death(self) -> RunnerDied | None:
        """Why it can serve nobody any more, without having been closed; None while it can."""

    async def tokenize(self, text: str, *, special: bool = True, start: bool = True) -> list[int]:
        """Return the token ids of text; see `puna.core.protocols.Tokenizer.encode`."""

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, control tokens written out. Raises BadRequest for ids outside the vocabulary."""

    async def look(self, media: Media) -> Sight:
        """Return what stands for media in a prompt. What is found out, and for a while the media, is kept.

        Raises BadRequest for what is no image, too large, or of a kind that the model does not read.
        """

    def generate(self, request: Generate) -> AsyncGenerator[Piece | Finished, None]:
        """Yield the reply's pieces and, last, a Finished. Closing the generator cancels the reply and frees its slot.

        Raises BadRequest, ContextTooLong, BadModel or RunnerDied; before the first piece or between two.
        """

    async def close(self) -> None:
        """End every reply and give all memory back."""
