"""Blobs: immutable files named by the SHA-256 of their bytes, in `blobs/sha256-<hex>`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from ..core.errors import BadFile, BadRequest, NotFound
from .digests import Digest, InvalidDigest
from .folder import Folder, Writer

T = TypeVar("T")

FOLDER = "blobs"
CHUNK_BYTES = 1 << 20  # an upload is hashed and written in pieces of this size, each in a worker thread


class DigestMismatch(BadRequest):
    """The bytes of an upload are not those that its digest names."""

    def __init__(self, *, expected: Digest, actual: Digest) -> None:
        super().__init__(f'digest mismatch, expected "{expected}", got "{actual}"')
        self.expected, self.actual = expected, actual


class Blobs:
    """The blobs of a store. All methods but `add` block on the disk."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def path(self, digest: Digest) -> Path:
        """Return the path of a blob: the only place where one is made.

        Raises NotFound if there is no such blob, BadFile if it is not a regular file.
        """
        with _existing(digest):
            return self._folder.path(FOLDER, digest.file_name)

    def size(self, digest: Digest) -> int:
        """Return the bytes a blob holds. Raises as `path` does."""
        with _existing(digest):
            return self._folder.stat(FOLDER, digest.file_name).st_size

    def has(self, digest: Digest) -> bool:
        """Return whether a blob is there and is a regular file."""
        try:
            self._folder.stat(FOLDER, digest.file_name)
        except (FileNotFoundError, BadFile):
            return False
        return True

    def read(self, digest: Digest, limit: int) -> bytes:
        """Return a small blob's bytes, verified. Raises NotFound, or BadFile if longer than limit or altered."""
        with _existing(digest):
            data = self._folder.read(FOLDER, digest.file_name, limit=limit)
        if Digest.of(data) != digest:
            raise BadFile(digest, "the blob's bytes do not have this digest; it was altered after it was stored")
        return data

    def put(self, data: bytes) -> tuple[Digest, bool]:
        """Store data. Return its digest and whether it is new."""
        digest = Digest.of(data)
        if self.has(digest):
            return digest, False
        self._folder.write(FOLDER, digest.file_name, data=data)
        return digest, True

    @contextmanager
    def making(self) -> Iterator[NewBlob]:
        """Give a blob to write, whose digest is not known yet; it vanishes at the end unless it was committed."""
        with self._folder.writer(FOLDER) as writer:
            yield NewBlob(self._folder, writer)

    async def add(self, digest: Digest, chunks: AsyncIterator[bytes]) -> bool:
        """Store an upload. Return False, with nothing read, if the blob is already there.

        The blob appears only when it is complete and verified; cancelled or failing uploads leave nothing behind.
        Raises DigestMismatch.
        """
        if await anyio.to_thread.run_sync(self.has, digest):
            return False
        hasher = hashlib.sha256()
        async with _in_thread(self._folder.writer(FOLDER)) as writer:
            async for piece in _gathered(chunks):
                await anyio.to_thread.run_sync(_take, hasher, writer, piece)
            actual = Digest(f"sha256:{hasher.hexdigest()}")
            if actual != digest:
                raise DigestMismatch(expected=digest, actual=actual)
            await anyio.to_thread.run_sync(writer.commit, digest.file_name)
        return True

    def delete(self, digests: Collection[Digest]) -> None:
        """Delete blobs; those that are not there are passed over."""
        for digest in digests:
            with suppress(FileNotFoundError):
                self._folder.remove(FOLDER, digest.file_name)

    def adopt(self) -> None:
        """Rename blobs that an old version called `sha256:<hex>`, so that they can be found."""
        for name, _ in self._folder.files(FOLDER):
            digest = _digest(name)
            if digest and name != digest.file_name and not self.has(digest):
                self._folder.rename(FOLDER, name, digest.file_name)

    def prune(self, used: Collection[Digest], older_than_s: float) -> list[str]:
        """Delete every file that is no blob in use, unless it changed lately. Return the names of those deleted."""
        limit = time.time() - older_than_s
        stale = [
            name for name, found in self._folder.files(FOLDER) if _digest(name) not in used and found.st_mtime <= limit
        ]
        for name in stale:
            with suppress(FileNotFoundError):
                self._folder.remove(FOLDER, name)
        return stale


class NewBlob:
    """A blob that nobody can find yet."""

    def __init__(self, folder: Folder, writer: Writer) -> None:
        self._folder, self._writer, self._hasher = folder, writer, hashlib.sha256()
        self.size = 0  # bytes so far

    def write(self, data: bytes | memoryview) -> None:
        """Append data. Raises Busy if the disk is full."""
        self._hasher.update(data)
        self._writer.write(data)
        self.size += len(data)

    def path(self) -> Path:
        """Return where the bytes so far can be read, until the blob is committed."""
        return self._folder.path(FOLDER, self._writer.flush())

    def commit(self) -> Digest:
        """Give the blob its name, and return it."""
        digest = Digest(f"sha256:{self._hasher.hexdigest()}")
        self._writer.commit(digest.file_name)
        return digest


@contextmanager
def _existing(digest: Digest) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"blob {digest} does not exist") from None


def _digest(file_name: str) -> Digest | None:
    """Return the digest a file of the folder is named by, or None for unfinished uploads and strangers."""
    try:
        return Digest(file_name)
    except InvalidDigest:
        return None


@asynccontextmanager
async def _in_thread(context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a context in worker threads: to delete what arrived of a large upload takes seconds."""
    entered = await anyio.to_thread.run_sync(context.__enter__)
    try:
        yield entered
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(context.__exit__, None, None, None)


def _take(hasher: hashlib._Hash, writer: Writer, piece: bytes) -> None:
    hasher.update(piece)
    writer.write(piece)


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join small network chunks: a hop to a worker thread costs more than hashing one of them."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)
