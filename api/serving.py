"""From a model's name to the events of its reply. The APIs differ only in how they word the two ends of this way."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, aclosing

from ..core.errors import Busy, Unsupported
from ..core.scheduler.messages import Finished, Generate, Piece
from ..core.scheduler.models import Models
from ..core.scheduler.runner import Runner
from ..core.settings import Settings
from ..store import Options, Store, unknown_options
from ..text.conversation import Part
from .asking import Wish
from .composing import Composed, Composer
from .fetching import Fetcher
from .library import Library, Model
from .media import MediaReader
from .prompts import Prompt
from .replies import Ended, Events

log = logging.getLogger("puna.api")

MAX_CONTEXTS = 10  # a reply may be this many times as long as the context, whatever num_predict says


class Serving:
    """What every endpoint needs: the store, the loaded models, and the way from one to the other."""

    def __init__(self, settings: Settings, store: Store, models: Models) -> None:
        self.settings, self.store, self.models = settings, store, models
        self.library = Library(store)
        self._fetcher = Fetcher(settings.remote_media)

    def context_length(self, runner: Runner | None, wanted: int | None = None) -> int:
        """Return how many tokens a request may hold, prompt included."""
        wanted = wanted or self.settings.context_length
        return min(wanted, runner.facts.context_length) if runner else wanted

    async def open(self, name: str) -> Model:
        """Return the model called name. Raises InvalidName, ModelNotFound, BadModel."""
        return await self.library.open(name)

    def media(self) -> MediaReader:
        """Return what reads the images of one request."""
        return MediaReader(self._fetcher)

    async def check_sight(self, model: Model, name: str) -> None:
        """Raise Unsupported if a model has no encoder of images. name: what the request calls it."""
        if not await self.library.sees(model.stored):
            raise Unsupported(f'"{name}" cannot read images')

    async def load(self, model: Model, wish: Wish) -> Events:
        """Make sure that the model is loaded. Raises what loading raises, and WrongType for bad options."""
        _options(model, wish)
        async with self._lease(model, wish):
            yield Ended(reason="load")

    async def unload(self, model: Model) -> Events:
        """Unload the model, now or when its last request ends."""
        await self.models.unload(model.files.key)
        yield Ended(reason="unload")

    async def render(self, model: Model, wish: Wish, prompt: Prompt) -> list[Part]:
        """Return what the model would read."""
        options = _options(model, wish)
        async with self._lease(model, wish) as runner:
            return await prompt.parts(_composer(runner, model), self.context_length(runner, options.num_ctx))

    async def reply(self, model: Model, wish: Wish, prompt: Prompt, *, with_context: bool = False) -> Events:
        """Yield the reply to prompt. with_context: the end carries the tokens of prompt and answer.

        Raises BadRequest, Busy, BadModel or RunnerDied, before the first event or between two.
        """
        options = _options(model, wish)
        async with self._lease(model, wish) as runner:
            load_ns = time.monotonic_ns() - wish.arrived_ns
            composer = _composer(runner, model)
            parts = await prompt.parts(composer, self.context_length(runner, options.num_ctx))
            order = self._order(runner, await composer.compose(parts), options, wish)
            answer: list[str] = []
            async with aclosing(runner.generate(order)) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        answer.append(event.text)
                        yield event
                    else:
                        finished = event
            if finished.reason == "cancelled":  # the client still listens, so it was not the client who left
                raise Busy("the server is shutting down")
            context = await _context(runner, parts, answer) if with_context else ()
            yield _ended(finished, context, load_ns, wish)

    def _lease(self, model: Model, wish: Wish) -> AbstractAsyncContextManager[Runner]:
        return self.models.lease(model.files, name=model.stored.name.short, keep_alive=wish.keep_alive)

    def _order(self, runner: Runner, prompt: Composed, options: Options, wish: Wish) -> Generate:
        """Return what to ask of the runner."""
        num_ctx = self.context_length(runner, options.num_ctx)
        keep = len(prompt.tokens) if options.num_keep < 0 else options.num_keep
        longest = MAX_CONTEXTS * num_ctx
        return Generate(
            prompt=prompt.tokens,
            media=prompt.media,
            sampling=options.sampling(),
            stop=list(options.stop),
            max_tokens=min(options.num_predict or longest, longest),
            num_ctx=num_ctx,
            num_keep=min(keep, num_ctx - 1),
            num_batch=options.num_batch,
            truncate=wish.truncate,
            shift=wish.shift,
            guess=options.draft_num_predict,
            schema=wish.schema,
            logprobs=wish.logprobs,
            client=wish.client,
        )


def _options(model: Model, wish: Wish) -> Options:
    for name in unknown_options(wish.options):
        log.warning("option %r does not exist and is ignored", name)
    return Options.merge(Options(), model.params, wish.options)


def _composer(runner: Runner, model: Model) -> Composer:
    return Composer(runner, model.stored.name.short)


async def _context(runner: Runner, prompt: Sequence[Part], answer: Sequence[str]) -> tuple[int, ...]:
    """Return the tokens of the texts in prompt and answer; images do not go into a context."""
    text = "".join(part for part in [*prompt, *answer] if isinstance(part, str))
    return tuple(await runner.tokenize(text, special=True, start=False))


def _ended(finished: Finished, context: tuple[int, ...], load_ns: int, wish: Wish) -> Ended:
    return Ended(
        reason=finished.reason,
        finished=finished,
        context=context,
        load_ns=load_ns,
        total_ns=time.monotonic_ns() - wish.arrived_ns,
    )
