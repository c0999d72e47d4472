"""`puna create`: read the Modelfile, upload the files it names, and follow the server as it builds the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..core.errors import NotFound
from ..store import Digest, ModelName, gather
from ..store.modelfile import Modelfile, decode, parse
from .client import Client
from .progress import Progress

_BLOCK_BYTES = 2**20


def create_model(client: Client, name: str, path: Path | None, quantize: str | None = None) -> None:
    """Create the model called name. path: its Modelfile; None: ./Modelfile, or else the model files of this folder.

    quantize: what the server shall convert the weights to.
    """
    ModelName.parse(name)  # the server checks it too, but only after gigabytes were hashed and sent
    modelfile, folder = read_modelfile(path)
    with Progress() as progress:
        for warning in modelfile.warnings:
            progress.step(warning)
        progress.step("gathering model components")
        gathered = gather(modelfile, folder)
        digests = {path: upload(client, path, progress) for path in gathered.paths}
        request = msgspec.structs.replace(gathered.request(name, digests), quantize=quantize)
        progress.follow(client.create(request))


def read_modelfile(path: Path | None) -> tuple[Modelfile, Path]:
    """Return the Modelfile at path and the folder that its paths start from. Raises NotFound, BadRequest."""
    if path is None and not Path("Modelfile").is_file():
        return parse("FROM ."), Path.cwd()
    path = path or Path("Modelfile")
    if not path.is_file():
        raise NotFound(f"specified Modelfile wasn't found: {path}")
    return parse(decode(path.read_bytes())), path.absolute().parent


def upload(client: Client, file: Path, progress: Progress) -> Digest:
    """Send a file to the server, unless it is there already, and return its digest."""
    size = file.stat().st_size
    progress.bar(f"hashing {file.name}", size)
    state = hashlib.sha256()
    for block in progress.reading(_blocks(file)):
        state.update(block)
    digest = Digest(f"sha256:{state.hexdigest()}")
    if not client.has_blob(digest):
        progress.bar(f"copying file {digest}", size)
        client.upload(digest, size, progress.reading(_blocks(file)))
    return digest


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            yield block
