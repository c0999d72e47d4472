"""How long encoding a picture takes: `python -m bench.vision [--layers 27] [--repeats 3] [--turns]`.

Writes a model of random weights in the shape of Gemma 3's encoder (SigLIP, 896 x 896 pixels, patches of 14, 1,152 wide,
F16) with a decoder of one small layer, and has Puna and llama.cpp encode a picture of exactly that size in turns, each
in a process of its own. Puna's operations in a second are shown beside what the machine's float units can do.

With --turns, instead: the same model behind Puna's server, and how long a client waits for the first text of a turn
about a picture of that size, of the next turn about it, and of one about the same picture by another client.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from rich.console import Console

from puna.core.tensor.threads import default_threads

from .ceilings import float_ceiling
from .kernels import new_table
from .turns import Turn, measure
from .vocabulary import make_vocabulary

HIDDEN, INNER, HEADS, PATCH, SIDE = 1152, 4304, 16, 14, 896
OUTPUT = 2560  # width of the decoder, as in Gemma 3 4B
ROWS = 256
VOCABULARY = 1024


def operations(layers: int) -> int:
    """Return the multiplications and additions that encoding one picture takes, the softmax left out."""
    patches = (SIDE // PATCH) ** 2
    products = HIDDEN * (4 * HIDDEN + 2 * INNER)
    attention = 2 * patches * HIDDEN
    return 2 * (patches * (layers * (products + attention) + 3 * PATCH**2 * HIDDEN) + ROWS * HIDDEN * OUTPUT)


def make_files(folder: Path, layers: int) -> tuple[Path, Path]:
    """Write the decoder and the encoder, and return where."""
    text, eye = folder / "decoder.gguf", folder / "encoder.gguf"
    _write_decoder(text)
    _write_encoder(eye, layers)
    return text, eye


def _write_decoder(path: Path) -> None:
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(1024)
    writer.add_embedding_length(OUTPUT)
    writer.add_block_count(1)
    writer.add_feed_forward_length(256)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(512)
    vocabulary = make_vocabulary("llama", VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    sizes = {
        "token_embd": (VOCABULARY, OUTPUT), "blk.0.attn_q": (64, OUTPUT), "blk.0.attn_k": (32, OUTPUT),
        "blk.0.attn_v": (32, OUTPUT), "blk.0.attn_output": (OUTPUT, 64), "blk.0.ffn_gate": (256, OUTPUT),
        "blk.0.ffn_up": (256, OUTPUT), "blk.0.ffn_down": (OUTPUT, 256),
    }  # fmt: skip
    norms = {
        **dict.fromkeys(("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"), OUTPUT),
        **dict.fromkeys(("attn_q_norm", "attn_k_norm"), 32),
    }
    rng = np.random.default_rng(0)
    for name, shape in sizes.items():
        writer.add_tensor(f"{name}.weight", _numbers(rng, shape))
    for name, size in norms.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(size, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(OUTPUT, np.float32))
    _finish(writer)


def _write_encoder(path: Path, layers: int) -> None:
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "projection_dim": OUTPUT, "image_size": SIDE, "patch_size": PATCH, "embedding_length": HIDDEN,
        "feed_forward_length": INNER, "block_count": layers, "attention.head_count": HEADS,
    }  # fmt: skip
    for name, value in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    rng, zero = np.random.default_rng(1), np.zeros
    writer.add_tensor("v.patch_embd.weight", _numbers(rng, (HIDDEN, 3, PATCH, PATCH)))
    writer.add_tensor("v.position_embd.weight", _numbers(rng, ((SIDE // PATCH) ** 2, HIDDEN)).astype(np.float32))
    writer.add_tensor("mm.input_projection.weight", _numbers(rng, (HIDDEN, OUTPUT)))
    for name, count in (("v.patch_embd.bias", HIDDEN), ("v.post_ln.bias", HIDDEN)):
        writer.add_tensor(name, zero(count, np.float32))
    for name in ("v.post_ln.weight", "mm.soft_emb_norm.weight"):
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))
    products = {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN),
        "attn_out": (HIDDEN, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER),
    }  # fmt: skip
    for layer in range(layers):
        for name, shape in products.items():
            writer.add_tensor(f"v.blk.{layer}.{name}.weight", _numbers(rng, shape))
            writer.add_tensor(f"v.blk.{layer}.{name}.bias", zero(shape[0], np.float32))
        for name in ("ln1", "ln2"):
            writer.add_tensor(f"v.blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
            writer.add_tensor(f"v.blk.{layer}.{name}.bias", zero(HIDDEN, np.float32))
    _finish(writer)


def _numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Return weights of half precision under which activations keep their size."""
    return (rng.standard_normal(shape, np.float32) * float(np.prod(shape[1:])) ** -0.5).astype(np.float16)


