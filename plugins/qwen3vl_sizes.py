"""Qwen 3 VL: the sizes of the encoder, and how it wants pictures, from each kind of file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from ..core.plugin import BadModel, Keys
from .qwen3vl_pictures import PAIR

LEAST, MOST = 1 << 16, 1 << 24  # pixels of an image, as in the files of the published processors
LIMIT = 1 << 24  # pixels of one image or of all pairs of frames, whatever else is said: its patches take 400 MB
GREY = (0.5, 0.5, 0.5)  # mean and deviation of colours from 0 to 1, unless a file has others
MOST_LAYERS = 1 << 12  # far above any encoder
SIDE, LARGEST_SIDE = 48, 1 << 12  # learned positions along a side of their grid, in published models and at most
DEEP = (8, 16, 24)  # layers whose outputs the decoder gets too, if the config is silent


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of one encoder, and how it wants pictures."""

    layers: int
    hidden: int  # D
    inner: int | None  # width of the MLP; None: as the tensors have it
    heads: int  # H
    patch: int  # pixels along a patch's side
    merge: int  # patches along a unit's side
    side: int  # learned positions along a side of their grid
    deep: tuple[int, ...]  # layers whose outputs go to layers of the decoder, to the first one first
    eps: float
    rope_base: float
    output: int  # width of the text model's embeddings
    limits: tuple[int, int]  # least and most pixels of an image
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def head_size(self) -> int:
        """E."""
        return self.hidden // self.heads

    @property
    def unit(self) -> int:
        """Numbers of a unit's patches."""
        return self.hidden * self.merge**2

    @property
    def places(self) -> int:
        """Learned positions."""
        return self.side**2

    @property
    def colours(self) -> int:
        """Kernels, each of one colour."""
        return 3 * self.hidden

    @classmethod
    def from_gguf(cls, keys: Keys) -> VisionConfig | None:
        """Read `clip.vision.*`, which comes with a file for the encoder alone, or `vision.*`."""
        alone = "clip.vision.block_count" in keys
        at = "clip.vision." if alone else "vision."
        if f"{at}block_count" not in keys:
            return None
        if alone:
            _expect_merger(keys)
        keys.integer(f"{at}num_channels", 3, low=3, high=3)
        keys.integer(f"{at}temporal_patch_size", PAIR, low=PAIR, high=PAIR)
        count, hidden = keys.integer(f"{at}block_count", high=MOST_LAYERS), keys.integer(f"{at}embedding_length")
        patch = keys.integer(f"{at}patch_size", 16)
        limits = ("image_min_pixels", "image_max_pixels") if alone else ("shortest_edge", "longest_edge")
        deep = _flagged(keys, count) if alone else _listed(keys, "vision.deepstack_visual_indexes", count)
        return cls(
            layers=count,
            hidden=hidden,
            inner=keys.integer(name) if (name := f"{at}feed_forward_length") in keys else None,
            heads=_heads(keys, f"{at}attention.head_count", hidden),
            patch=patch,
            merge=keys.integer(f"{at}spatial_merge_size", 2),
            side=_side_in_pixels(keys, patch) if alone else _side(keys, "vision.num_positional_embeddings"),
            deep=_expected(keys, deep, keys.integer("block_count")),
            eps=keys.number(f"{at}attention.layer_norm_epsilon", 1e-6, low=0.0, high=1.0),
            rope_base=keys.number(f"{at}rope.freq_base", 10000.0, low=1.0001),
            output=keys.integer("embedding_length"),
            limits=_limits(keys, *(at + limit for limit in limits)),
            mean=_colours(keys, f"{at}image_mean"),
            std=_colours(keys, f"{at}image_std"),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `vision.*`, and how many of its layers the decoder is to expect."""
        return {
            "n_deepstack_layers": len(self.deep),
            "vision.block_count": self.layers,
            "vision.embedding_length": self.hidden,
            **({} if self.inner is None else {"vision.feed_forward_length": self.inner}),
            "vision.attention.head_count": self.heads,
            "vision.attention.layer_norm_epsilon": self.eps,
            "vision.num_channels": 3,
            "vision.patch_size": self.patch,
            "vision.spatial_merge_size": self.merge,
            "vision.temporal_patch_size": PAIR,
            "vision.num_positional_embeddings": self.places,
            **({"vision.deepstack_visual_indexes": list(self.deep)} if self.deep else {}),
            "vision.rope.freq_base": self.rope_base,
            "vision.shortest_edge": self.limits[0],
            "vision.longest_edge": self.limits[1],
            "vision.image_mean": list(self.mean),
            "vision.image_std": list(self.std),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> VisionConfig | None:
        """Read config.json and preprocessor_config.json."""
        eye = keys.section("vision_config")
        if eye is None:
            return None
        text = keys.section("text_config") or keys
        output = text.integer("hidden_size")
        processor = keys.section("preprocessor") or Keys({}, origin="preprocessor_config.json")
        count, hidden = eye.integer("depth", 27, high=MOST_LAYERS), eye.integer("hidden_size", 1152)
        eye.text("hidden_act", "gelu_pytorch_tanh", allowed=("gelu_pytorch_tanh",))
        eye.integer("in_channels", 3, low=3, high=3)
        eye.integer("temporal_patch_size", PAIR, low=PAIR, high=PAIR)
        eye.integer("out_hidden_size", output, low=output, high=output)
        deep = _listed(eye, "deepstack_visual_indexes", count, DEEP)
        return cls(
            layers=count,
            hidden=hidden,
            inner=eye.integer("intermediate_size", 4304),
            heads=_heads(eye, "num_heads", hidden),
            patch=eye.integer("patch_size", 16),
            merge=eye.integer("spatial_merge_size", 2),
            side=_side(eye, "num_position_embeddings"),
            deep=_expected(eye, deep, text.integer("num_hidden_layers")),
            eps=1e-6,
            rope_base=10000.0,
            output=output,
            limits=_limits(processor, "min_pixels", "max_pixels"),
            mean=_colours(processor, "image_mean"),
            std=_colours(processor, "image_std"),
        )


def _expect_merger(keys: Keys) -> None:
    """Raise BadModel for the file of another encoder."""
    name = "clip.projector_type" if "clip.projector_type" in keys else "clip.vision.projector_type"
    keys.text(name, allowed=("qwen3vl_merger",))
    output = keys.integer("embedding_length")
    keys.integer("clip.vision.projection_dim", output, low=output, high=output)


def _heads(keys: Keys, name: str, hidden: int) -> int:
    """Return H, into which D divides so that half of each head's pairs can turn by the row, half by the column."""
    found = keys.integer(name, 16)
    if hidden % (4 * found):
        raise keys.wrong(name, f"a divisor of {hidden} / 4")
    return found


def _side(keys: Keys, name: str) -> int:
    """Return the side of the grid of learned positions."""
    places = keys.integer(name, SIDE**2, high=LARGEST_SIDE**2)
    if math.isqrt(places) ** 2 != places:
        raise keys.wrong(name, "a square number, as positions are those of a grid")
    return math.isqrt(places)


def _side_in_pixels(keys: Keys, patch: int) -> int:
    """Return the same from the size of the pictures that the grid was learned with."""
    return keys.integer("clip.vision.image_size", SIDE * patch, low=patch, high=LARGEST_SIDE * patch) // patch


def _listed(keys: Keys, name: str, count: int, default: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the layers, of so many, whose numbers are listed."""
    try:
        found = tuple(map(int, keys.list(name) if name in keys else default))
    except (TypeError, ValueError, OverflowError):
        found = (-1,)
    if any(before >= after for before, after in zip((-1, *found), (*found, count), strict=True)):
        raise keys.wrong(name, f"numbers of layers from 0 to {count - 1}, in rising order")
    return found


def _flagged(keys: Keys, count: int) -> tuple[int, ...]:
    """Return the layers, of so many, from a list that says of each whether it is one."""
    name = "clip.vision.is_deepstack_layers"
    flags = keys.list(name)
    if len(flags) not in (0, count):
        raise keys.wrong(name, f"{count} entries, one for each layer")
    return tuple(number for number, flag in enumerate(flags) if flag)


def _expected(keys: Keys, deep: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Return deep layers. Raises BadModel unless the decoder, which has so many layers, has one for each."""
    if "n_deepstack_layers" in keys:
        keys.integer("n_deepstack_layers", low=len(deep), high=len(deep))
    if len(deep) > layers:
        raise BadModel(f"{len(deep)} layers of the encoder go to layers of the decoder, which has {layers}")
    return deep


def _limits(keys: Keys, least: str, most: str) -> tuple[int, int]:
    """Return the least and most pixels of an image, which processors call edges."""
    edges = keys.section("size") or Keys({})
    found = min(keys.integer(most, edges.integer("longest_edge", MOST)), LIMIT)
    return keys.integer(least, edges.integer("shortest_edge", min(LEAST, found)), high=found), found


def _colours(keys: Keys, name: str) -> tuple[float, ...]:
    """Return a number for red, green and blue."""
    listed = keys.list(name)
    if len(listed) == 0:
        return GREY
    try:
        found = tuple(map(float, listed))
    except (TypeError, ValueError, OverflowError):
        found = ()
    if len(found) != 3 or not all(0.0 < number < math.inf for number in found):
        raise keys.wrong(name, "three positive numbers")
    return found
