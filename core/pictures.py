"""Pictures: image files decoded, upright and in three colours, and what processors do with them.

Resizing is Pillow's, on 8-bit colours, as in the reference processors: filters that widen with the reduction, so that
nothing of the picture is left out.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadRequest

Filter = Literal["bilinear", "bicubic"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
LARGEST_FILE = 100 << 20  # bytes
MOST_PIXELS = 64 << 20  # 192 MB decoded; a picture of 16,384 patches of 28 x 28 has 13 million
LONGEST_SIDE = 1 << 16

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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
    if len(data) > LARGEST_FILE:
        raise BadRequest(f"an image of {len(data)} bytes is too large; at most {LARGEST_FILE} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in files, some of which would be raised as errors
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size)
                return Picture(_in_colour(ImageOps.exif_transpose(image)))
    except BadRequest:
        raise
    except UnidentifiedImageError:
        raise BadRequest("an image is in no format that is read: " + ", ".join(FORMATS)) from None
    except Exception as error:  # decoders of damaged files raise what they like
        raise BadRequest(f"an image cannot be decoded: {error}") from None


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadRequest(f"an image of {width} x {height} pixels shows nothing")
    if width * height > MOST_PIXELS or max(size) > LONGEST_SIDE:
        raise BadRequest(
            f"an image of {width} x {height} pixels is too large; at most {MOST_PIXELS} pixels are read, "
            f"{LONGEST_SIDE} of them in a row"
        )


def _in_colour(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, on white where it is transparent."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        image = _in_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _in_grey(image: Image.Image) -> Image.Image:
    """Return a picture of 16 or more bits in 8; Pillow would cut off what is above 255."""
    numbers = np.asarray(image, np.float64)
    top = 65535.0 if image.mode.startswith("I") else 255.0
    return Image.fromarray(np.clip(np.rint(numbers * (255.0 / top)), 0, 255).astype(np.uint8))
