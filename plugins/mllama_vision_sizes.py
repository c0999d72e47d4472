"""The sizes of Llama 3.2's encoder of images, and how its processor prepares pictures: GGUF files and checkpoints.

Source: the reference code and the processor of Llama 3.2 Vision, as published by Meta.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from ..core.plugin import Keys
from .mllama_pictures import canvases
from .mllama_sizes import MOST_LAYERS, numbered_layers

LARGEST_SIDE = 1 << 14  # pixels, far above any encoder's
MOST_TILES = 64
EIGHT = 8  # the rows of a tile are filled up to a multiple of it: the encoder was trained to see what they become
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of all published models

Colours = tuple[float, float, float]


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of encoder and projector, and how pictures are prepared."""

    layers: int
    global_layers: int  # of the second encoder, which comes behind the first
    taken: tuple[int, ...]  # layers of the first whose input goes to the projector, beside the second's output
    hidden: int  # D
    inner: int  # width of the MLP
    heads: int  # H
    side: int  # pixels of a tile's
    patch: int  # pixels of a patch's side
    most_tiles: int
    eps: float
    output: int  # width of the decoder
    open_gates: bool  # whether files hold what gates let through, and not what it is the hyperbolic tangent of
    mean: Colours = MEAN
    deviation: Colours = DEVIATION

    @property
    def places(self) -> int:
        """P: the class token and the patches of a tile."""
        return (self.side // self.patch) ** 2 + 1

    @property
    def filling(self) -> int:
        """Rows of zeros behind those of a tile."""
        return -self.places % EIGHT

    @property
    def canvases(self) -> int:
        """Entries in tables of positions: a canvas each, and one that stands for none."""
        return len(canvases(self.most_tiles)) + 1

    @property
    def tile_table(self) -> int:
        """Numbers of an entry with a row for each tile."""
        return self.most_tiles * self.hidden

    @property
    def place_table(self) -> int:
        """Numbers of an entry with a row for each place of each tile."""
        return self.most_tiles * self.places * self.hidden

    @property
    def features(self) -> int:
        """Width of what the projector gets."""
        return (1 + len(self.taken)) * self.hidden

    @classmethod
    def from_gguf(cls, keys: Keys) -> VisionConfig | None:
        """Read `mllama.vision.*`, as Ollama writes it; what pictures are prepared with is only in files of Puna's."""
        if "vision.block_count" not in keys:
            return None
        keys.integer("vision.num_channels", 3, low=3, high=3)
        hidden, count = keys.integer("vision.embedding_length"), keys.integer("vision.block_count", high=MOST_LAYERS)
        side, patch = _tile(keys, "vision.image_size", "vision.patch_size")
        return cls(
            layers=count,
            global_layers=keys.integer("vision.global.block_count", high=MOST_LAYERS),
            taken=numbered_layers(keys, "vision.intermediate_layers_indices", count),
            hidden=hidden,
            inner=keys.integer("vision.feed_forward_length"),
            heads=keys.divisor("vision.attention.head_count", of=hidden),
            side=side,
            patch=patch,
            most_tiles=keys.integer("vision.max_num_tiles", high=MOST_TILES),
            eps=keys.number("vision.attention.layer_norm_epsilon", 1e-5, low=0.0, high=1.0),
            output=keys.integer("embedding_length"),
            open_gates=True,
            mean=_colours(keys, "vision.image_mean", MEAN),
            deviation=_colours(keys, "vision.image_std", DEVIATION, low=1e-3),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `mllama.vision.*`."""
        return {
            "vision.block_count": self.layers,
            "vision.global.block_count": self.global_layers,
            "vision.intermediate_layers_indices": list(self.taken),
            "vision.embedding_length": self.hidden,
            "vision.feed_forward_length": self.inner,
            "vision.attention.head_count": self.heads,
            "vision.attention.layer_norm_epsilon": self.eps,
            "vision.image_size": self.side,
            "vision.patch_size": self.patch,
            "vision.max_num_tiles": self.most_tiles,
            "vision.num_channels": 3,
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
        hidden, count = eye.integer("hidden_size", 1280), eye.integer("num_hidden_layers", 32, high=MOST_LAYERS)
        side, patch = _tile(eye, "image_size", "patch_size")
        tiles = eye.integer("max_num_tiles", 4, high=MOST_TILES)
        taken = numbered_layers(eye, "intermediate_layers_indices", count)
        width = (1 + len(taken)) * hidden
        eye.integer("vision_output_dim", width, low=width, high=width)
        _expect_usual(processor, side, tiles)
        _expect_all_canvases(eye, tiles)
        return cls(
            layers=count,
            global_layers=eye.integer("num_global_layers", 8, high=MOST_LAYERS),
            taken=taken,
            hidden=hidden,
            inner=eye.integer("intermediate_size", 5120),
            heads=eye.divisor("attention_heads" if "attention_heads" in eye else "num_attention_heads", of=hidden),
            side=side,
            patch=patch,
            most_tiles=tiles,
            eps=eye.number("norm_eps", 1e-5, low=0.0, high=1.0),
            output=text.integer("hidden_size"),
            open_gates=False,
            mean=_colours(processor, "image_mean", MEAN),
            deviation=_colours(processor, "image_std", DEVIATION, low=1e-3),
        )


def _tile(keys: Keys, side: str, patch: str) -> tuple[int, int]:
    """Return the pixels of a tile's side and of a patch's."""
    small = keys.integer(patch, 14)
    large = keys.integer(side, 560, low=small, high=LARGEST_SIDE)
    if large % small:
        raise keys.wrong(side, f"a multiple of {small}, the side of a patch")
    return large, small


def _expect_usual(processor: Keys, side: int, tiles: int) -> None:
    """Raise BadModel for a processor that does something else than the published ones."""
    size = processor.section("size") or Keys({})
    for name in ("height", "width"):
        size.integer(name, side, low=side, high=side)
    processor.integer("max_image_tiles", tiles, low=tiles, high=tiles)
    processor.integer("resample", 2, low=2, high=2)  # bilinear


def _expect_all_canvases(eye: Keys, tiles: int) -> None:
    """Raise BadModel unless tables of positions are for all canvases of so many tiles, in the processor's order."""
    given = [tuple(pair) if isinstance(pair, list) else pair for pair in eye.list("supported_aspect_ratios")]
    if given and given != canvases(tiles):
        raise eye.wrong("supported_aspect_ratios", f"all canvases of up to {tiles} tiles, in order")


def _colours(keys: Keys, name: str, default: Colours, low: float = 0.0) -> Colours:
    """Return a number for red, for green and for blue."""
    given = keys.list(name)
    if len(given) == 0:
        return default
    if len(given) != 3 or not all(isinstance(n, int | float | np.floating) and low <= n <= 1.0 for n in given):
        raise keys.wrong(name, f"three numbers from {low} to 1")
    red, green, blue = map(float, given)
    return red, green, blue
