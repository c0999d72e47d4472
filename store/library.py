"""The store: models by name, over blobs and manifests in the folder layout of Ollama."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.converting import Converter
from ..core.errors import BadModel, NotFound
from . import create
from .blobs import Blobs
from .create import CreateRequest, NewModel
from .digests import Digest
from .folder import Folder
from .manifests import FOLDER as MANIFESTS
from .manifests import Entry, Manifest, Manifests, ModelNotFound
from .models import StoredModel
from .names import ModelName
from .progress import Progress

GRACE_S = 3600.0  # files younger than this may belong to a create or a download that is still going on


class Store:
    """A folder of models; one that Ollama made works as it is. All methods but `add_blob` block on the disk.

    Any number of threads and processes may use the same folder: readers see a model before or after a change, never
    in between, and changes wait for one another.
    """

    def __init__(self, root: Path, converter: Converter | None = None) -> None:
        """converter: what models are converted with; without one, requests to do so are refused."""
        self._folder = Folder(root)
        self._blobs = Blobs(self._folder)
        self._manifests = Manifests(self._folder)
        self._converter = converter

    @property
    def root(self) -> Path:
        """The folder, links resolved."""
        return self._folder.root

    def list(self) -> list[StoredModel]:
        """Return all models, the one changed last first. Those that cannot be read are left out."""
        found = []
        for name in self._manifests.names():
            with suppress(BadModel, NotFound):
                found.append(StoredModel.load(self._manifests.read(name), self._blobs))
        return sorted(found, key=lambda model: (-model.modified_at.timestamp(), model.name))

    def open(self, name: str) -> StoredModel:
        """Return the model called name, in any letter case.

        Raises InvalidName, ModelNotFound, or BadModel if a blob is missing or has the wrong size.
        """
        entry = self._entry(name)
        try:
            model = StoredModel.load(entry, self._blobs)
        except NotFound as error:
            raise BadModel(f"{entry.name}: {error}") from None
        model.check()
        return model

    def copy(self, source: str, destination: str) -> None:
        """Make destination mean what source means. Raises InvalidName, ModelNotFound."""
        wanted = ModelName.parse(destination)
        with self._folder.locked(MANIFESTS):
            found = self._entry(source).name
            target = self._manifests.find(wanted)
            if target != found:
                self._manifests.copy(found, target)

    def delete(self, name: str) -> None:
        """Delete a model and the blobs that only it used. Raises InvalidName, ModelNotFound.

        A model whose manifest cannot be read is deleted, too; its blobs are then left to `prune`.
        """
        wanted = ModelName.parse(name)
        with self._folder.locked(MANIFESTS):
            found = self._manifests.find(wanted)
            old = self._digests(found)
            try:
                self._manifests.delete(found)
            except ModelNotFound:
                raise ModelNotFound(name) from None
            self._drop_unused(old)

    def create(self, request: CreateRequest) -> Generator[Progress]:
        """Make a model, telling of each step. Closing the iterator early leaves the store valid and the name as it was.

        Raises BadRequest, before the first step where the request alone shows it; ModelNotFound for the base or draft.
        """
        target = ModelName.parse(request.model)
        create.check(request)
        base = self.open(request.from_) if request.from_ else None
        draft = self.open(request.draft) if request.draft else None
        return self._create(target, create.build(request, base, draft, self._blobs, self._converter))

    def _create(self, target: ModelName, building: Generator[Progress, None, NewModel]) -> Generator[Progress]:
        made = yield from building
        yield from made.store_layers()
        yield Progress(status="writing manifest")
        self._publish(target, made)
        yield Progress(status="success")

    def _publish(self, target: ModelName, made: NewModel) -> None:
        with self._folder.locked(MANIFESTS):
            name = self._manifests.find(target)
            old = self._digests(name)
            self._manifests.write(name, made.manifest())
            self._drop_unused(old)

    def blob_path(self, digest: str) -> Path:
        """Return the path of a blob. Raises InvalidDigest, NotFound."""
        return self._blobs.path(Digest(digest))

    def has_blob(self, digest: str) -> bool:
        """Return whether a blob is there. Raises InvalidDigest."""
        return self._blobs.has(Digest(digest))

    async def add_blob(self, digest: str, chunks: AsyncIterator[bytes]) -> bool:
        """Store an upload. Return False, with nothing read, if it is already there.

        Raises InvalidDigest, DigestMismatch, Busy if the disk is full.
        """
        return await self._blobs.add(Digest(digest), chunks)

    def adopt(self) -> None:
        """Rename blobs with the names that early versions of Ollama gave them. To be called once, at the start."""
        self._blobs.adopt()

    def prune(self, grace_s: float = GRACE_S) -> Sequence[str]:
        """Delete what no model uses: blobs, unfinished files, empty folders. Return the names of the files.

        Files that changed in the last grace_s seconds stay. Nothing is deleted if any manifest cannot be read.
        """
        with self._folder.locked(MANIFESTS):
            used = self._manifests.references()
            if used is None:
                return []
            self._manifests.prune(changed_before=time.time() - grace_s)
            return self._blobs.prune(used, older_than_s=grace_s)

    def _entry(self, name: str) -> Entry:
        try:
            return self._manifests.read(self._manifests.find(ModelName.parse(name)))
        except ModelNotFound:
            raise ModelNotFound(name) from None  # as the client spelled it

    def _digests(self, name: ModelName) -> set[Digest]:
        """Return the blobs of a model; none if it is not there or cannot be read."""
        try:
            manifest: Manifest = self._manifests.read(name).manifest
        except (ModelNotFound, BadModel):
            return set()
        return manifest.digests

    def _drop_unused(self, candidates: set[Digest]) -> None:
        """Delete those of candidates that no manifest mentions any more; none if a manifest cannot be read."""
        used = self._manifests.references() if candidates else None
        if used is not None:
            self._blobs.delete(candidates - used)
