"""Reading safetensors checkpoints, one file or many: tensors as views of memory maps.

Source: the format section of the safetensors documentation. A file is a length (u64), a JSON header of that length,
and the tensors' bytes, which must be covered without holes or overlaps.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..decoding import MALFORMED
from ..errors import BadFile
from .blocks import BlockFormat, by_name
from .mapped import MappedTensor, describe, map_file, place, read_file
from .source import TensorInfo

SUFFIX = ".safetensors"
_ONLY = "model.safetensors"
_INDEX = "model.safetensors.index.json"

_LARGEST_HEADER = 100_000_000  # bytes; the reference implementation's limit
_LARGEST_INDEX = 100_000_000  # bytes
_MOST_DIMENSIONS = 8
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


class _Entry(msgspec.Struct):
    """What a header says about one tensor. data_offsets: first byte and byte after the last, behind the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    """Which file holds which tensor."""

    weight_map: dict[str, str]


def read_safetensors(path: Path) -> dict[str, MappedTensor]:
    """Return the tensors of one file by name. Raises NotFound, or BadFile saying what was found and expected."""
    data = map_file(path)
    header, start = _read_header(path, data)
    extents = [_read_entry(path, name, entry) for name, entry in header.items()]
    _refuse_holes(path, len(data) - start, extents)
    return place(path, data, [(info, start + offset) for info, offset in extents])


def read_checkpoint(files: Mapping[str, Path]) -> dict[str, MappedTensor]:
    """Return the tensors of a checkpoint whose files go by these names.

    The index decides which they are; without one they are those of model.safetensors, or of all safetensors files.
    Raises BadFile if the index names a file that is not among these, or a tensor that its file does not hold.
    """
    if _INDEX in files:
        return _read_indexed(files, files[_INDEX])
    names = [_ONLY] if _ONLY in files else sorted(name for name in files if is_weights(name))
    tensors: dict[str, MappedTensor] = {}
    for name in names:
        shard = read_safetensors(files[name])
        if twice := tensors.keys() & shard.keys():
            raise BadFile(files[name], f"tensor {min(twice)!r} is also in another file")
        tensors.update(shard)
    return tensors


def is_weights(name: str) -> bool:
    """Return whether a file of this name, beside the others of a checkpoint, holds its weights."""
    return name.endswith(SUFFIX) and "/" not in name


def _read_indexed(files: Mapping[str, Path], index: Path) -> dict[str, MappedTensor]:
    try:
        places = msgspec.json.decode(read_file(index, _LARGEST_INDEX), type=_Index).weight_map
    except MALFORMED as error:
        raise BadFile(index, f"is not a safetensors index: {error}") from error
    for name in set(places.values()):
        if name not in files:  # that also refuses a path that leads elsewhere
            raise BadFile(index, f"names the file {name!r}, which is not one of the checkpoint's files")
    shards = {name: read_safetensors(files[name]) for name in sorted(set(places.values()))}
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise BadFile(files[name], f"lacks the tensor {tensor!r} that {_INDEX} says it holds")
    return {tensor: shards[name][tensor] for tensor, name in places.items()}


def _read_header(path: Path, data: mmap.mmap) -> tuple[dict[str, _Entry], int]:
    """Return the entry of every tensor and the byte where the tensors' bytes begin."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise BadFile(path, f"has {len(data)} bytes, too few for a header of {length}: is it truncated?")
    if length > _LARGEST_HEADER:
        raise BadFile(path, f"has a header of {length} bytes; the limit is {_LARGEST_HEADER}")
    try:
        parts = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
        parts.pop("__metadata__", None)
        return {name: msgspec.json.decode(part, type=_Entry) for name, part in parts.items()}, 8 + length
    except MALFORMED as error:
        raise BadFile(path, f"has a header that is not valid: {error}") from error


def _read_entry(path: Path, name: str, entry: _Entry) -> tuple[TensorInfo, int]:
    """Return a tensor and the offset of its first byte."""
    shape = tuple(entry.shape)
    if len(shape) > _MOST_DIMENSIONS:
        raise BadFile(path, f"tensor {name!r} has {len(shape)} dimensions; expected at most {_MOST_DIMENSIONS}")
    if any(size <= 0 for size in shape):
        raise BadFile(path, f"tensor {name!r} is empty: its shape is {shape}")
    info = describe(path, name, _dtype(path, name, entry.dtype), shape)
    start, end = entry.data_offsets
    if start < 0 or end - start != info.nbytes:
        raise BadFile(path, f"tensor {name!r} lies at bytes {start} to {end}, but takes {info.nbytes} bytes")
    return info, start


def _dtype(path: Path, tensor: str, name: str) -> BlockFormat:
    if name not in _DTYPES:
        raise BadFile(path, f"tensor {tensor!r} has dtype {name!r}; expected one of {', '.join(_DTYPES)}")
    return by_name(name)


def _refuse_holes(path: Path, size: int, extents: list[tuple[TensorInfo, int]]) -> None:
    """Raise BadFile unless the tensors take all the bytes behind the header. `place` refuses overlaps."""
    taken = sum(info.nbytes for info, _ in extents)
    if taken != size:
        raise BadFile(path, f"holds {size} bytes of data, but its tensors take {taken}")
