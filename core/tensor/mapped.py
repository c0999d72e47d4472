"""Files on disk as read-only memory maps, and tensors as checked views of them."""

from __future__ import annotations

import math
import mmap
import re
import stat
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import BadFile, NotFound
from .blocks import BlockFormat
from .source import TensorInfo

SMAPS = Path("/proc/self/smaps")  # Linux: every region of this process's memory
REGION = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .*?^Rss: +([0-9]+) kB$", re.MULTILINE | re.DOTALL)  # from, to, kB there


@dataclass(frozen=True)
class MappedTensor:
    """A tensor and its bytes, [rows, bytes per row] uint8: a read-only view that keeps its map alive."""

    info: TensorInfo
    raw: npt.NDArray[np.uint8]
    map: mmap.mmap
    start: int  # of the bytes in the map

    def release(self) -> None:
        """Let the system take back the memory of pages that hold nothing but this tensor; later reads bring it back."""
        release(self.map, self.start, self.start + self.info.nbytes)


def release(data: mmap.mmap, start: int, stop: int) -> None:
    """Let the system take back the memory of the pages that lie between these bytes of a map, as a whole."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        data.madvise(mmap.MADV_DONTNEED, first, last - first)


class MappedBytes:
    """What is computed with where it lies in files, and how much of these files is in this process's memory."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._nbytes = 0

    def add(self, raw: npt.NDArray[np.uint8]) -> None:
        """Count the map that these bytes are a view of."""
        self._starts.append(raw.ctypes.data)
        self._nbytes += raw.nbytes

    @property
    def resident(self) -> int:
        """Bytes in memory now, of whole maps. Where the system does not tell: all bytes that were added."""
        if not self._starts or not SMAPS.exists():
            return self._nbytes
        starts, total = sorted(self._starts), 0
        for region in REGION.finditer(SMAPS.read_bytes()):
            first, stop = (int(bound, 16) for bound in region.group(1, 2))
            if bisect_left(starts, first) < bisect_left(starts, stop):
                total += int(region[3]) * 1024
        return total


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises NotFound if there is none, BadFile for a device, pipe or folder."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(path, "is not a regular file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror}") from error


def map_file(path: Path) -> mmap.mmap:
    """Return the bytes of a regular file as a read-only memory map. Raises NotFound or BadFile."""
    with open_regular(path) as file:
        if file.seek(0, 2) == 0:
            raise BadFile(path, "is empty")
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise BadFile(path, f"cannot be mapped into memory: {error.strerror}") from error


def read_file(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes. Raises NotFound or BadFile."""
    with open_regular(path) as file:
        if (size := file.seek(0, 2)) > limit:
            raise BadFile(path, f"is larger than {limit} bytes")
        file.seek(0)
        return file.read(size)  # not read(limit): that would set aside the whole limit first


def starts_with(path: Path, magics: tuple[bytes, ...]) -> bool:
    """Return whether a regular file begins with one of these. Raises NotFound or BadFile."""
    with open_regular(path) as file:
        return file.read(max(map(len, magics))).startswith(magics)


def describe(path: Path, name: str, form: BlockFormat, shape: tuple[int, ...]) -> TensorInfo:
    """Return a tensor's entry, its size worked out. shape: slowest dimension first; no dimension is 0.

    Raises BadFile if a row is not a whole number of blocks.
    """
    row = shape[-1] if shape else 1
    if row % form.elements:
        raise BadFile(
            path,
            f"tensor {name!r} has rows of {row} elements, not a multiple of the {form.elements} in a {form.name} block",
        )
    return TensorInfo(name, form, shape, math.prod(shape[:-1]) * form.row_bytes(row))


def place(path: Path, data: mmap.mmap, extents: Iterable[tuple[TensorInfo, int]]) -> dict[str, MappedTensor]:
    """Return views of the tensors that begin at these bytes of the map, by name.

    Raises BadFile, before any view is made, if a tensor reaches beyond the file or into another.
    """
    extents = list(extents)
    _refuse_overlap(path, len(data), extents)
    flat = np.frombuffer(data, np.uint8)
    return {info.name: MappedTensor(info, _rows(flat, info, start), data, start) for info, start in extents}


def _refuse_overlap(path: Path, size: int, extents: list[tuple[TensorInfo, int]]) -> None:
    """Raise BadFile unless every tensor lies within the file and apart from the others."""
    end, before = 0, ""
    for info, start in sorted(extents, key=lambda extent: extent[1]):
        if start < end:
            raise BadFile(path, f"tensor {info.name!r} begins at byte {start}, inside {before!r}, which ends at {end}")
        end, before = start + info.nbytes, info.name
        if end > size:
            raise BadFile(
                path, f"tensor {info.name!r} ends at byte {end}, but the file has {size} bytes: is it truncated?"
            )


def _rows(flat: npt.NDArray[np.uint8], info: TensorInfo, start: int) -> npt.NDArray[np.uint8]:
    return flat[start : start + info.nbytes].reshape(math.prod(info.shape[:-1]), -1)
