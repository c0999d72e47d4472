"""Reading GGUF files, versions 2 and 3, whole or split: metadata as Python values, tensors as views of a memory map.

Every count and length is compared with the bytes that are left before anything of that size is made, so a hostile
file costs no more than a small multiple of its own header. Source: the GGUF specification in ggml's documentation.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import BadFile, BadModel, NotFound
from .blocks import BlockFormat, by_id
from .mapped import MappedTensor, describe, map_file, place, release
from .source import TensorInfo

MAGIC = b"GGUF"
MAGICS = (MAGIC, MAGIC[::-1])  # reversed: a big-endian file, which is refused by name

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# value type -> code, the same for struct and numpy
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in _NUMBERS.items()}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

_SMALLEST_KEY = 8 + 4 + 1  # bytes: length, type, value
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # bytes: length, dimensions, one dimension, type, offset
_LONGEST_NAME = 65_535  # bytes; the specification's limit for a key
_MOST_DIMENSIONS = 4
_WINDOW = 1 << 16  # bytes of short strings that are read at once
_MANY = 512  # strings
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GGUFFile:
    """The contents of one file, or of all splits of a model. path: the file, or the first split.

    Metadata values are int, float, bool, str, read-only numpy arrays, and lists of str. Bytes that are not UTF-8
    survive in strings as lone surrogates (the error handler "surrogateescape").
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, MappedTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Return the contents of one file. Raises NotFound, or BadFile naming what was found and what was expected."""
    cursor = _Cursor(path, map_file(path))
    tensor_count, key_count = _read_header(cursor)
    metadata = _read_metadata(cursor, key_count)
    alignment = _alignment(path, metadata)
    described = _read_tensors(cursor, tensor_count, alignment)
    start = -(-cursor.at // alignment) * alignment
    release(cursor.data, 0, start)  # metadata are copies: a vocabulary would stay in memory twice
    return GGUFFile(path, metadata, place(path, cursor.data, [(info, start + offset) for info, offset in described]))


def read_gguf_with_splits(path: Path) -> GGUFFile:
    """Return the contents of a file and, if it is one of several splits, of its siblings. Raises as `read_gguf`."""
    file = read_gguf(path)
    count = _split_number(file, "split.count", 1)
    if count <= 1:
        return file
    match = _SPLIT_NAME.fullmatch(path.name)
    if not match or int(match["count"]) != count:
        raise BadFile(path, f"is one of {count} splits, but its name does not end in -00001-of-{count:05}.gguf")
    names = [f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    return join_splits([file if name == path.name else _read_sibling(path.with_name(name), count) for name in names])


def _read_sibling(path: Path, count: int) -> GGUFFile:
    try:
        return read_gguf(path)
    except NotFound as error:
        raise BadFile(path, f"is missing: the model has {count} splits") from error


def join_splits(files: Sequence[GGUFFile]) -> GGUFFile:
    """Return the contents of all splits of a model, given in any order, with the metadata of the first.

    Raises BadFile if one is missing or given twice, or if they disagree.
    """
    files = sorted(files, key=lambda file: _split_number(file, "split.no", 0))
    for number, file in enumerate(files):
        if (count := _split_number(file, "split.count", 1)) != len(files):
            raise BadFile(file.path, f"split.count is {count}, but {len(files)} GGUF files were given")
        if (found := _split_number(file, "split.no", 0)) != number:
            raise BadFile(file.path, f"split.no is {found}; expected {number}, the next of {count} counted from 0")
    tensors: dict[str, MappedTensor] = {}
    for file in files:
        if twice := tensors.keys() & file.tensors.keys():
            raise BadFile(file.path, f"tensor {min(twice)!r} is also in another split")
        tensors.update(file.tensors)
    first = files[0]
    expected = _split_number(first, "split.tensors.count", len(tensors))
    if len(tensors) != expected:
        raise BadFile(first.path, f"the splits hold {len(tensors)} tensors; split.tensors.count is {expected}")
    return GGUFFile(first.path, first.metadata, tensors)


def with_projectors(files: Sequence[GGUFFile]) -> GGUFFile:
    """Return a model's files, in any order, as one: its splits, and files that hold its encoders of media.

    The latter are known by their settings, `clip.*`, which stand beside the model's own. Raises BadFile as
    `join_splits` does, and if both bring a tensor.
    """
    projectors = [file for file in files if any(key.startswith("clip.") for key in file.metadata)]
    if len(projectors) == len(files):
        return join_splits(files)
    whole = join_splits([file for file in files if file not in projectors])
    metadata, tensors = dict(whole.metadata), dict(whole.tensors)
    for file in projectors:
        if twice := tensors.keys() & file.tensors.keys():
            raise BadFile(file.path, f"tensor {min(twice)!r} is also in the model's own file")
        tensors.update(file.tensors)
        metadata = {**file.metadata, **metadata}
    return GGUFFile(whole.path, metadata, tensors)


def _split_number(file: GGUFFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise BadFile(file.path, f"{key} is {value!r}; expected a number that is not negative")
    return value


class _Cursor:
    """Reads a memory map from front to back and refuses to leave it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, problem: str) -> NoReturn:
        raise BadFile(self.path, problem)

    def need(self, count: int, each: int, what: str) -> None:
        """Refuse a count of things, of at least `each` bytes, that the rest of the file cannot hold."""
        left = len(self.data) - self.at
        if count * each > left:
            self.fail(f"truncated: {what} at byte {self.at} needs {count * each} bytes, but {left} are left")

    def number(self, form: struct.Struct, what: str) -> Any:
        self.need(1, form.size, what)
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def numbers(self, code: str, count: int, what: str) -> npt.NDArray[Any]:
        """Return a read-only copy, so that metadata outlives the map."""
        dtype = np.dtype("<" + code)
        self.need(count, dtype.itemsize, what)
        values = np.frombuffer(self.data, "u1" if code == "?" else dtype, count, self.at)
        values = values != 0 if code == "?" else values.copy()  # a byte of 7 is no bool to numpy
        values.flags.writeable = False
        self.at += count * dtype.itemsize
        return values

    def name(self, what: str) -> str:
        length = self.number(_U64, what)
        if length > _LONGEST_NAME:
            self.fail(f"{what} at byte {self.at} is {length} bytes long; the limit is {_LONGEST_NAME}")
        self.at -= _U64.size
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """Return `count` strings, each behind its length."""
        self.need(count, _U64.size, what)
        values: list[str] = []
        while (left := count - len(values)) >= _MANY:
            values += (found := self._short_strings(left))
            if len(found) < _MANY:  # a search takes the time of some hundred strings: the next must not come too soon
                values += self._single_strings(min(_MANY, left - len(found)), what)
        return values + self._single_strings(left, what)

    def _short_strings(self, most: int) -> list[str]:
        """Return the next strings, up to the first that is empty, holds a zero byte or has 256 bytes or more.

        All are found at once, which takes a third of the time of reading them singly: the length of a short string is
        one byte and seven zeros, and where text has no zeros, these are nowhere else. A window of the file at a time,
        which a processor's cache can hold.
        """
        window = np.frombuffer(self.data, np.uint8, min(_WINDOW, len(self.data) - self.at), self.at)
        lengths = np.flatnonzero(_before_seven_zeros(window))[:most]
        ends = lengths + _U64.size + window[lengths]
        starts = np.concatenate([[0], ends[:-1]])
        odd = np.flatnonzero((lengths != starts) | (ends > len(window)))
        count = int(odd[0]) if odd.size else len(ends)
        if not count:
            return []
        text = window[: ends[count - 1]].copy()
        text[lengths[:count]] = 0
        if np.count_nonzero(text) != len(text) - _U64.size * count:
            return []
        self.at += len(text)
        return text.tobytes().decode("utf-8", "surrogateescape").split("\0" * _U64.size)[1:]

    def _single_strings(self, count: int, what: str) -> list[str]:
        data, at, size = self.data, self.at, len(self.data)
        values = []
        for _ in range(count):
            if at + 8 > size:
                self.fail(f"truncated: {what} at byte {self.at} ends within the length of a string")
            start = at + 8
            at = start + _U64.unpack_from(data, at)[0]
            if at > size:
                self.fail(f"truncated: {what} holds a string of {at - start} bytes, but {size - start} are left")
            values.append(data[start:at].decode("utf-8", "surrogateescape"))
        self.at = at
        return values


