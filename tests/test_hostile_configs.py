"""Checkpoints and GGUF files whose settings are absurd, one at a time: refused, or read and computed with."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from puna.core.errors import BadModel, BadRequest, Unsupported
from puna.core.kernel import find_plugins
from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.model import find_architecture, load_model
from puna.core.pictures import Picture
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.source import WeightSource
from puna.core.tensor.weights import open_weights

from .reference import FIXTURES

VALUES = [
    -1, 0, 3, 1 << 31, 10**400, 0.5, 1e-300, 1e308, math.nan, "x", [], [-1] * 5, [1 << 40] * 3, {"a": 1}, None, True,
]  # fmt: skip
UNSAID = {  # what settings there are besides those that fixtures have
    "mistral3": ["text_config.rope_parameters", "text_config.rope_scaling", "vision_config.rope_parameters"],
    "llama4-scout": ["text_config.moe_layers", "text_config.layer_types", "text_config.rope_parameters",
                     "text_config.no_rope_layer_interval", "vision_config.rope_parameters"],
    "mistral-v3": ["rope_parameters"],
}  # fmt: skip
PICTURE = Picture(Image.new("RGB", (90, 40), (9, 100, 200)))
ARCHITECTURES = [architecture for report in find_plugins() for architecture in report.architectures]


@dataclass
class Changed:
    """A source that says something else about itself."""

    whole: WeightSource
    metadata: Mapping[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kind, self.tensors = self.whole.kind, self.whole.tensors
        self.raw, self.release, self.close = self.whole.raw, self.whole.release, self.whole.close

    def side_file(self, name: str) -> bytes | None:
        return self.files.get(name) or self.whole.side_file(name)


def paths(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yield the name of each setting, those in sections behind theirs and a dot."""
    for name, value in values.items():
        yield before + name
        if isinstance(value, dict):
            yield from paths(value, f"{before}{name}.")


def changed(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(dict(values))
    *sections, name = path.split(".")
    at = found
    for section in sections:
        at = at[section]
    at[name] = value
    return found


def compute(source: Any) -> None:
    """Load a model, and compute with it."""
    loaded = load_model(find_architecture(ARCHITECTURES, source), source, CpuLoader(precise=True))
    if loaded.vision is not None:
        prepared = loaded.vision.prepare(PICTURE)
        assert prepared.pixels.nbytes < 1 << 30
    cache = Cache(loaded.cache, "f32", Capacity(8, 1, 8))
    table = cache.blocks.table()
    assert table.reserve(5)
    step = StepView(cache, [Rows(table, 0, 5)], streams=loaded.architecture.streams)
    with np.errstate(all="ignore"):  # of numbers that are absurd
        hidden = loaded.model.forward(loaded.model.embed(np.arange(5, dtype=np.int32)), step)
        assert len(np.asarray(loaded.model.logits(hidden))) == 5


def survives(source: Any, what: str) -> None:
    try:
        compute(source)
    except (BadModel, Unsupported, BadRequest) as error:
        assert str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("variant", UNSAID)
def test_absurd_settings_of_checkpoints_are_refused_or_harmless(variant: str, value: Any) -> None:
    source = open_weights(FIXTURES / variant / "hf")
    for path in [*paths(source.metadata), *UNSAID[variant]]:
        survives(Changed(source, changed(source.metadata, path, value)), path)
    processor = json.loads(source.side_file("preprocessor_config.json") or b"{}")
    for path in paths(processor):
        file = json.dumps(changed(processor, path, value)).encode()
        survives(Changed(source, source.metadata, {"preprocessor_config.json": file}), path)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("variant", ["mistral3", "llama4-scout"])
def test_absurd_settings_of_gguf_files_are_refused_or_harmless(variant: str, value: Any) -> None:
    source = open_weights({path.name: path for path in sorted((FIXTURES / variant / "gguf").glob("*-f32.gguf"))})
    for key in (key for key in source.metadata if not key.startswith("tokenizer.")):
        survives(Changed(source, {**source.metadata, key: value}), key)
