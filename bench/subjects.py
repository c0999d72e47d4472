"""The models that schedules are played on, what may be asked of them, and each reply computed alone by a plain loop.

Models that see are asked about pictures: none to three of a few, at any place of a prompt, many of them shared.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from puna.core.kernel import find_plugins
from puna.core.memory.cache import Cache, Capacity, ElementType, StepView
from puna.core.memory.images import Image, key_of
from puna.core.model import LoadedModel, find_architecture, load_model
from puna.core.pictures import open_picture
from puna.core.plugin import Causal, Chunk, Window
from puna.core.plugin import Rows as Stretch
from puna.core.scheduler.messages import Generate, Media, Placed
from puna.core.scheduler.sequence import Sequence as Talk
from puna.core.scheduler.spans import Spans, spans_of
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.ops import insert
from puna.core.tensor.sampling import SamplingParams, sample
from puna.core.tensor.weights import open_weights

Floats = npt.NDArray[np.float32]

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
FILES = (
    "llama-quant/gguf/model-Q4_K_M.gguf", "llama-quant/gguf/model-Q8_0.gguf", "llama-bpe/gguf/model-f32.gguf",
    "llama-bpe/gguf/model-bf16.gguf", "llama-spm/gguf/model-f16.gguf", "mistral-v3/gguf/model-f32.gguf",
    "mistral-swa/hf", "qwen2/gguf/model-f32.gguf", "qwen3/gguf/model-f32.gguf",
    "gemma3-text/gguf/model-f32.gguf",
)  # fmt: skip
SEEING = ("gemma3-vl/hf", "qwen2.5-vl/hf", "llama4-scout/hf", "mistral3/hf", "qwen3-vl/hf", "llava/hf", "mllama/hf")
MIXED = (Causal(), Window(40), Chunk(48), Window(5))  # what layers of a model may see, in turn
TOKENS = 48  # of the longest reply: more than what a place has blocks for when it begins
PROMPTS = 16  # of one model, from which schedules choose
SIZES = ((56, 56), (140, 84), (30, 200), (64, 64), (64, 64))  # of pictures, the last two told apart by colours only
PLACEHOLDER = 0


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, in the way it is computed."""

    name: str
    loaded: LoadedModel
    element: ElementType
    precise: bool

    def cache(self, positions: int) -> Cache:
        """Return a cache for one sequence."""
        eye = self.loaded.vision
        atomic, beside = (eye.most_atomic, eye.most_beside) if eye else (0, 0)
        return Cache(self.loaded.cache, self.element, Capacity(positions, 1, positions + atomic, 3 * beside))

    def spans(self, request: Generate) -> Spans:
        """Return the spans of a request's pictures, encoded one by one."""
        placed = [(seen(self, p.media.frames[0]), [start for start, _ in p.at]) for p in request.media]
        found = [span for image, at in placed for span in spans_of(image, at)]
        return Spans(found, self.loaded.architecture.streams)


@cache
def subject(file: str, *, element: ElementType = "f16", precise: bool = False, mixed: bool = False) -> Subject:
    """Return the model in a fixture. mixed: its layers see different parts of the past, which no file asks for."""
    source = open_weights(FIXTURES / file)
    architectures = [a for report in find_plugins() for a in report.architectures]
    loaded = load_model(find_architecture(architectures, source), source, CpuLoader(precise=precise))
    if mixed:
        layout = [replace(layer, kind=MIXED[i % len(MIXED)]) for i, layer in enumerate(loaded.cache)]
        loaded = replace(loaded, cache=layout)
    name = f"{file.split('/')[0]} {Path(file).stem} {element}{' precise' * precise}{' mixed' * mixed}"
    return Subject(name, loaded, element, precise)


def subjects(*, precise: bool) -> list[Callable[[], Subject]]:
    """Return every model, still to be loaded: all files, then files with mixed layers and other caches."""
    element: ElementType = "f32" if precise else "f16"
    found = [lambda file=file: subject(file, precise=precise, element=element) for file in (*FILES, *SEEING)]
    mixed = [*(() if precise else FILES[:1]), FILES[2], SEEING[0]]
    found += [lambda file=file: subject(file, precise=precise, element="f32", mixed=True) for file in mixed]
    if not precise:
        found.append(lambda: subject(FILES[0], element="q8_0"))
    return found


# --- a reply alone ----------------------------------------------------------------------------------------------------


