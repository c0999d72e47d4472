"""Writing GGUF files, version 3, front to back: a header, then the tensors, a piece at a time.

Source: the GGUF specification in ggml's documentation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .gguf import MAGIC
from .source import TensorInfo

ALIGNMENT = 32  # bytes; the default, so that no key has to name it
_VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64 = 4, 5, 6, 7, 8, 9, 10, 11
_NUMPY = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": _U32, "i4": _I32, "f4": _F32, "b1": _BOOL, "u8": _U64, "i8": _I64,
          "f8": 12}  # fmt: skip


class Outgoing(Protocol):
    """A tensor on its way into a file."""

    @property
    def info(self) -> TensorInfo:
        """What the file shall say about it."""

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield its bytes in order, `info.nbytes` in all, in arrays of any shape."""


def gguf_bytes(metadata: Mapping[str, Any], tensors: Sequence[Outgoing]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file. The first piece is the header; no later one is longer than the tensors' own.

    metadata: values are str, bool, int, float, lists of one of these, and numpy arrays of numbers. Whole numbers are
    written as u32 where they fit, in lists as i32, and fractions as f32, which is what readers expect.
    """
    yield _padded(_header(metadata, [tensor.info for tensor in tensors]))
    for tensor in tensors:
        for piece in tensor.pieces():
            yield np.ascontiguousarray(piece).data.cast("B")
        yield bytes(-tensor.info.nbytes % ALIGNMENT)


def data_bytes(tensors: Iterable[TensorInfo]) -> int:
    """Return how many bytes the tensors of a file take, without its header."""
    return sum(_aligned(info.nbytes) for info in tensors)


def _header(metadata: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    offset = 0
    for info in tensors:
        sizes = info.shape[::-1]  # the file has the fastest first
        parts += [_string(info.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        parts.append(struct.pack("<IQ", info.format.id, offset))
        offset += _aligned(info.nbytes)
    return b"".join(parts)


def _value(key: str, value: Any) -> bytes:
    """Return the type of a value and the value."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    array = value if isinstance(value, np.ndarray) else _numbers(key, value)
    if array.ndim > 1 or array.dtype.str[1:] not in _NUMPY:
        raise TypeError(f"{key} is {array.ndim} dimensions of {array.dtype}, which GGUF files cannot hold")
    kind, data = _NUMPY[array.dtype.str[1:]], array.astype(array.dtype.newbyteorder("<")).tobytes()
    if array.ndim == 0:
        return struct.pack("<I", kind) + data
    return struct.pack("<IIQ", _ARRAY, kind, len(array)) + data


def _numbers(key: str, value: Any) -> npt.NDArray[Any]:
    """Return Python's numbers in the types that readers expect."""
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind in "iu":
        narrow = (np.int32,) if array.ndim else (np.uint32, np.int32)
        return next((array.astype(kind) for kind in narrow if (array.astype(kind) == array).all()), array)
    if array.dtype.kind != "b":
        raise TypeError(f"{key} is {value!r}, which GGUF files cannot hold")
    return array


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")  # as `read_gguf` keeps what is no UTF-8
    return struct.pack("<Q", len(data)) + data


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _padded(data: bytes) -> bytes:
    return data.ljust(_aligned(len(data)), b"\0")
