"""How Llama 3.2 sees: two encoders of tiles, one behind the other, and the projector.

All tiles see each other, those of the canvas that the picture has not among them: a table of positions tells which
tile of which canvas is which. Canvases that have fewer tiles than there can be are filled up, and so is each tile, to
a multiple of eight rows. What fills them sees the picture and is seen by it, but sees nothing else of its kind.

Source: the reference code of Llama 3.2 Vision, as published by Meta: vision transformers, arXiv:2010.11929, the second
of which has gates; The Llama 3 Herd of Models, arXiv:2407.21783, section 7.2.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from ..core.plugin import Array, Encoder, Matrix, Module, Picture, Prepared, Rows, layers, tensor
from ..core.tensor import attend_all, concat, conv_patches, embed, layer_norm, linear, mlp, project, soft_cap
from .mllama_pictures import best_canvas, canvases, tiles_of
from .mllama_vision_sizes import VisionConfig

PIECE = 512  # rows that are computed with between two turns of others


class VisionBlock(Module):
    """One layer of the first encoder: attention and an MLP, each behind a norm and beside a residual."""

    config: VisionConfig
    attention_norm: Array = tensor("hidden", gguf=("attn_norm.weight", "ln1.weight"), hf="input_layernorm.weight")
    attention_norm_bias: Array = tensor("hidden", gguf=("attn_norm.bias", "ln1.bias"), hf="input_layernorm.bias")
    q: Matrix = tensor("hidden", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    k: Matrix = tensor("hidden", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    v: Matrix = tensor("hidden", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    out: Matrix = tensor(
        "hidden", "hidden", gguf=("attn_output.weight", "attn_out.weight"), hf="self_attn.o_proj.weight"
    )
    mlp_norm: Array = tensor("hidden", gguf=("ffn_norm.weight", "ln2.weight"), hf="post_attention_layernorm.weight")
    mlp_norm_bias: Array = tensor("hidden", gguf=("ffn_norm.bias", "ln2.bias"), hf="post_attention_layernorm.bias")
    # Early files call the first ffn_down and the second ffn_up; shapes tell.
    up: Matrix = tensor("inner", "hidden", gguf=("ffn_up.weight", "ffn_down.weight"), hf="mlp.fc1.weight")
    up_bias: Array = tensor("inner", gguf=("ffn_up.bias", "ffn_down.bias"), hf="mlp.fc1.bias")
    down: Matrix = tensor("hidden", "inner", gguf=("ffn_down.weight", "ffn_up.weight"), hf="mlp.fc2.weight")
    down_bias: Array = tensor("hidden", gguf=("ffn_down.bias", "ffn_up.bias"), hf="mlp.fc2.bias")

    def forward(self, xs: Sequence[Array], shown: int) -> Generator[None, None, list[Array]]:
        """Return what leaves this layer, in the same pieces, [rows, D] each; yields behind each of them, twice.

        shown: how many pieces, the first ones, are of the picture. They see everything, the others only these.
        """
        qs, ks, vs = list[Array](), list[Array](), list[Array]()
        for x in xs:
            for held, part in zip((qs, ks, vs), self.heads(x), strict=True):
                held.append(part)
            yield
        everything, picture = (concat(*ks), concat(*vs)), (concat(*ks[:shown]), concat(*vs[:shown]))
        del ks, vs  # of a large image they are as much memory as anything
        out = list[Array]()
        for number, (x, q) in enumerate(zip(xs, qs, strict=True)):
            k, v = everything if number < shown else picture
            out.append(self.finish(x, attend_all(q, k, v, scale=(self.config.hidden // self.config.heads) ** -0.5)))
            yield
        return out

    def heads(self, x: Array) -> tuple[Array, Array, Array]:  # [rows, D] -> [rows, H, E] each
        """Return queries, keys and values."""
        c = self.config
        x = layer_norm(x, self.attention_norm, self.attention_norm_bias, c.eps)
        q, k, v = (part.reshape(-1, c.heads, c.hidden // c.heads) for part in project(x, *self.projections))
        return q, k, v

    @property
    def projections(self) -> tuple[tuple[Matrix, None], ...]:
        """The weights of queries, keys and values, which have no biases."""
        return (self.q, None), (self.k, None), (self.v, None)

    def finish(self, x: Array, mixed: Array) -> Array:  # [rows, D] -> [rows, D]
        """Return x after this layer, given the mixture of values."""
        x = x + linear(mixed, self.out)
        return x + self.fed(x)

    def fed(self, x: Array) -> Array:  # [rows, D] -> [rows, D]
        """Return what the MLP adds."""
        normed = layer_norm(x, self.mlp_norm, self.mlp_norm_bias, self.config.eps)
        return mlp(normed, self.up, self.down, activation="gelu", biases=(self.up_bias, self.down_bias))


class GatedBlock(VisionBlock):
    """One layer of the second encoder, where gates say how much of it counts."""

    attention_gate: Array = tensor(1, gguf="attn_gate", hf="gate_attn")
    mlp_gate: Array = tensor(1, gguf="ffn_gate", hf="gate_ffn")

    def ready(self) -> None:
        """Open the gates."""
        if not self.config.open_gates:
            self.attention_gate, self.mlp_gate = opened(self.attention_gate), opened(self.mlp_gate)

    def finish(self, x: Array, mixed: Array) -> Array:  # [rows, D] -> [rows, D]
        """Return x after this layer, given the mixture of values."""
        x = x + linear(mixed, self.out) * self.attention_gate
        return x + self.fed(x) * self.mlp_gate


def opened(gate: Array) -> Array:
    """Return what a gate of a checkpoint lets through: its hyperbolic tangent."""
    return soft_cap(gate, 1.0)


class Vision(Encoder):
    """Processor, encoders and projector."""

    marker = "<|image|>"
    placeholder = "<|image|>"

    config: VisionConfig
    patches: Array = tensor(
        "hidden", 3, "patch", "patch", gguf="v.patch_embd.weight", hf="vision_model.patch_embedding.weight"
    )
    class_token: Array = tensor("hidden", gguf="v.class_embd", hf="vision_model.class_embedding")
    positions: Array = tensor(
        "places", "hidden", gguf="v.position_embd.weight", hf="vision_model.gated_positional_embedding.embedding"
    )
    tile_positions: Matrix = tensor(
        "canvases", "place_table",
        gguf="v.tile_position_embd.weight",
        hf="vision_model.gated_positional_embedding.tile_embedding.weight",
    )  # fmt: skip
    # One gate of a checkpoint: what it does not let through of the one table, it lets through of the other.
    positions_gate: Array = tensor(1, gguf="v.position_embd.gate", hf="vision_model.gated_positional_embedding.gate")
    tile_positions_gate: Array = tensor(
        1, gguf="v.tile_position_embd.gate", hf="vision_model.gated_positional_embedding.gate"
    )
    tiles_before: Matrix = tensor(
        "canvases", "tile_table",
        gguf="v.pre_tile_position_embd.weight",
        hf="vision_model.pre_tile_positional_embedding.embedding.weight",
    )  # fmt: skip
    tiles_before_gate: Array = tensor(
        1, gguf="v.pre_tile_position_embd.gate", hf="vision_model.pre_tile_positional_embedding.gate"
    )
    tiles_behind: Matrix = tensor(
        "canvases", "tile_table",
        gguf="v.post_tile_position_embd.weight",
        hf="vision_model.post_tile_positional_embedding.embedding.weight",
    )  # fmt: skip
    tiles_behind_gate: Array = tensor(
        1, gguf="v.post_tile_position_embd.gate", hf="vision_model.post_tile_positional_embedding.gate"
    )
    before: Array = tensor("hidden", gguf="v.pre_ln.weight", hf="vision_model.layernorm_pre.weight")
    before_bias: Array = tensor("hidden", gguf="v.pre_ln.bias", hf="vision_model.layernorm_pre.bias")
    blocks: list[VisionBlock] = layers(
        VisionBlock, count="layers", gguf="v.blk.{}.", hf="vision_model.transformer.layers.{}."
    )
    behind: Array = tensor("hidden", gguf="v.post_ln.weight", hf="vision_model.layernorm_post.weight")
    behind_bias: Array = tensor("hidden", gguf="v.post_ln.bias", hf="vision_model.layernorm_post.bias")
    global_blocks: list[GatedBlock] = layers(
        GatedBlock, count="global_layers", gguf="v.global.blk.{}.", hf="vision_model.global_transformer.layers.{}."
    )
    projection: Matrix = tensor("output", "features", gguf="mm.0.weight", hf="multi_modal_projector.weight")
    projection_bias: Array = tensor("output", gguf="mm.0.bias", hf="multi_modal_projector.bias")

    def ready(self) -> None:
        """Open the gates, and compute what is the same for every picture."""
        c = self.config
        if not c.open_gates:
            self.positions_gate = opened(self.positions_gate) * np.float32(-1) + np.float32(1)
            self.tile_positions_gate = opened(self.tile_positions_gate)
            self.tiles_before_gate = opened(self.tiles_before_gate)
            self.tiles_behind_gate = opened(self.tiles_behind_gate)
        self.nothing = np.zeros((c.places - 1, c.hidden), np.float32)  # the patches of a tile that is not there
        self.filling = np.zeros((c.most_tiles * c.filling, c.hidden), np.float32)
        tiles = np.arange(c.most_tiles)
        self.tile_of = np.concatenate([np.repeat(tiles, c.places), np.repeat(tiles, c.filling)])  # each row's

    @property
    def most_beside(self) -> int:
        """Rows of a picture on the largest canvas."""
        return self.config.most_tiles * self.config.places

    def prepare(self, picture: Picture) -> Prepared:
        """Return the tiles of a picture, [tiles, 3, side, side]. A token stands for all its rows."""
        c = self.config
        canvas = best_canvas(picture.width, picture.height, side=c.side, most=c.most_tiles)
        pixels = np.stack([tile.numbers(c.mean, c.deviation) for tile in tiles_of(picture, canvas, c.side)])
        return Prepared(pixels, (Rows(len(pixels) * c.places, beside=True),), canvas)

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image, tile by tile, [rows, width of the decoder]."""
        found = list[Array]()
        for image in images:
            pieces = yield from self.encoded(image)
            rows = list[Array]()
            for piece in pieces:
                rows.append(linear(piece, self.projection, self.projection_bias))
                yield
            found.append(concat(*rows))
        return found

    def encoded(self, image: Prepared) -> Generator[None, None, list[Array]]:
        """Return what leaves the encoders, of the picture alone, in pieces of [rows, features]."""
        c, rows, columns = self.config, *image.grid
        entry = np.array([canvases(c.most_tiles).index((rows, columns)) + 1], np.int32)
        x = self.embedded(image.pixels, entry)
        yield
        cuts = _cuts(rows * columns * c.places, x.shape[0])
        shown = sum(stop <= rows * columns * c.places for _, stop in cuts)
        xs, taken = [x[start:stop] for start, stop in cuts], list[list[Array]]()
        for number, block in enumerate(self.blocks):
            if number in c.taken:
                taken.append(xs[:shown])
            xs = yield from block.forward(xs, shown)
        places = embed(entry, self.tiles_behind).reshape(c.most_tiles, c.hidden) * self.tiles_behind_gate
        xs = [
            layer_norm(x, self.behind, self.behind_bias, c.eps) + places[self.tile_of[start:stop]]
            for x, (start, stop) in zip(xs, cuts, strict=True)
        ]
        for block in self.global_blocks:
            xs = yield from block.forward(xs, shown)
        return [self.side_by_side(*parts) for parts in zip(xs[:shown], *taken, strict=True)]

    def embedded(self, pixels: Array, entry: Array) -> Array:  # [tiles, 3, side, side], [1] -> [rows, D]
        """Return what enters the first layer: all tiles, those of the picture first, and then what fills them up."""
        c = self.config
        before = embed(entry, self.tiles_before).reshape(c.most_tiles, c.hidden) * self.tiles_before_gate
        seen, count, first = conv_patches(pixels, self.patches), pixels.shape[0], self.class_token.reshape(1, -1)
        parts = []
        for tile in range(c.most_tiles):
            parts += [first, (seen[tile] if tile < count else self.nothing) + before[tile]]
        x = concat(*parts).reshape(c.most_tiles, c.places, c.hidden) + self.positions * self.positions_gate
        within = embed(entry, self.tile_positions).reshape(c.most_tiles, c.places, c.hidden)
        x = (x + within * self.tile_positions_gate).reshape(-1, c.hidden)
        return concat(layer_norm(x, self.before, self.before_bias, c.eps), self.filling)

    def side_by_side(self, last: Array, *taken: Array) -> Array:  # [rows, D] each -> [rows, features]
        """Return what the projector gets: all numbers of the last layer, then those of the others in turn."""
        in_turn = concat(*(x.reshape(-1, 1) for x in taken), columns=True).reshape(last.shape[0], -1)
        return concat(last, in_turn, columns=True)


def _cuts(shown: int, rows: int) -> list[tuple[int, int]]:
    """Return the pieces to compute with: none of them is of the picture in part."""
    stretches = (0, shown), (shown, rows)
    return [(at, min(at + PIECE, stop)) for first, stop in stretches for at in range(first, stop, PIECE)]
