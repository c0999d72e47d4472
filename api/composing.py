"""Prompts as a runner takes them: token ids, and where among them images stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import Unsupported
from ..core.scheduler.messages import Media, Placed, Sight
from ..core.scheduler.runner import Runner
from ..text.conversation import Part


@dataclass(frozen=True)
class Composed:
    """A prompt: ids, in which a placeholder stands for each row of an image, and the images."""

    tokens: list[int]
    media: list[Placed]


class Composer:
    """Composes the prompts of one request.

    Each of its images is looked at once, and each text tokenized once, however often it is composed and however often
    the same stands between rows of images: a large picture may have a token behind each of its rows.
    """

    def __init__(self, runner: Runner, model: str) -> None:
        """model: its name, for errors."""
        self.runner = runner
        self._model = model
        self._sights: dict[int, Sight] = {}  # by the identity of media, which outlive this object
        self._ids: dict[tuple[str, bool], list[int]] = {}  # by text, and whether it begins the prompt

    async def compose(self, parts: Sequence[Part]) -> Composed:
        """Return the prompt of texts and images.

        What an image has before and after its rows is read as one text with what stands there, as models were trained:
        some have tokens for several newlines at once. Markers of control tokens count wherever they stand, a user's own
        words included: templates write them as text, and the servers whose interface this is do the same. Raises
        Unsupported for images that the model cannot read, BadRequest for those that nobody can.
        """
        tokens: list[int] = []
        media: list[Placed] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            sight, places = await self._look(part), []
            for piece in sight.parts:
                if isinstance(piece, str):
                    text += piece
                    continue
                tokens += await self._tokens(text, first=not tokens)
                text = ""
                places.append((len(tokens), piece))
                tokens += [sight.placeholder] * piece
            media += [Placed(part, places)] if places else []
        return Composed(tokens + await self._tokens(text, first=not tokens), media)

    async def _tokens(self, text: str, *, first: bool) -> list[int]:
        if not text and not first:
            return []
        if (text, first) not in self._ids:
            self._ids[text, first] = await self.runner.tokenize(text, special=True, start=first)
        return self._ids[text, first]

    async def _look(self, media: Media) -> Sight:
        sight = self._sights.get(id(media))
        if sight is None:
            if media.kind not in self.runner.facts.media:
                raise Unsupported(f'"{self._model}" cannot read {media.kind}s')
            sight = self._sights[id(media)] = await self.runner.look(media)
        return sight


def shown(parts: Sequence[Part]) -> tuple[str, int]:
    """Return a prompt as people read it, with `[img-N]` for each image, N from 0, and how many there are."""
    text, images = "", 0
    for part in parts:
        text += part if isinstance(part, str) else f"[img-{images}]"
        images += not isinstance(part, str)
    return text, images
