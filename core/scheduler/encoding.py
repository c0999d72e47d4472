"""Encoding images between steps, a slice at a time, so that nobody who is growing waits for a whole one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from ..errors import BadModel
from ..memory.images import Image, ImageCache
from ..plugin import Array, Encoder, Rows


class Encoding:
    """The images of one engine that are being encoded. Only its thread uses it."""

    def __init__(self, encoder: Encoder, images: ImageCache, width: int) -> None:
        """width: of the decoder's embeddings."""
        self._encoder, self._images, self._width = encoder, images, width * (1 + encoder.deeper)
        self._batch: list[Image] = []
        self._work: Generator[None, None, Sequence[Array]] | None = None

    def advance(self, wanted: Sequence[Image]) -> None:
        """Do a slice of work for images that are not encoded, those first that are wanted first.

        What is begun is finished first, unless nobody wants it any more. Raises BadModel if the encoder returns
        something else than the rows that it promised; whatever it raises, the images are those of `begun`.
        """
        if not any(image in wanted for image in self._batch):
            self.stop()
        if self._work is None:
            self._batch = list(wanted[: max(1, self._encoder.together)])
            self._work = self._encoder.encode([image.prepared for image in self._batch])
        try:
            next(self._work)
        except StopIteration as finished:
            self._take(finished.value)
            self.stop()

    @property
    def begun(self) -> list[Image]:
        """The images that are being encoded."""
        return self._batch

    def stop(self) -> None:
        """Let go of what is begun."""
        if self._work is not None:
            self._work.close()
        self._batch, self._work = [], None

    def _take(self, found: Any) -> None:
        if not isinstance(found, list | tuple) or len(found) != len(self._batch):
            raise BadModel(f"an encoder of {len(self._batch)} images returned {type(found).__name__}, expected as many")
        for image, rows in zip(self._batch, found, strict=True):
            expected = sum(part.count for part in image.prepared.parts if isinstance(part, Rows))
            if np.shape(rows) != (expected, self._width):
                shape = (expected, self._width)
                raise BadModel(f"an encoder returned rows {np.shape(rows)} for an image, expected {shape}")
            self._images.fill(image, np.ascontiguousarray(rows, np.float32))
