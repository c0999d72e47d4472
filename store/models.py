"""A model in the store: its manifest, its config, and the texts and files that its layers hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..core.decoding import MALFORMED
from ..core.errors import BadFile, BadModel, NotFound
from ..core.tensor.source import WeightSource
from ..core.tensor.weights import open_weights
from . import manifests
from .blobs import Blobs
from .digests import Digest
from .facts import sees
from .manifests import Entry, Layer, Manifest
from .modelfile import Message
from .names import InvalidFileName, ModelName, checked_file_name

TEXT_BYTES = 16 << 20  # the most that a layer of text or JSON may hold

T = TypeVar("T")


class RootFs(msgspec.Struct, frozen=True):
    """The layers once more, in the form that image registries expect."""

    type: str = "layers"
    diff_ids: list[str] = []


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The config blob. A field that Puna does not know is dropped when a model is built on another one."""

    model_format: str = ""  # gguf, safetensors
    model_family: str = ""
    model_families: list[str] | None = None  # one for each file of weights
    model_type: str = ""  # number of parameters, as people say it
    file_type: str = ""  # quantisation
    context_length: int | None = None  # tokens the model was trained for
    embedding_length: int | None = None
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    remote_model: str = ""
    capabilities: list[str] | None = None
    architecture: str = ""  # of the machine; always amd64, whatever it is
    os: str = ""
    rootfs: RootFs | None = None


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """The few facts that listings show."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str


@dataclass(frozen=True)
class StoredModel:
    """A model. Its texts are read from the disk when first asked for; then and there BadModel or NotFound is raised."""

    name: ModelName
    manifest: Manifest
    digest: Digest  # of the manifest
    modified_at: datetime
    config: ModelConfig
    _blobs: Blobs

    @classmethod
    def load(cls, entry: Entry, blobs: Blobs) -> StoredModel:
        """Return the model that a manifest describes. Raises NotFound or BadFile if its config cannot be read."""
        config = _json(blobs, entry.manifest.config, ModelConfig)
        return cls(entry.name, entry.manifest, entry.digest, entry.modified_at, config, blobs)

    @property
    def size(self) -> int:
        """Bytes of the config and all layers."""
        return self.manifest.size

    @property
    def parent(self) -> str:
        """The model that the weights came from, in short form; empty if they were uploaded."""
        return next((layer.from_ for layer in self.weight_layers if layer.from_), "")

    @property
    def details(self) -> Details:
        """The facts for a listing."""
        return Details(
            parent_model=self.parent,
            format=self.config.model_format,
            family=self.config.model_family,
            families=self.config.model_families,
            parameter_size=self.config.model_type,
            quantization_level=self.config.file_type,
        )

    @property
    def weight_layers(self) -> list[Layer]:
        """The layers that hold the weights: one GGUF file, its splits, or the files of a checkpoint."""
        return self._layers(manifests.MODEL) or self._layers(manifests.CHECKPOINT)

    @property
    def projector_layers(self) -> list[Layer]:
        """The layers that hold encoders of media in files of their own."""
        return self._layers(manifests.PROJECTOR)

    @property
    def draft_layers(self) -> list[Layer]:
        """The layers that hold the small model that guesses ahead."""
        return self._layers(manifests.DRAFT)

    @cached_property
    def weights(self) -> Mapping[str, Path]:
        """File name to path, for `open_weights`."""
        return self._files(self.weight_layers, "model")

    @cached_property
    def projectors(self) -> Mapping[str, Path]:
        """File name to path of each projector."""
        return self._files(self.projector_layers, "projector")

    @cached_property
    def adapters(self) -> Mapping[str, Path]:
        """File name to path of each adapter."""
        return self._files(self._layers(manifests.ADAPTER), "adapter")

    @cached_property
    def drafts(self) -> Mapping[str, Path]:
        """File name to path of the small model that guesses ahead, for `open_weights`; empty if there is none."""
        return self._files(self.draft_layers, "draft")

    @cached_property
    def template(self) -> str | None:
        """The Go template of the TEMPLATE instruction; None if the model goes by the one in its own files."""
        return self._text(manifests.TEMPLATE, manifests.OLD_TEMPLATE)

    @cached_property
    def system(self) -> str | None:
        """The system text."""
        return self._text(manifests.SYSTEM)

    @cached_property
    def licenses(self) -> tuple[str, ...]:
        """The licence texts."""
        return tuple(_utf8(self._blobs, layer) for layer in self._layers(manifests.LICENSE))

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """The model's own options, as stored: their types are checked when they are merged."""
        layers = self._layers(manifests.PARAMS)
        return _json(self._blobs, layers[-1], dict[str, Any]) if layers else {}

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that every chat starts from."""
        layers = self._layers(manifests.MESSAGES)
        return tuple(_json(self._blobs, layers[-1], list[Message])) if layers else ()

    def open_weights(self) -> WeightSource:
        """Open the weights; the caller closes them. Raises BadModel."""
        if not self.weights:
            raise BadModel(f"{self.name} has no layer of weights that can be run here")
        return open_weights(self.weights)

    def open_projectors(self) -> list[WeightSource]:
        """Open each projector; the caller closes them. Raises BadModel."""
        return [open_weights({name: path}) for name, path in self.projectors.items()]

    def open_drafts(self) -> list[WeightSource]:
        """Open the draft, if there is one; the caller closes it. Raises BadModel."""
        return [open_weights(self.drafts)] if self.drafts else []

    @cached_property
    def sees(self) -> bool:
        """Whether there is an encoder of images, in the weights or in a file of its own. Raises BadModel."""
        sources = [*self.open_projectors(), *([self.open_weights()] if self.weights else [])]
        try:
            return any(map(sees, sources))
        finally:
            for source in sources:
                source.close()

    def check(self) -> None:
        """Raise BadModel unless every blob is there, of the size that the manifest gives."""
        for layer in (self.manifest.config, *self.manifest.layers):
            try:
                size = self._blobs.size(layer.digest)
            except NotFound as error:
                raise BadModel(f"{self.name}: {error}") from None
            if size != layer.size:
                raise BadModel(f"{self.name}: {layer.digest} has {size} bytes, the manifest says {layer.size}")

    def _layers(self, *media_types: str) -> list[Layer]:
        return [layer for layer in self.manifest.layers if layer.media_type in media_types]

    def _text(self, *media_types: str) -> str | None:
        layers = self._layers(*media_types)
        return _utf8(self._blobs, layers[-1]) if layers else None

    def _files(self, layers: list[Layer], stem: str) -> dict[str, Path]:
        """Name layers that have no name the way llama.cpp names a file, or each of several splits."""
        count = len(layers)
        names = [f"{stem}.gguf"] if count == 1 else [f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
        try:
            names = [checked_file_name(layer.name or name) for layer, name in zip(layers, names, strict=True)]
        except InvalidFileName as error:
            raise BadModel(f"{self.name}: the manifest names a file {error.text!r}, which is no clean path") from None
        if len(set(names)) < count:
            raise BadModel(f"{self.name}: the manifest gives two files the same name")
        return {name: self._blobs.path(layer.digest) for name, layer in zip(names, layers, strict=True)}


def _utf8(blobs: Blobs, layer: Layer) -> str:
    try:
        return blobs.read(layer.digest, TEXT_BYTES).decode()
    except UnicodeDecodeError:
        raise BadFile(layer.digest, f"layer of type {layer.media_type} is not UTF-8 text") from None


def _json(blobs: Blobs, layer: Layer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(blobs.read(layer.digest, TEXT_BYTES), type=kind)
    except MALFORMED as error:
        raise BadFile(layer.digest, f"layer of type {layer.media_type}: {error}") from None