def _before_seven_zeros(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return for each byte, save the last seven, whether the seven after it are zero."""
    zero = data[1:] == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven: npt.NDArray[np.bool_] = four[:-3] & four[3:]
    return seven


def _read_header(cursor: _Cursor) -> tuple[int, int]:
    """Return the number of tensors and of keys, each no larger than the file could hold."""
    magic, version = cursor.data[:4], cursor.data[4:8]
    if magic == MAGIC[::-1] or (magic == MAGIC and int.from_bytes(version, "big") in (1, *_VERSIONS)):
        cursor.fail("is a big-endian GGUF file; only little-endian ones can be read")
    if magic != MAGIC:
        cursor.fail(f"is not a GGUF file: it begins with {magic!r}, expected {MAGIC!r}")
    cursor.at = len(MAGIC)
    if (number := cursor.number(_U32, "the version")) not in _VERSIONS:
        cursor.fail(f"has GGUF version {number}; versions {_VERSIONS[0]} and {_VERSIONS[1]} can be read")
    tensor_count, key_count = cursor.number(_U64, "the tensor count"), cursor.number(_U64, "the key count")
    cursor.need(key_count, _SMALLEST_KEY, f"a list of {key_count} keys")
    cursor.need(tensor_count, _SMALLEST_TENSOR, f"a list of {tensor_count} tensors")
    return tensor_count, key_count


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.name("a key")
        if key in metadata:
            cursor.fail(f"key {key!r} appears twice")
        metadata[key] = _read_value(cursor, f"the value of {key!r}")
    return metadata


def _read_value(cursor: _Cursor, what: str) -> Any:
    kind = cursor.number(_U32, what)
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind], what)
    if kind == _STRING:
        return cursor.strings(1, what)[0]
    if kind == _ARRAY:
        return _read_array(cursor, what)
    return cursor.fail(f"{what} has type {kind}; known are 0 to 12")


def _read_array(cursor: _Cursor, what: str) -> npt.NDArray[Any] | list[str]:
    kind, count = cursor.number(_U32, what), cursor.number(_U64, what)
    if kind == _STRING:
        return cursor.strings(count, what)
    if kind not in _NUMBERS:
        cursor.fail(f"{what} is an array of type {kind}; expected numbers or strings")
    return cursor.numbers(_NUMBERS[kind], count, what)


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or value not in [1 << power for power in range(3, 21)]:
        raise BadFile(path, f"general.alignment is {value!r}; expected a power of two from 8 to 1048576")
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> list[tuple[TensorInfo, int]]:
    """Return each tensor with its offset from the start of the data."""
    found: dict[str, tuple[TensorInfo, int]] = {}
    for _ in range(count):
        info, offset = _read_tensor(cursor)
        if info.name in found:
            cursor.fail(f"tensor {info.name!r} appears twice")
        if offset % alignment:
            cursor.fail(f"tensor {info.name!r} has offset {offset}, not a multiple of the alignment {alignment}")
        found[info.name] = info, offset
    return list(found.values())


def _read_tensor(cursor: _Cursor) -> tuple[TensorInfo, int]:
    name = cursor.name("a tensor's name")
    what = f"the entry of tensor {name!r}"
    if not 1 <= (dimensions := cursor.number(_U32, what)) <= _MOST_DIMENSIONS:
        cursor.fail(f"tensor {name!r} has {dimensions} dimensions; expected 1 to {_MOST_DIMENSIONS}")
    shape = tuple(cursor.number(_U64, what) for _ in range(dimensions))[::-1]  # the file has the fastest first
    if 0 in shape:
        cursor.fail(f"tensor {name!r} is empty: its shape is {shape}")
    form = _format(cursor, cursor.number(_U32, what), name)
    return describe(cursor.path, name, form, shape), cursor.number(_U64, what)


def _format(cursor: _Cursor, number: int, tensor: str) -> BlockFormat:
    try:
        return by_id(number)
    except BadModel as error:
        raise BadFile(cursor.path, f"tensor {tensor!r}: {error}") from error
