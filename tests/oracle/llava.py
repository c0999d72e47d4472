"""LLaVA 1.5 and 1.6: CLIP with a class token, two layers of projector, and a decoder of Llama's or Mistral's family.

llava           Llama, features of the last layer but one without the class token, quick GELU; pictures are
                cropped to a square.
llava-mistral   Mistral with a sliding window, features of two layers side by side with the class token, exact GELU;
                pictures are put on a square.
llava-next      Llama, pictures as a whole and in tiles, whose rows of patches end in a row of their own (1.6).
"""

from __future__ import annotations

from typing import Any

import torch

from .common import Inputs, Variant

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- message['role'].upper() + ': ' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<image>\\n' }}
            {%- else %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- eos_token if message['role'] == 'assistant' else ' ' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT:' }}
{%- endif %}
"""
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Llava(Variant):
    """LLaVA 1.5 with Llama."""

    name = "llava"
    tokenizer = "llama-spm"
    added = ("<image>", "<pad>")
    template = TEMPLATE
    placeholder = "<image>"
    stored = "float16"
    pictures = {"gradient": (24, 24), "alpha": (30, 47), "wide": (95, 21)}  # noqa: RUF012
    side, patch = 24, 6  # pixels
    strategy = "default"
    layer: int | list[int] = -2
    activation = "quick_gelu"

    @property
    def processor(self) -> dict[str, Any]:  # type: ignore[override]
        """CLIP's: the shorter side to a size, the middle of the longer."""
        return {
            "crop_size": {"height": self.side, "width": self.side}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
            "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "resample": 3,
            "rescale_factor": 1 / 255, "size": {"shortest_edge": self.side},
        }  # fmt: skip

    @property
    def processor_extra(self) -> dict[str, Any]:  # type: ignore[override]
        """What the number of tokens depends on."""
        return {
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": self.patch,
            "processor_class": "LlavaProcessor", "vision_feature_select_strategy": self.strategy,
        }  # fmt: skip

    def text(self, tok: Any) -> dict[str, Any]:
        """Return the section of the decoder."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 80,
            "max_position_embeddings": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
            "rms_norm_eps": 1e-05, "vocab_size": -(-len(tok) // 16) * 16, "torch_dtype": self.stored,
        }  # fmt: skip

    def config(self, tok: Any) -> dict[str, Any]:
        """Return config.json as published models have it."""
        return {
            "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
            "image_token_index": tok.convert_tokens_to_ids("<image>"), "model_type": "llava",
            "pad_token_id": tok.convert_tokens_to_ids("<pad>"), "projector_hidden_act": "gelu",
            "text_config": self.text(tok), "tie_word_embeddings": False, "torch_dtype": self.stored,
            "vision_config": {
                "hidden_act": self.activation, "hidden_size": 32, "image_size": self.side, "intermediate_size": 56,
                "model_type": "clip_vision_model", "num_attention_heads": 2, "num_hidden_layers": 4,
                "patch_size": self.patch, "projection_dim": 24, "vocab_size": 32000,
            },
            "vision_feature_layer": self.layer, "vision_feature_select_strategy": self.strategy,
        }  # fmt: skip

    def see(self, model: Any, inputs: Inputs) -> dict[str, Any]:
        """Return the chosen layers' outputs, the class token among them, and the rows."""
        states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        chosen = [self.layer] if isinstance(self.layer, int) else self.layer
        rows = model.model.get_image_features(
            inputs["pixel_values"],
            vision_feature_layer=self.layer,
            vision_feature_select_strategy=self.strategy,
        )
        return {"tower": torch.cat([states[i][0] for i in chosen], -1), "projected": torch.cat(list(rows))}


class LlavaMistral(Llava):
    """LLaVA with Mistral, and with the rarer choices."""

    name = "llava-mistral"
    stored = "bfloat16"
    strategy = "full"
    layer: int | list[int] = [-3, 2]  # noqa: RUF012
    activation = "gelu"
    long = 64

    @property
    def processor(self) -> dict[str, Any]:  # type: ignore[override]
        """LLaVA's own, which adds what is missing to a square in the mean colour."""
        return super().processor | {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}

    def text(self, tok: Any) -> dict[str, Any]:
        """Return the section of the decoder."""
        return {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 40, "head_dim": 12,
            "intermediate_size": 72, "max_position_embeddings": 512, "num_attention_heads": 4, "num_hidden_layers": 3,
            "num_key_value_heads": 1, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": 20,
            "vocab_size": -(-len(tok) // 16) * 16, "torch_dtype": self.stored,
        }  # fmt: skip


class LlavaNext(Llava):
    """LLaVA 1.6."""

    name = "llava-next"
    stored = "bfloat16"
    grids = [[24, 48], [48, 24], [48, 48], [24, 72]]  # noqa: RUF012 - height and width

    @property
    def processor(self) -> dict[str, Any]:  # type: ignore[override]
        """Its own, whose padding is for batches."""
        return super().processor | {
            "do_pad": True, "image_grid_pinpoints": self.grids, "image_processor_type": "LlavaNextImageProcessor",
            "processor_class": "LlavaNextProcessor",
        }  # fmt: skip

    @property
    def processor_extra(self) -> dict[str, Any]:  # type: ignore[override]
        """What the number of tokens depends on."""
        return super().processor_extra | {"processor_class": "LlavaNextProcessor"}

    def text(self, tok: Any) -> dict[str, Any]:
        """Return the section of the decoder."""
        return super().text(tok) | {"num_hidden_layers": 2, "rope_theta": 1000000.0}

    def config(self, tok: Any) -> dict[str, Any]:
        """Return config.json as published models have it."""
        return super().config(tok) | {
            "architectures": ["LlavaNextForConditionalGeneration"], "image_grid_pinpoints": self.grids,
            "model_type": "llava_next", "use_image_newline_parameter": True,
        }  # fmt: skip

    def see(self, model: Any, inputs: Inputs) -> dict[str, Any]:
        """Return the chosen layer's outputs of the whole picture and of each tile, and the rows."""
        views = inputs["pixel_values"][0]
        states = model.model.vision_tower(views, output_hidden_states=True).hidden_states
        rows = model.model.get_image_features(
            inputs["pixel_values"],
            inputs["image_sizes"],
            vision_feature_layer=self.layer,
            vision_feature_select_strategy=self.strategy,
        )
        return {"tower": states[self.layer], "projected": torch.cat(list(rows))}


VARIANTS = [Llava(), LlavaMistral(), LlavaNext()]
