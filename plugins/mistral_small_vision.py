"""Mistral Small 3.1: how it sees. Processor, Pixtral encoder and projector.

Source: Pixtral 12B, arXiv:2410.07073, section 2.1: a vision transformer whose patches turn by their row and column, and
in which the patches of one picture see each other; rows of patches end in tokens of their own in the prompt.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import msgspec
import numpy as np

from ..core.plugin import Array, Encoder, Keys, Matrix, Module, Picture, Prepared, Rows, layers, tensor
from ..core.tensor import (
    Pairing,
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
    rope_base_from_hf,
    rotations,
)
from .mistral_small_pictures import Cut, Piece, fitting_size

PIECE = 512  # patches that are computed at once: then others have their turn, and memory stays bounded
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
LONGEST = 1540  # pixels along a picture's longer side, where the files do not say
LIMIT = 1 << 12  # of the same, whatever they say: its pixels take 200 MB
LARGEST_PATCH, MOST_MERGED = 1 << 8, 1 << 4  # pixels and patches of a side, far above any encoder's
ROW_END, PICTURE_END = "[IMG_BREAK]", "[IMG_END]"


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of encoder and projector, and how pictures are prepared."""

    layers: int
    hidden: int  # D
    inner: int  # width of the gated MLP
    heads: int  # H
    patch: int  # pixels along a patch's side
    merge: int  # patches along the side of a square that becomes one row
    longest: int  # pixels along a picture's longer side
    rope_base: float
    pairing: Pairing  # one converter to GGUF reorders the rows of q and k so that pairs become neighbours
    eps: float
    output: int  # width of the decoder
    output_eps: float  # of the projector's norm: the decoder's
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def head_size(self) -> int:
        """E."""
        return self.hidden // self.heads

    @property
    def neighbours(self) -> int:
        """Heads whose rotary pairs are neighbours: all, or none."""
        return self.heads if self.pairing == "interleaved" else 0

    @property
    def square(self) -> int:
        """Numbers of a square's patches."""
        return self.hidden * self.merge**2

    @classmethod
    def from_gguf(cls, keys: Keys) -> VisionConfig | None:
        """Read `clip.vision.*` of a file for the encoder alone, or `mistral3.vision.*` of one that holds everything."""
        alone = "clip.vision.block_count" in keys
        at = "clip.vision." if alone else "vision."
        if f"{at}block_count" not in keys:
            return None
        output, hidden = keys.integer("embedding_length"), keys.integer(f"{at}embedding_length")
        heads = keys.divisor(f"{at}attention.head_count", of=hidden)
        keys.integer(f"{at}num_channels", 3, low=3, high=3)
        keys.integer(f"{at}attention.key_length", hidden // heads, low=hidden // heads, high=hidden // heads)
        if alone:
            _check_projector(keys, output)
        # A file for the encoder alone that does not say so has another projector: that of Pixtral 12B.
        merge, usual = ("clip.vision.spatial_merge_size", None) if alone else ("spatial_merge_size", 2)
        return cls(
            layers=keys.integer(f"{at}block_count"),
            hidden=hidden,
            inner=keys.integer(f"{at}feed_forward_length"),
            heads=heads,
            patch=keys.integer(f"{at}patch_size", high=LARGEST_PATCH),
            merge=keys.integer(merge, usual, high=MOST_MERGED),
            longest=keys.integer(f"{at}longest_edge", keys.integer(f"{at}image_size", LONGEST, high=LIMIT), high=LIMIT),
            rope_base=keys.number(f"{at}rope.freq_base", 10000.0, low=1.0001),
            pairing="interleaved" if alone else "split",
            eps=keys.number(f"{at}attention.layer_norm_epsilon", 1e-5, low=0.0, high=1.0),
            output=output,
            output_eps=keys.number("attention.layer_norm_rms_epsilon", 1e-5, low=0.0, high=1.0),
            mean=keys.numbers(f"{at}image_mean", MEAN, low=0.0, high=1.0),
            std=keys.numbers(f"{at}image_std", STD, low=1e-3, high=1.0),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `vision.*` and the projector's keys. Some only Puna reads: what a checkpoint says of its processor."""
        return {
            "vision.block_count": self.layers,
            "vision.embedding_length": self.hidden,
            "vision.feed_forward_length": self.inner,
            "vision.attention.head_count": self.heads,
            "vision.attention.key_length": self.head_size,
            "vision.attention.layer_norm_epsilon": self.eps,
            "vision.num_channels": 3,
            "vision.image_size": self.longest,
            "vision.longest_edge": self.longest,
            "vision.patch_size": self.patch,
            "vision.rope.freq_base": self.rope_base,
            "vision.image_mean": list(self.mean),
            "vision.image_std": list(self.std),
            "spatial_merge_size": self.merge,
            "mm.projector_hidden_act": "gelu",
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> VisionConfig | None:
        """Read config.json and preprocessor_config.json; what they leave out is as in the reference's classes."""
        eye = keys.section("vision_config")
        if eye is None:
            return None
        text, processor = keys.section("text_config") or Keys({}), keys.section("preprocessor") or Keys({})
        eye.text("hidden_act", "gelu", allowed=("silu",))
        eye.integer("num_channels", 3, low=3, high=3)
        keys.text("projector_hidden_act", "gelu", allowed=("gelu",))
        keys.integer("vision_feature_layer", -1, low=-1, high=-1)
        hidden, heads = eye.integer("hidden_size", 1024), eye.integer("num_attention_heads", 16)
        if hidden % heads:
            raise eye.wrong("num_attention_heads", f"a divisor of {hidden}")
        edges = processor.section("size") or Keys({})
        return cls(
            layers=eye.integer("num_hidden_layers", 24),
            hidden=hidden,
            inner=eye.integer("intermediate_size", 4096),
            heads=heads,
            patch=eye.integer("patch_size", 16, high=LARGEST_PATCH),
            merge=keys.integer("spatial_merge_size", 2, high=MOST_MERGED),
            longest=edges.integer("longest_edge", eye.integer("image_size", 1024, high=LIMIT), high=LIMIT),
            rope_base=rope_base_from_hf(eye),
            pairing="split",
            eps=1e-5,
            output=text.integer("hidden_size"),
            output_eps=text.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
            mean=processor.numbers("image_mean", MEAN, low=0.0, high=1.0),
            std=processor.numbers("image_std", STD, low=1e-3, high=1.0),
        )


def _check_projector(keys: Keys, output: int) -> None:
    """Raise BadModel if the file for an encoder holds another one, or belongs to another decoder."""
    name = "clip.projector_type" if "clip.projector_type" in keys else "clip.vision.projector_type"
    keys.text(name, allowed=("pixtral",))
    if not keys.flag("clip.use_silu", False):
        raise keys.wrong("clip.use_silu", "true: the encoder has no other activation")
    keys.integer("clip.vision.projection_dim", output, low=output, high=output)


class VisionBlock(Module):
    """One layer: attention and a gated MLP, each behind a norm and beside a residual."""

    config: VisionConfig
    attention_norm: Array = tensor("hidden", gguf=("attn_norm.weight", "ln1.weight"), hf="attention_norm.weight")
    # Files for the encoder alone have pairs side by side, single files do not.
    q: Matrix = tensor("hidden", "hidden", gguf="attn_q.weight", hf="attention.q_proj.weight", unpaired="neighbours")
    k: Matrix = tensor("hidden", "hidden", gguf="attn_k.weight", hf="attention.k_proj.weight", unpaired="neighbours")
    v: Matrix = tensor("hidden", "hidden", gguf="attn_v.weight", hf="attention.v_proj.weight")
    out: Matrix = tensor(
        "hidden", "hidden", gguf=("attn_output.weight", "attn_out.weight"), hf="attention.o_proj.weight"
    )
    mlp_norm: Array = tensor("hidden", gguf=("ffn_norm.weight", "ln2.weight"), hf="ffn_norm.weight")
    gate: Matrix = tensor("inner", "hidden", gguf="ffn_gate.weight", hf="feed_forward.gate_proj.weight")
    up: Matrix = tensor("inner", "hidden", gguf="ffn_up.weight", hf="feed_forward.up_proj.weight")
    down: Matrix = tensor("hidden", "inner", gguf="ffn_down.weight", hf="feed_forward.down_proj.weight")

    def forward(
        self, xs: Sequence[Array], turns: Sequence[Rotation], lengths: Sequence[int] | None
    ) -> Generator[None, None, list[Array]]:
        """Return what leaves this layer, in the same pieces, [P, D] each. Yields between pieces and behind the last.

        All patches see each other; with lengths, which is for a single piece, those of stretches of so many.
        """
        qs, ks, vs = list[Array](), list[Array](), list[Array]()
        for x, turn in zip(xs, turns, strict=True):
            if qs:
                yield
            for held, part in zip((qs, ks, vs), self.heads(x, turn), strict=True):
                held.append(part)
        k, v = concat(*ks), concat(*vs)
        del ks, vs  # of a large image they are as much memory as anything
        out = list[Array]()
        for x, q in zip(xs, qs, strict=True):
            if len(xs) > 1:
                yield
            out.append(self.finish(x, attend_all(q, k, v, scale=self.config.head_size**-0.5, lengths=lengths)))
        yield
        return out

    def heads(self, x: Array, turn: Rotation) -> tuple[Array, Array, Array]:  # [P, D] -> [P, H, E] each
        """Return queries, keys and values."""
        shape, x = (-1, self.config.heads, self.config.head_size), rms_norm(x, self.attention_norm, self.config.eps)
        q, k, v = project(x, (self.q, None), (self.k, None), (self.v, None))
        return rope(q.reshape(*shape), turn), rope(k.reshape(*shape), turn), v.reshape(*shape)

    def finish(self, x: Array, mixed: Array) -> Array:  # [P, D] -> [P, D]
        """Return x after this layer, given the mixture of values."""
        x = x + linear(mixed, self.out)
        return x + gated_mlp(rms_norm(x, self.mlp_norm, self.config.eps), self.gate, self.up, self.down)


class Vision(Encoder):
    """Processor, encoder and projector."""

    marker = "[IMG]"
    placeholder = "[IMG]"
    together = 4

    config: VisionConfig
    patches: Array = tensor(
        "hidden", 3, "patch", "patch",
        gguf=("v.patch_conv.weight", "v.patch_embd.weight"),
        hf="vision_tower.patch_conv.weight",
    )  # fmt: skip
    norm: Array = tensor("hidden", gguf=("v.encoder_norm.weight", "v.pre_ln.weight"), hf="vision_tower.ln_pre.weight")
    blocks: list[VisionBlock] = layers(
        VisionBlock, count="layers", gguf="v.blk.{}.", hf="vision_tower.transformer.layers.{}."
    )
    row_norm: Array = tensor(
        "hidden", gguf=("mm.norm.weight", "mm.input_norm.weight"), hf="multi_modal_projector.norm.weight"
    )
    merger: Matrix = tensor(
        "hidden", "square",
        gguf=("mm.patch_merger.merging_layer.weight", "mm.patch_merger.weight"),
        hf="multi_modal_projector.patch_merger.merging_layer.weight",
    )  # fmt: skip
    up: Matrix = tensor(
        "output", "hidden", gguf=("mm.linear_1.weight", "mm.1.weight"), hf="multi_modal_projector.linear_1.weight"
    )
    up_bias: Array | None = tensor(
        "output", gguf=("mm.linear_1.bias", "mm.1.bias"), hf="multi_modal_projector.linear_1.bias", optional=True
    )
    down: Matrix = tensor(
        "output", "output", gguf=("mm.linear_2.weight", "mm.2.weight"), hf="multi_modal_projector.linear_2.weight"
    )
    down_bias: Array | None = tensor(
        "output", gguf=("mm.linear_2.bias", "mm.2.bias"), hf="multi_modal_projector.linear_2.bias", optional=True
    )
    # Files for the encoder alone repeat what [IMG_BREAK] has in the decoder's table, where prompts find it.
    row_end: Array | None = tensor("output", gguf="v.token_embd.img_break", optional=True)

    def ready(self) -> None:
        """Compute the frequencies, and the order in which the merger takes a square's numbers: channel by channel."""
        self.row_end = None
        c = self.config
        self.table = grid_rope_table(c.head_size, base=c.rope_base, pairing=c.pairing, by_turns=True)
        self.order = np.arange(c.square).reshape(c.merge**2, c.hidden).T.reshape(-1)

    def prepare(self, picture: Picture) -> Prepared:
        """Return a picture in about its own size, [3, height, width], each of whose rows ends in a token."""
        c, factor = self.config, self.config.patch * self.config.merge
        width, height = fitting_size(picture.width, picture.height, longest=c.longest, factor=factor)
        pixels = picture.resized(width, height, "bicubic").numbers(c.mean, c.std)
        row = Rows(width // factor)
        parts = (*(row, ROW_END) * (height // factor - 1), row, PICTURE_END)
        return Prepared(pixels, parts, (height // c.patch, width // c.patch))

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image. Holds what one of them needs, or several small ones."""
        c, found = self.config, list[Array]()
        for pieces, sizes in Cut(c.patch, c.merge, PIECE).groups(images):
            merged = list[Array]()
            for x, piece in zip((yield from self.tower(pieces, sizes)), pieces, strict=True):
                merged.append(self.merged(x, piece))
                yield
            rows, start = concat(*merged), 0
            for size in sizes:
                stop = start + size // c.merge**2
                found.append(concat(rows[start:stop]))  # a copy: each is kept for itself
                start = stop
        return found

    def tower(self, pieces: Sequence[Piece], sizes: Sequence[int]) -> Generator[None, None, list[Array]]:
        """Return what leaves the last layer, [P, D] of each piece. sizes: patches of each image."""
        turns = [rotations(piece.places, self.table) for piece in pieces]
        xs = list[Array]()
        for piece in pieces:
            xs.append(self.embedded(piece))
            yield
        for block in self.blocks:
            xs = yield from block.forward(xs, turns, sizes if len(xs) == 1 else None)
        return xs

    def embedded(self, piece: Piece) -> Array:  # [P, D]
        """Return what enters the first layer."""
        images = [conv_patches(pixels[None], self.patches)[0] for pixels in piece.pixels]
        return rms_norm(concat(*images), self.norm, self.config.eps)

    def merged(self, x: Array, piece: Piece) -> Array:  # [P, D] -> [units, output]
        """Return the row of a prompt that each square becomes."""
        c = self.config
        x = rms_norm(x, self.row_norm, c.output_eps)[piece.squares].reshape(-1, c.square)[:, self.order]
        return mlp(linear(x, self.merger), self.up, self.down, activation="gelu", biases=(self.up_bias, self.down_bias))
