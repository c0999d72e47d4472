"""Forward passes of one model over one cache. Short ones are recorded once for each shape, and from then on played."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from ..memory.cache import Cache, Insert, Rows, StepView
from ..model import LoadedModel
from ..plugin import Array, LayerCache
from ..tensor.ops import insert
from ..tensor.recorded import Recorded
from ..tensor.tape import Memory, Tape, recording
from ..tensor.team import TEAM, Table

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
FEW = 32  # tokens of a step up to which what lies between its kernels counts
KEPT = 24  # recordings; those played longest ago go first
ROOM = 4  # times as long as when a step is recorded may its sequences become


@dataclass(frozen=True)
class _RecordedLayer:
    """One layer's cache, for arrays that are being recorded."""

    layer: LayerCache

    def extend(self, k: Any, v: Any) -> Any:
        """Store and return what `layer` does."""
        return self.layer.extend(k.data, v.data)

    def look(self, keep: Callable[[Array], tuple[Array, Array]]) -> Any:
        """Return what `layer` does. Steps in which it would have to call `keep` are not recorded."""
        return self.layer.look(keep)


@dataclass(frozen=True)
class _RecordedView:
    """A step that is being recorded (`puna.core.plugin.Step`)."""

    positions: Any
    cache: list[LayerCache]
    sees: Any

    def deepen(self, x: Any, number: int) -> Any:
        """Return x: no step with images is recorded."""
        return x


@dataclass(frozen=True)
class _Recording:
    """A step that can be played."""

    tape: Tape
    table: Table  # of the team: recorded calls hold it
    tokens: npt.NDArray[np.int32]
    view: StepView
    logits: Floats


class Steps:
    """A model with the cache it works on. Only one thread at a time may use it."""

    def __init__(self, model: LoadedModel, cache: Cache) -> None:
        self._model, self._cache = model.model, cache
        self._vocabulary, self._streams = model.config.vocabulary, model.architecture.streams
        self._tiles = cache.tiles
        # By tokens, sequences, and whether any sees media. None: done once so far.
        self._recordings: OrderedDict[tuple[int, int, bool], _Recording | None] = OrderedDict()
        self._memory = Memory()
        self._records = True

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self._model.embed(np.zeros(1, np.int32)).shape[1])

    def logits(
        self, tokens: Sequence[int], rows: Sequence[Rows], wanted: Sequence[int], inserts: Sequence[Insert] = ()
    ) -> Floats:
        """Run the model over tokens and return the logits behind the `wanted` of them, [N, V], until the next call.

        rows: which tokens belong to which sequence. inserts: rows of images that stand in place of tokens.
        """
        new = inserts or any(part.beside and part.beside.fresh for part in rows)
        if self._records and len(wanted) == len(tokens) <= FEW and not new:
            return self._short(tokens, rows)
        return self._long(tokens, rows, wanted, inserts)

    def _long(
        self, tokens: Sequence[int], rows: Sequence[Rows], wanted: Sequence[int], inserts: Sequence[Insert] = ()
    ) -> Floats:
        model = self._model
        x = model.embed(np.array(tokens, np.int32))
        for at, embeddings in inserts:
            x = insert(x, embeddings[:, : x.shape[1]], at)
        x = model.forward(x, StepView(self._cache, rows, streams=self._streams, inserts=inserts))
        if not wanted:
            return np.empty((0, self._vocabulary), np.float32)
        return model.logits(x if len(wanted) == len(tokens) else x[np.array(wanted)])  # type: ignore[return-value]

    def _short(self, tokens: Sequence[int], rows: Sequence[Rows]) -> Floats:
        """Play the step if one of its shape is recorded, else record it; what happens but once is not worth that."""
        if self._tiles is not self._cache.tiles:  # it has grown
            self._tiles = self._cache.tiles
            self._recordings.clear()
        shape = len(tokens), len(rows), any(part.beside for part in rows)
        known, found = shape in self._recordings, self._recordings.pop(shape, None)
        if found is not None and not (found.table is TEAM.ready() and found.view.refill(self._cache, rows)):
            found = None
        if found is not None:
            found.tokens[:] = tokens
            found.tape.play()
        elif known:
            found = self._record(tokens, rows)
        self._recordings[shape] = found
        if len(self._recordings) > KEPT:
            self._recordings.popitem(last=False)
        return self._long(tokens, rows, range(len(tokens))) if found is None else found.logits

    def _record(self, tokens: Sequence[int], rows: Sequence[Rows]) -> _Recording | None:
        """Do the step and note it down; None, and for good, if the model's code does more than can be noted."""
        ids, tape = np.array(tokens, np.int32), Tape(self._memory)
        view = StepView(self._cache, rows, streams=self._streams, room=ROOM)
        layers: list[LayerCache] = [_RecordedLayer(layer) for layer in view.cache]
        step = _RecordedView(Recorded(view.positions), layers, None if view.sees is None else Recorded(view.sees))
        model: Any = self._model
        try:
            with recording(tape):
                logits = model.logits(model.forward(model.embed(Recorded(ids)), step)).data
        except (TypeError, AttributeError, ValueError, BadModel) as error:
            log.info("steps of this model are not recorded, which makes them slower: %s", error)
            self._records = False
            return None
        return _Recording(tape, TEAM.ready(), ids, view, self._memory.twin(logits))
