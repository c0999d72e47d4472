"""What all variants share: tokenizer, pictures, weights, prompts, and the reference's answers to them.

A variant is a class with the sizes of a tiny model, derived from `Variant`; `make` turns it into a folder. All of it is
computed in float32 by transformers on the CPU, with eager attention, in one thread, and without a cache.
"""
# ruff: noqa: E402 - libraries look at the environment, and at each other, when they are imported

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import safetensors.numpy
import torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def _define_operators_of_torchvision() -> None:
    """Let torchvision be imported where it was built for another torch: none of its own operators is needed here."""
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")


try:
    import torchvision  # noqa: F401
except RuntimeError:
    _define_operators_of_torchvision()

import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
STEPS = 16  # tokens of each continuation
NEAR_TIE = 0.02  # between the two best logits: below it a continuation would be a matter of rounding
EVERY = 4  # of the rows of logits of long prompts one in so many is kept

Inputs = dict[str, Any]  # what a model of transformers is called with
Talks = dict[str, tuple[list[dict[str, Any]], list[str]]]  # by name: messages, and the names of pictures in their order

SENTENCES = (
    "The ferry left the island an hour before the storm came in from the west.",
    "Three of the seven windows were open, and 24 pigeons sat on the roof.",
    "Write down what you saw, then tell me which part of it you would change.",
    "A quiet engine is worth more than a fast one when the road is long.",
    "Le vieux pont était fermé, so everybody walked along the river instead.",
    "He counted the steps twice: 118 going up and 117 coming down.",
    "Nothing in the letter explained why the garden had been painted blue.",
    "def area(width, height):\n    return width * height\n",
)
QUESTIONS = (
    "What can you see here?",
    "Which colours are on the left?",
    "Is the second picture wider than the first?",
    "And what is in the middle?",
)
REPLY = "A soft gradient with a few bright spots."


class Variant:
    """One fixture: the sizes of a tiny model, and what only its family needs. Attributes are what a subclass sets."""

    name: str  # of the folder
    tokenizer: str  # the fixture whose tokenizer it has
    added: tuple[str, ...] = ()  # control tokens that come after all of that tokenizer's
    template: str  # Jinja
    placeholder: str  # the token whose id stands for a row of an image
    stored = "bfloat16"  # dtype of the checkpoint
    seed = 20241122
    long = 48  # tokens of the longer text at least
    pictures: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - sizes in pixels; one named "alpha" is transparent
    processor: dict[str, Any] = {}  # noqa: RUF012 - preprocessor_config.json
    processor_extra: dict[str, Any] = {}  # noqa: RUF012 - processor_config.json
    fast_processor = False  # whether the family's reference is the processor that works on tensors

    def config(self, tok: Any) -> dict[str, Any]:
        """Return config.json."""
        raise NotImplementedError

    def see(self, model: Any, inputs: Inputs) -> dict[str, Any]:
        """Return tensors of one image's way by name: "tower", and "projected" [image tokens, hidden], among others."""
        raise NotImplementedError

    def scale(self, name: str, shape: tuple[int, ...]) -> tuple[float, float] | None:
        """Return mean and deviation of a parameter that needs others than `usual_scale`."""
        return None

    def mended(self, model: Any) -> Any:
        """Return the model that is the reference, if transformers does not compute what the family's models do."""
        return model

    def conversations(self) -> Talks:
        """Return what prompts with pictures are made of."""
        return conversations()

    def inputs(self, processor: Any, text: str, pictures: list[Image.Image]) -> Inputs:
        """Return what the model is called with for a rendered prompt."""
        batch = processor(text=text, images=pictures, add_special_tokens=False, return_tensors="pt")
        return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}

    def extended(self, inputs: Inputs, ids: list[int]) -> Inputs:
        """Return inputs with more tokens of text behind them."""
        more = torch.tensor([ids], dtype=inputs["input_ids"].dtype)
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        return longer

    def facts(self, model: Any, inputs: Inputs, put: Any) -> dict[str, Any]:
        """Return what else a prompt with images is recorded with. put(name, tensor) records it and returns its name."""
        return {}

    def picture_facts(self, inputs: Inputs) -> dict[str, Any]:
        """Return what else an image is recorded with."""
        return {}


