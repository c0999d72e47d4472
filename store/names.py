"""Model names: `[scheme://][host/][namespace/]model[:tag]`, the parts a client leaves out filled in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import BadRequest

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_FILE_NAME = 1024  # characters

# Every part starts with a letter, a digit or an underscore, so none can be "." or "..", be hidden, or hold a slash.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.:]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}")
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.]{0,79}")


class InvalidName(BadRequest):
    """A text is not a model name; `text` is what the client sent."""

    def __init__(self, text: str) -> None:
        super().__init__("invalid model name")
        self.text = text


class InvalidFileName(BadRequest):
    """A file's name in a request or a manifest is not a clean relative path."""

    def __init__(self, text: str) -> None:
        super().__init__("file path must be relative")
        self.text = text


def checked_file_name(text: str) -> str:
    """Return text if it is a clean relative path: no root, no "..", no empty part. Raises InvalidFileName.

    The store keeps such names as labels of blobs and never opens them.
    """
    clean = all(part not in ("", ".", "..") for part in text.split("/"))
    if not clean or "\\" in text or not text.isprintable() or len(text) > MAX_FILE_NAME:
        raise InvalidFileName(text)
    return text


@dataclass(frozen=True, order=True)
class ModelName:
    """A complete name; every part follows the grammar, so the parts are safe as names of folders and files.

    Raises InvalidName.
    """

    host: str
    namespace: str
    model: str
    tag: str

    def __post_init__(self) -> None:
        rules = zip((_HOST, _NAMESPACE, _MODEL, _MODEL), self.parts, strict=True)
        if not all(rule.fullmatch(part) for rule, part in rules):
            raise InvalidName(self.full)

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Return the name that text means. Letter case is kept. Raises InvalidName."""
        head, slash, last = text.rpartition("/")
        model, colon, tag = last.rpartition(":")
        if not colon:
            model, tag = last, DEFAULT_TAG
        head, nested, namespace = head.rpartition("/")
        if not slash:
            namespace = DEFAULT_NAMESPACE
        host = head.rpartition("://")[2] if nested else DEFAULT_HOST
        try:
            return cls(host, namespace, model, tag)
        except InvalidName:
            raise InvalidName(text) from None

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Host, namespace, model, tag: also the path of the model's manifest."""
        return (self.host, self.namespace, self.model, self.tag)

    @property
    def full(self) -> str:
        """The name with all four parts."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The shortest name that means the same; the tag is always there."""
        name = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        return name if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{name}"

    def __str__(self) -> str:
        return self.short
