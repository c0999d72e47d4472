"""Write a full-size model of random weights: `python -m bench.make_model --shape llama-3.2-1b --type Q4_K_M OUT.gguf`.

It computes nonsense at the speed of the real model: shapes, types and vocabulary size are the real ones. Equal
arguments give equal files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from .random_weights import chunks
from .shapes import RECIPES, SHAPES, Recipe, Shape, tensors
from .vocabulary import make_vocabulary


def make_model(path: Path, shape_name: str, type_name: str) -> None:
    """Write a GGUF file. Memory stays below 150 MB whatever the model's size."""
    shape, recipe = SHAPES[shape_name], RECIPES[type_name]
    writer = GGUFWriter(path, shape.architecture)
    writer.add_name(f"{shape_name} {type_name} (random weights)")
    _describe_model(writer, shape, recipe)
    _describe_text(writer, shape)
    wanted = tensors(shape, recipe)
    for tensor in wanted:
        writer.add_tensor_info(
            tensor.name,
            (*tensor.shape[:-1], tensor.row_bytes),
            np.dtype(np.uint8),
            tensor.nbytes,
            raw_dtype=tensor.type,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    for index, tensor in enumerate(wanted):
        for data in chunks(tensor, shape, np.random.default_rng(index)):
            file.write(data.data)
        writer.write_padding(file, tensor.nbytes)
    writer.close()


def _describe_model(writer: GGUFWriter, shape: Shape, recipe: Recipe) -> None:
    writer.add_file_type(recipe.label)
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6 if shape.architecture == "qwen2" else 1e-5)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_vocab_size(shape.vocabulary)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
        writer.add_expert_feed_forward_length(shape.ffn)
        writer.add_interleave_moe_layer_step(1)


def _describe_text(writer: GGUFWriter, shape: Shape) -> None:
    vocabulary = make_vocabulary(shape.architecture, shape.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_eot_token_id(vocabulary.eot)
    if vocabulary.eom is not None:
        writer.add_eom_token_id(vocabulary.eom)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_chat_template(vocabulary.template)


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench.make_model", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--type", choices=RECIPES, default="Q4_K_M")
    parser.add_argument("path", type=Path, metavar="OUT.gguf")
    arguments = parser.parse_args()
    make_model(arguments.path, arguments.shape, arguments.type)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
