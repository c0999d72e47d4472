"""A model as one GGUF file: decoder, encoder and projector, their sizes, and the tokenizer.

The source is opened and checked as it is for a load, so what is wrong with it is found before anything is written. What
plugins compute with as vectors is in memory meanwhile, and stays float32; matrices pass through in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BadModel, BadRequest, Unsupported
from .keys import Keys
from .model import LoadedModel, find_architecture, load_model, size_of, table
from .plugin import Architecture, CacheLayer, LayersField, Module, Size, TensorField
from .tensor.blocks import BlockFormat
from .tensor.floats import BF16, F16, F32, FLOATS, Bytes, Floats, narrow, widen
from .tensor.gguf_writer import data_bytes, gguf_bytes
from .tensor.source import TensorInfo, WeightSource

PIECE_BYTES = 16 << 20
ROUNDING = 1e-6  # of float32, which GGUF files have for fractions
FILE_TYPES = {F32: 0, F16: 1, BF16: 32}  # of `general.file_type`
QUANTISATION_VERSION = 2  # of ggml's block formats, which every file names


class Converter:
    """Makes GGUF files of models that the given architectures read."""

    def __init__(
        self, architectures: Sequence[Architecture], tokenizer_keys: Callable[[WeightSource], Mapping[str, Any]]
    ) -> None:
        """tokenizer_keys: returns the metadata that describe a model's tokenizer."""
        self._architectures, self._tokenizer_keys = architectures, tokenizer_keys

    def open(self, source: WeightSource, form: BlockFormat, more: Mapping[str, Any]) -> Conversion:
        """Return how a model is to be written. source: to be kept open meanwhile. form: of matrices, one of FLOATS.

        more: further metadata. Raises BadModel as loading does, and Unsupported naming what cannot be written.
        """
        architecture = find_architecture(self._architectures, source)
        reader = self._reader(architecture)
        return Conversion(architecture, reader, source, form, {**self._tokenizer_keys(source), **more})

    def _reader(self, architecture: Architecture) -> Architecture:
        """Return the architecture that will answer to the file: this one, unless it is written as another."""
        for reader in self._architectures:
            if architecture.name_in_gguf in reader.gguf:
                return reader
        raise _no_form(architecture)


