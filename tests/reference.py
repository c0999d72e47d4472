"""Reads the reference fixtures: tiny models, their inputs, and what another implementation computed with them.

PUNA_TEST_FIXTURES names another folder of the same layout, for other seeds and sizes of the same families.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

FIXTURES = Path(os.environ.get("PUNA_TEST_FIXTURES") or Path(__file__).parent / "fixtures")
DECODERS = (
    "llama-bpe", "llama-spm", "llama-quant", "llama4-scout", "llama4-maverick", "mistral-v3", "mistral-swa", "qwen2",
    "qwen3", "gemma3-text", "gemma3-vl", "qwen2.5-vl", "qwen3-vl", "mistral3", "llava", "llava-mistral", "llava-next",
    "mllama",
)  # fmt: skip


@cache
def cases(variant: str) -> dict[str, Any]:
    """Return a fixture's inputs and the names of its expected tensors."""
    return json.loads((FIXTURES / variant / "cases.json").read_text(encoding="utf-8"))


@cache
def expected(variant: str) -> dict[str, np.ndarray]:
    """Return a fixture's expected tensors by name."""
    return load_file(FIXTURES / variant / "expected.safetensors")


@dataclass(frozen=True)
class Case:
    """One prompt for one file of one variant."""

    variant: str
    file: Path
    case: dict[str, Any]
    quantised: bool

    def __str__(self) -> str:
        return f"{self.variant}-{self.file.name}-{self.case['name']}"

    @property
    def logits(self) -> np.ndarray:
        """[kept rows, V] float32."""
        return expected(self.variant)[self.case["logits"]]

    def kept(self, logits: np.ndarray) -> np.ndarray:
        """Return the rows and columns of an engine's logits that the fixture keeps."""
        rows = logits[self.case["rows"]] if "rows" in self.case else logits
        return rows[:, : self.logits.shape[1]]


def text_cases(variants: tuple[str, ...] = DECODERS) -> Iterator[Case]:
    """Yield every text prompt for every file that stands for its weights."""
    for variant in variants:
        known, base = cases(variant), FIXTURES / variant
        if any(base.glob("hf/*.safetensors")):
            yield from (Case(variant, base / "hf", case, False) for case in known["text"])
        reading = known.get("gguf", known)  # what a GGUF reader is to make of it, where that differs
        for file in sorted(base.glob("gguf/model-*.gguf")):
            kind = file.stem.removeprefix("model-")
            quantised = kind in known.get("quantised", {})
            listed = known["quantised"][kind]["text"] if quantised else reading["text"]
            yield from (Case(variant, file, case, quantised) for case in listed)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return how long the error is beside what should be: what the reference advises for numbers of 16 bits."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def rounding(unit: int, peak: int) -> float:
    """Return what rounding to codes adds to a product, relative to its length.

    The largest of n normal numbers is about √(2 ln n), a step 1/peak of it, and its error a step / √12. unit: n;
    peak: the largest code.
    """
    return math.sqrt(2 * math.log(unit)) / peak / math.sqrt(12)


# The same for weights of 16 bits, which are rounded as their activations are.
SIXTEEN = math.sqrt(2) * rounding(32, 8191)
