"""How much a model's weights ask for: bytes to read for each pass, and operations for each token of a prompt."""

from __future__ import annotations

import math
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import msgspec

from puna.core.tensor.source import TensorInfo
from puna.core.tensor.weights import open_weights

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


class Work(msgspec.Struct, frozen=True):
    """Taken from the file, so that it is the same for every engine, however it lays weights out."""

    read_bytes: int  # of all matrices that a decoded token is multiplied with, the output layer among them
    operations: int  # multiplications and additions of one token of a prompt, for which there is no output layer


def read_work(model: Path) -> Work:
    """Return what the matrices of a GGUF file ask for: of experts, of as many as a token asks.

    A tied embedding table counts as the output layer.
    """
    with closing(open_weights(model)) as source:
        matrices = {name: info for name, info in source.tensors.items() if len(info.shape) > 1}
        prefix = f"{source.metadata['general.architecture']}.expert"
        asked = Fraction(source.metadata.get(f"{prefix}_used_count", 1), source.metadata.get(f"{prefix}_count", 1))
    blocks = {name: info for name, info in matrices.items() if name not in (EMBEDDING, OUTPUT)}

    def part(info: TensorInfo) -> Fraction:
        return asked if len(info.shape) == 3 else Fraction(1)

    return Work(
        read_bytes=int(sum(part(info) * info.nbytes for info in blocks.values()))
        + matrices[OUTPUT if OUTPUT in matrices else EMBEDDING].nbytes,
        operations=int(2 * sum(part(info) * math.prod(info.shape) for info in blocks.values())),
    )