class Conversion:
    """A model that is about to be written."""

    def __init__(
        self,
        architecture: Architecture,
        reader: Architecture,
        source: WeightSource,
        form: BlockFormat,
        more: Mapping[str, Any],
    ) -> None:
        """Open source. reader: what will answer to the file. Raises as `Converter.open`."""
        loaded = load_model(architecture, source, _Paper())
        self._reader, self._form, self._cache = reader, form, loaded.cache
        general = {"type": "model", "file_type": FILE_TYPES[form], "quantization_version": QUANTISATION_VERSION}
        general_keys = {f"general.{key}": value for key, value in general.items()}
        self._metadata = {**_sizes(loaded, reader), **general_keys, **more}
        self._tensors = list(_outgoing(loaded, form, checkpoint=source.kind == "safetensors"))

    @property
    def nbytes(self) -> int:
        """Bytes of the file but for its header."""
        return data_bytes(tensor.info for tensor in self._tensors)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the file. Raises BadRequest for a number that is too large for the format."""
        return gguf_bytes(self._metadata, self._tensors)

    def check(self, written: WeightSource) -> None:
        """Raise BadModel unless the file reads as what was to be written: writing it once more would change nothing."""
        again = Conversion(self._reader, self._reader, written, self._form, {})
        wrong = "the file that was written does not read as what was to be written"
        if again._cache != self._cache or again._metadata.keys() - self._metadata.keys():
            raise BadModel(f"{wrong}: its sizes are others")
        found = {tensor.info.name: tensor for tensor in again._tensors}
        infos = {tensor.info.name: tensor.info for tensor in self._tensors}
        if {name: tensor.info for name, tensor in found.items()} != infos:
            raise BadModel(f"{wrong}: its tensors have other names or shapes")
        for wanted in self._tensors:
            if not wanted.alike(found[wanted.info.name]):
                raise BadModel(f"{wrong}: {wanted.info.name} holds other numbers")


@dataclass(frozen=True)
class _Stored:
    """A matrix that stays where it is (`plugin.Matrix`)."""

    source: WeightSource
    info: TensorInfo
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.info.shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    @property
    def nbytes(self) -> int:
        return self.info.nbytes


class _Paper:
    """Loads vectors only, in numpy (a `Loader`)."""

    def matrix(self, source: WeightSource, info: TensorInfo, *, transposed: bool = False) -> _Stored:
        _expect_floats(info)
        return _Stored(source, info, transposed)

    def array(self, source: WeightSource, info: TensorInfo) -> Floats:
        _expect_floats(info)
        return widen(source.raw(info.name), info.format).reshape(info.shape)


def _expect_floats(info: TensorInfo) -> None:
    if info.format not in FLOATS:
        raise Unsupported(
            f"quantization is only supported for F16, BF16 and F32 models: {info.name} is {info.format.name}"
        )


# ---- metadata ------------------------------------------------------------------------------------------------------


def _sizes(loaded: LoadedModel, reader: Architecture) -> dict[str, Any]:
    """Return the sizes of decoder and encoder as GGUF metadata. Raises Unsupported where a file cannot say them."""
    configs: list[tuple[Any, Any]] = [(loaded.config, reader.config)]
    if loaded.vision is not None:
        configs.append((loaded.vision.config, reader.vision_config))
    if not all(hasattr(config, "to_gguf") and hasattr(kind, "to_gguf") for config, kind in configs):
        raise _no_form(loaded.architecture)
    name = loaded.architecture.name_in_gguf
    metadata: dict[str, Any] = {"general.architecture": name}
    for config, _ in configs:
        metadata |= {f"{name}.{key}": value for key, value in config.to_gguf().items()}
    keys = Keys(metadata, prefix=f"{name}.", origin="GGUF metadata")
    for config, kind in configs:
        _check_sizes(name, config, kind.from_gguf(keys))
    _check_cache(name, reader.cache(reader.config.from_gguf(keys)), loaded.cache)
    return metadata


def _no_form(architecture: Architecture) -> Unsupported:
    return Unsupported(f"models of the architecture {architecture.name} cannot be written as GGUF files")


def _check_sizes(name: str | None, config: Any, found: Any) -> None:
    """Raise Unsupported if what is written for a config would not be read as such."""
    again = found.to_gguf()
    for key, value in config.to_gguf().items():
        other = again.get(key)
        same = math.isclose(value, other, rel_tol=ROUNDING) if isinstance(value, float) and other else value == other
        if not same:
            raise Unsupported(f"GGUF files of {name} cannot say that {key} is {value}")


def _check_cache(name: str | None, found: list[CacheLayer], wanted: list[CacheLayer]) -> None:
    """Raise Unsupported if a layer of this model does not see what it would in its GGUF file."""
    if found != wanted:
        pairs = list(zip(found, wanted, strict=False))
        layer = next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))
        raise Unsupported(
            f"GGUF files of {name} cannot say what layer {layer} of this model sees: "
            f"{wanted[layer : layer + 1]} would become {found[layer : layer + 1]}"
        )


# ---- tensors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Vector:
    """A tensor that is in memory (`gguf_writer.Outgoing`)."""

    info: TensorInfo
    numbers: Floats

    def pieces(self) -> Iterator[Bytes]:
        yield narrow(self.numbers.reshape(1, -1), F32)

    def alike(self, other: object) -> bool:
        return isinstance(other, _Vector) and np.array_equal(self.numbers, other.numbers, equal_nan=True)


@dataclass(frozen=True)
class _Matrix:
    """A tensor on its way from one file to another (`gguf_writer.Outgoing`)."""

    info: TensorInfo
    stored: _Stored
    turned: bool  # it lies the other way round than it shall
    order: npt.NDArray[np.intp] | None  # of its rows, once they are turned; None: as they lie

    def pieces(self) -> Iterator[Bytes]:
        source, info = self.stored.source, self.stored.info
        raw = source.raw(info.name)
        for part in self._turned(raw) if self.turned else self._rows(raw):
            yield part if info.format == self.info.format else self._narrow(widen(part, info.format))
        source.release(info.name)

    def _rows(self, raw: Bytes) -> Iterator[Bytes]:
        """Yield rows in their order, a piece at a time."""
        count = max(1, PIECE_BYTES // raw.shape[1])
        for start in range(0, len(raw), count):
            yield raw[start : start + count] if self.order is None else raw[self.order[start : start + count]]

    def _turned(self, raw: Bytes) -> Iterator[Bytes]:
        """Yield the columns of each matrix as rows, a piece at a time."""
        columns = self.info.shape[-1]  # of what is to be written: the rows of what there is
        numbers = raw.view(f"u{self.stored.info.format.nbytes}")  # moved, not read
        count = max(1, PIECE_BYTES // (columns * numbers.itemsize))
        for first in range(0, len(numbers), columns):
            matrix = numbers[first : first + columns].T
            rows = matrix if self.order is None else matrix[self.order]
            for start in range(0, len(rows), count):
                yield np.ascontiguousarray(rows[start : start + count]).view(np.uint8)

    def alike(self, other: object) -> bool:
        return isinstance(other, _Matrix)  # its bytes were written as they are read

    def _narrow(self, numbers: Floats) -> Bytes:
        try:
            return narrow(numbers, self.info.format)
        except OverflowError as error:
            raise BadRequest(f"{self.info.name}: {error}; bf16 and f32 have the range") from None


def _outgoing(loaded: LoadedModel, form: BlockFormat, *, checkpoint: bool) -> Iterator[_Vector | _Matrix]:
    """Yield every tensor of a model. checkpoint: whether it was read from one."""
    parts: list[Any] = [loaded.model, *([] if loaded.vision is None else [loaded.vision])]
    for part in parts:
        for name, declared, value, config in _named(part, loaded.architecture.name):
            order = _order(declared, config, value.shape[0], checkpoint=checkpoint)
            if isinstance(value, _Stored):
                turned = declared.transposed == "hf" and value.transposed
                shape = value.shape if turned else value.info.shape
                yield _Matrix(_described(name, form, shape), value, turned, order)
            else:
                numbers = np.ascontiguousarray(value if order is None else value[order], np.float32)
                yield _Vector(_described(name, F32, numbers.shape), numbers)


def _named(module: Module, model: str, prefix: str = "") -> Iterator[tuple[str, TensorField, Any, Any]]:
    """Yield what a module and those below it hold: its name in a GGUF file, declaration, value, and their config.

    Raises Unsupported for a tensor that such files have no name for.
    """
    for field, declared, _ in table(type(module)):
        value = getattr(module, field)
        if isinstance(declared, LayersField):
            for (below, *_), block in zip(declared.prefixes("gguf", module.config), value, strict=True):
                yield from _named(block, model, prefix + below)
        elif value is not None and not (declared.tied and value is getattr(module, declared.tied)):
            if not declared.gguf:
                raise Unsupported(f"GGUF files of {model} have no name for a tensor of this model: {prefix}{field}")
            first = declared.gguf if isinstance(declared.gguf, str) else declared.gguf[0]
            yield prefix + first, declared, value, module.config


def _described(name: str, form: BlockFormat, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, form, shape, int(np.prod(shape[:-1])) * form.row_bytes(shape[-1]))


def _order(declared: TensorField, config: Any, rows: int, *, checkpoint: bool) -> npt.NDArray[np.intp] | None:
    """Return the order in which a tensor's rows are written; None: as they lie."""
    if declared.paired and checkpoint:
        return _side_by_side(rows, declared.paired, config)
    if declared.unpaired and size_of(declared.unpaired, config) != 0:
        return np.argsort(_side_by_side(rows, declared.unpaired, config))
    return None


def _side_by_side(rows: int, declared: Size, config: Any) -> npt.NDArray[np.intp]:
    """Return the order of rows in which the halves of each head alternate. declared: heads, as a plugin says them."""
    heads = size_of(declared, config)
    assert isinstance(heads, int), "the number of heads follows from the config"
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
