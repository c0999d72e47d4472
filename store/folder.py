"""A folder that is entered by checked names only, never through a symbolic link, and whose files change atomically."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.errors import BadFile, Busy

FOLDER_MODE = 0o700  # the owner's alone: models and system texts may be private
FILE_MODE = 0o600
TEMPORARY = "."  # first character of a file that is still being written; no blob, tag or folder begins with it

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = {errno.ENOSPC, errno.EDQUOT}
_LINK = {errno.ELOOP, errno.ENOTDIR}


class Folder:
    """Files below one root. Every name is a single path component; a link below the root is an error, not a way out.

    The root itself may be reached through a link. Methods raise FileNotFoundError for what is not there, BadFile for a
    link or a special file, and Busy when the disk is full.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    def path(self, *parts: str) -> Path:
        """Return the path of a regular file, for code that maps it into memory."""
        self.stat(*parts)
        return self.root.joinpath(*parts)

    def stat(self, *parts: str) -> os.stat_result:
        """Return what the system knows about a regular file."""
        with self._inside(parts[:-1]) as folder:
            found = os.stat(_component(parts[-1]), dir_fd=folder, follow_symlinks=False)
        return self._regular(found, parts)

    def read(self, *parts: str, limit: int) -> bytes:
        """Return a file's bytes. Raises BadFile, before reading, if there are more than limit."""
        with self._inside(parts[:-1]) as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not make us wait
            with self._explained(parts):
                descriptor = os.open(_component(parts[-1]), flags, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            size = self._regular(os.fstat(descriptor), parts).st_size
            if size > limit:
                raise BadFile("/".join(parts), f"has {size} bytes; at most {limit} are allowed")
            return file.read(limit)

    def write(self, *parts: str, data: bytes) -> None:
        """Replace a file, or create it and the folders above it; a crash leaves the old file or the new one."""
        with self.writer(*parts[:-1]) as writer:
            writer.write(data)
            writer.commit(parts[-1])

    @contextmanager
    def writer(self, *folder: str) -> Iterator[Writer]:
        """Give a new temporary file in folder; it vanishes at the end unless it was committed under a name."""
        with self._inside(folder, create=True) as descriptor:
            writer = Writer(descriptor)
            try:
                yield writer
            finally:
                writer.discard()

    def rename(self, folder: str, old: str, new: str) -> None:
        """Give a file of folder another name, in place of what had that name."""
        with self._inside((folder,)) as descriptor:
            os.rename(_component(old), _component(new), src_dir_fd=descriptor, dst_dir_fd=descriptor)

    def remove(self, *parts: str) -> None:
        """Delete a file, then the folders above it that became empty; the outermost folder stays."""
        with self._inside(parts[:-1]) as folder:
            os.unlink(_component(parts[-1]), dir_fd=folder)
        self.remove_empty(*parts[:-1])

    def remove_empty(self, *folder: str) -> None:
        """Delete a folder and those above it as long as they are empty; the outermost folder stays."""
        for depth in range(len(folder), 1, -1):
            with self._inside(folder[: depth - 1]) as above:
                try:
                    os.rmdir(_component(folder[depth - 1]), dir_fd=above)
                except OSError:
                    return

    def folders(self, *folder: str) -> list[str]:
        """Return the names of the folders in folder, sorted; none if it does not exist. Links are not among them."""
        return [name for name, found in self._entries(folder) if stat.S_ISDIR(found.st_mode)]

    def files(self, *folder: str) -> list[tuple[str, os.stat_result]]:
        """Return name and status of what lies in folder and is no folder, sorted; nothing if it does not exist."""
        return [(name, found) for name, found in self._entries(folder) if not stat.S_ISDIR(found.st_mode)]

    @contextmanager
    def locked(self, *folder: str) -> Iterator[None]:
        """Let one holder at a time through, among threads and processes alike. Not to be nested."""
        with self._inside(folder, create=True) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # given back when the descriptor is closed
            yield

    def _entries(self, folder: tuple[str, ...]) -> list[tuple[str, os.stat_result]]:
        found = []
        with suppress(FileNotFoundError), self._inside(folder) as descriptor:
            for name in sorted(os.listdir(descriptor)):  # noqa: PTH208, a path could have changed its meaning
                with suppress(FileNotFoundError):  # deleted a moment ago
                    found.append((name, os.stat(name, dir_fd=descriptor, follow_symlinks=False)))
        return found

    @contextmanager
    def _inside(self, folder: tuple[str, ...], create: bool = False) -> Iterator[int]:
        """Walk down from the root, one component at a time, and give a descriptor of the last folder."""
        if create:
            self.root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in folder:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(_component(part), FOLDER_MODE, dir_fd=descriptor)
                        os.fsync(descriptor)
                with self._explained(folder):
                    inner = os.open(_component(part), _FOLDER_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    @contextmanager
    def _explained(parts: tuple[str, ...]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _LINK:
                raise BadFile("/".join(parts), "leads through a symbolic link or a file; neither is followed") from None
            if error.errno == errno.EACCES:
                raise BadFile("/".join(parts), "may not be read by the user this process runs as") from None
            raise

    @staticmethod
    def _regular(found: os.stat_result, parts: tuple[str, ...]) -> os.stat_result:
        if not stat.S_ISREG(found.st_mode):
            raise BadFile("/".join(parts), "is not a regular file; links and special files are not followed")
        return found


class Writer:
    """A temporary file in a folder, which becomes visible under its name all at once."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._name: str | None = f"{TEMPORARY}{uuid.uuid4().hex}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._name, flags, FILE_MODE, dir_fd=folder), "wb")

    def write(self, data: bytes | memoryview) -> None:
        """Append data. Raises Busy if the disk is full."""
        with _room():
            self._file.write(data)

    def flush(self) -> str:
        """Return the file's own name, under which what was appended so far can be read. Raises Busy as `write`."""
        assert self._name is not None
        with _room():
            self._file.flush()
        return self._name

    def commit(self, name: str) -> None:
        """Put the file on the disk for good under name, in place of what was there."""
        assert self._name is not None
        with _room():
            self._file.flush()
            os.fsync(self._file.fileno())
        os.replace(self._name, _component(name), src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._name = None
        os.fsync(self._folder)

    def discard(self) -> None:
        """Close the file and delete it if it was not committed."""
        with suppress(OSError):  # a full disk makes closing fail, too; it was reported by write or commit
            self._file.close()
        if self._name is not None:
            os.unlink(self._name, dir_fd=self._folder)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Busy("the disk that holds the models is full") from None
        raise


def _component(name: str) -> str:
    """Return name, which the callers' types have checked already: this is the last line behind them."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a single path component")
    return name
