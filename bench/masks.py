"""What the mask of an output format costs at a large vocabulary, and how much of that a forward pass hides."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import cast

import numpy as np
import numpy.typing as npt

from puna.core.errors import BadRequest
from puna.core.protocols import Tokenizer
from puna.text.grammars import Grammars, SchemaGrammar
from puna.text.tokenizers.pieces import byte_level

from .schemas import Schema
from .timing import timed
from .vocabulary import make_vocabulary

LONGEST = 60  # tokens of a reply


class Spelled:
    """A tokenizer that is no more than its pieces, which is all that a grammar needs of one."""

    def __init__(self, size: int) -> None:
        vocabulary = make_vocabulary("llama", size)
        self.size, self.stop_ids = size, frozenset({vocabulary.eos, vocabulary.eot})
        self._pieces = [byte_level(text) for text in vocabulary.tokens[: vocabulary.bos]]

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token, none for control tokens."""
        return self._pieces[token] if token < len(self._pieces) else b""


class Pass:
    """Reads memory for as long as a forward pass would, on all cores and without holding the interpreter."""

    def __init__(self, seconds: float) -> None:
        self._weights, self._x = np.ones((16384, 4096), np.float32), np.ones(4096, np.float32)
        once = sorted(timed(self._product) for _ in range(9))[4]
        self._times = max(1, round(seconds / once))

    def __call__(self) -> None:
        """Compute."""
        for _ in range(self._times):
            self._product()

    def _product(self) -> None:
        np.dot(self._weights, self._x)


@dataclass
class Costs:
    """Seconds: of the vocabulary, of each schema, and of each token."""

    prepare: float
    compile: list[float] = field(default_factory=list)
    mask: list[float] = field(default_factory=list)  # with nothing beside it
    accept: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # a pass with nothing beside it
    beside: list[float] = field(default_factory=list)  # a pass with a mask beside it, ...
    waited: list[float] = field(default_factory=list)  # ... and what was left of the mask after the pass


def measure(size: int, schemas: Iterable[Schema], pass_s: float) -> Costs:
    """Return what masks cost along random replies to schemas. size: of the vocabulary; pass_s: of a forward pass."""
    tokenizer, forward, random = Spelled(size), Pass(pass_s), Random(0)
    grammars = Grammars(cast("Tokenizer", tokenizer), tokenizer.stop_ids)
    costs = Costs(prepare=timed(lambda: grammars.open("{}")))
    with ThreadPoolExecutor(1) as masks:
        for schema in schemas:
            text = json.dumps(schema)
            try:
                costs.compile.append(timed(lambda text=text: grammars.open(text)))  # type: ignore[misc]
            except BadRequest:
                continue
            _follow(grammars.open(text), tokenizer.stop_ids, forward, masks, costs, random)
    return costs


def _follow(
    grammar: SchemaGrammar,
    stop_ids: frozenset[int],
    forward: Pass,
    masks: ThreadPoolExecutor,
    costs: Costs,
    random: Random,
) -> None:
    """Measure along one reply whose tokens are drawn from those allowed: every other mask has a pass beside it."""
    tokens = 0
    while not grammar.ended and tokens < LONGEST:
        if tokens % 2:
            mask = _beside(grammar, forward, masks, costs)
        else:
            mask = _alone(grammar, forward, costs)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        token = int(random.choice(allowed))
        if token in stop_ids:
            return
        start = time.perf_counter()
        grammar.accept(token)
        costs.accept.append(time.perf_counter() - start)
        tokens += 1


def _alone(grammar: SchemaGrammar, forward: Pass, costs: Costs) -> npt.NDArray[np.int32]:
    """Return a mask that was computed before a pass."""
    start = time.perf_counter()
    mask = grammar.mask()
    costs.mask.append(time.perf_counter() - start)
    costs.alone.append(timed(forward))
    return mask


def _beside(grammar: SchemaGrammar, forward: Pass, masks: ThreadPoolExecutor, costs: Costs) -> npt.NDArray[np.int32]:
    """Return a mask that was computed while a pass ran."""
    coming = masks.submit(grammar.mask)
    costs.beside.append(timed(forward))
    start = time.perf_counter()
    mask = coming.result()
    costs.waited.append(time.perf_counter() - start)
    return mask
