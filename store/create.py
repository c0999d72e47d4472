"""Making a model: what a request asks for, turned into layers and a config."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

import msgspec

from ..core.converting import Converter
from ..core.errors import BadRequest, Unsupported
from . import manifests
from .blobs import Blobs
from .converting import WEIGHTS, convert, float_format
from .digests import Digest
from .importing import import_draft, import_files
from .manifests import CONFIG_TYPE, Layer, Manifest
from .modelfile import ROLES, Message
from .models import TEXT_BYTES, ModelConfig, RootFs, StoredModel
from .options import checked_parameters
from .progress import Progress


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request to create a model. Null and empty values mean "not given"."""

    model: str
    from_: str | None = msgspec.field(name="from", default=None)
    files: dict[str, str] | None = None  # file name to digest of an uploaded blob; unused if from is given
    template: str | None = None  # checked by the caller, who knows the template language
    system: str | None = None
    license: str | list[str] | None = None  # added to those of the base
    parameters: dict[str, Any] | None = None  # laid over those of the base, one by one
    messages: list[Message] | None = None  # instead of those of the base
    requires: str | None = None
    draft: str | None = None  # a model whose weights shall guess ahead
    draft_files: dict[str, str] | None = None  # or the files of one; as `files`
    quantize: str | None = None  # what to convert the weights to, in any letter case
    # What follows is refused, by name, rather than passed over.
    adapters: dict[str, str] | None = None
    renderer: str | None = None
    parser: str | None = None
    remote_host: str | None = None
    draft_quantize: str | None = None


_REFUSED = {
    "adapters": "adapters are not supported yet",
    "renderer": "built-in renderers are not supported; give a template",
    "parser": "built-in parsers are not supported",
    "remote_host": "remote models are not supported",
    "draft_quantize": "quantization is not supported yet; import the draft model as it is, or quantize it before",
}


def check(request: CreateRequest) -> None:
    """Raise before anything is written: Unsupported for what Puna cannot do, BadRequest for what nobody can."""
    for field, problem in _REFUSED.items():
        if getattr(request, field):
            raise Unsupported(problem)
    if request.quantize:
        float_format(request.quantize)
    if not request.from_ and request.files is None:
        raise BadRequest("neither 'from' or 'files' was specified")
    if request.draft and request.draft_files:
        raise BadRequest("both 'draft' and 'draft_files' were specified; a model has one draft")
    for message in request.messages or ():
        if message.role not in ROLES:
            raise BadRequest(f"a message has the role {message.role!r}, expected one of {', '.join(ROLES)}")
    checked_parameters(request.parameters or {})


