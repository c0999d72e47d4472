"""A text model that was given eyes: an encoder of a few lines, whose rows tell pictures apart."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from puna.core.plugin import BadRequest, Encoder, Prepared, Rows
from puna.plugins import llama

FIXTURE = Path(__file__).parent / "fixtures" / "llama-bpe"
GGUF = FIXTURE / "gguf" / "model-f32.gguf"
SHORT = json.loads((FIXTURE / "cases.json").read_text())["text"][0]["ids"]


class EyeConfig(msgspec.Struct, frozen=True):
    """The width of the text model, and what rows do."""

    hidden: int
    both_ways: bool = False

    @classmethod
    def from_gguf(cls, keys):
        return cls(keys.integer("embedding_length"))


class Eye(Encoder):
    """A row for each 8 columns of a picture: its mean colour, spread over the row by waves."""

    marker = "<image>"
    placeholder = "<image>"
    together = 2
    most_atomic = 128
    slices = 3
    encoded = 0  # pictures, over all instances

    config: EyeConfig

    def prepare(self, picture):
        if picture.width > 1024:
            raise BadRequest("too wide for this eye")
        count = max(1, picture.width // 8)
        pixels = picture.resized(count, 1, "bilinear").numbers([0.5] * 3, [0.5] * 3)[:, 0].T.copy()
        return Prepared(pixels, ("<", Rows(count, both_ways=self.config.both_ways), ">"))

    def encode(self, images):
        for _ in range(self.slices):
            yield
        type(self).encoded += len(images)
        waves = np.sin(np.arange(3)[:, None] * np.arange(1, self.config.hidden + 1) * 0.7 + 1).astype(np.float32)
        return [0.05 * image.pixels @ waves for image in images]


def seeing(eye=Eye, **config):
    """Return the architecture with this encoder."""
    made = type("EyeConfig", (EyeConfig,), {"from_gguf": classmethod(lambda cls, keys: EyeConfig(
        keys.integer("embedding_length"), **config))})  # fmt: skip
    return replace(llama.architectures()[0], hf=(), vision=eye, vision_config=made)


def png(seed, width=160, height=24):
    """Return a picture file of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()
