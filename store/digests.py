"""The digest of a blob: the only value from which a blob's path is ever made."""

from __future__ import annotations

import hashlib
import re

from ..core.errors import BadRequest

_PATTERN = re.compile(r"sha256[:-]([0-9a-f]{64})")


class InvalidDigest(BadRequest):
    """A text that should name a blob does not have the form of a digest."""

    def __init__(self, text: str) -> None:
        super().__init__("invalid digest format")
        self.text = text


class Digest(str):
    """A SHA-256 in its written form, `sha256:` and 64 lower-case hexadecimal digits. Also accepts `sha256-`.

    Nothing else can become a Digest, so a path made from one cannot lead anywhere but to a blob.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Return the digest that text spells. Raises InvalidDigest."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise InvalidDigest(text)
        return super().__new__(cls, f"sha256:{match[1]}")

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of data."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @property
    def hex(self) -> str:
        """The 64 hexadecimal digits alone."""
        return self[7:]

    @property
    def file_name(self) -> str:
        """The name of the blob's file: a colon is not allowed in file names everywhere."""
        return f"sha256-{self.hex}"
