"""Manifests: which blobs make up a model, in `manifests/<host>/<namespace>/<model>/<tag>`.

The schema is the Docker image manifest, version 2, as Ollama writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from ..core.decoding import MALFORMED
from ..core.errors import BadFile, BadRequest, NotFound
from .digests import Digest
from .folder import Folder
from .names import ModelName

FOLDER = "manifests"
MANIFEST_BYTES = 4 << 20
MAX_LAYERS = 8192
MAX_BLOB_BYTES = 1 << 50  # a petabyte; sums of sizes then stay far below 64 bits

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"

MODEL = "application/vnd.ollama.image.model"
PROJECTOR = "application/vnd.ollama.image.projector"
ADAPTER = "application/vnd.ollama.image.adapter"
DRAFT = "application/vnd.ollama.image.draft"
TEMPLATE = "application/vnd.ollama.image.template"
OLD_TEMPLATE = "application/vnd.ollama.image.prompt"
SYSTEM = "application/vnd.ollama.image.system"
PARAMS = "application/vnd.ollama.image.params"
MESSAGES = "application/vnd.ollama.image.messages"
LICENSE = "application/vnd.ollama.image.license"
CHECKPOINT = "application/vnd.puna.image.checkpoint"  # ours: one file of a Hugging Face checkpoint, as it is


class Layer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One blob of a model and what it is for."""

    media_type: str = msgspec.field(name="mediaType")
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB_BYTES)]
    from_: str = msgspec.field(name="from", default="")  # the model, in short form, that the layer came from
    name: str = ""  # the file's name, where one blob of several has to be told from the others


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A model: its config and its layers."""

    schema_version: Literal[2] = msgspec.field(name="schemaVersion", default=2)
    media_type: str = msgspec.field(name="mediaType", default=MANIFEST_TYPE)
    config: Layer
    layers: Annotated[list[Layer], msgspec.Meta(max_length=MAX_LAYERS)]

    @property
    def digests(self) -> set[Digest]:
        """Every blob the model needs."""
        return {self.config.digest, *(layer.digest for layer in self.layers)}

    @property
    def size(self) -> int:
        """Bytes of the config and all layers."""
        return self.config.size + sum(layer.size for layer in self.layers)


@dataclass(frozen=True)
class Entry:
    """A manifest as it lies on the disk."""

    name: ModelName
    manifest: Manifest
    digest: Digest  # of the manifest's own bytes: the model's identity
    modified_at: datetime  # with the local offset


class ModelNotFound(NotFound):
    """No model has this name; `name` is the text that was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")
        self.name = name


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest's file."""
    return msgspec.json.encode(manifest, enc_hook=str)


def decode(data: bytes, where: str) -> Manifest:
    """Return the manifest in data. where: what an error names. Raises BadFile unless all of it follows the schema."""
    try:
        return _DECODER.decode(data)
    except (*MALFORMED, BadRequest) as error:
        raise BadFile(where, f"is not a valid manifest: {error}") from None


class Manifests:
    """The manifests of a store."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def names(self) -> Iterator[ModelName]:
        """Every model that has a manifest. Files that no name leads to are passed over."""
        for parts, _ in self._files():
            with suppress(BadRequest):
                yield ModelName(*parts)

    def find(self, name: ModelName) -> ModelName:
        """Return name with each part spelled as on the disk, where it is there in any letter case."""
        spelled: list[str] = []
        for depth, part in enumerate(name.parts):
            here = (FOLDER, *spelled)
            present = self._folder.folders(*here) if depth < 3 else [file for file, _ in self._folder.files(*here)]
            alike = [other for other in present if other.isascii() and other.lower() == part.lower()]
            spelled.append(part if part in alike or not alike else alike[0])
        return ModelName(*spelled)

    def read(self, name: ModelName) -> Entry:
        """Return the manifest of name, which must be spelled as on the disk. Raises ModelNotFound, BadFile."""
        try:
            found = self._folder.stat(FOLDER, *name.parts)
            data = self._folder.read(FOLDER, *name.parts, limit=MANIFEST_BYTES)
        except FileNotFoundError:
            raise ModelNotFound(name.short) from None
        modified = datetime.fromtimestamp(found.st_mtime).astimezone()
        return Entry(name, decode(data, f"manifest of {name}"), Digest.of(data), modified)

    def write(self, name: ModelName, manifest: Manifest) -> None:
        """Make name mean manifest, from one moment to the next."""
        self._folder.write(FOLDER, *name.parts, data=encode(manifest))

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Make destination mean what source means, byte for byte. Raises ModelNotFound."""
        try:
            data = self._folder.read(FOLDER, *source.parts, limit=MANIFEST_BYTES)
        except FileNotFoundError:
            raise ModelNotFound(source.short) from None
        self._folder.write(FOLDER, *destination.parts, data=data)

    def delete(self, name: ModelName) -> None:
        """Delete a manifest and the folders that became empty. Raises ModelNotFound."""
        try:
            self._folder.remove(FOLDER, *name.parts)
        except FileNotFoundError:
            raise ModelNotFound(name.short) from None

    def references(self) -> set[Digest] | None:
        """Return every blob that some manifest mentions; None if a manifest cannot be read, for then nobody knows."""
        used: set[Digest] = set()
        try:
            for name in self.names():
                used |= self.read(name).manifest.digests
        except (BadFile, ModelNotFound):
            return None
        return used

    def prune(self, changed_before: float) -> None:
        """Delete unfinished writes that a crash left behind, and empty folders. changed_before: seconds since 1970."""
        for parts, modified in list(self._files()):
            if not _is_tag(parts[-1]) and modified <= changed_before:
                self._folder.remove(FOLDER, *parts)
        for folder in list(self._leaves()):
            self._folder.remove_empty(FOLDER, *folder)

    def _files(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Path and time of change of every file at the depth of a manifest."""
        for folder in self._leaves():
            if len(folder) < 3:
                continue
            for name, found in self._folder.files(FOLDER, *folder):
                yield (*folder, name), found.st_mtime

    def _leaves(self, *above: str) -> Iterator[tuple[str, ...]]:
        """Every folder that holds tags, and those nearer the root that hold no folder."""
        inner = self._folder.folders(FOLDER, *above) if len(above) < 3 else []
        if not inner:
            yield above
        for name in inner:
            yield from self._leaves(*above, name)


def _is_tag(file_name: str) -> bool:
    try:
        ModelName("host", "namespace", "model", file_name)
    except BadRequest:
        return False
    return True


def _from_text(kind: type, value: Any) -> Any:
    return kind(value)


_DECODER = msgspec.json.Decoder(Manifest, dec_hook=_from_text)