class Expected(dict[str, np.ndarray]):
    """The tensors of expected.safetensors."""

    def put(self, name: str, value: torch.Tensor) -> str:
        """Record a tensor, as float32 or int32, and return its name."""
        assert name not in self
        self[name] = np.ascontiguousarray((value.float() if value.is_floating_point() else value.int()).numpy())
        return name


# --- parts of a checkpoint ------------------------------------------------------------------------------------------


def write_json(path: Path, data: Any) -> None:
    """Write JSON as the other files of a checkpoint are written."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_tokenizer(variant: Variant, hf: Path) -> Any:
    """Write the tokenizer of another fixture with the variant's own tokens and template. Returns it."""
    source = FIXTURES / variant.tokenizer / "hf"
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"):
        for file in source.glob(pattern):
            shutil.copy(file, hf / file.name)
    whole, about = (json.loads((hf / name).read_text("utf-8")) for name in ("tokenizer.json", "tokenizer_config.json"))
    known = {*whole["model"]["vocab"].values(), *(token["id"] for token in whole["added_tokens"])}
    for number, content in enumerate(variant.added, max(known) + 1):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
        whole["added_tokens"].append({"id": number, "content": content, **flags})
        about["added_tokens_decoder"][str(number)] = {"content": content, **flags}
    about["chat_template"] = variant.template
    about.pop("add_prefix_space", None)  # tokenizer.json says it; here it would have transformers build another
    write_json(hf / "tokenizer.json", whole)
    write_json(hf / "tokenizer_config.json", about)
    return AutoTokenizer.from_pretrained(hf)


def draw(variant: Variant, seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a parameter that depends on nothing but the variant, the seed and its name."""
    digest = hashlib.sha256(f"{seed}/{variant.name}/{name}".encode()).digest()
    numbers = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little"))).standard_normal(shape)
    mean, deviation = variant.scale(name, shape) or usual_scale(name, shape)
    return mean + deviation * numbers


def usual_scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and deviation that let every part of a network change its logits.

    Norms are about one, biases are not zero, attention is sharper than uniform.
    """
    if name.endswith("bias"):
        return 0.0, 0.25
    if len(shape) == 1 and "norm" in name.lower():
        return 1.0, 0.25
    if "embed_tokens" in name:
        return 0.0, 0.6
    if any(part in name for part in ("position_embed", "class_embedding", "newline")):
        return 0.0, 0.5
    if "lm_head" in name:
        return 0.0, 5.0 / shape[-1] ** 0.5
    gain = 1.6 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.2
    return 0.0, gain / float(np.prod(shape[1:])) ** 0.5


def write_checkpoint(variant: Variant, seed: int, hf: Path, tok: Any) -> None:
    """Write weights, rounded to the stored dtype, under the names that transformers saves them by, and the configs."""
    config = variant.config(tok)
    write_json(hf / "config.json", config)
    loaded = AutoConfig.from_pretrained(hf)
    model = getattr(transformers, config["architectures"][0])(loaded)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(draw(variant, seed, name, tuple(parameter.shape))))
    head = model.get_output_embeddings().weight  # never say a placeholder, nor what is no token at all
    head[len(tok) :] = 0
    head[tok.convert_tokens_to_ids(variant.placeholder) :][:1] = 0  # some heads end before it
    with tempfile.TemporaryDirectory() as made:
        model.to(getattr(torch, variant.stored)).save_pretrained(made)
        for file in sorted(Path(made).glob("*safetensors*")):
            shutil.copy(file, hf / file.name)
    stops = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}
    write_json(hf / "generation_config.json", {name: value for name, value in stops.items() if value is not None})
    for name, data in (("preprocessor", variant.processor), ("processor", variant.processor_extra)):
        if data:
            write_json(hf / f"{name}_config.json", data)


def load(hf: Path) -> Any:
    """Return the model on disk in float32. Raises AssertionError if its tensors are not exactly those of its class."""
    config = AutoConfig.from_pretrained(hf)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(
        hf, config=config, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("unexpected_keys", "missing_keys", "mismatched_keys")), info
    return model.eval()


