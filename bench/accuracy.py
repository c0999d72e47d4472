"""How far engines stray from exact arithmetic: `python -m bench.accuracy [--types Q4_K_M,Q8_0] [--model FILE.gguf]`.

The reference is Puna's precise mode: the file's weights widened exactly, float32 activations and cache. Beside it run
Puna as it is by default and llama.cpp. All read the same sequences of random tokens, a chunk at a time, so that only
the logits of one chunk are held. Without a file, one of random weights is made for each type.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from puna.core.kernel import find_plugins
from puna.core.memory.cache import Cache, Capacity, Rows, StepView
from puna.core.model import find_architecture, load_model
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.source import WeightSource
from puna.core.tensor.team import use_threads
from puna.core.tensor.threads import default_threads
from puna.core.tensor.weights import open_weights

from .make_model import make_model
from .options import some_of
from .report import OURS, THEIRS
from .shapes import RECIPES, SHAPES
from .worker import Prompts

Floats = npt.NDArray[np.float32]
Engine = Callable[[Sequence[int]], Iterator[Floats]]  # the tokens of a new sequence to their logits, chunks of [T, V]

CHUNK = 128  # positions
ROWS = 16  # positions compared at once, in float64


@dataclass
class Divergence:
    """How far one engine's logits are from the reference's, over all positions so far."""

    divergence: list[float] = field(default_factory=list)  # KL(reference ‖ engine) of each position, in nats
    error: list[float] = field(default_factory=list)  # largest error of a logit / standard deviation of the logits
    agreed: list[bool] = field(default_factory=list)  # whether the likeliest token is the same

    def add(self, reference: Floats, logits: Floats) -> None:
        """Take in some positions. Both: [T, V]."""
        for start in range(0, len(reference), ROWS):
            exact, found = (rows[start : start + ROWS].astype(np.float64) for rows in (reference, logits))
            p, q = log_softmax(exact), log_softmax(found)
            self.divergence += (np.exp(p) * (p - q)).sum(axis=1).tolist()
            self.error += (np.abs(found - exact).max(axis=1) / exact.std(axis=1)).tolist()
            self.agreed += (found.argmax(axis=1) == exact.argmax(axis=1)).tolist()


Found = dict[str, Divergence]  # by the engine's name


def log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logarithms of the probabilities of each row of logits."""
    shifted: npt.NDArray[np.float64] = x - x.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def chunks(tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the tokens that are computed in one pass."""
    for start in range(0, len(tokens), CHUNK):
        yield tokens[start : start + CHUNK]


def puna_engine(source: WeightSource, *, precise: bool) -> Engine:
    """Return Puna's forward pass."""
    architectures = [architecture for plugin in find_plugins() for architecture in plugin.architectures]
    loaded = load_model(find_architecture(architectures, source), source, CpuLoader(precise=precise))

    def logits(tokens: Sequence[int]) -> Iterator[Floats]:
        cache = Cache(loaded.cache, "f32" if precise else "f16", Capacity(len(tokens), 1, CHUNK))
        table = cache.blocks.table()
        for chunk in chunks(tokens):
            table.reserve(table.length + len(chunk))
            step = StepView(cache, [Rows(table, 0, len(chunk))])
            x = loaded.model.forward(loaded.model.embed(np.array(chunk, np.int32)), step)
            table.advance(tokens, len(chunk))
            yield np.asarray(loaded.model.logits(x))

    return logits


def llama_engine(path: Path, longest: int, threads: int) -> Engine:
    """Return llama.cpp's forward pass over sequences of at most that many tokens."""
    from .llama import LlamaModel, Token

    model = LlamaModel(path, threads, context=longest, outputs=CHUNK)

    def logits(tokens: Sequence[int]) -> Iterator[Floats]:
        model.clear()
        position = 0
        for chunk in chunks(tokens):
            model.decode([Token(token, position + i, wanted=True) for i, token in enumerate(chunk)])
            position += len(chunk)
            yield np.stack([model.logits(i) for i in range(len(chunk))])

    return logits


def compare(reference: Engine, engines: dict[str, Engine], sequences: Sequence[Sequence[int]]) -> Found:
    """Return how far each engine is from the reference over all sequences."""
    found = {name: Divergence() for name in engines}
    for tokens in sequences:
        for exact, *others in zip(reference(tokens), *(engine(tokens) for engine in engines.values()), strict=True):
            for divergence, logits in zip(found.values(), others, strict=True):
                divergence.add(exact, logits)
    return found


def measure(path: Path, sequences: Sequence[Sequence[int]], threads: int) -> Found:
    """Return how far Puna and llama.cpp are from exact arithmetic with the weights of a file."""
    print(f"{path.name} ...", file=sys.stderr)
    with closing(open_weights(path)) as source:
        engines = {
            OURS: puna_engine(source, precise=False),
            THEIRS: llama_engine(path, max(map(len, sequences)), threads),
        }
        return compare(puna_engine(source, precise=True), engines, sequences)


def models(given: argparse.Namespace) -> Iterator[Path]:
    """Yield the files to measure: those that were given, or one of random weights for each type, which goes again."""
    if given.model:
        yield from given.model
        return
    with TemporaryDirectory() as folder:
        for kind in given.types:
            path = Path(folder, f"{given.shape} {kind}")
            make_model(path, given.shape, kind)
            yield path
            path.unlink()


def table(models: dict[str, Found]) -> Table:
    """Return the figures of each engine for each model: the smaller the better, save the last."""
    shown = Table("model", "engine", "KL mean, nats", "KL largest", "error mean", "error largest", "same token")
    for column in shown.columns[2:]:
        column.justify = "right"
    for name, engines in models.items():
        for engine, found in engines.items():
            figures = [f(values) for values in (found.divergence, found.error) for f in (np.mean, np.max)]
            shown.add_row(name, engine, *[f"{figure:.3g}" for figure in figures], f"{np.mean(found.agreed):.2%}")
    return shown


def main() -> None:
    """Compare as the command line says and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", help="a GGUF file, instead of random weights")
    parser.add_argument("--shape", choices=SHAPES, default="medium", help="of random weights")
    parser.add_argument("--types", type=some_of(list(RECIPES)), default=["Q8_0", "Q4_0", "Q4_K_M", "Q6_K"])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="of each sequence")
    parser.add_argument("--threads", type=int, default=default_threads())
    given = parser.parse_args()
    use_threads(given.threads)
    prompts = Prompts(0)
    sequences = [prompts.next(given.tokens) for _ in range(given.sequences)]
    found = {path.name: measure(path, sequences, given.threads) for path in models(given)}
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(
        f"{given.sequences * given.tokens:,} positions in {given.sequences} sequences of random tokens, "
        "against exact weights and float32 activations"
    )
    console.print(table(found))


if __name__ == "__main__":
    main()