class NewModel:
    """A model in the making. Nothing refers to it until its manifest is written, so it may be dropped at any time."""

    def __init__(
        self, config: ModelConfig, layers: Iterable[Layer], blobs: Blobs, new: frozenset[Digest] = frozenset()
    ) -> None:
        """new: the blobs among the layers' that were not there before."""
        self._config, self._layers, self._blobs, self._new = config, list(layers), blobs, new
        self._texts: dict[Digest, bytes] = {}  # new layers, kept to write them again should they vanish meanwhile

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers so far, in the manifest's order."""
        return tuple(self._layers)

    def replace(self, media_types: tuple[str, ...], data: bytes) -> None:
        """Put a layer of the first media type in place of all layers of these types."""
        self._layers = [layer for layer in self._layers if layer.media_type not in media_types]
        self.add(media_types[0], data)

    def replace_draft(self, layers: Iterable[Layer]) -> None:
        """Let the weights in these layers guess ahead, in place of those that did."""
        self._layers = [layer for layer in self._layers if layer.media_type != manifests.DRAFT]
        self._layers += [msgspec.structs.replace(layer, media_type=manifests.DRAFT) for layer in layers]

    def add(self, media_type: str, data: bytes) -> None:
        """Add a layer with the given bytes, unless the same one is there."""
        if len(data) > TEXT_BYTES:
            raise BadRequest(f"a text of {len(data)} bytes is too long; at most {TEXT_BYTES} are allowed")
        layer = Layer(media_type=media_type, digest=Digest.of(data), size=len(data))
        self._texts[layer.digest] = data
        if all((layer.media_type, layer.digest) != (other.media_type, other.digest) for other in self._layers):
            self._layers.append(layer)

    def store_layers(self) -> Generator[Progress, None, None]:
        """Write the new layers, telling of each layer whether it is new."""
        for layer in self._layers:
            text = self._texts.get(layer.digest)
            new = layer.digest in self._new or (text is not None and self._blobs.put(text)[1])
            yield Progress(status=f"{'creating new' if new else 'using existing'} layer {layer.digest}")

    def manifest(self) -> Manifest:
        """Make sure that every blob is there, and return the manifest. To be called with the store locked."""
        for text in self._texts.values():
            self._blobs.put(text)
        for layer in self._layers:
            if not self._blobs.has(layer.digest):
                raise BadRequest(f"blob {layer.digest} was deleted while the model was made; upload it again")
        config = self._encoded_config()
        digest, _ = self._blobs.put(config)
        return Manifest(
            config=Layer(media_type=CONFIG_TYPE, digest=digest, size=len(config)), layers=list(self._layers)
        )

    def _encoded_config(self) -> bytes:
        digests = [str(layer.digest) for layer in self._layers]
        config = msgspec.structs.replace(
            self._config, architecture="amd64", os="linux", rootfs=RootFs(diff_ids=digests)
        )
        return msgspec.json.encode(config)


def build(
    request: CreateRequest,
    base: StoredModel | None,
    draft: StoredModel | None,
    blobs: Blobs,
    converter: Converter | None = None,
) -> Generator[Progress, None, NewModel]:
    """Return the model that a checked request asks for. Raises BadRequest.

    base, draft: the models it names in `from` and in `draft`. converter: what models are converted with.
    """
    if base is not None:
        config, layers = base.config, _inherited(base, base.manifest.layers)
    else:
        imported = yield from import_files(request.files or {}, blobs)
        config, layers = imported.config, imported.layers
    new: frozenset[Digest] = frozenset()
    if request.quantize:
        layer, config = yield from convert(layers, config, float_format(request.quantize), blobs, converter)
        layers = [layer, *(other for other in layers if other.media_type not in WEIGHTS)]
        new = frozenset({layer.digest})
    if request.requires:
        config = msgspec.structs.replace(config, requires=request.requires)
    made = NewModel(config, layers, blobs, new)
    if draft is not None:
        made.replace_draft(_weights(draft))
    elif request.draft_files:
        made.replace_draft((yield from import_draft(request.draft_files, blobs)))
    _add_texts(made, request, base.params if base else {})
    return made


def _inherited(base: StoredModel, layers: Iterable[Layer]) -> list[Layer]:
    return [msgspec.structs.replace(layer, from_=base.name.short) for layer in layers]


def _weights(draft: StoredModel) -> list[Layer]:
    if not draft.weight_layers:
        raise BadRequest(f"{draft.name} cannot be a draft: it has no layer of weights that can be run here")
    return _inherited(draft, draft.weight_layers)


def _add_texts(made: NewModel, request: CreateRequest, params: Mapping[str, Any]) -> None:
    if request.template:
        made.replace((manifests.TEMPLATE, manifests.OLD_TEMPLATE), request.template.encode())
    if request.system:
        made.replace((manifests.SYSTEM,), request.system.encode())
    if request.parameters:
        merged = dict(params) | checked_parameters(request.parameters)
        made.replace((manifests.PARAMS,), msgspec.json.encode(merged, order="sorted") + b"\n")
    if request.messages:
        made.replace((manifests.MESSAGES,), msgspec.json.encode(request.messages))
    licenses = [request.license] if isinstance(request.license, str) else request.license or []
    for text in filter(None, licenses):
        made.add(manifests.LICENSE, text.encode())
