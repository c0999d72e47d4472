"""Qwen 3 VL: the encoder of images and videos, with its projectors.

Source: Qwen3-VL Technical Report, arXiv:2511.21631, section 2: a vision transformer that takes pictures in their own
resolution. What some of its layers see goes to the decoder too, each through a projector of its own (DeepStack,
arXiv:2406.04334, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice

from ..core.plugin import (
    Array,
    BadModel,
    BadRequest,
    Encoder,
    Matrix,
    Module,
    Picture,
    Prepared,
    Rows,
    layers,
    tensor,
)
from ..core.tensor import (
    Rotation,
    attend_all,
    concat,
    conv_patches,
    grid_rope_table,
    interpolate,
    layer_norm,
    linear,
    mlp,
    project,
    rope,
    rotations,
)
from .qwen3vl_pictures import PAIR, Floats, Stretch, fitting_size, patches_of, positions_of, stretches, times_of
from .qwen3vl_sizes import LIMIT, VisionConfig

PIECE = 512  # patches that are computed at once: then others have their turn, and memory stays bounded
VIDEO_LEAST, VIDEO_MOST = 1 << 12, 3 << 23  # pixels of all frames, as in the files of the published processors


class VisionBlock(Module):
    """One layer: attention and an MLP, each behind a norm and beside a residual."""

    config: VisionConfig
    attention_norm: Array = tensor("hidden", gguf=("norm1.weight", "ln1.weight"), hf="norm1.weight")
    attention_norm_bias: Array = tensor("hidden", gguf=("norm1.bias", "ln1.bias"), hf="norm1.bias")
    q: Matrix = tensor(
        "hidden", "hidden", gguf=("attn_q.weight", "attn_qkv.weight"), gguf_part=(0, 3),
        hf="attn.qkv.weight", hf_part=(0, 3),
    )  # fmt: skip
    k: Matrix = tensor(
        "hidden", "hidden", gguf=("attn_k.weight", "attn_qkv.weight"), gguf_part=(1, 3),
        hf="attn.qkv.weight", hf_part=(1, 3),
    )  # fmt: skip
    v: Matrix = tensor(
        "hidden", "hidden", gguf=("attn_v.weight", "attn_qkv.weight"), gguf_part=(2, 3),
        hf="attn.qkv.weight", hf_part=(2, 3),
    )  # fmt: skip
    q_bias: Array = tensor(
        "hidden", gguf=("attn_q.bias", "attn_qkv.bias"), gguf_part=(0, 3), hf="attn.qkv.bias", hf_part=(0, 3)
    )
    k_bias: Array = tensor(
        "hidden", gguf=("attn_k.bias", "attn_qkv.bias"), gguf_part=(1, 3), hf="attn.qkv.bias", hf_part=(1, 3)
    )
    v_bias: Array = tensor(
        "hidden", gguf=("attn_v.bias", "attn_qkv.bias"), gguf_part=(2, 3), hf="attn.qkv.bias", hf_part=(2, 3)
    )
    out: Matrix = tensor("hidden", "hidden", gguf="attn_out.weight", hf="attn.proj.weight")
    out_bias: Array = tensor("hidden", gguf="attn_out.bias", hf="attn.proj.bias")
    mlp_norm: Array = tensor("hidden", gguf=("norm2.weight", "ln2.weight"), hf="norm2.weight")
    mlp_norm_bias: Array = tensor("hidden", gguf=("norm2.bias", "ln2.bias"), hf="norm2.bias")
    up: Matrix = tensor("inner", "hidden", gguf=("mlp.linear_fc1.weight", "ffn_up.weight"), hf="mlp.linear_fc1.weight")
    down: Matrix = tensor(
        "hidden", "inner", gguf=("mlp.linear_fc2.weight", "ffn_down.weight"), hf="mlp.linear_fc2.weight"
    )
    up_bias: Array = tensor("inner", gguf=("mlp.linear_fc1.bias", "ffn_up.bias"), hf="mlp.linear_fc1.bias")
    down_bias: Array = tensor("hidden", gguf=("mlp.linear_fc2.bias", "ffn_down.bias"), hf="mlp.linear_fc2.bias")

    def forward(
        self, xs: Sequence[Array], turns: Sequence[Rotation], frames: Sequence[int]
    ) -> Generator[None, None, list[Array]]:
        """Return what leaves this layer, in the same pieces, [P, D] each. Yields behind each piece, twice if several.

        frames: patches of each; those of a frame see each other. Several frames are one piece.
        """
        lengths = frames if len(xs) == 1 else None
        heads: list[tuple[Array, Array, Array]] = []
        for x, turn in zip(xs, turns, strict=True):
            if heads:
                yield
            heads.append(self.heads(x, turn))
        qs, k, v = [q for q, _, _ in heads], concat(*(k for _, k, _ in heads)), concat(*(v for _, _, v in heads))
        heads.clear()  # of a large image they are as much memory as anything
        out = []
        for x, q in zip(xs, qs, strict=True):
            out.append(self.finish(x, attend_all(q, k, v, scale=self.config.head_size**-0.5, lengths=lengths)))
            yield
        return out

    def heads(self, x: Array, turn: Rotation) -> tuple[Array, Array, Array]:  # [P, D] -> [P, H, E] each
        """Return queries, keys and values."""
        shape = -1, self.config.heads, self.config.head_size
        x = layer_norm(x, self.attention_norm, self.attention_norm_bias, self.config.eps)
        q, k, v = project(x, (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        return rope(q.reshape(*shape), turn), rope(k.reshape(*shape), turn), v.reshape(*shape)

    def finish(self, x: Array, mixed: Array) -> Array:  # [P, D] -> [P, D]
        """Return x after this layer, given the mixture of values."""
        x = x + linear(mixed, self.out, self.out_bias)
        normed = layer_norm(x, self.mlp_norm, self.mlp_norm_bias, self.config.eps)
        return x + mlp(normed, self.up, self.down, activation="gelu_tanh", biases=(self.up_bias, self.down_bias))


class DeepMerger(Module):
    """The projector behind a layer within the encoder."""

    config: VisionConfig
    norm: Array = tensor("unit", gguf="norm.weight", hf="norm.weight")
    norm_bias: Array = tensor("unit", gguf="norm.bias", hf="norm.bias")
    up: Matrix = tensor("unit", "unit", gguf=("linear_fc1.weight", "fc1.weight"), hf="linear_fc1.weight")
    up_bias: Array = tensor("unit", gguf=("linear_fc1.bias", "fc1.bias"), hf="linear_fc1.bias")
    down: Matrix = tensor("output", "unit", gguf=("linear_fc2.weight", "fc2.weight"), hf="linear_fc2.weight")
    down_bias: Array = tensor("output", gguf=("linear_fc2.bias", "fc2.bias"), hf="linear_fc2.bias")

    def forward(self, x: Array) -> Array:  # [P, D] -> [units, output]
        """Return what a layer of the decoder adds to the row of each unit. The norm is that of whole units."""
        x = layer_norm(x.reshape(-1, self.config.unit), self.norm, self.norm_bias, self.config.eps)
        return mlp(x, self.up, self.down, activation="gelu", biases=(self.up_bias, self.down_bias))


class Vision(Encoder):
    """Processor, encoder and projectors."""

    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    placeholder = "<|image_pad|>"
    together = 4
    media = frozenset({"image", "video"})

    config: VisionConfig
    # Kernels span two frames. Some files have one tensor for both, in either shape, and some one for each.
    patches: Array = tensor("colours", PAIR, "patch", "patch", gguf="v.patch_embed.weight", optional=True)
    whole: Array | None = tensor("hidden", 3, PAIR, "patch", "patch", hf="visual.patch_embed.proj.weight")
    early: Array | None = tensor("hidden", 3, "patch", "patch", gguf="v.patch_embd.weight", optional=True)
    late: Array | None = tensor("hidden", 3, "patch", "patch", gguf="v.patch_embd.weight.1", optional=True)
    patches_bias: Array = tensor(
        "hidden", gguf=("v.patch_embed.bias", "v.patch_embd.bias"), hf="visual.patch_embed.proj.bias"
    )
    positions: Array = tensor(
        "places", "hidden", gguf=("v.pos_embed.weight", "v.position_embd.weight"), hf="visual.pos_embed.weight"
    )
    blocks: list[VisionBlock] = layers(VisionBlock, count="layers", gguf="v.blk.{}.", hf="visual.blocks.{}.")
    norm: Array = tensor("hidden", gguf=("v.merger.norm.weight", "v.post_ln.weight"), hf="visual.merger.norm.weight")
    norm_bias: Array = tensor("hidden", gguf=("v.merger.norm.bias", "v.post_ln.bias"), hf="visual.merger.norm.bias")
    up: Matrix = tensor(
        "unit", "unit", gguf=("v.merger.linear_fc1.weight", "mm.0.weight"), hf="visual.merger.linear_fc1.weight"
    )
    up_bias: Array = tensor("unit", gguf=("v.merger.linear_fc1.bias", "mm.0.bias"), hf="visual.merger.linear_fc1.bias")
    down: Matrix = tensor(
        "output", "unit", gguf=("v.merger.linear_fc2.weight", "mm.2.weight"), hf="visual.merger.linear_fc2.weight"
    )
    down_bias: Array = tensor(
        "output", gguf=("v.merger.linear_fc2.bias", "mm.2.bias"), hf="visual.merger.linear_fc2.bias"
    )
    deep: list[DeepMerger] = layers(
        DeepMerger,
        count="deep",
        gguf=("v.deepstack_merger.{place}.", "v.deepstack.{}."),
        hf="visual.deepstack_merger_list.{place}.",
    )

    def ready(self) -> None:
        """Make one tensor of the kernels, and compute frequencies: half of a head's pairs turns by the row."""
        c = self.config
        if self.whole is not None:
            self.patches = self.whole
        elif self.early is not None and self.late is not None:
            halves = (half.reshape(c.colours, -1) for half in (self.early, self.late))
            self.patches = concat(*halves, columns=True)
        elif self.patches is None:
            raise BadModel("v.patch_embed.weight, or v.patch_embd.weight and v.patch_embd.weight.1, is missing")
        self.patches = self.patches.reshape(c.colours, PAIR, c.patch, c.patch)
        self.whole = self.early = self.late = None
        self.table = grid_rope_table(c.head_size, base=c.rope_base)

    # ---- pictures ------------------------------------------------------------------------------------------------

    def prepare(self, picture: Picture) -> Prepared:
        """Return an image in about its own size. It counts as two equal frames."""
        least, most = self.config.limits
        size = fitting_size(picture.width, picture.height, factor=self.factor, least=least, most=most)
        return self._prepared([picture], size, [""])

    def prepare_video(self, frames: Sequence[Picture]) -> Prepared:
        """Return frames, taken twice a second, as pairs with their times; an odd last one is doubled."""
        if not frames:
            raise BadRequest("a video without frames shows nothing")
        first = frames[0]
        for number, frame in enumerate(frames):
            if frame.image.size != first.image.size:
                found, expected = (f"{f.width} x {f.height}" for f in (frame, first))
                raise BadRequest(f"frame {number} of a video is {found} pixels, expected {expected} as the first")
        size = fitting_size(
            first.width, first.height, factor=self.factor, least=VIDEO_LEAST, most=VIDEO_MOST, frames=len(frames)
        )
        return self._prepared(frames, size, [f"<{time:.1f} seconds>" for time in times_of(len(frames))])

    @property
    def factor(self) -> int:
        """Pixels along a unit's side."""
        return self.config.patch * self.config.merge

    def _prepared(self, pictures: Sequence[Picture], size: tuple[int, int], before: Sequence[str]) -> Prepared:
        """Return pictures of one size. before: the text in front of each pair."""
        (width, height), c = size, self.config
        if len(before) * width * height > LIMIT:
            raise BadRequest(f"a video of {len(pictures)} frames of {width} x {height} pixels is too long")
        grid = len(before), height // c.patch, width // c.patch
        pixels = patches_of(self._pairs(pictures, width, height), grid=grid, patch=c.patch, merge=c.merge)
        positions = positions_of(grid[1] // c.merge, grid[2] // c.merge)
        rows = Rows(positions.shape[1], positions=positions, length=int(positions.max()) + 1)
        parts = [part for text in before for part in (f"{text}<|vision_start|>", rows, "<|vision_end|>")]
        return Prepared(pixels, tuple(parts), grid)

    def _pairs(self, pictures: Sequence[Picture], width: int, height: int) -> Iterator[tuple[Floats, Floats]]:
        for at in range(0, len(pictures), PAIR):
            pair = [
                picture.resized(width, height, "bicubic").numbers(self.config.mean, self.config.std)
                for picture in pictures[at : at + PAIR]
            ]
            yield pair[0], pair[-1]

    # ---- encoder and projectors ------------------------------------------------------------------------------------

    @property
    def deeper(self) -> int:
        """Embeddings of each row besides the first: one for each projector within the encoder."""
        return len(self.config.deep)

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image. Holds what one frame needs, or several small ones."""
        c = self.config
        frames: list[Array] = []
        for stretch in stretches(images, merge=c.merge, side=c.side, most=PIECE):
            rows, start = (yield from self.rows(stretch)), 0
            for size in stretch.frames:
                frames.append(rows[start : start + size // c.merge**2])
                start += size // c.merge**2
        left = iter(frames)
        return [concat(*islice(left, image.grid[0])) for image in images]

    def rows(self, stretch: Stretch) -> Generator[None, None, Array]:
        """Return the rows of a stretch's units, [units, (1 + deeper) * output]: of the last layer, then of others."""
        whole = self.config.merge**2
        pieces = stretch.pieces(PIECE // whole * whole or whole)
        turns = [rotations(stretch.places[:, piece], self.table) for piece in pieces]
        projectors, found = dict(zip(self.config.deep, self.deep, strict=True)), list[Array]()
        xs: list[Array] = []
        for piece in pieces:
            xs.append(self.entering(stretch.pixels[piece], stretch.learned[:, piece], stretch.frames))
            yield
        for number, block in enumerate(self.blocks):
            xs = yield from block.forward(xs, turns, stretch.frames)
            if number in projectors:
                found.append((yield from _each(projectors[number].forward, xs)))
        return concat((yield from _each(self.merged, xs)), *found, columns=True)

    def entering(self, pixels: Array, learned: Array, frames: Sequence[int]) -> Array:  # [P, numbers] -> [P, D]
        """Return what enters the first layer. learned: where patches lie in the learned grid; frames: patches of each.

        Every frame is a product of its own: the matrix library's sums depend on how many rows there are, and rows must
        not depend on the company in which a picture is encoded.
        """
        c, found, start = self.config, [], 0
        kernels = self.patches.reshape(c.hidden, 3, PAIR, c.patch, c.patch)
        for size in frames:
            frame = pixels[start : start + size].reshape(-1, 3, PAIR, c.patch, c.patch)
            found.append(conv_patches(frame, kernels, self.patches_bias)[:, 0])
            start += size
        return concat(*found) + interpolate(self.positions.reshape(c.side, c.side, c.hidden), learned)

    def merged(self, x: Array) -> Array:  # [P, D] -> [units, output]
        """Return what stands in the prompt for each unit. The norm is that of each patch."""
        x = layer_norm(x, self.norm, self.norm_bias, self.config.eps).reshape(-1, self.config.unit)
        return mlp(x, self.up, self.down, activation="gelu", biases=(self.up_bias, self.down_bias))


def _each(projector: Callable[[Array], Array], xs: Sequence[Array]) -> Generator[None, None, Array]:
    """Return what a projector makes of all pieces, and yield behind each."""
    found: list[Array] = []
    for x in xs:
        found.append(projector(x))
        yield
    return concat(*found)
