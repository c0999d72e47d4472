"""Looking at media: files decoded and prepared in threads, once for each picture however often it is shown."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from ..errors import BadModel, BadRequest, Busy
from ..memory.images import Image, ImageCache, key_of, parameters
from ..pictures import open_frames, open_picture
from ..plugin import Encoder, Prepared, Rows
from .messages import Generate, Media, Sight
from .spans import Span, spans_of

THREADS = 2  # that decode: they have Python's own work to do, and leave the cores to what computes
# Between the look at a picture and the reply about it a prompt is composed. Meanwhile the picture stays, whatever the
# cache has room for: the latest one for certain, and others within so many bytes. Some looks no reply follows.
LOOKED_S = 60.0
LOOKED_BYTES = 256 << 20
WAITING_BYTES = 1 << 30  # of pictures that requests wait with, beyond what the cache may keep
UNLOADED = "the model was unloaded before its images were read"

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(eq=False)
class _Look:
    """A look that no reply has followed yet."""

    image: Image
    timer: asyncio.TimerHandle | None = None  # that will forget it


class Viewer:
    """The way of one model's media into its image cache. Belongs to an event loop."""

    def __init__(self, encoder: Encoder, images: ImageCache, placeholder: int) -> None:
        """placeholder: the token id that stands for a row."""
        self._encoder, self._images, self._placeholder = encoder, images, placeholder
        self._processors = {kind: kind.encode() + parameters(encoder.config) for kind in ("image", "video")}
        self._threads = ThreadPoolExecutor(THREADS, "puna-images")
        self._looks: dict[bytes, asyncio.Task[Image]] = {}
        self._looked: deque[_Look] = deque()  # the latest last
        self._closed = False

    async def look(self, media: Media) -> Sight:
        """Return what stands for media in a prompt.

        Raises BadRequest for what the model cannot read, Busy if too many pictures wait, or the model is unloaded.
        """
        image = await self._shown(await self._key(media), media)
        self._remember(image)
        parts = [part if isinstance(part, str) else part.tokens for part in image.prepared.parts]
        return Sight(parts, self._placeholder)

    async def place(self, request: Generate, held: AsyncExitStack) -> list[Span]:
        """Return the spans of a request's media; their images stay until `held` is closed.

        Raises BadRequest if the prompt has not as many rows for an image as it has.
        """
        spans: list[Span] = []
        for placed in request.media:
            image = await self._looked_at(placed.media)
            self._images.hold(image)
            held.callback(self._images.release, image)
            expected = [part.tokens for part in image.prepared.parts if isinstance(part, Rows)]
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
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _key(self, media: Media) -> bytes:
        return await self._threaded(key_of, media.frames, self._processors[media.kind])

    async def _threaded(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what a thread makes of it. Raises Busy if the viewer is closed meanwhile."""
        if self._closed:
            raise Busy(UNLOADED)
        coming = self._threads.submit(work, *args, **kwargs)
        try:
            return await asyncio.wrap_future(coming)
        except asyncio.CancelledError:
            if self._closed and coming.cancelled():
                raise Busy(UNLOADED) from None
            raise

    async def _shown(self, key: bytes, media: Media) -> Image:
        """Return an image that a request shows, and count that."""
        image, looking = self._images.find(key), self._looks.get(key)
        self._images.count(known=image is not None or looking is not None)
        if image is not None:
            return image
        if looking is None:  # of two requests with the same new picture one looks, for both
            looking = self._looks[key] = asyncio.get_running_loop().create_task(self._new(key, media))
            looking.add_done_callback(partial(self._done, key))
        return await asyncio.shield(looking)

    async def _looked_at(self, media: Media) -> Image:
        """Return an image that is to be read now; who looked at it before has been counted."""
        key = await self._key(media)
        look = next((look for look in self._looked if look.image.key == key), None)
        if look is None:
            return await self._shown(key, media)
        self._forget(look)
        return look.image

    def _remember(self, image: Image) -> None:
        """Have an image until a reply about it begins, within limits."""
        look = _Look(image)
        look.timer = asyncio.get_running_loop().call_later(LOOKED_S, self._forget, look)
        self._looked.append(look)
        while len(self._looked) > 1 and self._waiting_bytes() > LOOKED_BYTES:
            self._forget(self._looked[0])

    def _waiting_bytes(self) -> int:
        return sum(image.nbytes for image in {look.image for look in self._looked})

    def _forget(self, look: _Look) -> None:
        self._looked.remove(look)
        if look.timer is not None:
            look.timer.cancel()  # which would have the image until then

    def _done(self, key: bytes, task: asyncio.Task[Image]) -> None:
        del self._looks[key]
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits for it any more

    async def _new(self, key: bytes, media: Media) -> Image:
        if self._images.alive_bytes > self._images.limit + WAITING_BYTES:
            raise Busy("too many images wait to be read: try again later")
        return self._images.add(key, await self._threaded(self._prepare, media))

    def _prepare(self, media: Media) -> Prepared:
        if not media.frames or (len(media.frames) > 1 and not media.video):
            raise BadRequest(f"media of {len(media.frames)} files, expected one image or the frames of a video")
        encoder = self._encoder
        if media.video:
            prepared = encoder.prepare_video(open_frames(media.frames))
        else:
            prepared = encoder.prepare(open_picture(media.frames[0]))
        rows = [part for part in prepared.parts if isinstance(part, Rows)]
        atomic = max((part.count for part in rows if part.atomic or part.both_ways), default=0)
        if atomic > encoder.most_atomic:  # steps and caches have room for so many
            raise BadModel(f"an image has {atomic} atomic rows; its encoder's most_atomic says {encoder.most_atomic}")
        beside = sum(part.count for part in rows if part.beside)
        if beside > encoder.most_beside:
            raise BadModel(f"an image has {beside} rows beside the text; its encoder says {encoder.most_beside}")
        return prepared
