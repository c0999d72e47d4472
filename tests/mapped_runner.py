"""A process that answers one prompt and prints, as JSON, what it said and what memory it took.

`python -m tests.mapped_runner MODEL packed|mmap`
"""

import asyncio
import sys
from pathlib import Path

import msgspec

from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.inline import InlineRunner, TextParts
from puna.core.scheduler.messages import Generate, Piece
from puna.core.scheduler.plan import Limits
from puna.core.tensor.sampling import SamplingParams
from puna.plugins import llama4
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer


class Findings(msgspec.Struct):
    """What the process has to say."""

    tokens: list[int]
    taken: int  # bytes of memory of its own, beyond what the process had before the model was loaded
    loaded: int  # bytes that the runner says it holds, before the prompt
    answered: int  # and behind the reply


def own_bytes() -> int:
    """Return how much memory this process has that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024


async def answer(runner: InlineRunner) -> list[int]:
    """Return the tokens that follow a long prompt, and those of a second one, that has one token."""
    found = []
    for prompt in (list(range(60)), [7]):
        request = Generate(prompt=prompt, sampling=SamplingParams(temperature=0), max_tokens=24, num_ctx=128)
        async for event in runner.generate(request):
            if isinstance(event, Piece):
                found += event.tokens
    return found


async def run(model: Path, mapped: bool) -> Findings:
    """Load the model, and let it answer."""
    before = own_bytes()
    options = EngineOptions(Limits(64, 2), 2, "f16", 256, mapped=mapped)
    text = TextParts(open_tokenizer, StopStrings, Grammars)
    runner = InlineRunner(model, llama4.architectures(), text, options)
    loaded = runner.memory_bytes
    tokens = await answer(runner)
    findings = Findings(tokens, own_bytes() - before, loaded, runner.memory_bytes)
    await runner.close()
    return findings


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(run(Path(sys.argv[1]), sys.argv[2] == "mmap"))).decode())
