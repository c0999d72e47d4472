"""Qwen 3 VL, dense: positions that alternate over a head's pairs, learned positions stretched to each picture, and two
of the encoder's layers that go to the decoder's first two.

qwen3-vl        pictures that shrink, grow in one direction only, and lie on white; fewer patches than learned positions
                from top to bottom, and more from left to right.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2VLImageProcessor

from .common import Inputs, Variant

TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def _obey_size() -> None:
    """Have the processor on Pillow keep to `size`: in this version it forgets it, and the one on tensors does not."""
    made = Qwen2VLImageProcessor.__init__

    def obeying(self: Any, *args: Any, size: dict[str, int] | None = None, **others: Any) -> None:
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]} if size else {}
        made(self, *args, size=size, **limits, **others)

    Qwen2VLImageProcessor.__init__ = obeying


_obey_size()


class Qwen3VL(Variant):
    """Qwen 3 VL."""

    name = "qwen3-vl"
    tokenizer = "qwen3"
    template = TEMPLATE
    placeholder = "<|image_pad|>"
    pictures = {"gradient": (55, 45), "alpha": (25, 35), "wide": (75, 10)}  # noqa: RUF012
    processor = {  # noqa: RUF012
        "size": {"longest_edge": 1600, "shortest_edge": 512}, "patch_size": 4, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
    }  # fmt: skip

    def config(self, tok: Any) -> dict[str, Any]:
        """Return config.json as published models have it."""
        start, end, image, video = tok.convert_tokens_to_ids(
            ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
        )
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": image, "model_type": "qwen3_vl",
            "text_config": {
                "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": tok.pad_token_id,
                "dtype": self.stored, "eos_token_id": tok.eos_token_id, "head_dim": 20, "hidden_act": "silu",
                "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 80, "max_position_embeddings": 1024,
                "model_type": "qwen3_vl_text", "num_attention_heads": 4, "num_hidden_layers": 4,
                "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 2, 2], "rope_type": "default"},
                "rope_theta": 5000000, "use_cache": True, "vocab_size": -(-len(tok) // 32) * 32,
            },
            "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0", "video_token_id": video,
            "vision_config": {
                "deepstack_visual_indexes": [0, 2], "depth": 4, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 24,
                "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 40, "model_type": "qwen3_vl",
                "num_heads": 2, "num_position_embeddings": 36, "out_hidden_size": 48, "patch_size": 4,
                "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
            "vision_end_token_id": end, "vision_start_token_id": start,
        }  # fmt: skip

    def scale(self, name: str, shape: tuple[int, ...]) -> tuple[float, float] | None:
        """Return the scale of learned positions, which are called otherwise than elsewhere."""
        return (0.0, 0.5) if "pos_embed" in name else None

    def see(self, model: Any, inputs: Inputs) -> dict[str, Any]:
        """Return what leaves the last layer, the rows, and what the decoder's layers add to them, side by side."""
        visual, left = model.model.visual, []
        handle = visual.blocks[-1].register_forward_hook(lambda module, args, out: left.append(out))
        rows, deep = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        handle.remove()
        return {"tower": left[0], "projected": rows, "deep": torch.cat(deep, -1)}

    def picture_facts(self, inputs: Inputs) -> dict[str, Any]:
        """Return the grid of patches."""
        return {"image_grid_thw": inputs["image_grid_thw"][0].tolist()}

    def facts(self, model: Any, inputs: Inputs, put: Any) -> dict[str, Any]:
        """Return the positions of a prompt's tokens, and how far those behind it are ahead."""
        positions, delta = model.model.get_rope_index(inputs["input_ids"], inputs["image_grid_thw"])
        return {"position_ids": put("position_ids", positions[:, 0]), "rope_delta": int(delta[0, 0])}


VARIANTS = [Qwen3VL()]
