"""How far engines stray from exact arithmetic: `python -m bench.accuracy --model FILE.gguf [--tokens 2048]`.

The reference is Puna's precise mode: the file's weights widened exactly, float32 activations and cache. Beside it run
Puna as it is by default and llama.cpp. All read the same random tokens as one long prompt, a chunk at a time, so that
only the logits of one chunk are held.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from puna.core.kernel import find_plugins
from puna.core.memory.cache import Rows, SequenceCache, StepView
from puna.core.model import find_architecture, load_model
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.source import WeightSource
from puna.core.tensor.threads import default_threads, use_threads
from puna.core.tensor.weights import open_weights

from .report import OURS, THEIRS
from .worker import Prompts

Floats = npt.NDArray[np.float32]
NextLogits = Callable[[Sequence[int]], Floats]  # the next tokens of one sequence to their logits, [T, V]

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


def log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logarithms of the probabilities of each row of logits."""
    shifted: npt.NDArray[np.float64] = x - x.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def puna_logits(source: WeightSource, tokens: int, *, precise: bool) -> NextLogits:
    """Return Puna's forward pass over one sequence of at most that many tokens."""
    architectures = [architecture for plugin in find_plugins() for architecture in plugin.architectures]
    loaded = load_model(find_architecture(architectures, source), source, CpuLoader(precise=precise))
    cache = SequenceCache(loaded.cache, tokens, "f32" if precise else "f16")

    def logits(chunk: Sequence[int]) -> Floats:
        cache.reserve(cache.length + len(chunk))
        step = StepView(loaded.cache, [Rows(cache, 0, len(chunk))])
        x = loaded.model.forward(loaded.model.embed(np.array(chunk, np.int32)), step)
        cache.length += len(chunk)
        return np.asarray(loaded.model.logits(x))

    return logits


def llama_logits(path: Path, tokens: int, threads: int) -> NextLogits:
    """Return llama.cpp's forward pass over one sequence of at most that many tokens."""
    from .llama import LlamaModel, Token

    model, position = LlamaModel(path, threads, context=tokens, outputs=CHUNK), 0

    def logits(chunk: Sequence[int]) -> Floats:
        nonlocal position
        model.decode([Token(token, position + i, wanted=True) for i, token in enumerate(chunk)])
        position += len(chunk)
        return np.stack([model.logits(i) for i in range(len(chunk))])

    return logits


def compare(reference: NextLogits, engines: dict[str, NextLogits], tokens: Sequence[int]) -> dict[str, Divergence]:
    """Return how far each engine is from the reference."""
    found = {name: Divergence() for name in engines}
    for start in range(0, len(tokens), CHUNK):
        print(f"positions from {start:,} of {len(tokens):,}", file=sys.stderr)
        chunk = tokens[start : start + CHUNK]
        exact = reference(chunk)
        for name, engine in engines.items():
            found[name].add(exact, engine(chunk))
    return found


def table(found: dict[str, Divergence]) -> Table:
    """Return the figures of each engine, the smaller the better save the last."""
    shown = Table("", *found)
    for column in shown.columns[1:]:
        column.justify = "right"
    engines = found.values()
    shown.add_row("KL divergence, mean, nats", *[f"{np.mean(engine.divergence):.3g}" for engine in engines])
    shown.add_row("KL divergence, largest", *[f"{np.max(engine.divergence):.3g}" for engine in engines])
    shown.add_row("error of a logit / deviation, mean of the largest", *[f"{np.mean(e.error):.3g}" for e in engines])
    shown.add_row("error of a logit / deviation, largest", *[f"{np.max(engine.error):.3g}" for engine in engines])
    shown.add_row("same likeliest token", *[f"{np.mean(engine.agreed):.2%}" for engine in engines])
    return shown


def main() -> None:
    """Compare as the command line says and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=default_threads())
    given = parser.parse_args()
    use_threads(given.threads)
    tokens = Prompts(0).next(given.tokens)
    with closing(open_weights(given.model)) as source:
        engines = {
            OURS: puna_logits(source, given.tokens, precise=False),
            THEIRS: llama_logits(given.model, given.tokens, given.threads),
        }
        found = compare(puna_logits(source, given.tokens, precise=True), engines, tokens)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"{given.model.name}, {given.tokens:,} random tokens, against exact weights and float32 activations")
    console.print(table(found))


if __name__ == "__main__":
    main()
