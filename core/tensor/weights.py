"""Opening a model's weights, whatever files they come in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import BadFile
from .gguf import MAGICS, GGUFFile, read_gguf, read_gguf_with_splits, with_projectors
from .mapped import MappedTensor, read_file, starts_with
from .safetensors import is_weights, read_checkpoint
from .source import TensorInfo, WeightSource

LARGEST_SIDE_FILE = 256 << 20  # bytes
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ACCEPTED = "expected a GGUF file, or safetensors with their config.json"


def open_weights(files: Path | Mapping[str, Path]) -> WeightSource:
    """Return the weights in a GGUF file, in a folder with a safetensors checkpoint, or in files of a model store.

    A GGUF file is known by its first bytes and may be any one of its splits, which lie beside it. A mapping holds the
    original name of each file (names below the model's own folder have slashes) and where its bytes are. Where there
    are both safetensors and GGUF files, the safetensors are the model. GGUF files that hold encoders of media belong to
    the model beside them.

    Raises NotFound if there is no such file, BadFile if it is neither format or breaks the rules of its format.
    """
    if isinstance(files, Mapping):
        return _open_files(files, "the model's files")
    if files.is_dir():
        return _open_files(_folder(files), files)
    if starts_with(files, MAGICS):
        return _of_gguf(read_gguf_with_splits(files), {})
    raise BadFile(files, _refusal([files.name]))


@dataclass(frozen=True)
class _Weights:
    """A `WeightSource` over memory maps, which live as long as the arrays that show them."""

    kind: Literal["gguf", "safetensors"]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    _mapped: dict[str, MappedTensor]
    _files: Mapping[str, Path]

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        return self._mapped[name].raw

    def release(self, name: str) -> None:
        self._mapped[name].release()

    def side_file(self, name: str) -> bytes | None:
        if name not in self._files:
            return None
        return read_file(self._files[name], LARGEST_SIDE_FILE)

    def close(self) -> None:
        for tensor in self._mapped.values():
            tensor.release()  # what lies between tensors that were released came back with their neighbours
        self._mapped.clear()


def _of_gguf(file: GGUFFile, files: Mapping[str, Path]) -> _Weights:
    mapped = dict(file.tensors)
    return _Weights("gguf", file.metadata, {name: tensor.info for name, tensor in mapped.items()}, mapped, files)


def _open_files(files: Mapping[str, Path], where: object) -> _Weights:
    """Open the checkpoint or the GGUF file among these. where: what to call them in an error."""
    if any(is_weights(name) for name in files):
        mapped = read_checkpoint(files)
        tensors = {name: tensor.info for name, tensor in mapped.items()}
        return _Weights("safetensors", _config(files, where), tensors, mapped, files)
    ggufs = [path for path in files.values() if starts_with(path, MAGICS)]
    if not ggufs:
        raise BadFile(where, _refusal(files))
    return _of_gguf(with_projectors([read_gguf(path) for path in ggufs]), files)


def _config(files: Mapping[str, Path], where: object) -> dict[str, Any]:
    """Return config.json, or the adapter_config.json of a checkpoint that is only an adapter."""
    path = files.get("config.json") or files.get("adapter_config.json")
    if path is None:
        raise BadFile(where, "holds safetensors without a config.json")
    try:
        config = json.loads(read_file(path, LARGEST_SIDE_FILE))  # not msgspec: real ones hold Infinity
    except (ValueError, RecursionError) as error:
        raise BadFile(path, f"is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadFile(path, f"holds a {type(config).__name__}; expected an object")
    return config


def _folder(folder: Path) -> dict[str, Path]:
    """Return the files of a folder and of the folders in it, save hidden ones, by relative name.

    Raises BadFile for a link that leads out of the folder.
    """
    root = folder.resolve()
    found = {}
    for path in sorted([*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]):
        if not path.is_file():
            continue
        if not path.resolve().is_relative_to(root):
            raise BadFile(path, f"is a link that leads out of the folder, to {path.resolve()}")
        found[path.relative_to(folder).as_posix()] = path
    return found


def _refusal(names: Mapping[str, Path] | list[str]) -> str:
    """Return why files of these names are not a model."""
    if any(is_weights(name) for name in names):
        return "is one file of a checkpoint: name the folder that holds it"
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return f"only GGUF and safetensors are read: {pickles[0]} is a pickle checkpoint, which could run any code"
    return f"holds no weights that can be read: {_ACCEPTED}"
