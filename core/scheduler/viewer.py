"""Looking at media: files decoded and prepared in threads, once for each picture however often it is shown."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

from ..errors import BadRequest
from ..memory.images import Image, ImageCache, key_of, parameters
from ..pictures import open_picture
from ..plugin import Encoder, Prepared, Rows
from .messages import Generate, Media, Sight
from .spans import Span, spans_of

THREADS = 2  # that decode: they have Python's own work to do, and leave the cores to what computes


class Viewer:
    """The way of one model's media into its image cache. Belongs to an event loop."""

    def __init__(self, encoder: Encoder, images: ImageCache, placeholder: int) -> None:
        """placeholder: the token id that stands for a row."""
        self._encoder, self._images, self._placeholder = encoder, images, placeholder
        self._processor = parameters(encoder.config)
        self._threads = ThreadPoolExecutor(THREADS, "puna-images")
        self._looks: dict[bytes, asyncio.Task[Image]] = {}

    async def look(self, media: Media) -> Sight:
        """Return what stands for media in a prompt. Raises BadRequest for what the model cannot read."""
        image = await self._held(media)
        try:
            parts = [part if isinstance(part, str) else part.count for part in image.prepared.parts]
            return Sight(parts, self._placeholder)
        finally:
            self._images.release(image)

    async def place(self, request: Generate, held: AsyncExitStack) -> list[Span]:
        """Return the spans of a request's media; their images stay until `held` is closed.

        Raises BadRequest if the prompt has not as many rows for an image as it has.
        """
        spans: list[Span] = []
        for placed in request.media:
            image = await self._held(placed.media)
            held.callback(self._images.release, image)
            expected = [part.count for part in image.prepared.parts if isinstance(part, Rows)]
            if [count for _, count in placed.at] != expected:
                raise BadRequest(f"an image has rows for {expected} tokens, and the prompt places for {placed.at}")
            spans += spans_of(image, [start for start, _ in placed.at])
        spans.sort(key=lambda span: span.start)
        stops = [0, *(span.stop for span in spans)]
        if any(span.start < stop for span, stop in zip(spans, stops, strict=False)) or stops[-1] > len(request.prompt):
            raise BadRequest("images overlap in the prompt, or lie outside of it")
        return spans

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _held(self, media: Media) -> Image:
        """Return the image, held once more."""
        loop = asyncio.get_running_loop()
        key = await loop.run_in_executor(self._threads, key_of, media.frames, self._processor)
        image = self._images.find(key)
        if image is None:
            if key not in self._looks:  # of two requests with the same new picture one looks, for both
                self._looks[key] = loop.create_task(self._new(key, media))
                self._looks[key].add_done_callback(partial(self._looked, key))
            image = await asyncio.shield(self._looks[key])
        self._images.hold(image)
        return image

    def _looked(self, key: bytes, task: asyncio.Task[Image]) -> None:
        del self._looks[key]
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits for it any more

    async def _new(self, key: bytes, media: Media) -> Image:
        loop = asyncio.get_running_loop()
        return self._images.add(key, await loop.run_in_executor(self._threads, self._prepare, media))

    def _prepare(self, media: Media) -> Prepared:
        frames = [open_picture(frame) for frame in media.frames]
        if not frames:
            raise BadRequest("media without a single frame")
        return self._encoder.prepare(frames[0]) if len(frames) == 1 else self._encoder.prepare_video(frames)