@dataclass
class Spoken:
    """A reply's tokens and the logits that each was sampled from."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)

    def add(self, token: int, logits: Floats) -> None:
        """Take the next token."""
        self.tokens.append(token)
        self.logits.append(logits.copy())


def alone(given: Subject, request: Generate) -> Spoken:
    """Return a reply by itself: the prompt at once, then token by token, in a cache that holds nothing else."""
    spoken = Spoken()
    memory = given.cache(request.num_ctx)
    spans = given.spans(request)
    talk = Talk(request, reply=None, table=memory.blocks.table(), emit=lambda event: None, spans=spans)
    while len(spoken.tokens) < TOKENS:
        if talk.unread > 1:  # the beginning, or what a shift has moved: nothing of it is taken from before
            memory = given.cache(request.num_ctx)
            talk.table = memory.blocks.table()
        logits = _read(given, memory, talk)
        token = int(sample(logits, [talk.sampler], [talk.tokens])[0])
        spoken.add(token, logits[0])
        talk.append(token)
    return spoken


def _read(given: Subject, memory: Cache, talk: Talk) -> Floats:
    """Read what is unread at once, or in as many parts as there are views beside the text; return the last logits."""
    model, streams = given.loaded.model, given.loaded.architecture.streams
    talk.table.reserve(len(talk.tokens))
    while talk.unread:
        first = talk.table.length
        count = talk.spans.cut(first, talk.unread)
        x, inserts = model.embed(np.array(talk.tokens[first : first + count], np.int32)), talk.inserts(0, count)
        for at, rows in inserts:
            x = insert(x, rows[:, : x.shape[1]], at)
        x = model.forward(x, StepView(memory, [talk.part(0, count)], streams=streams, inserts=inserts))
        talk.advance(count)
    return np.asarray(model.logits(x[-1:]))


@cache
def seen(given: Subject, file: bytes) -> Image:
    """Return a picture with its rows, encoded alone."""
    eye = given.loaded.vision
    assert eye is not None, "only models that see are shown pictures"
    prepared = eye.prepare(open_picture(file))
    (rows,) = _outcome(eye.encode([prepared]))
    return Image(key_of([file], b""), prepared, np.ascontiguousarray(rows, np.float32))


def _outcome(work: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


# --- what may be asked ------------------------------------------------------------------------------------------------

Piece = int | bytes  # a token, or a picture's file


@cache
def prompts(given: Subject) -> list[tuple[Generate, Spoken]]:
    """Return what may be asked of a model, with the reply that is due; many begin alike, some in full blocks."""
    rng, found = np.random.default_rng(0), []
    vocabulary = given.loaded.config.vocabulary
    texts: list[list[Piece]] = [list(map(int, rng.integers(0, vocabulary, 300))) for _ in range(3)]
    texts.append([7, 8, 9, 10, 11] * 60)
    painter = Painter(given)
    texts = [painter.shown(text, most=2, within=30) for text in texts]
    for i in range(PROMPTS):
        shared = int(rng.choice([0, 31, 32, 33, 64, 96, 100, 160]))
        own: list[Piece] = list(map(int, rng.integers(0, vocabulary, rng.integers(1, 60))))
        sampling = SamplingParams(temperature=0 if i % 4 or given.precise else 1, seed=i)
        tokens, media = composed(given, texts[i % 4][:shared] + painter.shown(own, most=1, within=len(own)))
        request = Generate(
            prompt=tokens,
            media=media,
            sampling=sampling,
            num_ctx=int(rng.choice([1024, 1024, 45])),
            num_keep=int(rng.choice([4, 33])),
        )
        found.append((request, alone(given, request)))
    return found


class Painter:
    """Puts pictures into texts, where a model sees them."""

    def __init__(self, given: Subject) -> None:
        self._rng = np.random.default_rng(1)
        self.files = [picture(i, *size) for i, size in enumerate(SIZES)] if given.loaded.vision else []

    def shown(self, text: Sequence[Piece], *, most: int, within: int) -> list[Piece]:
        """Return a text with up to so many pictures among its first pieces; for those who do not see, only the text."""
        found = list(text)
        for _ in range(int(self._rng.integers(0, most + 1)) if self.files else 0):
            found.insert(int(self._rng.integers(0, within)), self.files[self._rng.integers(len(self.files))])
        return found


def picture(seed: int, width: int, height: int) -> bytes:
    """Return a picture's file: noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def composed(given: Subject, pieces: Sequence[Piece]) -> tuple[list[int], list[Placed]]:
    """Return a prompt's tokens and its pictures: their rows alone, without the words that go with them."""
    tokens: list[int] = []
    media: list[Placed] = []
    for piece in pieces:
        if isinstance(piece, int):
            tokens.append(piece)
            continue
        at = []
        for stretch in (part for part in seen(given, piece).prepared.parts if isinstance(part, Stretch)):
            at.append((len(tokens), stretch.tokens))
            tokens += [PLACEHOLDER] * stretch.tokens
        media.append(Placed(Media([piece]), at))
    return tokens, media
