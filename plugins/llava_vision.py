"""How LLaVA sees: CLIP's encoder, the layers of it that are listened to, and a projector of two layers.

Sources: Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020, section 2.4: a vision
transformer with a class token and a norm before the first layer; Improved Baselines with Visual Instruction Tuning,
arXiv:2310.03744, section 3.2: the projector. Since LLaVA 1.6 (LLaVA-NeXT) rows of tiles follow those of the whole.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import msgspec
import numpy as np

from ..core.plugin import Array, Encoder, Keys, Matrix, Module, Picture, Prepared, Rows, layers, tensor
from ..core.tensor import Activation, attend_all, concat, conv_patches, layer_norm, linear, mlp, project
from .llava_pictures import Preparation, image_size
from .llava_tiles import USUAL, Size, Tiling, sizes_of

LARGEST_PATCH = 1 << 10  # pixels of a side, far above any encoder's
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "gelu_quick", "gelu": "gelu"}  # by their names in checkpoints


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of encoder and projector, and how pictures are prepared."""

    layers: int  # those that are computed: none behind the last that is listened to
    hidden: int  # D
    inner: int  # width of the MLP
    heads: int  # H
    patch_size: int  # pixels of a side
    eps: float
    activation: Activation
    heard: tuple[int, ...]  # layers whose outputs stand side by side in a row, from 1; 0: what enters the first
    class_token: bool  # whether its output becomes a row too
    output: int  # width of the decoder
    projector_activation: Activation
    pictures: Preparation

    @property
    def positions(self) -> int:
        """P and the class token."""
        return self.side**2 + 1

    @property
    def side(self) -> int:
        """Patches along a side of a square."""
        return self.pictures.side // self.patch_size

    @property
    def rows(self) -> int:
        """Rows of embeddings that a square becomes."""
        return self.positions - (not self.class_token)

    @property
    def line_ends(self) -> int:
        """Vectors that a line of patches ends in: one, if pictures are cut into tiles."""
        return int(bool(self.pictures.sizes))

    @property
    def width(self) -> int:
        """Numbers of the outputs that stand side by side."""
        return self.hidden * len(self.heard)

    @classmethod
    def from_gguf(cls, keys: Keys) -> VisionConfig | None:
        """Read `clip.vision.*` of a file for the encoder alone, or `llava.vision.*` of one that holds everything.

        The former leaves out the layers behind the last that is listened to, and its `block_count` does not count them:
        all that it counts are computed, as models were trained. (llama.cpp leaves out one more, and has the class
        token behind the patches, at their places.)
        """
        alone = "clip.vision.block_count" in keys
        at = "clip.vision." if alone else "vision."
        if f"{at}block_count" not in keys:
            return None
        output, hidden = keys.integer("embedding_length"), keys.integer(f"{at}embedding_length")
        if alone:
            _check_projector(keys)
        keys.integer(f"{at}num_channels", 3, low=3, high=3)
        stored = keys.integer(f"{at}block_count")
        heard = _heard(keys, f"{at}feature_layer", stored, stored)
        patch = keys.integer(f"{at}patch_size", high=LARGEST_PATCH)
        pictures = Preparation.from_gguf(keys, at, image_size(keys, f"{at}image_size", patch))
        quick = "gelu" if keys.flag("clip.use_gelu", False) else "quick_gelu"
        return cls(
            layers=max(heard),
            hidden=hidden,
            inner=keys.integer(f"{at}feed_forward_length"),
            heads=keys.divisor(f"{at}attention.head_count", of=hidden),
            patch_size=patch,
            eps=keys.number(f"{at}attention.layer_norm_epsilon", 1e-5, low=0.0, high=1.0),
            activation=_activation(keys, f"{at}hidden_act", quick),
            heard=heard,
            class_token=_class_token(keys, f"{at}feature_select_strategy", tiled=bool(pictures.sizes)),
            output=output,
            projector_activation=_activation(keys, "mm.projector_hidden_act", "gelu"),
            pictures=pictures,
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `vision.*`. Several are keys that only Puna reads: what files for the encoder alone leave to guess."""
        names = {activation: name for name, activation in ACTIVATIONS.items()}
        return {
            "vision.block_count": self.layers,
            "vision.embedding_length": self.hidden,
            "vision.feed_forward_length": self.inner,
            "vision.attention.head_count": self.heads,
            "vision.attention.layer_norm_epsilon": self.eps,
            "vision.num_channels": 3,
            "vision.patch_size": self.patch_size,
            "vision.hidden_act": names[self.activation],
            "vision.feature_layer": list(self.heard),
            "vision.feature_select_strategy": "full" if self.class_token else "default",
            **{f"vision.{name}": value for name, value in self.pictures.to_gguf().items()},
            "mm.projector_hidden_act": names[self.projector_activation],
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> VisionConfig | None:
        """Read config.json and preprocessor_config.json; what they leave out is as in the reference's classes."""
        eye = keys.section("vision_config")
        if eye is None:
            return None
        text, processor = keys.section("text_config") or Keys({}), keys.section("preprocessor") or Keys({})
        eye.text("model_type", "clip_vision_model", allowed=("clip_vision_model",))
        eye.integer("num_channels", 3, low=3, high=3)
        hidden, heads = eye.integer("hidden_size", 768), eye.integer("num_attention_heads", 12)
        if hidden % heads:
            raise eye.wrong("num_attention_heads", f"a divisor of {hidden}")
        heard = _heard(keys, "vision_feature_layer", eye.integer("num_hidden_layers", 12), -2)
        patch = eye.integer("patch_size", 32, high=LARGEST_PATCH)
        side = image_size(eye, "image_size", patch, 224)
        pictures = Preparation.from_hf(processor, side, _sizes(keys, side))
        return cls(
            layers=max(heard),
            hidden=hidden,
            inner=eye.integer("intermediate_size", 3072),
            heads=heads,
            patch_size=patch,
            eps=eye.number("layer_norm_eps", 1e-5, low=0.0, high=1.0),
            activation=_activation(eye, "hidden_act", "quick_gelu"),
            heard=heard,
            class_token=_class_token(keys, "vision_feature_select_strategy", tiled=bool(pictures.sizes)),
            output=text.integer("hidden_size", 4096),
            projector_activation=_activation(keys, "projector_hidden_act", "gelu"),
            pictures=pictures,
        )


def _check_projector(keys: Keys) -> None:
    """Raise BadModel if the file for an encoder holds another projector, or joins tiles otherwise."""
    name = "clip.vision.projector_type" if "clip.vision.projector_type" in keys else "clip.projector_type"
    keys.text(name, "mlp", allowed=("mlp",))
    if keys.flag("clip.use_silu", False):
        raise keys.wrong("clip.use_silu", "false: the encoder has no such activation")
    merged = "spatial_unpad" if "clip.vision.image_grid_pinpoints" in keys else "flat"
    keys.text("clip.vision.mm_patch_merge_type", "flat", allowed=(merged,))


def _heard(keys: Keys, name: str, count: int, default: int) -> tuple[int, ...]:
    """Return the layers that are listened to: a number or several, of which negative ones count from behind."""
    given = keys.list(name) if keys.holds_list(name) else [keys.integer(name, default, low=-count - 1, high=count)]
    numbers = [n for n in given if isinstance(n, int | np.integer) and -count - 1 <= n <= count]
    found = tuple(int(n) % (count + 1) for n in numbers)
    if len(found) < len(given) or max(found, default=0) == 0:
        raise keys.wrong(name, f"numbers of layers, of which there are {count}")
    return found


def _sizes(keys: Keys, side: int) -> tuple[Size, ...]:
    """Return the sizes of pictures that a checkpoint's model sees in tiles: none before LLaVA 1.6."""
    if keys.text("model_type", "llava", allowed=("llava", "llava_next")) == "llava":
        return ()
    if not keys.flag("use_image_newline_parameter", True):
        raise keys.wrong("use_image_newline_parameter", "true: lines of patches always end in a row")
    name = "image_grid_pinpoints"
    return sizes_of(keys if name in keys else Keys({name: USUAL}), name, side, flat=False)


def _class_token(keys: Keys, name: str, *, tiled: bool) -> bool:
    """Return whether the class token becomes a row, for which there is no place among tiles."""
    return keys.text(name, "default", allowed=("default",) if tiled else ("default", "full")) == "full"


def _activation(keys: Keys, name: str, default: str) -> Activation:
    return ACTIVATIONS[keys.text(name, default, allowed=ACTIVATIONS)]


class VisionBlock(Module):
    """One layer of the encoder: attention of all patches and an MLP, each behind a norm and beside a residual."""

    config: VisionConfig
    attention_norm: Array = tensor("hidden", gguf="ln1.weight", hf="layer_norm1.weight")
    attention_norm_bias: Array = tensor("hidden", gguf="ln1.bias", hf="layer_norm1.bias")
    q: Matrix = tensor("hidden", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    q_bias: Array = tensor("hidden", gguf="attn_q.bias", hf="self_attn.q_proj.bias")
    k: Matrix = tensor("hidden", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    k_bias: Array = tensor("hidden", gguf="attn_k.bias", hf="self_attn.k_proj.bias")
    v: Matrix = tensor("hidden", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    v_bias: Array = tensor("hidden", gguf="attn_v.bias", hf="self_attn.v_proj.bias")
    out: Matrix = tensor("hidden", "hidden", gguf="attn_out.weight", hf="self_attn.out_proj.weight")
    out_bias: Array = tensor("hidden", gguf="attn_out.bias", hf="self_attn.out_proj.bias")
    mlp_norm: Array = tensor("hidden", gguf="ln2.weight", hf="layer_norm2.weight")
    mlp_norm_bias: Array = tensor("hidden", gguf="ln2.bias", hf="layer_norm2.bias")
    # Published files call the first ffn_down and the second ffn_up; shapes tell.
    up: Matrix = tensor("inner", "hidden", gguf=("ffn_up.weight", "ffn_down.weight"), hf="mlp.fc1.weight")
    up_bias: Array = tensor("inner", gguf=("ffn_up.bias", "ffn_down.bias"), hf="mlp.fc1.bias")
    down: Matrix = tensor("hidden", "inner", gguf=("ffn_down.weight", "ffn_up.weight"), hf="mlp.fc2.weight")
    down_bias: Array = tensor("hidden", gguf=("ffn_down.bias", "ffn_up.bias"), hf="mlp.fc2.bias")

    def forward(self, x: Array) -> Generator[None, None, Array]:  # [P + 1, D] -> [P + 1, D]
        """Return x after this layer; yields behind attention and behind the MLP."""
        c = self.config
        x = x + self.attention(layer_norm(x, self.attention_norm, self.attention_norm_bias, c.eps))
        yield
        normed = layer_norm(x, self.mlp_norm, self.mlp_norm_bias, c.eps)
        x = x + mlp(normed, self.up, self.down, activation=c.activation, biases=(self.up_bias, self.down_bias))
        yield
        return x

    def attention(self, x: Array) -> Array:  # [P + 1, D] -> [P + 1, D]
        """Return what attention adds."""
        heads, size = self.config.heads, self.config.hidden // self.config.heads
        parts = project(x, (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        q, k, v = (part.reshape(-1, heads, size) for part in parts)
        return linear(attend_all(q, k, v, scale=size**-0.5), self.out, self.out_bias)


class LineEnd(Module):
    """What follows each line of patches where pictures are cut into tiles."""

    config: VisionConfig
    row: Array = tensor("output", gguf="model.image_newline", hf=("image_newline", "model.image_newline"))


class Vision(Encoder):
    """Processor, encoder and projector."""

    marker = "<image>"
    placeholder = "<image>"

    config: VisionConfig
    class_embedding: Array = tensor(
        "hidden", gguf="v.class_embd", hf="vision_tower.vision_model.embeddings.class_embedding"
    )
    patches: Array = tensor(
        "hidden", 3, "patch_size", "patch_size",
        gguf="v.patch_embd.weight",
        hf="vision_tower.vision_model.embeddings.patch_embedding.weight",
    )  # fmt: skip
    places: Array = tensor(
        "positions", "hidden",
        gguf="v.position_embd.weight",
        hf="vision_tower.vision_model.embeddings.position_embedding.weight",
    )  # fmt: skip
    norm: Array = tensor("hidden", gguf="v.pre_ln.weight", hf="vision_tower.vision_model.pre_layrnorm.weight")
    norm_bias: Array = tensor("hidden", gguf="v.pre_ln.bias", hf="vision_tower.vision_model.pre_layrnorm.bias")
    blocks: list[VisionBlock] = layers(
        VisionBlock, count="layers", gguf="v.blk.{}.", hf="vision_tower.vision_model.encoder.layers.{}."
    )
    up: Matrix = tensor("output", "width", gguf="mm.0.weight", hf="multi_modal_projector.linear_1.weight")
    up_bias: Array | None = tensor("output", gguf="mm.0.bias", hf="multi_modal_projector.linear_1.bias", optional=True)
    down: Matrix = tensor("output", "output", gguf="mm.2.weight", hf="multi_modal_projector.linear_2.weight")
    down_bias: Array | None = tensor(
        "output", gguf="mm.2.bias", hf="multi_modal_projector.linear_2.bias", optional=True
    )

    line_ends: list[LineEnd] = layers(LineEnd, count="line_ends")

    def prepare(self, picture: Picture) -> Prepared:
        """Return a picture as a square, and tiles of it if the model sees them: [1 + tiles, 3, side, side]."""
        c = self.config
        pixels, size = c.pictures.pixels(picture), c.pictures.size(picture)
        if size is None:
            return Prepared(pixels, (Rows(c.rows),))
        tiling = Tiling.of(picture, size, c.pictures.side, c.side)
        return Prepared(pixels, (Rows(len(tiling.order(c.side))),), tiling.numbers)

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image, [rows, width of the decoder]; yields twice a layer."""
        found: list[Array] = []
        for image in images:
            views: list[Array] = []
            for number in range(len(image.pixels)):
                heard = yield from self.tower(image.pixels[number : number + 1])
                views.append(self.projected(heard))
            found.append(self.joined(views, Tiling(*image.grid)) if image.grid else views[0])
        return found

    def tower(self, pixels: Array) -> Generator[None, None, Array]:  # [1, 3, side, side] -> [P + 1, width]
        """Return the outputs of the layers that are listened to, side by side; the class token's come first."""
        c = self.config
        x = concat(self.class_embedding.reshape(1, c.hidden), conv_patches(pixels, self.patches)[0]) + self.places
        outputs = [x := layer_norm(x, self.norm, self.norm_bias, c.eps)]
        for block in self.blocks:
            x = yield from block.forward(x)
            outputs.append(x)
        below = concat(*(outputs[number] for number in c.heard))
        beside = np.arange(len(c.heard) * c.positions).reshape(len(c.heard), c.positions).T
        return below[beside].reshape(c.positions, c.width)  # type: ignore[no-any-return]

    def joined(self, views: Sequence[Array], tiling: Tiling) -> Array:  # [P, width of the decoder] each -> [rows, ...]
        """Return the rows of a picture, given those of the whole and of its tiles."""
        end = self.line_ends[0].row.reshape(1, self.config.output)
        return concat(*views, end)[tiling.order(self.config.side)]

    def projected(self, x: Array) -> Array:  # [P + 1, width] -> [rows, width of the decoder]
        """Return the rows of embeddings."""
        c = self.config
        x = x[c.positions - c.rows :]
        biases = self.up_bias, self.down_bias
        return mlp(x, self.up, self.down, activation=c.projector_activation, biases=biases)
