"""The image cache: what became of pictures, found by their contents.

An entry that somebody holds, or whose rows still lie in the key/value cache, is pinned; of the others the one used
longest ago goes first. What has no room among the pinned is not kept: it lives as long as somebody has it, and is found
until then.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..plugin import Prepared

Floats = npt.NDArray[np.float32]


class ImageStats(msgspec.Struct, frozen=True):
    """What the cache has done, and what it holds now."""

    hits: int = 0  # pictures of requests that were known, ...
    misses: int = 0  # ... and that were not
    prepared: int = 0  # pictures decoded and made ready
    encoded: int = 0
    evicted: int = 0
    entries: int = 0
    pinned: int = 0
    nbytes: int = 0


@dataclass(eq=False)
class Image:
    """One picture, or video. Its key never changes, nor do its parts; pixels give way to rows."""

    key: bytes
    prepared: Prepared
    rows: Floats | None = None  # [rows, D], once it is encoded
    holders: int = 0
    names: set[bytes] = field(default_factory=set)  # of blocks of the key/value cache that end behind its last row

    @property
    def nbytes(self) -> int:
        """Bytes of pixels and rows."""
        return self.prepared.pixels.nbytes + (0 if self.rows is None else self.rows.nbytes)


def key_of(frames: Sequence[bytes], processor: bytes) -> bytes:
    """Return what tells an image, as one model's processor sees it, from all others. processor: its parameters."""
    digest = hashlib.sha256(processor)
    for frame in frames:
        digest.update(hashlib.sha256(frame).digest())
    return digest.digest()


class ImageCache:
    """The pictures of one model. Safe to use from several threads."""

    def __init__(self, limit: int, resident: Callable[[bytes], bool]) -> None:
        """limit: bytes. resident: whether the key/value cache has a block of that name."""
        self.limit, self._resident = limit, resident
        self._images: OrderedDict[bytes, Image] = OrderedDict()  # those used longest ago first
        self._alive: weakref.WeakValueDictionary[bytes, Image] = weakref.WeakValueDictionary()  # kept or not
        self._lock = threading.RLock()
        self._hits = self._misses = self._prepared = self._encoded = self._evicted = 0

    @property
    def stats(self) -> ImageStats:
        """What was done, and what is held now."""
        with self._lock:
            return ImageStats(
                self._hits,
                self._misses,
                self._prepared,
                self._encoded,
                self._evicted,
                len(self._images),
                sum(self._pinned(image) for image in self._images.values()),
                self._nbytes(),
            )

    @property
    def alive_bytes(self) -> int:
        """Bytes of all images that anybody has, kept here or not."""
        with self._lock:
            return sum(image.nbytes for image in self._alive.values())

    def find(self, key: bytes) -> Image | None:
        """Return the image of that key; None if it is not known."""
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._alive.get(key)

    def count(self, *, known: bool) -> None:
        """Note that a request has shown a picture."""
        with self._lock:
            self._hits += known
            self._misses += not known

    def add(self, key: bytes, prepared: Prepared) -> Image:
        """Return a new image, or the one of that key if another thread was faster."""
        with self._lock:
            self._prepared += 1
            image = self._alive.get(key) or Image(key, prepared)
            self._alive[key] = image
            self._keep(image)
            return image

    def hold(self, image: Image) -> None:
        """Pin an image, once more."""
        with self._lock:
            image.holders += 1
            self._keep(image)

    def release(self, image: Image) -> None:
        """Hold an image once less."""
        with self._lock:
            image.holders -= 1

    def fill(self, image: Image, rows: Floats) -> None:
        """Give an image its rows; its pixels are not needed any more."""
        with self._lock:
            self._encoded += 1
            image.rows = rows
            image.prepared = Prepared(image.prepared.pixels[:0].copy(), image.prepared.parts, image.prepared.grid)
            self._keep(image)

    def note(self, image: Image, name: bytes) -> None:
        """Remember that a block of that name follows from the image."""
        with self._lock:
            image.names = {known for known in image.names if self._resident(known)} | {name}

    def _keep(self, image: Image) -> None:
        """Keep an image if there is room for it, when others have gone that need not stay."""
        self._images.pop(image.key, None)
        self._make_room(image.nbytes)
        if self._nbytes() + image.nbytes <= self.limit:
            self._images[image.key] = image

    def _make_room(self, nbytes: int) -> None:
        excess = self._nbytes() + nbytes - self.limit
        for image in list(self._images.values()):
            if excess <= 0:
                return
            if not self._pinned(image):
                del self._images[image.key]
                self._evicted += 1
                excess -= image.nbytes

    def _pinned(self, image: Image) -> bool:
        return image.holders > 0 or any(self._resident(name) for name in image.names)

    def _nbytes(self) -> int:
        return sum(image.nbytes for image in self._images.values())


def parameters(config: Any) -> bytes:
    """Return a config as bytes, equal for equal configs only."""
    return type(config).__name__.encode() + b"\0" + repr(config).encode()