def _finish(writer: GGUFWriter) -> None:
    writer.add_file_type(int(GGMLQuantizationType.F16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- the engines ------------------------------------------------------------------------------------------------------


def puna_seconds(text: Path, eye: Path, threads: int, tries: int) -> list[float]:
    """Return what encoding one picture takes, each time, and the longest slice in it."""
    from PIL import Image

    from puna.core.kernel import find_plugins
    from puna.core.memory.allocation import keep_freed_memory
    from puna.core.model import find_architecture, load_model
    from puna.core.pictures import Picture
    from puna.core.settings import load_settings
    from puna.core.tensor.cpu import CpuLoader
    from puna.core.tensor.team import use_threads
    from puna.core.tensor.weights import open_weights

    use_threads(threads)
    keep_freed_memory()
    source = open_weights({"decoder.gguf": text, "encoder.gguf": eye})
    architectures = [a for report in find_plugins(load_settings().plugins) for a in report.architectures]
    model = load_model(find_architecture(architectures, source), source, CpuLoader())
    assert model.vision is not None, "the encoder's file holds one"
    noise = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    prepared, found, longest = model.vision.prepare(Picture(Image.fromarray(noise))), [], 0.0
    for _ in range(tries + 1):
        start = last = time.perf_counter()
        for _ in model.vision.encode([prepared]):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        found.append(time.perf_counter() - start)
    print(f"longest slice {longest:.2f} s", file=sys.stderr)
    return found[1:]


def llama_seconds(text: Path, eye: Path, threads: int, tries: int) -> list[float]:
    """Return what encoding one picture takes llama.cpp, each time."""
    from llama_cpp import mtmd_cpp

    from .llama import LlamaModel

    model = LlamaModel(text, threads, context=512)
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.n_threads, params.warmup = False, False, threads, True
    context = mtmd_cpp.mtmd_init_from_file(bytes(eye), model.handle, params)
    assert context, f"llama.cpp does not load {eye}"
    noise = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    bitmap = mtmd_cpp.mtmd_bitmap_init(SIDE, SIDE, noise.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    asked = mtmd_cpp.mtmd_input_text(text=(marker := mtmd_cpp.mtmd_default_marker()), add_special=True)
    if hasattr(asked, "text_len"):  # since 2026
        asked.text_len = len(marker)
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(asked), bitmaps, 1) == 0
    every = [mtmd_cpp.mtmd_input_chunks_get(chunks, i) for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks))]
    (picture,) = [chunk for chunk in every if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == 1]
    found = []
    for _ in range(tries + 1):
        start = time.perf_counter()
        assert mtmd_cpp.mtmd_encode_chunk(context, picture) == 0
        found.append(time.perf_counter() - start)
    return found[1:]


ENGINES = {"puna": puna_seconds, "llama.cpp": llama_seconds}


def _in_process(engine: str, text: Path, eye: Path, threads: int) -> float:
    """Return the seconds that an engine takes, in the middle of two tries in a process of its own."""
    command = [sys.executable, "-m", "bench.vision", "--engine", engine, "--threads", str(threads)]
    done = subprocess.run([*command, "--files", str(text), str(eye)], stdout=subprocess.PIPE, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


FIGURES = {
    "tokens of the prompt": "prompt", "computed": "computed", "computed again": "recomputed",
    "pictures decoded": "decoded", "encoded": "encoded", "known": "hits",
}  # fmt: skip


def show_turns(turns: Sequence[Turn]) -> None:
    """Print what each turn took, beside the first of them."""
    shown = new_table("turns about a picture", [turn.name for turn in turns])
    shown.add_row("first text, s", *(f"{turn.first_s:.3f}" for turn in turns))
    shown.add_row("of the first turn's", *(f"{turn.first_s / turns[0].first_s:.1%}" for turn in turns))
    for name, field in FIGURES.items():
        shown.add_row(name, *(str(getattr(turn, field)) for turn in turns))
    Console().print(shown)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.vision", description=__doc__)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--turns", action="store_true", help="measure turns of a chat, over HTTP")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine:
        print(json.dumps(ENGINES[given.engine](*given.files, given.threads, 2)))
        return
    if given.turns:
        with tempfile.TemporaryDirectory() as folder:
            text, eye = make_files(Path(folder), given.layers)
            files = {"decoder.gguf": text, "encoder.gguf": eye}
            show_turns(asyncio.run(measure(files, side=SIDE, threads=given.threads)))
        return
    compare(given)


def compare(given: argparse.Namespace) -> None:
    """Have both engines encode in turns, and print what each took."""
    found: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), given.layers)
        for turn in range(given.repeats):
            for engine in list(ENGINES)[:: 1 if turn % 2 == 0 else -1]:
                print(f"run {turn + 1} of {given.repeats}: {engine}", file=sys.stderr)
                found[engine].append(_in_process(engine, *files, given.threads))
    ceiling = float_ceiling(given.threads)
    shown = new_table(f"a picture of {SIDE} x {SIDE}, {given.layers} layers", ["seconds", "GOP/s", "of float units"])
    for engine, values in found.items():
        middle = statistics.median(values)
        rate = operations(given.layers) / middle
        spread = f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
        shown.add_row(engine, spread, f"{rate / 1e9:.0f}", f"{rate / ceiling:.0%}")
    Console().print(shown)
    ratio = statistics.median(found["puna"]) / statistics.median(found["llama.cpp"])
    Console().print(f"Puna takes {ratio:.2f} of llama.cpp's time; float units do {ceiling / 1e9:.0f} GOP/s.")


if __name__ == "__main__":
    main()
