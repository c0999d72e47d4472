"""What a converter makes of architectures of a few lines: written as others, turned, or found out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from puna.core import converting
from puna.core.errors import BadModel, Unsupported
from puna.core.keys import Keys
from puna.core.model import find_architecture
from puna.core.plugin import Architecture, Array, Matrix, Module, tensor
from puna.core.tensor.floats import F32
from puna.core.tensor.weights import open_weights

from .test_plugin_contract import MemorySource


class Wide(Module):
    """A model whose vectors are not what its files hold."""

    config: Any
    scale: Array = tensor("hidden", gguf="scale", hf="scale")

    def ready(self) -> None:
        self.scale = self.scale * self.config.factor


class MuteConfig(msgspec.Struct, frozen=True):
    """Sizes that are read and not written."""

    hidden: int
    factor: float

    @classmethod
    def from_gguf(cls, keys: Keys) -> Any:
        return cls(keys.integer("hidden"), keys.number("factor"))

    @classmethod
    def from_hf(cls, keys: Keys) -> Any:
        return cls(keys.integer("hidden"), keys.number("factor"))


class WideConfig(MuteConfig, frozen=True):
    """Sizes that are written too."""

    def to_gguf(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "factor": self.factor}


WIDE = Architecture(gguf=("wide",), hf=("Wide",), config=WideConfig, model=Wide, cache=lambda config: [])


LIKE_WIDE = replace(WIDE, gguf=(), hf=("LikeWide",), written_as="wide")


def opened(architectures: list[Architecture], name: str = "Wide", factor: float = 1.0, **arrays: Any) -> Any:
    """Return the conversion of a checkpoint to float32. name: of its architecture."""
    config = {"architectures": [name], "hidden": 4, "factor": factor}
    source = MemorySource("safetensors", config, arrays or {"scale": np.arange(4, dtype=np.float32)})
    return converting.Converter(architectures, lambda source: {}).open(source, F32, {})


def written(conversion: Any, path: Path) -> Any:
    path.write_bytes(b"".join(conversion.pieces()))
    return open_weights(path)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_plugin_whose_file_would_compute_something_else_is_found_out(tmp_path, factor):
    conversion = opened([WIDE], factor=factor)
    source = written(conversion, tmp_path / "m.gguf")
    if factor == 1.0:
        conversion.check(source)
    else:
        with pytest.raises(BadModel, match="does not read as what was to be written: scale holds other numbers"):
            conversion.check(source)


def test_an_architecture_may_be_written_as_another_which_then_reads_the_file(tmp_path):
    conversion = opened([LIKE_WIDE, WIDE], "LikeWide")
    source = written(conversion, tmp_path / "m.gguf")
    assert source.metadata["general.architecture"] == "wide"
    assert find_architecture([LIKE_WIDE, WIDE], source) is WIDE
    conversion.check(source)


def test_what_another_architecture_would_read_otherwise_is_found_out(tmp_path):
    other = replace(WIDE, model=type("Scaled", (Wide,), {"ready": lambda self: setattr(self, "scale", self.scale * 3)}))
    conversion = opened([LIKE_WIDE, other], "LikeWide")
    with pytest.raises(BadModel, match="does not read as what was to be written: scale holds other numbers"):
        conversion.check(written(conversion, tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    "architectures",
    [
        [replace(WIDE, config=MuteConfig)],
        [replace(WIDE, gguf=())],
        [replace(LIKE_WIDE, hf=("Wide",))],  # nobody answers to the name
        [replace(LIKE_WIDE, hf=("Wide",)), replace(WIDE, config=MuteConfig, hf=())],
    ],
)
def test_an_architecture_without_a_form_in_gguf_is_refused_by_name(architectures):
    with pytest.raises(Unsupported, match=r"architecture (W|w)ide cannot be written as GGUF files"):
        opened(architectures)


class Turned(Module):
    """A model whose matrices lie the other way round in checkpoints, those of experts side by side."""

    config: Any
    matrix: Matrix = tensor("hidden", 6, gguf="matrix", hf="matrix", transposed="hf", paired=1)
    left: Matrix = tensor(3, 2, "hidden", gguf="left", hf="experts", hf_part=(0, 2), transposed="hf")
    right: Matrix = tensor(3, 2, "hidden", gguf="right", hf="experts", hf_part=(1, 2), transposed="hf")


@pytest.mark.parametrize("piece", [1, 40, 1 << 20])
def test_matrices_that_lie_the_other_way_round_in_checkpoints_are_turned(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(converting, "PIECE_BYTES", piece)
    rng = np.random.default_rng(0)
    matrix, experts = rng.standard_normal((6, 4), np.float32), rng.standard_normal((3, 4, 4), np.float32)
    conversion = opened([replace(WIDE, model=Turned)], matrix=matrix, experts=experts)
    source = written(conversion, tmp_path / "m.gguf")
    conversion.check(source)
    found = {name: source.raw(name).view(np.float32).reshape(info.shape) for name, info in source.tensors.items()}
    np.testing.assert_array_equal(found["matrix"], matrix.T[[0, 2, 1, 3]])
    np.testing.assert_array_equal(found["left"], experts[:, :, :2].transpose(0, 2, 1))
    np.testing.assert_array_equal(found["right"], experts[:, :, 2:].transpose(0, 2, 1))
