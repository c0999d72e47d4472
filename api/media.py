"""The images and videos of a request: from base64 or a data URL, or fetched, within what one request may hold."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence

import anyio.to_thread

from ..core.errors import BadRequest, Unsupported
from ..core.pictures import LARGEST_FILE
from ..core.scheduler.messages import Media
from .fetching import Fetcher

MOST_FILES = 256  # images of one request, each frame of a video for one
MOST_BYTES = LARGEST_FILE  # of all of them

# The media type may be missing; whatever it says, what counts is what the bytes are.
_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
# Frames as image files, their base64 with commas between: so servers of open models take videos without a file format.
_FRAMES_URL = re.compile(r"data:video/(?:jpeg|png|webp);base64,", re.IGNORECASE)
_LINE_BREAKS = {ord("\r"): None, ord("\n"): None}
_WHOLE_GROUPS = re.compile(r"(?:[A-Za-z0-9+/]{4})*+")
_LETTER = re.compile(r"[A-Za-z0-9+/]")


class MediaReader:
    """Reads the images of one request, and counts them."""

    def __init__(self, fetcher: Fetcher, *, most_bytes: int = MOST_BYTES) -> None:
        """fetcher: gets images that the request only names. most_bytes: what all images may have together."""
        self._fetcher = fetcher
        self._files, self._left = 0, most_bytes

    async def images(self, texts: Sequence[str] | None) -> list[Media]:
        """Return the images in a field `images`: base64, or data URLs. Raises BadRequest."""
        return [Media([await self._decoded(text, _behind_header(text))]) for text in texts or ()]

    async def image(self, url: str) -> Media:
        """Return the image at a data URL, or at another one if the operator lets the server fetch it. BadRequest."""
        return Media([await self._at(url)])

    async def video(self, urls: Sequence[str]) -> Media:
        """Return the video whose frames are at these URLs. Raises BadRequest."""
        return Media([await self._at(url) for url in urls], video=True)

    async def video_at(self, url: str) -> Media:
        """Return the video whose frames a data URL holds. Raises BadRequest, Unsupported for files of videos."""
        match = _FRAMES_URL.match(url)
        if match is None:
            raise Unsupported("a video is read by its frames: a list of images, or a data URL of type video/jpeg")
        return Media([await self._decoded(text, 0) for text in url[match.end() :].split(",", MOST_FILES)], video=True)

    async def _at(self, url: str) -> bytes:
        if url[:8].lower().startswith(("http://", "https://")):
            self._count_file()
            return self._counted(await self._fetcher.fetch(url, self._left))
        start = _behind_header(url)
        if not start:
            raise BadRequest("invalid image input")
        return await self._decoded(url, start)

    async def _decoded(self, text: str, start: int) -> bytes:
        self._count_file()
        return self._counted(await anyio.to_thread.run_sync(decode_base64, text, start))

    def _count_file(self) -> None:
        self._files += 1
        if self._files > MOST_FILES:
            raise BadRequest(f"a request has more than {MOST_FILES} images")

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise BadRequest(f"the images of a request are too large by {-self._left} bytes")
        return data


def decode_base64(text: str, start: int = 0) -> bytes:
    """Return the bytes that text holds from start on. Line breaks do not count; anything else must be standard base64.

    Raises BadRequest, in the words of Go's decoder, with the place of the first byte that is wrong, line breaks aside.
    """
    letters = text[start:].translate(_LINE_BREAKS) if "\n" in text or "\r" in text else text[start:]
    try:
        data = binascii.a2b_base64(letters, strict_mode=True)
        right = len(letters) % 4 == 0 and len(data) == len(letters) // 4 * 3 - letters[-2:].count("=")
    except ValueError:  # binascii.Error, and what it says about letters that are not ASCII
        right = False
    if not right:  # also superfluous padding, which it takes in places
        raise BadRequest(f"illegal base64 data at input byte {_first_wrong(letters)}")
    return data


def _first_wrong(letters: str) -> int:
    """Return the place that Go's decoder names: the first illegal letter, or the group of four that is incomplete."""
    groups = _WHOLE_GROUPS.match(letters)
    assert groups is not None
    at = groups.end()
    rest = letters[at : at + 4]
    valid = next((place for place, letter in enumerate(rest) if not _LETTER.match(letter)), None)
    if valid is None:
        return at
    if rest[valid] != "=" or valid < 2:
        return at + valid
    if valid == 2 and rest[3:] != "=":  # of two the second is missing, or something else
        return at + len(rest) if len(rest) == 3 else at + 2
    return at + 4  # there is more behind the end


def _behind_header(text: str) -> int:
    """Return where the base64 of a data URL begins; 0 if it is none."""
    match = _DATA_URL.match(text)
    return match.end() if match else 0
