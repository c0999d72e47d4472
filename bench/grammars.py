"""Output formats: `python -m bench.grammars [--schemas 500] [--vocabulary 262144] [--pass-ms 20]`.

First, replies of a tiny random model, at temperature 1, to generated schemas: how many are valid. Then what a mask
costs at a large vocabulary, and how much of that a forward pass hides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import jsonschema
import numpy as np
from rich.console import Console
from rich.table import Table

from puna.core.errors import BadRequest
from puna.core.kernel import find_plugins
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner, TextParts
from puna.core.scheduler.messages import Generate
from puna.core.scheduler.plan import Limits
from puna.core.tensor.sampling import SamplingParams
from puna.core.tensor.threads import default_threads
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer

from .masks import Costs, measure
from .schemas import Schema, schemas

MODEL = Path("tests/fixtures/llama-bpe/gguf/model-f32.gguf")
TOGETHER = 16  # replies: as many schemas as may wait to be compiled
CONTEXT = 1024
TRIES = 5  # of a reply that its context cut short
VALIDATOR = jsonschema.Draft202012Validator
LABELS = {
    "compile": "compile a schema",
    "mask": "a mask alone",
    "accept": "accept a token",
    "alone": "a pass without a mask",
    "beside": "a pass with a mask beside it",
    "waited": "the wait for the mask after it",
}


@dataclass
class Tally:
    """What became of the schemas."""

    valid: int = 0
    cut: int = 0  # replies that the context ended each time
    invalid: list[tuple[Schema, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # reasons

    @property
    def answered(self) -> int:
        """Schemas that were accepted."""
        return self.valid + self.cut + len(self.invalid)


async def reply(runner: InlineRunner, schema: Schema) -> str | None:
    """Return a reply that follows schema, None if none of several ended within the context."""
    for seed in range(TRIES):
        request = Generate(
            prompt=[1, 2, 3],
            sampling=SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=seed),
            num_ctx=CONTEXT,
            max_tokens=CONTEXT - 3,
            schema=json.dumps(schema),
        )
        *pieces, finished = [event async for event in runner.generate(request)]
        if finished.reason == "stop":
            return "".join(piece.text for piece in pieces)
    return None


async def answer(runner: InlineRunner, schema: Schema, tally: Tally) -> None:
    """Ask for a reply that follows schema and count it."""
    try:
        text = await reply(runner, schema)
    except BadRequest as refusal:
        tally.refused[str(refusal).partition(": ")[2].partition(":")[0]] += 1
        return
    if text is None:
        tally.cut += 1
    elif follows(text, schema):
        tally.valid += 1
    else:
        tally.invalid.append((schema, text))


def follows(text: str, schema: Schema) -> bool:
    """Whether text is JSON that follows schema, as an independent validator sees it."""
    try:
        return VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).is_valid(json.loads(text))
    except json.JSONDecodeError:
        return False


async def answer_all(model: Path, count: int) -> Tally:
    """Return the tally of the first schemas until count of them were accepted."""
    architectures = [architecture for plugin in find_plugins() for architecture in plugin.architectures]
    options = EngineOptions(Limits(512, TOGETHER), default_threads(), "f32", positions=TOGETHER * CONTEXT)
    runner = InlineRunner(model, architectures, TextParts(open_tokenizer, StopStrings, Grammars), options)
    tally, source = Tally(), schemas(seed=0)
    while tally.answered < count:
        batch = islice(source, min(TOGETHER, count - tally.answered))
        await asyncio.gather(*[answer(runner, schema, tally) for schema in batch])
    await runner.close()
    return tally


def show_validity(console: Console, tally: Tally) -> None:
    """Print what became of the schemas."""
    console.print(f"{tally.answered} schemas accepted: {tally.valid} replies valid, {len(tally.invalid)} invalid")
    console.print(f"{tally.cut} replies had not ended after {CONTEXT} tokens, {TRIES} times over")
    console.print(f"{sum(tally.refused.values())} schemas refused:")
    for reason, count in tally.refused.most_common():
        console.print(f"  {count:4} {reason}")
    for schema, text in tally.invalid[:5]:
        console.print(f"invalid: {json.dumps(schema)}\n  {text}", markup=False)


def show_costs(console: Console, costs: Costs, size: int) -> None:
    """Print what masks cost."""
    console.print(f"Vocabulary of {size} tokens, prepared once for a model in {costs.prepare:.2f} s")
    table = Table("milliseconds", "median", "mean", "99 %", "most")
    for name in LABELS:
        values = np.array(getattr(costs, name)) * 1e3
        row = (np.median(values), values.mean(), np.quantile(values, 0.99), values.max())
        table.add_row(LABELS[name], *[f"{value:.3f}" for value in row])
    console.print(table)
    waited = np.mean(costs.waited)
    shares = waited / np.mean(costs.mask), waited / np.mean(costs.alone)
    console.print(f"Not hidden: {shares[0]:.1%} of the masks' time, which is {shares[1]:.3%} of the passes'")


def main() -> None:
    """Run both parts and print what they found; exit with 1 if a reply was invalid."""
    parser = argparse.ArgumentParser(description="Are replies in an output format valid, and what do they cost?")
    parser.add_argument("--schemas", type=int, default=500, help="how many schemas are to be accepted")
    parser.add_argument("--model", type=Path, default=MODEL, help="a GGUF file; any will do, the smaller the faster")
    parser.add_argument("--vocabulary", type=int, default=262_144, help="tokens of the vocabulary to measure with")
    parser.add_argument("--pass-ms", type=float, default=20.0, help="milliseconds that a forward pass takes")
    parser.add_argument("--replies", type=int, default=60, help="schemas to measure with")
    given, console = parser.parse_args(), Console()
    tally = asyncio.run(answer_all(given.model, given.schemas))
    show_validity(console, tally)
    costs = measure(given.vocabulary, islice(schemas(seed=1), given.replies), given.pass_ms / 1e3)
    show_costs(console, costs, given.vocabulary)
    sys.exit(bool(tally.invalid))


if __name__ == "__main__":
    main()
