"""How Llama 4 sees: the encoder of tiles, the adapter that makes one row of four patches, and the projector.

Source: the reference code of Llama 4, as published by Meta: a vision transformer, arXiv:2010.11929, whose heads turn
by column and row (RoFormer, arXiv:2104.09864, in two dimensions) and whose class token comes last.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from ..core.plugin import Array, Encoder, Matrix, Module, Picture, Prepared, Rows, layers, tensor
from ..core.tensor import (
    Rotation,
    activate,
    attend_all,
    concat,
    conv_patches,
    grid_rope_table,
    layer_norm,
    linear,
    mlp,
    project,
    rope,
    rotations,
)
from .llama4_pictures import best_grid, numbers_of, parts_of, tiles_of
from .llama4_vision_sizes import VisionConfig


class VisionBlock(Module):
    """One layer of the encoder: attention of all patches and an MLP, each behind a norm and beside a residual."""

    config: VisionConfig
    attention_norm: Array = tensor("hidden", gguf=("attn_norm.weight", "ln1.weight"), hf="input_layernorm.weight")
    attention_norm_bias: Array = tensor("hidden", gguf=("attn_norm.bias", "ln1.bias"), hf="input_layernorm.bias")
    q: Matrix = tensor("hidden", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    q_bias: Array = tensor("hidden", gguf="attn_q.bias", hf="self_attn.q_proj.bias")
    k: Matrix = tensor("hidden", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    k_bias: Array = tensor("hidden", gguf="attn_k.bias", hf="self_attn.k_proj.bias")
    v: Matrix = tensor("hidden", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    v_bias: Array = tensor("hidden", gguf="attn_v.bias", hf="self_attn.v_proj.bias")
    out: Matrix = tensor(
        "hidden", "hidden", gguf=("attn_output.weight", "attn_out.weight"), hf="self_attn.o_proj.weight"
    )
    out_bias: Array = tensor("hidden", gguf=("attn_output.bias", "attn_out.bias"), hf="self_attn.o_proj.bias")
    mlp_norm: Array = tensor("hidden", gguf=("ffn_norm.weight", "ln2.weight"), hf="post_attention_layernorm.weight")
    mlp_norm_bias: Array = tensor("hidden", gguf=("ffn_norm.bias", "ln2.bias"), hf="post_attention_layernorm.bias")
    # Early converters called the first ffn_down and the second ffn_up; shapes tell.
    up: Matrix = tensor(
        "inner", "hidden", gguf=("mlp.fc1.weight", "ffn_up.weight", "ffn_down.weight"), hf="mlp.fc1.weight"
    )
    up_bias: Array = tensor("inner", gguf=("mlp.fc1.bias", "ffn_up.bias", "ffn_down.bias"), hf="mlp.fc1.bias")
    down: Matrix = tensor(
        "hidden", "inner", gguf=("mlp.fc2.weight", "ffn_down.weight", "ffn_up.weight"), hf="mlp.fc2.weight"
    )
    down_bias: Array = tensor("hidden", gguf=("mlp.fc2.bias", "ffn_down.bias", "ffn_up.bias"), hf="mlp.fc2.bias")

    def attended(self, x: Array, turn: Rotation) -> Array:  # [P + 1, D] -> [P + 1, D]
        """Return x with what attention adds."""
        heads, size = self.config.heads, self.config.hidden // self.config.heads
        normed = layer_norm(x, self.attention_norm, self.attention_norm_bias, self.config.eps)
        parts = project(normed, (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        q, k, v = (part.reshape(-1, heads, size) for part in parts)
        mixed = attend_all(rope(q, turn), rope(k, turn), v, scale=size**-0.5)
        return x + linear(mixed, self.out, self.out_bias)

    def fed(self, x: Array) -> Array:  # [P + 1, D] -> [P + 1, D]
        """Return x with what the MLP adds."""
        normed = layer_norm(x, self.mlp_norm, self.mlp_norm_bias, self.config.eps)
        return x + mlp(normed, self.up, self.down, activation="gelu", biases=(self.up_bias, self.down_bias))


class Vision(Encoder):
    """Processor, encoder, adapter and projector."""

    marker = "<|image|>"
    placeholder = "<|patch|>"

    config: VisionConfig
    patches: Array = tensor(
        "hidden", "numbers",
        gguf=("v.patch_embedding.weight", "v.patch_embd.weight"),
        hf="vision_model.patch_embedding.linear.weight",
    )  # fmt: skip
    class_token: Array = tensor("hidden", gguf=("v.class_embedding", "v.class_embd"), hf="vision_model.class_embedding")
    positions: Array = tensor(
        "places", "hidden",
        gguf=("v.positional_embedding_vlm", "v.position_embd.weight"),
        hf="vision_model.positional_embedding_vlm",
    )  # fmt: skip
    before: Array = tensor(
        "hidden", gguf=("v.layernorm_pre.weight", "v.pre_ln.weight"), hf="vision_model.layernorm_pre.weight"
    )
    before_bias: Array = tensor(
        "hidden", gguf=("v.layernorm_pre.bias", "v.pre_ln.bias"), hf="vision_model.layernorm_pre.bias"
    )
    blocks: list[VisionBlock] = layers(
        VisionBlock, count="layers", gguf="v.blk.{}.", hf="vision_model.model.layers.{}."
    )
    behind: Array = tensor(
        "hidden", gguf=("v.layernorm_post.weight", "v.post_ln.weight"), hf="vision_model.layernorm_post.weight"
    )
    behind_bias: Array = tensor(
        "hidden", gguf=("v.layernorm_post.bias", "v.post_ln.bias"), hf="vision_model.layernorm_post.bias"
    )
    adapter_up: Matrix = tensor(
        "adapter", "square",
        gguf=("v.vision_adapter.mlp.fc1.weight", "mm.model.mlp.1.weight"),
        hf="vision_model.vision_adapter.mlp.fc1.weight",
    )  # fmt: skip
    adapter_out: Matrix = tensor(
        "adapter", "adapter",
        gguf=("v.vision_adapter.mlp.fc2.weight", "mm.model.mlp.2.weight"),
        hf="vision_model.vision_adapter.mlp.fc2.weight",
    )  # fmt: skip
    projection: Matrix = tensor(
        "output", "adapter",
        gguf=("mm.linear_1.weight", "mm.model.fc.weight"),
        hf="multi_modal_projector.linear_1.weight",
    )  # fmt: skip

    def ready(self) -> None:
        """Compute what is the same for every tile: frequencies, the place of each patch, and the order of squares."""
        c = self.config
        self.kernels = self.patches.reshape(c.hidden, 3, c.patch, c.patch)
        self.table = grid_rope_table(c.hidden // c.heads, base=c.rope_base, pairing="interleaved")
        row, column = np.indices((c.across, c.across), np.int32).reshape(2, -1) + 1
        self.turns_by = np.pad(np.stack([column, row]), ((0, 0), (0, 1)))  # the class token, last, does not turn
        grid = np.arange(c.across**2).reshape(c.across // c.merge, c.merge, c.across // c.merge, c.merge)
        self.squares = grid.transpose(0, 2, 1, 3).reshape(-1)  # patches square by square, and row by row in each

    def prepare(self, picture: Picture) -> Prepared:
        """Return a picture in tiles and, if they are several, as a whole behind them: [tiles, 3, side, side]."""
        c = self.config
        grid = best_grid(picture.width, picture.height, side=c.side, most=c.most_tiles)
        pixels = [numbers_of(tile, c.mean, c.deviation) for tile in tiles_of(picture, grid, c.side)]
        return Prepared(np.stack(pixels), parts_of(grid, Rows(c.rows)))

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image, tile by tile, [rows, width of the decoder]; yields twice a layer."""
        found: list[Array] = []
        for image in images:
            tiles = []
            for number in range(len(image.pixels)):  # one by one: more at once would only take more memory
                seen = yield from self.encoded(image.pixels[number : number + 1])
                tiles.append(self.projected(seen))
            found.append(concat(*tiles))
        return found

    def encoded(self, pixels: Array) -> Generator[None, None, Array]:  # [1, 3, side, side] -> [P, D]
        """Return what leaves the encoder, a row for each patch."""
        c, turn = self.config, rotations(self.turns_by, self.table)
        x = conv_patches(pixels, self.kernels).reshape(-1, c.hidden)
        x = concat(x, self.class_token.reshape(1, -1)) + self.positions
        x = layer_norm(x, self.before, self.before_bias, c.eps)
        for block in self.blocks:
            x = block.attended(x, turn)
            yield
            x = block.fed(x)
            yield
        return layer_norm(x, self.behind, self.behind_bias, c.eps)[:-1]

    def projected(self, x: Array) -> Array:  # [P, D] -> [rows, width of the decoder]
        """Return the rows of embeddings: one for each square of patches."""
        x = x[self.squares].reshape(-1, self.config.square)
        x = mlp(x, self.adapter_up, self.adapter_out, activation="gelu")
        return linear(activate(x, "gelu"), self.projection)
