"""One view of a model's weights, whether they lie in a GGUF file, in its splits, or in a safetensors checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from .blocks import BlockFormat


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says about one tensor."""

    name: str
    format: BlockFormat
    shape: tuple[int, ...]  # slowest dimension first, as torch prints it: a linear layer is [out, in]
    nbytes: int


class WeightSource(Protocol):
    """Tensors by name, memory-mapped and read-only, plus everything else the model's files say."""

    @property
    def kind(self) -> Literal["gguf", "safetensors"]:
        """Which naming convention the tensors and the settings follow."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """GGUF key/values, or the parsed config.json of a checkpoint."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by the name that the file gives it, in file order."""

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of one tensor, [rows, bytes per row] uint8: a view of the memory map, never a copy.

        Raises KeyError for a name that is not in `tensors`.
        """

    def release(self, name: str) -> None:
        """Say that the bytes of a tensor are not needed soon, so that they stop counting as memory in use."""

    def side_file(self, name: str) -> bytes | None:
        """Return a file that lies beside a checkpoint's weights (tokenizer.json, ...); None if there is none."""

    def close(self) -> None:
        """Let go of the memory maps and the metadata. A map lives on as long as an array from `raw` shows it."""


class PartOfTensor:
    """A source in which one tensor is only the i-th of n equal parts of its rows (`WeightSource`)."""

    def __init__(self, whole: WeightSource, name: str, part: int, of: int, *, columns: bool = False) -> None:
        """columns: it is one of equal parts of the last dimension instead."""
        info = whole.tensors[name]
        shape, axis = list(info.shape), len(info.shape) - 1 if columns else 0
        shape[axis], uneven = divmod(shape[axis], of)
        if uneven or (columns and info.nbytes % (math.prod(info.shape[:-1]) * of)):
            raise BadModel(f"{name} is {list(info.shape)}, expected {of} equal parts of dimension {axis}")
        self.kind, self.metadata = whole.kind, whole.metadata
        self.tensors = {name: replace(info, shape=tuple(shape), nbytes=info.nbytes // of)}
        self._whole, self._part, self._is_last, self._columns = whole, part, part == of - 1, columns

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of the part. Those of some columns do not lie one behind the other."""
        rows = math.prod(self.tensors[name].shape[:-1])
        nbytes, whole = self.tensors[name].nbytes, self._whole.raw(name)
        if self._columns:
            width = nbytes // rows
            return whole[:, self._part * width : self._part * width + width]
        return whole.reshape(-1)[self._part * nbytes : self._part * nbytes + nbytes].reshape(rows, -1)

    def release(self, name: str) -> None:
        """Say so of the whole if this is the last part: until then others are still needed."""
        if self._is_last:
            self._whole.release(name)

    def side_file(self, name: str) -> bytes | None:
        """Return a file of the whole."""
        return self._whole.side_file(name)

    def close(self) -> None:
        """Do nothing: the whole is closed."""
