"""Qwen 2.5 VL: the encoder of images and videos, with its projector.

Source: Qwen2.5-VL Technical Report, arXiv:2502.13923, section 2.1: a vision transformer that takes pictures in their
own resolution, and most of whose layers attend within windows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from ..core.plugin import Array, BadRequest, Encoder, Keys, Matrix, Module, Picture, Prepared, Rows, layers, tensor
from ..core.tensor import (
    Rotation,
    attend_all,
    concat,
    conv_patches,
    gated_mlp,
    grid_rope_table,
    linear,
    mlp,
    project,
    rms_norm,
    rope,
    rotations,
)
from .qwen25vl_pictures import PAIR, Floats, Stretch, fitting_size, patches_of, positions_of, stretches

PIECE = 512  # patches that are computed at once: then others have their turn, and memory stays bounded
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
LEAST, MOST = (
    56 * 56,
    28 * 28 * 1280,
)  # pixels of an image where the files do not say, as the published processor has it
VIDEO_LEAST, VIDEO_MOST = 28 * 28 * 128, 28 * 28 * 768  # pixels of a frame, from the same source
VIDEO_PIXELS = 1 << 23  # that the pairs of frames of a video share
LIMIT = 1 << 24  # pixels of one image or of all pairs, whatever else is said: its patches take 400 MB
FRAMES_A_SECOND = 2.0  # at which the models were shown videos
MOST_LAYERS = 1 << 12


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of one encoder, and how it wants pictures."""

    layers: int
    hidden: int  # D
    inner: int | None  # width of the gated MLP; None: as the tensors have it
    heads: int  # H
    patch: int  # pixels along a patch's side
    merge: int  # patches along a unit's side
    window: int  # units along a window's side
    whole: tuple[int, ...]  # layers that see whole frames
    eps: float
    rope_base: float
    output: int  # width of the text model's embeddings
    ticks: float  # positions that a second of a video takes
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

    @classmethod
    def from_gguf(cls, keys: Keys) -> VisionConfig | None:
        """Read `clip.vision.*`, which comes with a file for the encoder alone, or `vision.*`."""
        alone = "clip.vision.block_count" in keys
        at, limits = ("clip.vision.", "clip.vision.image_") if alone else ("vision.", "vision.")
        if f"{at}block_count" not in keys:
            return None
        count, hidden = keys.integer(f"{at}block_count", high=MOST_LAYERS), keys.integer(f"{at}embedding_length")
        patch, merge = keys.integer(f"{at}patch_size", 14), keys.integer(f"{at}spatial_merge_size", 2)
        output = keys.integer("embedding_length")
        keys.integer(f"{at}num_channels", 3, low=3, high=3)
        keys.integer(f"{at}temporal_patch_size", PAIR, low=PAIR, high=PAIR)
        if alone:
            name = "clip.projector_type" if "clip.projector_type" in keys else "clip.vision.projector_type"
            keys.text(name, allowed=("qwen2.5vl_merger",))
            keys.integer("clip.vision.projection_dim", output, low=output, high=output)
        return cls(
            layers=count,
            hidden=hidden,
            inner=keys.integer(name) if (name := f"{at}feed_forward_length") in keys else None,
            heads=_heads(keys, f"{at}attention.head_count", hidden),
            patch=patch,
            merge=merge,
            window=_window(keys, f"{at}window_size", patch * merge),
            whole=_whole(keys, f"{at}fullatt_block_indexes", count, keys.integer(f"{at}n_wa_pattern", 8)),
            eps=keys.number(f"{at}attention.layer_norm_epsilon", 1e-6, low=0.0, high=1.0),
            rope_base=keys.number(f"{at}rope.freq_base", 10000.0, low=1.0001),
            output=output,
            ticks=keys.number(f"{at}tokens_per_second", 2.0, low=0.0, high=1e4),  # the default of all published models
            limits=_limits(keys, f"{limits}min_pixels", f"{limits}max_pixels"),
            mean=keys.numbers(f"{at}image_mean", MEAN, low=0.0, high=1.0),
            std=keys.numbers(f"{at}image_std", STD, low=1e-3, high=1.0),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `vision.*`. Some are keys that only Puna reads: what a checkpoint says of its processor."""
        return {
            "vision.block_count": self.layers,
            "vision.embedding_length": self.hidden,
            **({} if self.inner is None else {"vision.feed_forward_length": self.inner}),
            "vision.attention.head_count": self.heads,
            "vision.attention.layer_norm_epsilon": self.eps,
            "vision.num_channels": 3,
            "vision.patch_size": self.patch,
            "vision.spatial_patch_size": self.patch,
            "vision.spatial_merge_size": self.merge,
            "vision.temporal_patch_size": PAIR,
            "vision.window_size": self.window * self.patch * self.merge,
            **({"vision.fullatt_block_indexes": list(self.whole)} if self.whole else {}),
            "vision.rope.freq_base": self.rope_base,
            "vision.tokens_per_second": self.ticks,
            "vision.min_pixels": self.limits[0],
            "vision.max_pixels": self.limits[1],
            "vision.image_mean": list(self.mean),
            "vision.image_std": list(self.std),
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> VisionConfig | None:
        """Read config.json and preprocessor_config.json."""
        eye = keys.section("vision_config")
        if eye is None:
            return None
        output = (keys.section("text_config") or keys).integer("hidden_size")
        processor = keys.section("preprocessor") or Keys({}, origin="preprocessor_config.json")
        count, hidden = eye.integer("depth", 32, high=MOST_LAYERS), eye.integer("hidden_size", 3584)
        patch, merge = eye.integer("patch_size", 14), eye.integer("spatial_merge_size", 2)
        eye.text("hidden_act", "silu", allowed=("silu",))
        eye.integer("in_chans" if "in_chans" in eye else "in_channels", 3, low=3, high=3)
        eye.integer("temporal_patch_size", PAIR, low=PAIR, high=PAIR)
        eye.integer("out_hidden_size", output, low=output, high=output)
        return cls(
            layers=count,
            hidden=hidden,
            inner=eye.integer("intermediate_size", 3420),
            heads=_heads(eye, "num_heads", hidden),
            patch=patch,
            merge=merge,
            window=_window(eye, "window_size", patch * merge),
            whole=_whole(eye, "fullatt_block_indexes", count, 8),
            eps=1e-6,
            rope_base=10000.0,
            output=output,
            ticks=eye.number("tokens_per_second", 4.0, low=0.0, high=1e4),
            limits=_limits(processor, "min_pixels", "max_pixels"),
            mean=processor.numbers("image_mean", MEAN, low=0.0, high=1.0),
            std=processor.numbers("image_std", STD, low=1e-3, high=1.0),
        )


def _heads(keys: Keys, name: str, hidden: int) -> int:
    found = keys.integer(name, 16)
    if hidden % found:
        raise keys.wrong(name, f"a divisor of {hidden}")
    return found


def _window(keys: Keys, name: str, unit: int) -> int:
    """Return the units along a window's side. unit: pixels along a unit's."""
    return keys.integer(name, 112, low=unit) // unit


def _whole(keys: Keys, name: str, count: int, every: int) -> tuple[int, ...]:
    """Return the layers that see whole frames: those listed, or each `every`th."""
    listed = keys.list(name)
    if len(listed) == 0:
        return tuple(range(every - 1, count, every))
    try:
        return tuple(map(int, listed))
    except (TypeError, ValueError, OverflowError):
        raise keys.wrong(name, "numbers of layers") from None


def _limits(keys: Keys, least: str, most: str) -> tuple[int, int]:
    """Return the least and most pixels of an image, which some processors call edges."""
    edges = keys.section("size") or Keys({})
    found = min(keys.integer(most, edges.integer("longest_edge", MOST)), LIMIT)
    return keys.integer(least, edges.integer("shortest_edge", min(LEAST, found)), high=found), found


class VisionBlock(Module):
    """One layer: attention and a gated MLP, each behind a norm and beside a residual."""

    config: VisionConfig
    attention_norm: Array = tensor("hidden", gguf="ln1.weight", hf="norm1.weight")
    q: Matrix = tensor("hidden", "hidden", gguf="attn_q.weight", hf="attn.qkv.weight", hf_part=(0, 3))
    k: Matrix = tensor("hidden", "hidden", gguf="attn_k.weight", hf="attn.qkv.weight", hf_part=(1, 3))
    v: Matrix = tensor("hidden", "hidden", gguf="attn_v.weight", hf="attn.qkv.weight", hf_part=(2, 3))
    q_bias: Array = tensor("hidden", gguf="attn_q.bias", hf="attn.qkv.bias", hf_part=(0, 3))
    k_bias: Array = tensor("hidden", gguf="attn_k.bias", hf="attn.qkv.bias", hf_part=(1, 3))
    v_bias: Array = tensor("hidden", gguf="attn_v.bias", hf="attn.qkv.bias", hf_part=(2, 3))
    out: Matrix = tensor("hidden", "hidden", gguf="attn_out.weight", hf="attn.proj.weight")
    out_bias: Array = tensor("hidden", gguf="attn_out.bias", hf="attn.proj.bias")
    mlp_norm: Array = tensor("hidden", gguf="ln2.weight", hf="norm2.weight")
    gate: Matrix = tensor("inner", "hidden", gguf="ffn_gate.weight", hf="mlp.gate_proj.weight")
    up: Matrix = tensor("inner", "hidden", gguf="ffn_up.weight", hf="mlp.up_proj.weight")
    down: Matrix = tensor("hidden", "inner", gguf="ffn_down.weight", hf="mlp.down_proj.weight")
    gate_bias: Array = tensor("inner", gguf="ffn_gate.bias", hf="mlp.gate_proj.bias")
    up_bias: Array = tensor("inner", gguf="ffn_up.bias", hf="mlp.up_proj.bias")
    down_bias: Array = tensor("hidden", gguf="ffn_down.bias", hf="mlp.down_proj.bias")

    def forward(
        self, xs: Sequence[Array], turns: Sequence[Rotation], lengths: Sequence[int] | None
    ) -> Generator[None, None, list[Array]]:
        """Return what leaves this layer, in the same pieces, [P, D] each. Yields between pieces and behind the last.

        All patches see each other; with lengths, which is for a single piece, those of stretches of so many.
        """
        heads: list[tuple[Array, Array, Array]] = []
        for x, turn in zip(xs, turns, strict=True):
            if heads:
                yield
            heads.append(self.heads(x, turn))
        qs, k, v = [q for q, _, _ in heads], concat(*(k for _, k, _ in heads)), concat(*(v for _, _, v in heads))
        heads.clear()  # of a large image they are as much memory as anything
        out = []
        for x, q in zip(xs, qs, strict=True):
            if len(xs) > 1:
                yield
            mixed = attend_all(q, k, v, scale=self.config.head_size**-0.5, lengths=lengths)
            out.append(self.finish(x, mixed))
        yield
        return out

    def heads(self, x: Array, turn: Rotation) -> tuple[Array, Array, Array]:  # [P, D] -> [P, H, E] each
        """Return queries, keys and values."""
        shape, x = (-1, self.config.heads, self.config.head_size), rms_norm(x, self.attention_norm, self.config.eps)
        q, k, v = project(x, (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        return rope(q.reshape(*shape), turn), rope(k.reshape(*shape), turn), v.reshape(*shape)

    def finish(self, x: Array, mixed: Array) -> Array:  # [P, D] -> [P, D]
        """Return x after this layer, given the mixture of values."""
        x = x + linear(mixed, self.out, self.out_bias)
        biases = self.gate_bias, self.up_bias, self.down_bias
        return x + gated_mlp(rms_norm(x, self.mlp_norm, self.config.eps), self.gate, self.up, self.down, biases=biases)


class Vision(Encoder):
    """Processor, encoder and projector."""

    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    placeholder = "<|image_pad|>"
    together = 4
    media = frozenset({"image", "video"})

    config: VisionConfig
    # The two frames of a patch have a kernel each, which checkpoints keep in one tensor.
    early: Array = tensor("hidden", 3, "patch", "patch", gguf=("v.patch_embd_0.weight", "v.patch_embd.weight"))
    late: Array = tensor("hidden", 3, "patch", "patch", gguf=("v.patch_embd_1.weight", "v.patch_embd.weight.1"))
    both: Array | None = tensor("hidden", 3, PAIR, "patch", "patch", hf="visual.patch_embed.proj.weight")
    blocks: list[VisionBlock] = layers(VisionBlock, count="layers", gguf="v.blk.{}.", hf="visual.blocks.{}.")
    norm: Array = tensor("hidden", gguf=("v.merger.ln_q.weight", "v.post_ln.weight"), hf="visual.merger.ln_q.weight")
    up: Matrix = tensor("unit", "unit", gguf=("v.merger.mlp.0.weight", "mm.0.weight"), hf="visual.merger.mlp.0.weight")
    up_bias: Array = tensor("unit", gguf=("v.merger.mlp.0.bias", "mm.0.bias"), hf="visual.merger.mlp.0.bias")
    down: Matrix = tensor(
        "output", "unit", gguf=("v.merger.mlp.2.weight", "mm.2.weight"), hf="visual.merger.mlp.2.weight"
    )
    down_bias: Array = tensor("output", gguf=("v.merger.mlp.2.bias", "mm.2.bias"), hf="visual.merger.mlp.2.bias")

    def ready(self) -> None:
        """Part the kernels, and compute frequencies: half of a head's pairs turns by the row, half by the column."""
        if self.both is not None:
            self.early, self.late, self.both = self.both[:, :, 0], self.both[:, :, 1], None
        self.table = grid_rope_table(self.config.head_size, base=self.config.rope_base)

    # ---- pictures ------------------------------------------------------------------------------------------------

    def prepare(self, picture: Picture) -> Prepared:
        """Return an image in about its own size. It counts as two equal frames."""
        return self._prepared([picture], *self.config.limits)

    def prepare_video(self, frames: Sequence[Picture]) -> Prepared:
        """Return frames, taken twice a second, as pairs; an odd last one is doubled."""
        if not frames:
            raise BadRequest("a video without frames shows nothing")
        for number, frame in enumerate(frames):
            if frame.image.size != frames[0].image.size:
                found, first = (f"{f.width} x {f.height}" for f in (frame, frames[0]))
                raise BadRequest(f"frame {number} of a video is {found} pixels, expected {first} as the first")
        most = min(VIDEO_MOST, self.config.limits[1], max(LEAST, PAIR * VIDEO_PIXELS // len(frames)))
        return self._prepared(frames, min(VIDEO_LEAST, most), most)

    def _prepared(self, pictures: Sequence[Picture], least: int, most: int) -> Prepared:
        """Return pictures of one size, each with about so many pixels."""
        c, first, times = self.config, pictures[0], -(-len(pictures) // PAIR)
        factor = c.patch * c.merge
        width, height = fitting_size(first.width, first.height, factor=factor, least=least, most=most)
        if times * width * height > LIMIT:
            raise BadRequest(f"a video of {len(pictures)} frames of {width} x {height} pixels is too long")
        grid = times, height // c.patch, width // c.patch
        pixels = patches_of(self._pairs(pictures, width, height), grid=grid, patch=c.patch, merge=c.merge)
        interval = PAIR / FRAMES_A_SECOND * c.ticks
        positions = positions_of(times, grid[1] // c.merge, grid[2] // c.merge, interval=interval)
        rows = Rows(positions.shape[1], positions=positions, length=int(positions.max()) + 1)
        return Prepared(pixels, ("<|vision_start|>", rows, "<|vision_end|>"), grid)

    def _pairs(self, pictures: Sequence[Picture], width: int, height: int) -> Iterator[tuple[Floats, Floats]]:
        for at in range(0, len(pictures), PAIR):
            pair = [
                picture.resized(width, height, "bicubic").numbers(self.config.mean, self.config.std)
                for picture in pictures[at : at + PAIR]
            ]
            yield pair[0], pair[-1]

    # ---- encoder and projector -------------------------------------------------------------------------------------

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image. Holds what one frame needs, or several small ones."""
        c = self.config
        frames: list[Array] = []
        for stretch in stretches(images, window=c.window, merge=c.merge, most=PIECE):
            merged: list[Array] = []
            for x in (yield from self.tower(stretch)):
                merged.append(self.merged(x))
                yield
            rows, start = concat(*merged)[stretch.units(c.merge)], 0
            for size in stretch.frames:
                frames.append(rows[start : start + size // c.merge**2])
                start += size // c.merge**2
        left = iter(frames)
        return [concat(*islice(left, image.grid[0])) for image in images]

    def tower(self, stretch: Stretch) -> Generator[None, None, list[Array]]:
        """Return what leaves the last layer, [P, D] in pieces, window by window."""
        pieces = list(stretch.pieces(PIECE))
        turns = [rotations(stretch.places[:, rows], self.table) for rows, _ in pieces]
        xs: list[Array] = []
        for rows, _ in pieces:
            pixels = stretch.pixels[stretch.order[rows]]
            xs.append(self.by_frames(pixels, stretch.frames if len(pieces) == 1 else [len(pixels)]))
            yield
        for number, block in enumerate(self.blocks):
            if number in self.config.whole:
                xs = yield from block.forward(xs, turns, stretch.frames if len(xs) == 1 else None)
                continue
            for i, (_, windows) in enumerate(pieces):
                [xs[i]] = yield from block.forward([xs[i]], [turns[i]], windows)
        return xs

    def by_frames(self, pixels: Array, frames: Sequence[int]) -> Array:  # [P, numbers] -> [P, D]
        """Return what enters the first layer. frames: patches of each.

        Every frame is a product of its own: the matrix library's sums depend on how many rows there are, and rows must
        not depend on the company in which a picture is encoded.
        """
        found, start = [], 0
        for size in frames:
            found.append(self.patches(pixels[start : start + size]))
            start += size
        return concat(*found)

    def patches(self, pixels: Array) -> Array:  # [P, numbers] -> [P, D]
        """Return what enters the first layer."""
        c = self.config
        frames = pixels.reshape(-1, 3, PAIR, c.patch, c.patch)
        x = conv_patches(frames[:, :, 0], self.early) + conv_patches(frames[:, :, 1], self.late)  # [P, 1, D]
        return x[:, 0]

    def merged(self, x: Array) -> Array:  # [P, D] -> [units, output]
        """Return the row of a prompt that each unit becomes."""
        x = rms_norm(x, self.norm, self.config.eps).reshape(-1, self.config.unit)
        return mlp(x, self.up, self.down, activation="gelu", biases=(self.up_bias, self.down_bias))