# --- pictures -------------------------------------------------------------------------------------------------------


def picture(name: str, size: tuple[int, int], seed: int) -> Image.Image:
    """Return a picture with slow changes, a spot, a sharp edge and noise; "alpha" is transparent to the left."""
    width, height = size
    rng = np.random.default_rng([seed, width, height])
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    across, down = x / max(width - 1, 1), y / max(height - 1, 1)
    colours = np.stack([220 - 170 * across, 40 + 180 * down, 90 + 120 * across * down], -1)
    centre_x, centre_y, radius = rng.uniform(0, width), rng.uniform(0, height), 0.3 * min(width, height)
    spot = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * radius**2))
    colours += spot[..., None] * rng.uniform(-150, 150, 3)
    colours[height // 2 :, int(width * 0.7) : int(width * 0.85)] = rng.uniform(0, 255, 3)
    pixels = np.clip(np.rint(colours + rng.normal(0, 4, colours.shape)), 0, 255).astype(np.uint8)
    if name != "alpha":
        return Image.fromarray(pixels)
    opaque = np.clip(np.rint(255 * 1.4 * across), 0, 255).astype(np.uint8)
    return Image.fromarray(np.concatenate([pixels, opaque[..., None]], -1))


def on_white(image: Image.Image) -> Image.Image:
    """Return a picture in three colours. Transparent ones are put on white, which not every processor does itself."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def write_pictures(variant: Variant, seed: int, folder: Path) -> dict[str, Image.Image]:
    """Write the variant's pictures as PNG files and return them."""
    folder.mkdir()
    made = {}
    for name, size in variant.pictures.items():
        made[name] = picture(name, size, seed)
        made[name].save(folder / f"{name}.png")
    return made


# --- what the reference makes of it ---------------------------------------------------------------------------------


def forward(model: Any, inputs: Inputs) -> torch.Tensor:
    """Return the logits of all tokens, [T, V]."""
    return model(**inputs, use_cache=False).logits[0].float()


def greedy(variant: Variant, model: Any, inputs: Inputs) -> tuple[list[int], float]:
    """Return the likeliest continuation, and the smallest lead that one of its tokens had. Nothing ends it early."""
    ids: list[int] = []
    leads = []
    for _ in range(STEPS):
        best = torch.topk(forward(model, variant.extended(inputs, ids))[-1], 2)
        ids.append(int(best.indices[0]))
        leads.append(float(best.values[0] - best.values[1]))
    return ids, min(leads)


def answers(
    variant: Variant, model: Any, inputs: Inputs, expected: Expected, key: str, every: int = 1
) -> dict[str, Any]:
    """Return a prompt's logits, of one row in `every` and of the last, and its continuation."""
    logits, found = forward(model, inputs), {}
    if every > 1:
        found["rows"] = sorted({*range(0, len(logits), every), len(logits) - 1})
        logits = logits[found["rows"]]
    ids, lead = greedy(variant, model, inputs)
    return found | {"logits": expected.put(f"{key}.logits", logits), "greedy": ids, "greedy_margin": lead}


def text_cases(variant: Variant, model: Any, tok: Any, expected: Expected) -> list[dict[str, Any]]:
    """Return a short prompt and a longer one."""
    texts = {"short": SENTENCES[0][:30], "long": SENTENCES[1]}
    for sentence in SENTENCES[2:]:
        if len(tok(texts["long"]).input_ids) < variant.long:
            texts["long"] += " " + sentence
    cases = []
    for name, text in texts.items():
        inputs = dict(tok(text, return_tensors="pt", return_token_type_ids=False))
        found = answers(variant, model, inputs, expected, f"text.{name}", 1 if name == "short" else EVERY)
        cases.append({"name": name, "prompt": text, "ids": inputs["input_ids"][0].tolist(), **found})
    return cases


def image_cases(
    variant: Variant, model: Any, hf: Path, pictures: dict[str, Image.Image], expected: Expected
) -> list[dict[str, Any]]:
    """Return what processor, encoder and projector make of each picture."""
    processor = AutoImageProcessor.from_pretrained(hf, use_fast=variant.fast_processor)
    cases = []
    for name, image in pictures.items():
        batch = processor(images=[on_white(image)], return_tensors="pt")
        inputs = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        seen = variant.see(model, inputs)
        case = {"name": name, "file": f"images/{name}.png", "width": image.width, "height": image.height}
        for key, value in {"pixel_values": inputs["pixel_values"], **seen}.items():
            case[key] = expected.put(f"image.{name}.{key}", value)
        cases.append(case | {"n_image_tokens": len(seen["projected"])} | variant.picture_facts(inputs))
    return cases


def said(*parts: Any, role: str = "user") -> dict[str, Any]:
    """Return a message of texts and pictures."""
    texts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": texts}


def conversations() -> Talks:
    """Return conversations with pictures."""
    image = {"type": "image"}
    later = [said("Look: ", image, QUESTIONS[1]), said(REPLY, role="assistant"), said(QUESTIONS[3])]
    return {
        "one": ([said(image, QUESTIONS[0])], ["gradient"]),
        "two": ([said(image, "or", image, QUESTIONS[2])], ["gradient", "wide"]),
        "text-image-text": (later, ["alpha"]),
    }


def talk_cases(
    variant: Variant, model: Any, hf: Path, pictures: dict[str, Image.Image], expected: Expected
) -> list[dict[str, Any]]:
    """Return prompts with pictures."""
    processor = AutoProcessor.from_pretrained(hf, use_fast=variant.fast_processor)
    tok, cases = processor.tokenizer, []
    token = tok.convert_tokens_to_ids(variant.placeholder)
    for name, (messages, names) in variant.conversations().items():
        rendered = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = variant.inputs(processor, rendered, [on_white(pictures[each]) for each in names])
        ids = inputs["input_ids"][0].tolist()
        case = {"name": name, "messages": messages, "images": names, "rendered": rendered, "ids": ids}
        case |= {"image_token_id": token, "n_image_tokens": ids.count(token)}
        case |= variant.facts(model, inputs, lambda key, value, name=name: expected.put(f"mm.{name}.{key}", value))
        cases.append(case | answers(variant, model, inputs, expected, f"mm.{name}", EVERY))
    return cases


def write_cases(path: Path, cases: dict[str, Any]) -> None:
    """Write cases.json with one line for each case."""
    lines = []
    for key, value in cases.items():
        if isinstance(value, list):
            inner = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in value)
            lines.append(f"{json.dumps(key)}: [\n  {inner}\n ]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    path.write_text("{\n " + ",\n ".join(lines) + "\n}\n", encoding="utf-8")


def make(variant: Variant, out: Path) -> None:
    """Write a fixture into out/<name>, with the first seed from the variant's on that leaves no near tie."""
    for seed in range(variant.seed, variant.seed + 60):
        lead = _make(variant, seed, out / variant.name)
        print(f"{variant.name} seed {seed}: smallest lead {lead:.4f}", flush=True)
        if lead >= NEAR_TIE:
            return
    raise SystemExit(f"{variant.name}: every seed leaves a near tie")


def _make(variant: Variant, seed: int, folder: Path) -> float:
    """Write a fixture. Returns the smallest lead of any token of its continuations."""
    hf, expected = folder / "hf", Expected()
    shutil.rmtree(folder, ignore_errors=True)
    hf.mkdir(parents=True)
    tok = write_tokenizer(variant, hf)
    write_checkpoint(variant, seed, hf, tok)
    model, pictures = variant.mended(load(hf)), write_pictures(variant, seed, folder / "images")
    text = text_cases(variant, model, tok, expected)
    images = image_cases(variant, model, hf, pictures, expected)
    talks = talk_cases(variant, model, hf, pictures, expected)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    about = {"variant": variant.name, "seed": seed, "stored_dtype": variant.stored, "made_with": versions}
    write_cases(folder / "cases.json", {**about, "text": text, "images": images, "multimodal": talks})
    safetensors.numpy.save_file(dict(sorted(expected.items())), folder / "expected.safetensors")
    return min(case["greedy_margin"] for case in text + talks)
