"""Models as requests name them: found in the store, with the template that their conversations are written in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import anyio.to_thread

from ..core.errors import BadModel, BadRequest, Failure
from ..core.scheduler.models import ModelFiles
from ..store import Digest, Store, StoredModel, chat_template
from ..text.conversation import Message, PromptTemplate
from ..text.tokenizers import read_bos_eos

MAX_TEMPLATES = 256  # templates kept in memory
SERVED = frozenset(
    {"completion", "insert"}
)  # what this version can do with a template, whatever else that has room for


@dataclass(frozen=True)
class Model:
    """A stored model with all its texts read, so that nothing that follows touches the disk."""

    stored: StoredModel
    template: PromptTemplate
    system: str
    messages: tuple[Message, ...]
    params: Mapping[str, Any]
    files: ModelFiles

    @property
    def full_name(self) -> str:
        """The name with host and namespace, as errors about capabilities give it."""
        return self.stored.name.full


class Library:
    """Opens models. Templates are parsed once for each version of a model."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._templates: dict[Digest, PromptTemplate] = {}
        self._seeing: dict[Digest, bool] = {}

    async def open(self, name: str) -> Model:
        """Return the model called name. Raises InvalidName, ModelNotFound, BadModel."""
        return await anyio.to_thread.run_sync(self._open, name)

    async def capabilities(self, stored: StoredModel) -> list[str]:
        """Return what requests may ask of a model: nothing, if its template is broken."""
        try:
            template = await anyio.to_thread.run_sync(self._template, stored)
        except Failure:
            return []
        eyes = {"vision"} if await self.sees(stored) else set()
        return sorted(template.capabilities & SERVED | eyes)

    async def sees(self, stored: StoredModel) -> bool:
        """Return whether a model has an encoder of images. Raises BadModel."""
        if stored.digest not in self._seeing:
            self._seeing[stored.digest] = await anyio.to_thread.run_sync(lambda: stored.sees)
        return self._seeing[stored.digest]

    def _open(self, name: str) -> Model:
        stored = self._store.open(name)
        return Model(
            stored=stored,
            template=self._template(stored),
            system=stored.system or "",
            messages=tuple(Message(role=message.role, content=message.content) for message in stored.messages),
            params=stored.params,
            files=_files(stored),
        )

    def _template(self, stored: StoredModel) -> PromptTemplate:
        template = self._templates.get(stored.digest)
        if template is None:
            template = self._templates[stored.digest] = _read_template(stored)
            while len(self._templates) > MAX_TEMPLATES:
                self._templates.pop(next(iter(self._templates)), None)
        return template


def _read_template(stored: StoredModel) -> PromptTemplate:
    """Return the template that the model was given, else the one that came with its weights."""
    if stored.template is not None:
        try:
            return PromptTemplate.open(go=stored.template)
        except BadRequest as error:  # not of the one who asks the model now
            raise BadModel(f"{stored.name}: template error: {error}") from None
    with closing(stored.open_weights()) as weights:
        jinja = chat_template(weights)
        if jinja is None:
            return PromptTemplate.open()
        bos, eos = read_bos_eos(weights)  # such a template writes them itself
        return PromptTemplate.open(jinja=jinja, bos=bos, eos=eos)


def _files(stored: StoredModel) -> ModelFiles:
    groups = stored.weight_layers, stored.projector_layers, stored.draft_layers
    weights, projectors, draft = ([str(layer.digest) for layer in layers] for layers in groups)
    alone = len(weights) == 1 and not projectors and not draft
    named = "\n".join([*weights, *projectors, "draft", *draft])
    key = weights[0] if alone else Digest.of(named.encode())
    return ModelFiles(key, {**stored.projectors, **stored.weights}, stored.drafts)
