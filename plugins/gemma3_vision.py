"""How Gemma 3 sees: processor, SigLIP encoder and projector.

Sources: Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343, whose encoder is a plain vision transformer;
Gemma 3 Technical Report, arXiv:2503.19786, section 2.1 (pictures of one size, 256 rows each, pan and scan).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import msgspec
import numpy as np

from ..core.plugin import Array, Encoder, Keys, Matrix, Module, Picture, Prepared, Rows, layers, tensor
from ..core.tensor import attend_all, concat, conv_patches, layer_norm, linear, mlp, pool_patches, project, rms_norm

LARGEST_SIDE = 1 << 14  # pixels, far above any encoder's
AT_ONCE = 1024  # patches between two yields, for what grows with their number
GREY = (0.5, 0.5, 0.5)  # mean and deviation of colours from 0 to 1, unless a file has others
BEFORE, AFTER = "\n\n<start_of_image>", "<end_of_image>\n\n"  # the rows of a picture
ORIGINAL, CROPS = "Here is the original image ", " and here are some crops to help you see better "

SCAN = "vision.pan_and_scan."  # what keys begin with that say when long pictures are shown in parts


class PanAndScan(msgspec.Struct, frozen=True, kw_only=True):
    """When long pictures are also shown in parts."""

    min_ratio: float = 1.2  # of the longer side to the shorter
    min_side: int = 256  # pixels of a part
    most: int = 4  # parts

    def crops(self, picture: Picture) -> list[Picture]:
        """Return the parts of a picture, from left to right or from top to bottom; none if the whole is enough."""
        longer, shorter = max(picture.width, picture.height), min(picture.width, picture.height)
        if longer / shorter < self.min_ratio:
            return []
        count = min(math.floor(longer / shorter + 0.5), longer // self.min_side)
        count = min(max(count, 2), self.most)
        each = -(-longer // count)
        if min(each, shorter) < self.min_side:
            return []
        parts = [(at, min(each, longer - at)) for at in range(0, longer, each)]
        if picture.width >= picture.height:
            return [picture.cropped(at, 0, size, shorter) for at, size in parts]
        return [picture.cropped(0, at, shorter, size) for at, size in parts]


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of encoder and projector, and how pictures are prepared."""

    layers: int
    hidden: int  # D
    inner: int  # width of the MLP
    heads: int  # H
    image_size: int  # pixels of a side
    patch_size: int  # pixels of a side
    eps: float
    pooled: int  # patches along the side of a square that becomes one row
    output: int  # width of the decoder
    missing_one: float  # what to add to the projector's norm weights: GGUF holds w, checkpoints w - 1
    mean: tuple[float, ...] = GREY
    deviation: tuple[float, ...] = GREY
    scan: PanAndScan | None = None

    @property
    def side(self) -> int:
        """Patches along a side of a picture."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """P."""
        return self.side**2

    @property
    def rows(self) -> int:
        """Rows of embeddings that a picture becomes."""
        return (self.side // self.pooled) ** 2

    @classmethod
    def from_gguf(cls, keys: Keys) -> VisionConfig | None:
        """Read `clip.vision.*` of a file for the encoder alone, or `gemma3.vision.*` of one that holds everything."""
        alone = "clip.vision.block_count" in keys
        at = "clip.vision." if alone else "vision."
        if f"{at}block_count" not in keys:
            return None
        if alone:
            keys.text("clip.projector_type", "gemma3", allowed=("gemma3",))
            if not keys.flag("clip.use_gelu", False):
                raise keys.wrong("clip.use_gelu", "true: the encoder has no other activation")
        keys.integer(f"{at}num_channels", 3, low=3, high=3)
        patch, hidden = keys.integer(f"{at}patch_size"), keys.integer(f"{at}embedding_length")
        image = _image_size(keys, f"{at}image_size", patch)
        return cls(
            layers=keys.integer(f"{at}block_count"),
            hidden=hidden,
            inner=keys.integer(f"{at}feed_forward_length"),
            heads=keys.divisor(f"{at}attention.head_count", of=hidden),
            image_size=image,
            patch_size=patch,
            eps=keys.number(f"{at}attention.layer_norm_epsilon", 1e-6, low=0.0, high=1.0),
            pooled=_pooled_from_gguf(keys, image // patch),
            output=keys.integer("embedding_length"),
            missing_one=0.0,
            mean=keys.numbers(f"{at}image_mean", GREY, low=0.0, high=1.0),
            deviation=keys.numbers(f"{at}image_std", GREY, low=1e-6, high=1.0),
            scan=_pan_and_scan_from_gguf(keys),
        )

    def to_gguf(self) -> dict[str, Any]:
        """Return `vision.*`. Those of pan and scan are keys that only Puna reads."""
        scan = {} if self.scan is None else msgspec.structs.asdict(self.scan)
        return {
            "mm.tokens_per_image": self.rows,
            "vision.block_count": self.layers,
            "vision.embedding_length": self.hidden,
            "vision.feed_forward_length": self.inner,
            "vision.attention.head_count": self.heads,
            "vision.attention.layer_norm_epsilon": self.eps,
            "vision.num_channels": 3,
            "vision.image_size": self.image_size,
            "vision.patch_size": self.patch_size,
            "vision.image_mean": list(self.mean),
            "vision.image_std": list(self.deviation),
            **{f"{SCAN}{name}": value for name, value in scan.items()},
        }

    @classmethod
    def from_hf(cls, keys: Keys) -> VisionConfig | None:
        """Read the section `vision_config`; what it leaves out is as in the reference's class."""
        eye = keys.section("vision_config")
        if eye is None:
            return None
        text, processor = keys.section("text_config") or Keys({}), keys.section("preprocessor") or Keys({})
        eye.text("hidden_act", "gelu_pytorch_tanh", allowed=("gelu_pytorch_tanh",))
        eye.integer("num_channels", 3, low=3, high=3)
        patch, hidden = eye.integer("patch_size", 16), eye.integer("hidden_size", 768)
        image = _image_size(eye, "image_size", patch, 224)
        heads = eye.integer("num_attention_heads", 12)
        if hidden % heads:
            raise eye.wrong("num_attention_heads", f"a divisor of {hidden}")
        return cls(
            layers=eye.integer("num_hidden_layers", 12),
            hidden=hidden,
            inner=eye.integer("intermediate_size", 3072),
            heads=heads,
            image_size=image,
            patch_size=patch,
            eps=eye.number("layer_norm_eps", 1e-6, low=0.0, high=1.0),
            pooled=_pooled(keys, "mm_tokens_per_image", image // patch),
            output=text.integer("hidden_size", 2304),
            missing_one=1.0,
            mean=processor.numbers("image_mean", GREY, low=0.0, high=1.0),
            deviation=processor.numbers("image_std", GREY, low=1e-6, high=1.0),
            scan=_pan_and_scan(processor),
        )


def _image_size(keys: Keys, name: str, patch: int, default: int | None = None) -> int:
    """Return the pixels of a picture's side, which whole patches fill."""
    found = keys.integer(name, default, low=patch, high=LARGEST_SIDE)
    if found % patch:
        raise keys.wrong(name, f"a multiple of {patch}, the side of a patch")
    return found


def _pooled(keys: Keys, name: str, side: int) -> int:
    """Return how many patches one row stands for along a side, from the number of rows."""
    rows = keys.integer(name, 256)
    across = math.isqrt(rows)
    if across**2 != rows or side % across:
        raise keys.wrong(name, f"the square of a divisor of {side}, the patches along a picture's side")
    return side // across


def _pooled_from_gguf(keys: Keys, side: int) -> int:
    """Return the same, which a file for the encoder alone gives outright, or leaves out."""
    if "clip.vision.block_count" not in keys:
        return _pooled(keys, "mm_tokens_per_image" if "mm_tokens_per_image" in keys else "mm.tokens_per_image", side)
    name = "clip.vision.projector.scale_factor"
    found = keys.integer(name, 4)
    if side % found:
        raise keys.wrong(name, f"a divisor of {side}, the patches along a picture's side")
    return found


def _pan_and_scan(keys: Keys) -> PanAndScan | None:
    """Return when long pictures are also shown in parts: never, unless a checkpoint's processor asks for it."""
    if not keys.flag("do_pan_and_scan", False):
        return None
    usual = PanAndScan()
    return PanAndScan(
        min_ratio=keys.number("pan_and_scan_min_ratio_to_activate", usual.min_ratio, low=1.0),
        min_side=keys.integer("pan_and_scan_min_crop_size", usual.min_side),
        most=keys.integer("pan_and_scan_max_num_crops", usual.most, high=64),
    )


def _pan_and_scan_from_gguf(keys: Keys) -> PanAndScan | None:
    """Return the same of a file that was made from such a checkpoint."""
    if f"{SCAN}most" not in keys:
        return None
    return PanAndScan(
        min_ratio=keys.number(f"{SCAN}min_ratio", low=1.0),
        min_side=keys.integer(f"{SCAN}min_side"),
        most=keys.integer(f"{SCAN}most", high=64),
    )


class VisionBlock(Module):
    """One layer of the encoder: attention of all patches and an MLP, each behind a norm and beside a residual."""

    config: VisionConfig
    attention_norm: Array = tensor("hidden", gguf=("layer_norm1.weight", "ln1.weight"), hf="layer_norm1.weight")
    attention_norm_bias: Array = tensor("hidden", gguf=("layer_norm1.bias", "ln1.bias"), hf="layer_norm1.bias")
    q: Matrix = tensor("hidden", "hidden", gguf="attn_q.weight", hf="self_attn.q_proj.weight")
    q_bias: Array = tensor("hidden", gguf="attn_q.bias", hf="self_attn.q_proj.bias")
    k: Matrix = tensor("hidden", "hidden", gguf="attn_k.weight", hf="self_attn.k_proj.weight")
    k_bias: Array = tensor("hidden", gguf="attn_k.bias", hf="self_attn.k_proj.bias")
    v: Matrix = tensor("hidden", "hidden", gguf="attn_v.weight", hf="self_attn.v_proj.weight")
    v_bias: Array = tensor("hidden", gguf="attn_v.bias", hf="self_attn.v_proj.bias")
    out: Matrix = tensor(
        "hidden", "hidden", gguf=("attn_output.weight", "attn_out.weight"), hf="self_attn.out_proj.weight"
    )
    out_bias: Array = tensor("hidden", gguf=("attn_output.bias", "attn_out.bias"), hf="self_attn.out_proj.bias")
    mlp_norm: Array = tensor("hidden", gguf=("layer_norm2.weight", "ln2.weight"), hf="layer_norm2.weight")
    mlp_norm_bias: Array = tensor("hidden", gguf=("layer_norm2.bias", "ln2.bias"), hf="layer_norm2.bias")
    # Early converters called the first ffn_down and the second ffn_up; shapes tell.
    up: Matrix = tensor(
        "inner", "hidden", gguf=("mlp.fc1.weight", "ffn_up.weight", "ffn_down.weight"), hf="mlp.fc1.weight"
    )
    up_bias: Array = tensor("inner", gguf=("mlp.fc1.bias", "ffn_up.bias", "ffn_down.bias"), hf="mlp.fc1.bias")
    down: Matrix = tensor(
        "hidden", "inner", gguf=("mlp.fc2.weight", "ffn_down.weight", "ffn_up.weight"), hf="mlp.fc2.weight"
    )
    down_bias: Array = tensor("hidden", gguf=("mlp.fc2.bias", "ffn_down.bias", "ffn_up.bias"), hf="mlp.fc2.bias")

    def forward(self, x: Array) -> Generator[None, None, Array]:  # [P, D] -> [P, D]
        """Return x after this layer; yields after every part of the work."""
        x = x + (yield from self.attention(x))
        yield
        added: list[Array] = []
        for start in range(0, x.shape[0], AT_ONCE):
            part = layer_norm(x[start : start + AT_ONCE], self.mlp_norm, self.mlp_norm_bias, self.config.eps)
            biases = self.up_bias, self.down_bias
            added.append(mlp(part, self.up, self.down, activation="gelu_tanh", biases=biases))
            yield
        return x + concat(*added)

    def attention(self, x: Array) -> Generator[None, None, Array]:  # [P, D] -> [P, D]
        """Return what attention adds."""
        heads, size = self.config.heads, self.config.hidden // self.config.heads
        x = layer_norm(x, self.attention_norm, self.attention_norm_bias, self.config.eps)
        parts = project(x, (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        q, k, v = (part.reshape(-1, heads, size) for part in parts)
        mixed: list[Array] = []
        for start in range(0, x.shape[0], AT_ONCE):
            yield
            mixed.append(attend_all(q[start : start + AT_ONCE], k, v, scale=size**-0.5))
        return linear(concat(*mixed), self.out, self.out_bias)


class Vision(Encoder):
    """Processor, encoder and projector."""

    marker = "<start_of_image>"
    placeholder = "<image_soft_token>"

    config: VisionConfig
    patches: Array = tensor(
        "hidden", 3, "patch_size", "patch_size",
        gguf=("v.patch_embedding.weight", "v.patch_embd.weight"),
        hf="vision_tower.vision_model.embeddings.patch_embedding.weight",
    )  # fmt: skip
    patches_bias: Array = tensor(
        "hidden",
        gguf=("v.patch_embedding.bias", "v.patch_embd.bias"),
        hf="vision_tower.vision_model.embeddings.patch_embedding.bias",
    )
    positions: Array = tensor(
        "patches", "hidden",
        gguf=("v.position_embedding.weight", "v.position_embd.weight"),
        hf="vision_tower.vision_model.embeddings.position_embedding.weight",
    )  # fmt: skip
    blocks: list[VisionBlock] = layers(
        VisionBlock, count="layers", gguf="v.blk.{}.", hf="vision_tower.vision_model.encoder.layers.{}."
    )
    norm: Array = tensor(
        "hidden",
        gguf=("v.post_layernorm.weight", "v.post_ln.weight"),
        hf="vision_tower.vision_model.post_layernorm.weight",
    )
    norm_bias: Array = tensor(
        "hidden", gguf=("v.post_layernorm.bias", "v.post_ln.bias"), hf="vision_tower.vision_model.post_layernorm.bias"
    )
    row_norm: Array = tensor(
        "hidden",
        gguf=("mm.mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight"),
        hf="multi_modal_projector.mm_soft_emb_norm.weight",
    )
    projection: Matrix = tensor(
        "output", "hidden",
        gguf=("mm.mm_input_projection.weight", "mm.input_projection.weight"),
        hf="multi_modal_projector.mm_input_projection_weight",
        transposed=True,
    )  # fmt: skip

    def ready(self) -> None:
        """Make the projector's norm what rows are multiplied with."""
        self.row_norm = self.row_norm + self.config.missing_one

    @property
    def most_atomic(self) -> int:
        """All rows of a picture."""
        return self.config.rows

    def prepare(self, picture: Picture) -> Prepared:
        """Return a picture as a square, whatever its shape, and behind it the parts of a long one, if they are wanted.

        pixels: [1 + parts, 3, side, side].
        """
        c = self.config
        views = [picture, *(c.scan.crops(picture) if c.scan else ())]
        squares = [view.resized(c.image_size, c.image_size, "bilinear").numbers(c.mean, c.deviation) for view in views]
        rows = Rows(c.rows, atomic=True, both_ways=True)
        said = [""] if len(views) == 1 else [ORIGINAL, CROPS, *[" "] * (len(views) - 2)]  # before each
        parts: list[str | Rows] = [said[0] + BEFORE, rows]
        for text in said[1:]:
            parts += [AFTER + text + BEFORE, rows]
        return Prepared(np.stack(squares), (*parts, AFTER))

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image, [rows, width of the decoder]; yields several times a layer."""
        found: list[Array] = []
        for image in images:
            views = []
            for number in range(len(image.pixels)):  # one by one: more at once would only take more memory
                seen = yield from self.encoded(image.pixels[number : number + 1])
                views.append(self.projected(seen))
            found.append(views[0] if len(views) == 1 else concat(*views))
        return found

    def encoded(self, pixels: Array) -> Generator[None, None, Array]:  # [1, 3, side, side] -> [P, D]
        """Return what leaves the encoder, a row for each patch."""
        c = self.config
        x = conv_patches(pixels, self.patches, self.patches_bias).reshape(c.patches, c.hidden) + self.positions
        for block in self.blocks:
            x = yield from block.forward(x)
        return layer_norm(x, self.norm, self.norm_bias, c.eps)

    def projected(self, x: Array) -> Array:  # [P, D] -> [rows, width of the decoder]
        """Return the rows of embeddings: one for each square of patches."""
        c = self.config
        squares = pool_patches(x.reshape(c.side, c.side, c.hidden), c.pooled).reshape(c.rows, c.hidden)
        return linear(rms_norm(squares, self.row_norm, 1e-6), self.projection)
