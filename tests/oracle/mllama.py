"""Llama 3.2 Vision: tiles on a canvas, two encoders one after the other, and layers of the decoder that look at images.

mllama          decoder with grouped queries, llama3 scaling, and two neighbouring layers of four that look; tiles
                whose rows do not fill the encoder's multiple of eight; a head that ends before the placeholder, which
                has an embedding.

Two things of transformers 4.57 are put right before anything is computed, as the model was trained without them. The
reference code of its authors says so, and so did earlier versions of transformers or still do other engines.
- Of the encoder's layers that `intermediate_layers_indices` names, it is the input that counts, not the output.
- A token that sees no image gets nothing from a layer that looks: transformers lets it see all images, those behind it
  and their padding included, and only leaves out the layer's MLP.
"""

from __future__ import annotations

from typing import Any

import torch

from .common import QUESTIONS, Inputs, Talks, Variant, conversations, said

IMAGE = {"type": "image"}
RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for content in message['content'] %}"
    "{%- if content['type'] == 'image' %}{{- '<|image|>' }}"
    "{%- elif content['type'] == 'text' %}{{- content['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


class Mllama(Variant):
    """Llama 3.2 Vision."""

    name = "mllama"
    tokenizer = "llama-bpe"
    added = ("<|image|>",)
    template = TEMPLATE
    placeholder = "<|image|>"
    pictures = {"gradient": (32, 32), "alpha": (50, 60), "wide": (130, 30), "tall": (20, 44)}  # noqa: RUF012
    side = 32
    processor = {  # noqa: RUF012
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "MllamaImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711], "max_image_tiles": 4, "processor_class": "MllamaProcessor",
        "resample": 2, "rescale_factor": 1 / 255, "size": {"height": side, "width": side},
    }  # fmt: skip

    def config(self, tok: Any) -> dict[str, Any]:
        """Return config.json."""
        bos, *eos = tok.convert_tokens_to_ids(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
        image = tok.convert_tokens_to_ids("<|image|>")
        return {
            "architectures": ["MllamaForConditionalGeneration"], "image_token_index": image, "model_type": "mllama",
            "text_config": {
                "bos_token_id": bos, "cross_attention_layers": [1, 2], "dropout": 0, "eos_token_id": eos,
                "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 56,
                "max_position_embeddings": 2048, "model_type": "mllama_text_model", "num_attention_heads": 4,
                "num_hidden_layers": 4, "num_key_value_heads": 2, "pad_token_id": eos[0], "rms_norm_eps": 1e-5,
                "rope_scaling": {
                    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 64, "rope_type": "llama3",
                },
                "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
                "vocab_size": image,
            },
            "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
            "vision_config": {
                "attention_heads": 2, "hidden_act": "gelu", "hidden_size": 32, "image_size": self.side,
                "initializer_range": 0.02, "intermediate_layers_indices": [1, 2], "intermediate_size": 56,
                "max_num_tiles": 4, "model_type": "mllama_vision_model", "norm_eps": 1e-5, "num_channels": 3,
                "num_global_layers": 2, "num_hidden_layers": 3, "patch_size": 8, "supported_aspect_ratios": RATIOS,
                "torch_dtype": "bfloat16", "vision_output_dim": 96,
            },
        }  # fmt: skip

    def scale(self, name: str, shape: tuple[int, ...]) -> tuple[float, float] | None:
        """Return mean and deviation: gates are open, and tables of positions as large as what they are added to."""
        if name.endswith(("gate", "gate_attn", "gate_ffn")):
            return 0.8, 0.2
        return (0.0, 0.5) if "tile" in name or "positional_embedding" in name else None

    def mended(self, model: Any) -> Any:
        """Return the model as it was trained: see above."""
        eye = model.model.vision_model
        eye.intermediate_layers_indices = [index - 1 for index in eye.intermediate_layers_indices]
        for number in model.config.text_config.cross_attention_layers:
            _let_the_blind_be_blind(model.model.language_model.layers[number])
        return model

    def see(self, model: Any, inputs: Inputs) -> dict[str, Any]:
        """Return the tiles that are not padding, and what leaves the encoder, [rows, width], and the projector."""
        inner, tiles = model.model, int(inputs["aspect_ratio_mask"].sum())
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        tower = inner.vision_model(**{name: inputs[name] for name in names}).last_hidden_state
        tower = tower[0, 0, :tiles].reshape(-1, tower.shape[-1])
        pixels = inputs["pixel_values"][0, 0, :tiles]
        return {"pixel_values": pixels, "tower": tower, "projected": inner.multi_modal_projector(tower)}

    def picture_facts(self, inputs: Inputs) -> dict[str, Any]:
        """Return the canvas, in tiles."""
        rows, columns = RATIOS[int(inputs["aspect_ratio_ids"]) - 1]
        return {"canvas": [rows, columns]}

    def extended(self, inputs: Inputs, ids: list[int]) -> Inputs:
        """Return inputs with more tokens behind them, which see what the last one sees."""
        longer = super().extended(inputs, ids)
        if "cross_attention_mask" in inputs:
            mask = inputs["cross_attention_mask"]
            longer["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(ids), -1, -1)], 1)
        return longer

    def conversations(self) -> Talks:
        """Return those of all families, and one whose pictures have no text between them."""
        beside = [said(IMAGE, IMAGE, QUESTIONS[2]), said(IMAGE, QUESTIONS[3])]
        return {**conversations(), "beside": (beside, ["tall", "alpha", "gradient"])}


def _let_the_blind_be_blind(layer: Any) -> None:
    """Have attention of a layer give nothing to tokens that see no image."""
    rows = {}

    def remember(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows["seeing"] = kwargs["full_text_row_masked_out_mask"]

    def blind(_: Any, args: Any, output: Any) -> Any:
        mixed, weights = output
        return mixed * rows["seeing"][:, 0], weights

    layer.register_forward_pre_hook(remember, with_kwargs=True)
    layer.cross_attn.register_forward_hook(blind)


VARIANTS = [Mllama()]
