"""One reply in progress, as the engine sees it: its tokens, what the cache holds of them, and where they go."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from ..memory.beside import Beside
from ..memory.blocks import BLOCK, BlockTable
from ..memory.cache import Insert, Rows
from ..memory.images import Image
from ..protocols import Grammar, Tokenizer
from ..tensor.sampling import Sampler
from .guess import Guesser
from .logprobs import sampled_logprob
from .messages import Event, Finished, FinishReason, Generate, Piece
from .reply import Reply
from .spans import Spans, name_of, rows_of


class Sequence:
    """A prompt and what was sampled after it. Only the engine's thread touches it once it is submitted."""

    def __init__(
        self,
        request: Generate,
        reply: Reply,
        table: BlockTable,
        emit: Callable[[Event], None],
        *,
        guesser: Guesser | None = None,
        grammar: Grammar | None = None,
        spans: Spans | None = None,
    ) -> None:
        """spans: of media; the table names its blocks by them."""
        self.spans = spans or Spans()
        self.request, self.reply, self.table, self.emit = request, reply, table, emit
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(self.tokens)
        self.sampler = Sampler(request.sampling)
        self.client = request.client
        self.guesser, self.grammar = guesser, grammar
        self.guess: list[int] = []  # what may follow the last token, to be checked in one step
        self.guessed = self.accepted = self.learned = 0  # guesses checked, come true, and known to the guesser
        self.cached_tokens = 0  # of the prompt, when the reply first began
        self.known = 0  # leading tokens that were computed before their blocks were given back
        self.shifted = 0
        self.preempted = 0  # times its blocks were given to others
        self.started_ns = time.perf_counter_ns()
        self.begun_ns: int | None = None  # when its first token was computed
        self.first_token_ns: int | None = None

    @property
    def unread(self) -> int:
        """Tokens the cache does not hold yet; 1 while the reply is growing."""
        return len(self.tokens) - self.table.length

    @property
    def readable(self) -> int:
        """How many of the unread tokens stand before the first image that is not encoded."""
        return self.spans.readable(self.table.length, len(self.tokens))

    @property
    def images(self) -> list[Image]:
        """Images that have to be encoded before all of the sequence can be read, in order."""
        found = [span.image for span in self.spans.needed(self.table.length, len(self.tokens))]
        return [image for image in dict.fromkeys(found) if image.rows is None]

    def part(self, start: int, count: int) -> Rows:
        """Return the share in a step, from its row `start` on, of the next `count` tokens."""
        first, last = self.table.length, self.table.length + count
        positions, until = self.spans.positions(first, last), self.spans.until(first, last)
        return Rows(self.table, start, start + count, positions, until, self._beside(first, last))

    def _beside(self, first: int, last: int) -> Beside | None:
        """Turn to what tokens first..last see beside the text, and return it; None if that is nothing."""
        view = self.spans.view(last - 1)
        if not view:
            return None
        look = self.table.look
        look.turn(name_of(view), sum(span.rows.count for span in view))
        fresh = tuple(map(rows_of, view)) if look.fresh else ()
        return Beside(look.blocks, self.spans.seen_beside(first, last), fresh)

    def inserts(self, start: int, count: int) -> list[Insert]:
        """Return the embeddings of the next `count` tokens that are no tokens, in a step from its row `start` on."""
        first, last = self.table.length, self.table.length + count
        found = []
        for span in self.spans.within(first, last):
            if not span.rows.beside:
                low, high = max(first, span.start), min(last, span.stop)
                found.append((start + low - first, rows_of(span)[low - span.start : high - span.start]))
        return found

    def advance(self, count: int) -> list[tuple[Image, bytes]]:
        """Note that the next `count` tokens are computed; return images with the names of blocks that follow from them.

        Such a block holds an image's last row.
        """
        before = self.table.length
        self.table.advance(self.tokens, count)
        touched = self.spans.within(before // BLOCK * BLOCK, self.table.length)
        named = [(span.image, self.table.name_of(span.stop - 1)) for span in touched]
        return [(image, name) for image, name in named if name is not None]

    @property
    def longest(self) -> int:
        """Tokens that the cache will have to hold at most."""
        most = self.request.max_tokens
        whole = self.request.num_ctx
        return whole if most is None else min(whole, self.prompt_tokens + most)

    @property
    def guessable(self) -> int:
        """Tokens that may be guessed to follow the last one: what the context holds, and the request allows."""
        room, most = self.request.num_ctx - len(self.tokens), self.request.guess
        return room if most is None else min(room, most)

    def again(self, count: int) -> int:
        """Return how many of the next tokens to compute, of so many, were computed before."""
        return max(0, min(count, self.known - self.table.length))

    def put_down(self) -> None:
        """Give back all memory: it has ended, or will be computed again from its tokens."""
        self.known = max(self.known, self.table.length)
        self.table.clear()
        self.guess = []
        if self.guesser is not None:
            self.guesser.close()

    def take(self, token: int, logits: npt.NDArray[np.float32], tokenizer: Tokenizer) -> None:
        """Take a sampled token: its text goes out, and `reply.reason` says whether it was the last one.

        logits: [V], that it was sampled from; tokenizer: to name tokens whose log probabilities were asked for.
        """
        self.first_token_ns = self.first_token_ns or time.perf_counter_ns()
        reply, top = self.reply, self.request.logprobs
        if self.grammar is not None and token not in reply.stop_ids:
            self.grammar.accept(token)
        logprob = None if top is None else partial(sampled_logprob, tokenizer, logits, token, top)
        self._send(reply.push(token, logprob))
        if reply.reason is None and self.grammar is not None and self.grammar.ended:
            self._send(reply.end("stop"))
        if reply.reason is None and not self.append(token):
            self._send(reply.end("length"))

    def append(self, token: int) -> bool:
        """Go on behind a token; False if it does not fit and the request forbids shifting.

        A shift drops half of what follows the first num_keep tokens, and never half an image. The rest is computed anew
        at its new positions, which is exact where moving cached keys would not be.
        """
        self.tokens.append(token)
        limit = self.request.num_ctx
        if len(self.tokens) <= limit:
            return True
        if not self.request.shift:
            return False
        wanted = self.prompt_tokens if self.request.num_keep < 0 else self.request.num_keep
        keep = min(wanted, limit - 1)
        start, stop = self.spans.without(keep, keep + max(1, (limit - keep) // 2))
        del self.tokens[start:stop]
        self.spans.drop(start, stop)
        self.shifted += stop - start
        self.known = len(self.tokens) - 1
        self.table.clear()
        self.table.adopt(self.tokens)
        return True

    def finished(self, reason: FinishReason) -> Finished:
        """Return the last message of a reply that ends now."""
        now = time.perf_counter_ns()
        first = self.first_token_ns or now
        return Finished(
            reason=reason,
            prompt_tokens=self.prompt_tokens,
            prompt_ns=first - self.started_ns,
            tokens=self.reply.tokens,
            decode_ns=now - first,
            truncated=self.request.truncated,
            shifted=self.shifted,
            cached_tokens=self.cached_tokens,
            queue_ns=(self.begun_ns or now) - self.started_ns,
            guessed=self.guessed,
            accepted=self.accepted,
            preempted=self.preempted,
        )

    def _send(self, piece: Piece | None) -> None:
        if piece is not None:
            self.emit(piece)
