"""How much a model's weights ask for: bytes to read for each pass, and operations for each token of a prompt."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import msgspec

from puna.core.tensor.weights import open_weights

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


class Work(msgspec.Struct, frozen=True):
    """Taken from the file, so that it is the same for every engine, however it lays weights out."""

    read_bytes: int  # of all matrices that a decoded token is multiplied with, the output layer among them
    operations: int  # multiplications and additions of one token of a prompt, for which there is no output layer


def read_work(model: Path) -> Work:
    """Return what the matrices of a GGUF file ask for. A tied embedding table counts as the output layer."""
    with closing(open_weights(model)) as source:
        matrices = {name: info for name, info in source.tensors.items() if len(info.shape) == 2}
    tied = OUTPUT not in matrices
    blocks = [info for name, info in matrices.items() if name not in (EMBEDDING, OUTPUT)]
    output = matrices[EMBEDDING if tied else OUTPUT]
    return Work(
        read_bytes=sum(info.nbytes for info in (*blocks, output)),
        operations=2 * sum(math.prod(info.shape) for info in blocks),
    )
