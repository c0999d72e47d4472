"""From a Modelfile on the user's disk to files to upload and a request: what a client does before it asks a server.

A server never reads the paths of a FROM line; that is why this is not part of `create`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..core.errors import BadRequest, NotFound, Unsupported
from .create import CreateRequest
from .digests import Digest
from .importing import belongs_to_checkpoint, refuse_pickles
from .modelfile import Modelfile
from .names import InvalidName, ModelName

# In a directory, the first of these that matches anything says what the directory holds.
_WEIGHTS = ("model*.safetensors", "consolidated*.safetensors", "*.safetensors", "*.gguf")
_PICKLES = ("pytorch_model*.bin", "consolidated*.pth", "*.bin", "*.pt", "*.pth")
_SIDE_FILES = ("*.json", "*/*.json", "*.jinja", "tokenizer.model*", "*.tiktoken", "vocab.txt", "merges.txt")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Gathered:
    """What a Modelfile asks for: files to upload as blobs, and the request but for their digests."""

    files: Mapping[str, Path]  # name in the request to path
    draft_files: Mapping[str, Path]  # likewise, of the draft
    fields: CreateRequest

    @property
    def paths(self) -> list[Path]:
        """Every file to upload, once."""
        return list(dict.fromkeys([*self.files.values(), *self.draft_files.values()]))

    def request(self, model: str, digests: Mapping[Path, Digest]) -> CreateRequest:
        """Return the request to make model. digests: of every one of `paths`."""
        files, draft_files = (
            {name: str(digests[path]) for name, path in files.items()} or None
            for files in (self.files, self.draft_files)
        )
        return msgspec.structs.replace(self.fields, model=model, files=files, draft_files=draft_files)


def gather(modelfile: Modelfile, folder: Path) -> Gathered:
    """Return what modelfile, which lies in folder, asks for.

    A FROM or a DRAFT is a path if something lies there, else a model's name. Raises NotFound for one that is neither;
    BadRequest for directories without weights, links that lead out of a directory, files that cannot be used;
    Unsupported for pickles and adapters.
    """
    if modelfile.adapters:
        raise Unsupported("adapters are not supported yet")
    name, files = _found("FROM", modelfile.sources, folder)
    draft, draft_files = _found("DRAFT", (modelfile.draft,) if modelfile.draft else (), folder)
    return Gathered(files, draft_files, _fields(modelfile, name, draft))


def digest_of(path: Path) -> Digest:
    """Return the digest of a file of any size."""
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def _found(instruction: str, sources: Iterable[str], folder: Path) -> tuple[str | None, dict[str, Path]]:
    """Return what the values of an instruction stand for: a model's name, or else files by name."""
    files: dict[str, Path] = {}
    name = None
    for source in sources:
        path = folder / _expanded(source)
        if not path.exists():
            name = _model_name(instruction, source, path)
        for file_name, file in _files_of(path) if path.exists() else ():
            if files.setdefault(file_name, file) != file:
                raise BadRequest(f"two files are called {file_name}: {files[file_name]} and {file}")
    for file in files.values():
        _check_content(file)
    return name, {} if name else files


def _model_name(instruction: str, source: str, path: Path) -> str:
    """Return source, which names no file, if it can name a model. Raises NotFound."""
    try:
        ModelName.parse(source)
    except InvalidName:
        raise NotFound(f"{instruction} {source}: there is no file or folder {path.absolute()}") from None
    return source


def _fields(modelfile: Modelfile, name: str | None, draft: str | None) -> CreateRequest:
    return CreateRequest(
        model="",
        from_=name,
        draft=draft,
        template=modelfile.template,
        system=modelfile.system,
        license=list(modelfile.licenses) or None,
        parameters=modelfile.parameters or None,
        messages=list(modelfile.messages) or None,
        requires=modelfile.requires,
        renderer=modelfile.renderer,
        parser=modelfile.parser,
    )


def _expanded(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~name of a user that does not exist
        raise BadRequest(f"{source}: there is no such user") from None


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of the files that a path in a Modelfile stands for."""
    if not path.is_dir():
        refuse_pickles({path.name: path})
        yield path.name, path
        return
    weights = _first_match(path, _WEIGHTS)
    if not weights:
        refuse_pickles({file.name: file for file in _first_match(path, _PICKLES)})
        raise BadRequest("no Modelfile or safetensors files found")
    side = [] if weights[0].suffix == ".gguf" else [file for pattern in _SIDE_FILES for file in path.glob(pattern)]
    for file in sorted({*weights, *side}):
        name = file.relative_to(path).as_posix()  # the base name alone would let 1_Pooling/config.json hide config.json
        if not file.resolve().is_relative_to(path.resolve()):
            raise BadRequest(f"insecure path: {file}")
        if file.is_file() and (file in weights or belongs_to_checkpoint(name)):
            yield name, file


def _first_match(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])


def _check_content(file: Path) -> None:
    if not file.is_file():
        raise BadRequest(f"{file} is not a regular file")
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise BadRequest(f"{file} is a Git LFS pointer, not the file it stands for; fetch that with git lfs pull")
