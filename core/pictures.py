"""Pictures: image files decoded, upright and in three colours, and what processors do with them.

Resizing is Pillow's, on 8-bit colours, as in the reference processors: filters that widen with the reduction, so that
nothing of the picture is left out.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .errors import BadRequest
from .image_files import MOST_PIXELS, check_file, check_size, orientation

Filter = Literal["bilinear", "bicubic"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # those of them that Pillow has a decoder for
LARGEST_FILE = 100 << 20  # bytes
VIDEO_PIXELS = 2 * MOST_PIXELS  # of all frames, which are in memory together, at three bytes each

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BAND = 256  # rows that are converted at a time, so that a large picture is in memory once and not three times
_TURNS = {  # EXIF's orientations, and how to undo them
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of oddities that files hold. Set once and for all: to do so around each call is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image."""

    image: Image.Image  # mode RGB

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.image.width

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.image.height

    def resized(self, width: int, height: int, filter: Filter) -> Picture:
        """Return the whole picture in another size, whatever that does to its proportions."""
        if (width, height) == self.image.size:
            return self
        return Picture(self.image.resize((width, height), _FILTERS[filter]))

    def cropped(self, left: int, top: int, width: int, height: int) -> Picture:
        """Return a part of the picture. What lies outside of it is black."""
        return Picture(self.image.crop((left, top, left + width, top + height)))

    def centred(self, width: int, height: int, colour: tuple[int, ...]) -> Picture:
        """Return the picture in the middle of a larger ground. colour: red, green and blue, from 0 to 255."""
        ground = Image.new("RGB", (width, height), colour)
        ground.paste(self.image, ((width - self.width) // 2, (height - self.height) // 2))
        return Picture(ground)

    def numbers(self, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
        """Return (colour / 255 - mean) / std, [3, height, width]; mean and std: of red, green and blue."""
        bytes_ = np.asarray(self.image, np.uint8).transpose(2, 0, 1).astype(np.float32)
        middle, spread = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
        found: npt.NDArray[np.float32] = (bytes_ * np.float32(1 / 255) - middle) / spread
        return found


def open_picture(data: bytes) -> Picture:
    """Return the picture in an image file: the first frame, turned upright, on white where it is transparent.

    Raises BadRequest for what is no such file, is damaged, or is too large; that is seen before pixels are decoded.
    """
    with _opened(data) as image:
        return Picture(_upright(_in_colour(image), image))


def open_frames(files: Sequence[bytes]) -> list[Picture]:
    """Return the frames of a video. Raises BadRequest as `open_picture`, and for too many pixels in all."""
    pixels = 0
    for data in files:
        with _opened(data) as image:
            pixels += math.prod(image.size)
        if pixels > VIDEO_PIXELS:
            raise BadRequest(f"the frames of a video have too many pixels; at most {VIDEO_PIXELS} are read in all")
    return [open_picture(data) for data in files]


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image file whose size is sound, for as long as it is read. Turns what goes wrong into BadRequest."""
    if len(data) > LARGEST_FILE:
        raise BadRequest(f"an image of {len(data)} bytes is too large; at most {LARGEST_FILE} are read")
    try:
        check_file(data)
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            check_size(*image.size)
            yield image
    except BadRequest:
        raise
    except UnidentifiedImageError:
        raise BadRequest("an image is damaged, or in no format that is read: " + ", ".join(_formats())) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRequest("an image has too many pixels") from None
    except MemoryError:
        raise BadRequest("there is not enough memory to decode an image") from None
    except Exception:  # decoders of damaged files raise what they like; their words may tell of addresses in memory
        raise BadRequest("an image is damaged: it cannot be decoded") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats that can be decoded here. Pillow does not take the name of one that it does not know."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(picture: Image.Image, file: Image.Image) -> Image.Image:
    """Return the picture turned as its EXIF data say. Of TIFF files Pillow has turned it already."""
    exif = file.info.get("exif")
    turn = _TURNS.get(orientation(exif)) if isinstance(exif, bytes) and file.format != "TIFF" else None
    return picture if turn is None else picture.transpose(turn)


def _in_colour(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, on white where it is transparent."""
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _by_bands(image, _from_numbers)
    if image.has_transparency_data:
        return _by_bands(image, _on_white)
    return image.convert("RGB")  # a copy at least: the file and its decoder may go


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    made = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        made.paste(convert(band), (0, top))
    return made


def _on_white(image: Image.Image) -> Image.Image:
    """Return a transparent picture in RGB."""
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _from_numbers(image: Image.Image) -> Image.Image:
    """Return a picture in 16 bits or more in RGB; Pillow would cut off what is above 255.

    Whole numbers go up to 65535, and fractions, which have no rule, to 255. A number may stand for transparency.
    """
    numbers = np.nan_to_num(np.asarray(image, np.float64))
    top = 255.0 if image.mode == "F" else 65535.0
    if isinstance(clear := image.info.get("transparency"), int):
        numbers[numbers == clear] = top
    grey = np.clip(np.rint(numbers * (255.0 / top)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
