"""Uploaded files turned into layers: GGUF files by their role, a Hugging Face checkpoint as it is."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..core.errors import BadFile, BadModel, BadRequest, NotFound, Unsupported
from ..core.tensor.gguf import MAGIC, read_gguf
from ..core.tensor.mapped import starts_with
from ..core.tensor.weights import open_weights
from .blobs import Blobs
from .digests import Digest
from .facts import Facts, Role, facts_of, human_count, role
from .manifests import CHECKPOINT, MODEL, PROJECTOR, Layer
from .models import ModelConfig
from .names import checked_file_name
from .progress import Progress

MAX_FILES = 4096

# What belongs to a checkpoint beside its weights. Everything else is refused, so that nothing is stored unused.
_SIDE_FILES = re.compile(r".*\.(json|jinja)|tokenizer\.model(\.v\d+)?|.*\.tiktoken|vocab\.txt|merges\.txt")
_PICKLES = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt)", re.IGNORECASE)


@dataclass(frozen=True)
class Imported:
    """The layers that uploaded files became, and what their weights say."""

    config: ModelConfig
    layers: list[Layer]


def import_files(files: Mapping[str, str], blobs: Blobs) -> Generator[Progress, None, Imported]:
    """Check uploaded files and return what they became. files: file name to digest.

    Every file of weights is opened, so that headers, sizes and offsets are known to be sound. Raises BadRequest.
    """
    if not files or len(files) > MAX_FILES:
        raise BadRequest("unknown type" if not files else f"{len(files)} files are too many; at most {MAX_FILES}")
    uploads = {checked_file_name(name): _upload(name, digest, blobs) for name, digest in files.items()}
    refuse_pickles(uploads)
    with _speaking_of(uploads):
        gguf = {name for name, upload in uploads.items() if _is_gguf(name, upload.path)}
        if gguf == uploads.keys():
            return (yield from _gguf(uploads))
        if not gguf and any(name.endswith(".safetensors") for name in uploads):
            return (yield from _checkpoint(uploads))
        raise BadRequest("unknown type")


def import_draft(files: Mapping[str, str], blobs: Blobs) -> Generator[Progress, None, list[Layer]]:
    """Check the uploaded files of a small model that guesses ahead and return their layers. Raises BadRequest."""
    try:
        imported = yield from import_files(files, blobs)
    except BadRequest as error:  # which may be about a file of the same name as one of the model's
        raise BadRequest(f"draft: {error}") from None
    if any(layer.media_type == PROJECTOR for layer in imported.layers):
        raise BadRequest("draft: the files hold a projector; a draft model reads text alone")
    return imported.layers


def refuse_pickles(names: Mapping[str, object]) -> None:
    """Raise Unsupported if a name is one of PyTorch's pickle formats, for loading such a file runs code in it."""
    for name in names:
        if _PICKLES.fullmatch(PurePosixPath(name).name):
            raise Unsupported(f"{name} may hold Python code that runs when it is loaded; convert it to safetensors")


def belongs_to_checkpoint(name: str) -> bool:
    """Return whether a file of this name is part of a checkpoint that Puna reads."""
    return name.endswith(".safetensors") or _SIDE_FILES.fullmatch(PurePosixPath(name).name) is not None


@dataclass(frozen=True)
class _Upload:
    digest: Digest
    path: Path
    size: int

    def layer(self, media_type: str, name: str = "") -> Layer:
        return Layer(media_type=media_type, digest=self.digest, size=self.size, name=name)


def _upload(name: str, text: str, blobs: Blobs) -> _Upload:
    digest = Digest(text)
    try:
        return _Upload(digest, blobs.path(digest), blobs.size(digest))
    except (NotFound, BadFile):
        raise BadRequest(f"file {name!r}: blob {digest} was not uploaded") from None


def _is_gguf(name: str, path: Path) -> bool:
    if name.endswith((".safetensors", ".gguf")):
        return name.endswith(".gguf")
    return starts_with(path, (MAGIC,))


def _gguf(uploads: Mapping[str, _Upload]) -> Generator[Progress, None, Imported]:
    """Import GGUF files: one model, in one file or several splits, and any number of projectors."""
    for upload in uploads.values():
        yield Progress(status="parsing GGUF")
        if not starts_with(upload.path, (MAGIC,)):
            raise BadRequest("supplied file was not in GGUF format")
    found = [(*_opened(group), group) for group in _groups(uploads)]
    models = [about for kind, about, _ in found if kind == "model"]
    if any(kind == "adapter" for kind, *_ in found):
        raise Unsupported("adapters are not supported yet")
    if len(models) != 1:
        raise BadRequest(f"the files hold {len(models)} models; a model is made of exactly one")
    found.sort(key=lambda item: item[0] != "model")
    families = [about.family for _, about, group in found for _ in group]
    layers = [layer for kind, _, group in found for layer in _gguf_layers(kind, group)]
    return Imported(config_of(models[0], families), layers)


def _groups(uploads: Mapping[str, _Upload]) -> list[dict[str, _Upload]]:
    """Return the files one by one, but all splits together: a model has one set of them, whatever their names are."""
    splits: dict[str, _Upload] = {}
    singles: list[dict[str, _Upload]] = []
    for name, upload in sorted(uploads.items()):
        if read_gguf(upload.path).metadata.get("split.count", 1) == 1:
            singles.append({name: upload})
        else:
            splits[name] = upload
    return [splits, *singles] if splits else singles


def _gguf_layers(kind: Role, group: Mapping[str, _Upload]) -> list[Layer]:
    media_type = MODEL if kind == "model" else PROJECTOR
    return [upload.layer(media_type, name if len(group) > 1 else "") for name, upload in group.items()]


def _checkpoint(uploads: Mapping[str, _Upload]) -> Generator[Progress, None, Imported]:
    """Import a Hugging Face checkpoint without conversion, so without loss."""
    yield Progress(status="reading checkpoint")
    for name in uploads:
        if not belongs_to_checkpoint(name):
            raise BadRequest(f"unknown type: {name!r} is no part of a checkpoint")
    if "config.json" not in uploads:
        raise BadRequest("the checkpoint has no config.json")
    _, about = _opened(uploads)
    layers = [upload.layer(CHECKPOINT, name) for name, upload in sorted(uploads.items())]
    return Imported(config_of(about, [about.family]), layers)


def _opened(group: Mapping[str, _Upload]) -> tuple[Role, Facts]:
    """Open weights, which checks every header, and return what they are for and what they say."""
    files = {name: upload.path for name, upload in group.items()}
    with closing(open_weights(files)) as source:
        return role(source), facts_of(source)


@contextmanager
def _speaking_of(uploads: Mapping[str, _Upload]) -> Iterator[None]:
    """Turn BadModel into BadRequest, for it is the upload that is wrong, and paths of blobs into the upload's names."""
    try:
        yield
    except (BadModel, NotFound) as error:
        text = str(error)
        for name, upload in uploads.items():
            text = text.replace(str(upload.path), name)
        raise BadRequest(text) from None


def config_of(about: Facts, families: list[str]) -> ModelConfig:
    """Return what a model's config says of its weights. families: one for each file."""
    return ModelConfig(
        model_format=about.format,
        model_family=about.family,
        model_families=families,
        model_type=human_count(about.parameters),
        file_type=about.quantization,
        context_length=about.context_length,
        embedding_length=about.embedding_length,
    )
