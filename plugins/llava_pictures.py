"""Pictures as LLaVA sees them: squares of one size, or the whole as one and tiles of it.

Sources: CLIP's processor, which scales the shorter side and cuts off the ends of the longer one; Improved Baselines
with Visual Instruction Tuning, arXiv:2310.03744, whose models saw pictures whole, on a ground in the mean colour.
Checkpoints say which of the two it is; GGUF files for the encoder alone are of models that saw pictures whole. Since
LLaVA 1.6 they see tiles as well.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from ..core.plugin import Keys, Picture
from .llava_tiles import Size, best_size, sizes_of, tiles

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
LARGEST_SIDE = 1 << 12  # pixels of a square, far above any encoder's
LONGEST = 8  # times as long as wide: of longer pictures the ends, which are cut off anyway, go first

Colours = tuple[float, float, float]
# The middle of a picture; all of it, on a ground; all of it, distorted; the latter, and tiles of it.
Shape = Literal["crop", "pad", "stretch", "anyres"]


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """How a picture becomes the pixels of a square."""

    side: int  # pixels
    shape: Shape
    edge: int  # pixels of the shorter side before what juts out of the square is cut off
    mean: Colours
    std: Colours
    sizes: tuple[Size, ...] = ()  # of pictures that are cut into tiles

    @classmethod
    def from_gguf(cls, keys: Keys, at: str, side: int) -> Preparation:
        """Read the keys that begin with `at`."""
        sizes = sizes_of(keys, f"{at}image_grid_pinpoints", side, flat=True)
        allowed = ("anyres",) if sizes else tuple(set(get_args(Shape)) - {"anyres"})
        shape: Any = keys.text(f"{at}image_aspect_ratio", "anyres" if sizes else "pad", allowed=sorted(allowed))
        return cls(
            side=side,
            shape=shape,
            edge=keys.integer(f"{at}shortest_edge", side, low=side, high=side if sizes else LARGEST_SIDE),
            mean=_colours(keys, f"{at}image_mean", MEAN),
            std=_colours(keys, f"{at}image_std", STD, low=1e-6),
            sizes=sizes,
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return the same keys, without what they begin with."""
        return {
            "image_size": self.side,
            "image_aspect_ratio": self.shape,
            "shortest_edge": self.edge,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            **({"image_grid_pinpoints": [side for size in self.sizes for side in size]} if self.sizes else {}),
        }

    @classmethod
    def from_hf(cls, processor: Keys, side: int, sizes: tuple[Size, ...] = ()) -> Preparation:
        """Read preprocessor_config.json. sizes: of pictures that are cut into tiles."""
        for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not processor.flag(step, True):
                raise processor.wrong(step, "true: pictures are always prepared as a whole")
        processor.integer("resample", 3, low=3, high=3)  # bicubic
        processor.number("rescale_factor", 1 / 255, low=1 / 255 - 1e-9, high=1 / 255 + 1e-9)
        if any(length != side for length in _sides(processor, "crop_size", side)):
            raise processor.wrong("crop_size", f"{side}, the side of a picture")
        edge, other = _sides(processor, "size", side)
        most = side if sizes else LARGEST_SIDE
        if edge != other or not side <= edge <= most:
            raise processor.wrong("size", f"a length from {side} to {most}")
        return cls(
            side=side,
            shape="anyres" if sizes else _shape(processor),
            edge=edge,
            mean=_colours(processor, "image_mean", MEAN),
            std=_colours(processor, "image_std", STD, low=1e-6),
            sizes=sizes,
        )

    def pixels(self, picture: Picture) -> npt.NDArray[np.float32]:
        """Return what the encoder sees of a picture: the square of it, then its tiles, [1 + tiles, 3, side, side]."""
        size = self.size(picture)
        views = [self.squared(picture), *(() if size is None else tiles(picture, size, self.side))]
        return np.stack([view.numbers(self.mean, self.std) for view in views])

    def size(self, picture: Picture) -> Size | None:
        """Return the size in which a picture is cut into tiles; None if it is not."""
        return best_size(picture, self.sizes) if self.sizes else None

    def squared(self, picture: Picture) -> Picture:
        """Return the square that is seen of a picture."""
        if self.shape == "pad":
            picture = _on_ground(picture, self.mean)
        elif self.shape == "crop":
            picture = _without_ends(picture)
        width = height = self.edge
        if self.shape == "crop":
            shorter = min(picture.width, picture.height)
            width, height = self.edge * picture.width // shorter, self.edge * picture.height // shorter
        left, top = (width - self.side) // 2, (height - self.side) // 2
        return picture.resized(width, height, "bicubic").cropped(left, top, self.side, self.side)


def image_size(keys: Keys, name: str, patch: int, default: int | None = None) -> int:
    """Return the pixels of a square's side, which whole patches fill."""
    found = keys.integer(name, default, low=patch, high=LARGEST_SIDE)
    if found % patch:
        raise keys.wrong(name, f"a multiple of {patch}, the side of a patch")
    return found


def _shape(processor: Keys) -> Shape:
    if processor.flag("do_pad", False):
        return "pad"
    sides = None if processor.holds_number("size") else processor.section("size")
    return "crop" if sides is None or "shortest_edge" in sides else "stretch"


def _sides(processor: Keys, name: str, default: int) -> tuple[int, int]:
    """Return width and height, which older files give as one number, and others as that of the shorter side."""
    if processor.holds_number(name):
        return (processor.integer(name),) * 2
    sides = processor.section(name)
    if sides is None:
        return default, default
    if "shortest_edge" in sides:
        return (sides.integer("shortest_edge"),) * 2
    return sides.integer("width"), sides.integer("height")


def _colours(keys: Keys, name: str, default: Colours, low: float = 0.0) -> Colours:
    """Return a number for red, for green and for blue."""
    given = keys.list(name)
    if len(given) == 0:
        return default
    if len(given) != 3 or not all(isinstance(n, int | float | np.floating) and low <= n <= 1.0 for n in given):
        raise keys.wrong(name, f"three numbers from {low} to 1")
    red, green, blue = map(float, given)
    return red, green, blue


def _on_ground(picture: Picture, mean: Colours) -> Picture:
    """Return a picture in the middle of a square in the mean colour."""
    longer = max(picture.width, picture.height)
    if longer > LARGEST_SIDE:  # a long strip would become a square too large for memory
        width, height = (max(1, side * LARGEST_SIDE // longer) for side in (picture.width, picture.height))
        picture, longer = picture.resized(width, height, "bicubic"), LARGEST_SIDE
    return picture.centred(longer, longer, tuple(int(colour * 255) for colour in mean))


def _without_ends(picture: Picture) -> Picture:
    """Return the middle of a picture that is too long to be scaled as a whole."""
    most = LONGEST * min(picture.width, picture.height)
    width, height = min(picture.width, most), min(picture.height, most)
    if (width, height) == (picture.width, picture.height):
        return picture
    return picture.cropped((picture.width - width) // 2, (picture.height - height) // 2, width, height)
