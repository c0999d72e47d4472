"""The sizes of Llama 4's encoder, and how its processor prepares pictures, read from GGUF files and checkpoints.

Source: the reference code and the processor of Llama 4, as published by Meta.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..core.plugin import Keys
from ..core.tensor import rope_base_from_hf

LARGEST_SIDE = 1 << 10  # pixels, far above any encoder's
MOST_LAYERS = 1 << 12
MOST_TILES = 16  # besides the one of the whole, where the files do not say
LIMIT = 256  # tiles, whatever they say
MOST_PIXELS = 1 << 25  # of all tiles: they take 400 MB
GREY = (0.5, 0.5, 0.5)  # mean and deviation of colours from 0 to 1, unless a file has others


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of encoder, adapter and projector, and how pictures are prepared."""

    layers: int
    hidden: int  # D
    inner: int  # width of the MLP
    heads: int  # H
    side: int  # pixels of a tile's
    patch: int  # pixels of a patch's side
    merge: int  # patches along the side of a square that becomes one row
    eps: float
    rope_base: float
    adapter: int | None  # width of the adapter; None: as the tensors have it
    output: int  # width of the decoder
    most_tiles: int = MOST_TILES
    mean: tuple[float, ...] = GREY
    deviation: tuple[float, ...] = GREY

    @property
    def across(self) -> int:
        """Patches along a tile's side."""
        return self.side // self.patch

    @property
    def places(self) -> int:
        """P + 1: the patches of a tile and the class token."""
        return self.across**2 + 1

    @property
    def numbers(self) -> int:
        """Numbers of a patch."""
        return 3 * self.patch**2

    @property
    def square(self) -> int:
        """Numbers of the patches that become one row."""
        return self.hidden * self.merge**2

    @property
    def rows(self) -> int:
        """Rows of embeddings that a tile becomes."""
        return (self.across // self.merge) ** 2

    @classmethod
    def from_gguf(cls, keys: Keys) -> VisionConfig | None:
        """Read `clip.vision.*` of a file for the encoder alone, or `llama4.vision.*` of one that holds everything."""
        alone = "clip.vision.block_count" in keys
        at = "clip.vision." if alone else "vision."
        if f"{at}block_count" not in keys:
            return None
        if alone:
            name = "clip.projector_type" if "clip.projector_type" in keys else "clip.vision.projector_type"
            keys.text(name, allowed=("llama4",))
            if not keys.flag("clip.use_gelu", False):
                raise keys.wrong("clip.use_gelu", "true: the encoder has no other activation")
        keys.integer(f"{at}num_channels", 3, low=3, high=3)
        hidden = keys.integer(f"{at}embedding_length")
        side, patch = _tile(keys, f"{at}image_size", f"{at}patch_size")
        eps = f"{at}attention.layer_norm_epsilon" if alone else f"{at}layer_norm_epsilon"
        return cls(
            layers=keys.integer(f"{at}block_count", high=MOST_LAYERS),
            hidden=hidden,
            inner=keys.integer(f"{at}feed_forward_length"),
            heads=_heads(keys, f"{at}attention.head_count", hidden),
            side=side,
            patch=patch,
            merge=_merge_from_gguf(keys, side // patch, alone=alone),
            eps=keys.number(eps, 1e-5, low=0.0, high=1.0),
            rope_base=keys.number(f"{at}rope.freq_base", 10000.0, low=1.0001),
            adapter=None,
            output=keys.integer("embedding_length"),
            most_tiles=_most_tiles(keys, f"{at}max_num_tiles", side),
            mean=keys.numbers(f"{at}image_mean", GREY, low=0.0, high=1.0),
            deviation=keys.numbers(f"{at}image_std", GREY, low=1e-3, high=1.0),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `vision.*`. The number of tiles only Puna reads."""
        return {
            "vision.block_count": self.layers,
            "vision.embedding_length": self.hidden,
            "vision.feed_forward_length": self.inner,
            "vision.attention.head_count": self.heads,
            "vision.layer_norm_epsilon": self.eps,
            "vision.num_channels": 3,
            "vision.image_size": self.side,
            "vision.patch_size": self.patch,
            "vision.pixel_shuffle_ratio": 1 / self.merge,
            "vision.rope.freq_base": self.rope_base,
            "vision.max_num_tiles": self.most_tiles,
            "vision.image_mean": list(self.mean),
            "vision.image_std": list(self.deviation),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> VisionConfig | None:
        """Read the section `vision_config` and the processor's file."""
        eye = keys.section("vision_config")
        if eye is None:
            return None
        text, processor = keys.section("text_config") or Keys({}), keys.section("preprocessor") or Keys({})
        eye.text("hidden_act", "gelu", allowed=("gelu",))
        eye.integer("num_channels", 3, low=3, high=3)
        hidden, (side, patch) = eye.integer("hidden_size", 768), _tile(eye, "image_size", "patch_size")
        adapter = eye.integer("projector_output_dim", 4096)
        for name in ("projector_input_dim", "vision_output_dim"):  # its second layer goes from it to it
            eye.integer(name, adapter, low=adapter, high=adapter)
        _expect_usual(processor, side)
        return cls(
            layers=eye.integer("num_hidden_layers", 34, high=MOST_LAYERS),
            hidden=hidden,
            inner=eye.integer("intermediate_size", 5632),
            heads=_heads(eye, "num_attention_heads", hidden),
            side=side,
            patch=patch,
            merge=_merge(eye, "pixel_shuffle_ratio", side // patch),
            eps=eye.number("norm_eps", 1e-5, low=0.0, high=1.0),
            rope_base=rope_base_from_hf(eye),
            adapter=adapter,
            output=text.integer("hidden_size"),
            most_tiles=_most_tiles(processor, "max_patches", side),
            mean=processor.numbers("image_mean", GREY, low=0.0, high=1.0),
            deviation=processor.numbers("image_std", GREY, low=1e-3, high=1.0),
        )


def _tile(keys: Keys, side: str, patch: str) -> tuple[int, int]:
    """Return the pixels of a tile's side and of a patch's."""
    small = keys.integer(patch, 14)
    large = keys.integer(side, 336, low=small, high=LARGEST_SIDE)
    if large % small:
        raise keys.wrong(side, f"a multiple of {small}, the side of a patch")
    return large, small


def _most_tiles(keys: Keys, name: str, side: int) -> int:
    """Return how many tiles a picture becomes at most, besides the one of the whole."""
    return keys.integer(name, MOST_TILES, high=min(LIMIT, MOST_PIXELS // side**2 - 1))


def _heads(keys: Keys, name: str, hidden: int) -> int:
    """Return H, into which D divides so that half of each head's pairs can turn by the column, half by the row."""
    found = keys.integer(name, 16)
    if hidden % (4 * found):
        raise keys.wrong(name, f"a divisor of {hidden} / 4")
    return found


def _merge(keys: Keys, name: str, across: int) -> int:
    """Return how many patches one row stands for along a side, from a ratio."""
    merge = round(1 / keys.number(name, 0.5, low=1 / LARGEST_SIDE, high=1.0))
    if across % merge:
        raise keys.wrong(name, f"one over a divisor of {across}, the patches along a tile's side")
    return merge


def _merge_from_gguf(keys: Keys, across: int, *, alone: bool) -> int:
    """Return the same, which a file for the encoder alone gives outright."""
    if not alone:
        return _merge(keys, "vision.pixel_shuffle_ratio", across)
    name = "clip.vision.projector.scale_factor"
    found = keys.integer(name, 2)
    if across % found:
        raise keys.wrong(name, f"a divisor of {across}, the patches along a tile's side")
    return found


def _expect_usual(processor: Keys, side: int) -> None:
    """Raise BadModel for a processor that does something else than the published ones."""
    if processor.flag("resize_to_max_canvas", False):
        raise processor.wrong("resize_to_max_canvas", "false: no published model fills its tiles so")
    size = processor.section("size") or Keys({})
    for name in ("height", "width"):
        size.integer(name, side, low=side, high=side)
