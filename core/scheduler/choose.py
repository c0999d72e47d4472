"""From the logits of a step to tokens: what each sequence samples, and what it had guessed of it.

A guess is one more row of logits. It counts if the token that is sampled from the row before it is the one that was
guessed; then the next is sampled from its own row, and so on. So there is a round for each place: all sequences sample
their first token, then those whose first guess came true their second one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..errors import BadRequest
from ..memory.images import Image
from ..protocols import Tokenizer
from ..tensor.sampling import BadLogits, DeadEnd, Mask, sample
from .ends import Ends
from .messages import FailureKind
from .pace import Pace
from .plan import Share
from .sequence import Sequence
from .stats import EngineStats

Floats = npt.NDArray[np.float32]
Masks = dict[Sequence, Future[Mask | None]]  # of those that have a grammar


class Chooser:
    """Gives sequences their tokens. Only the engine's thread uses it; masks are computed on one of its own."""

    def __init__(
        self, tokenizer: Tokenizer, pace: Pace, ends: Ends, counts: EngineStats, note: Callable[[Image, bytes], None]
    ) -> None:
        """note: told of images and of the names of blocks that follow from them."""
        self._tokenizer, self._pace, self._ends, self._counts, self._note = tokenizer, pace, ends, counts, note
        self._thread = ThreadPoolExecutor(1, "puna-grammar")

    def begin(self, shares: Iterable[Share]) -> Masks:
        """Start to compute the masks that a step needs, which goes on beside the model, and return them to be."""
        return {
            share.sequence: self._thread.submit(share.sequence.grammar.mask)
            for share in shares
            if share.last and share.sequence.grammar is not None
        }

    def choose(self, shares: Iterable[Share], logits: Floats, masks: Masks) -> None:
        """Give every sequence that is due its token, and then those whose guess came true the next ones.

        logits: [N, V], the rows of each share that is a sequence's last: one for each guess and one before. Sequences
        that end are told, and so are those for which there is no token.
        """
        due = [share for share in shares if share.last]
        starts = np.cumsum([0, *(1 + share.guessed for share in due)])
        alive = list(zip(due, starts, strict=False))
        place = 0
        while alive:
            ready = self._ready([share.sequence for share, _ in alive], masks)
            alive = [(share, start) for share, start in alive if share.sequence in ready]
            rows = logits[[start + place for _, start in alive]]
            chosen = self._sample([share.sequence for share, _ in alive], rows, ready)
            for sequence, token, row in chosen:
                self._commit(sequence, token, row)
            taken = {sequence: token for sequence, token, _ in chosen}
            alive = [(s, start) for s, start in alive if self._came_true(s, place, taken.get(s.sequence))]
            for share, _ in alive:
                for image, block in share.sequence.advance(1):
                    self._note(image, block)
            masks |= self.begin(share for share, _ in alive)
            place += 1
        for share in due:
            if share.guessed:
                self._learn(share)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _ready(self, due: list[Sequence], masks: Masks) -> dict[Sequence, Mask | None]:
        """Return the mask of each sequence, None for one without grammar; one whose grammar gives up fails alone."""
        ready: dict[Sequence, Mask | None] = {}
        for sequence in due:
            try:
                ready[sequence] = masks.pop(sequence).result() if sequence in masks else None
            except BadRequest as error:
                self._ends.fail([sequence], "bad_request", str(error))
        return ready

    def _sample(
        self, due: list[Sequence], logits: Floats, masks: dict[Sequence, Mask | None]
    ) -> list[tuple[Sequence, int, Floats]]:
        """Return each sequence with its token and logits; one from whose logits none can be drawn fails alone."""
        while due:
            try:
                tokens = sample(logits, [s.sampler for s in due], [s.tokens for s in due], [masks.get(s) for s in due])
                return list(zip(due, map(int, tokens), logits, strict=True))
            except (BadLogits, DeadEnd) as error:
                kind: FailureKind = "bad_model" if isinstance(error, BadLogits) else "bad_request"
                self._ends.fail([due[error.row]], kind, str(error))
                due = due[: error.row] + due[error.row + 1 :]
                logits = np.delete(logits, error.row, axis=0)
        return []

    def _commit(self, sequence: Sequence, token: int, logits: Floats) -> None:
        """Hand a sequence its token: it goes on to the next step, or ends."""
        self._counts.sampled_tokens += 1
        sequence.take(token, logits, self._tokenizer)
        if sequence.reply.reason is not None:
            self._ends.finish(sequence, sequence.reply.reason)

    def _came_true(self, share: Share, place: int, token: int | None) -> bool:
        """Whether the logits behind the next guess count: it is what was sampled, and the reply goes on."""
        if token is None or place >= share.guessed or share.sequence.reply.reason is not None:
            return False
        true = share.tokens[len(share.tokens) - share.guessed + place] == token
        share.sequence.accepted += true
        return true

    def _learn(self, share: Share) -> None:
        """Count what was guessed, and tell the guesser what came of it."""
        sequence = share.sequence
        accepted = sequence.accepted - sequence.learned
        sequence.learned = sequence.accepted
        sequence.guessed += share.guessed
        self._counts.guessed_tokens += share.guessed
        self._counts.accepted_tokens += accepted
        if sequence.guesser is not None:
            sequence.guesser.learn(share.guessed, accepted, self._pace.cost or 0.0)
