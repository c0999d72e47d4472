"""One reply in progress, as the engine sees it: its tokens, what the cache holds of them, and where they go."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import ContextTooLong
from ..memory.blocks import BlockTable
from ..protocols import Grammar
from ..tensor.sampling import Sampler
from .guess import Guesser
from .messages import Event, Generate
from .reply import Reply


def truncate(prompt: list[int], *, limit: int, keep: int) -> list[int]:
    """Return the first keep tokens and as many of the last as fit in limit; keep below 0 means as many as can be."""
    if len(prompt) <= limit:
        return prompt
    head = limit - 1 if keep < 0 else min(keep, limit - 1)
    return prompt[:head] + prompt[len(prompt) - (limit - head) :]


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
    ) -> None:
        if len(request.prompt) > request.num_ctx and not request.truncate:
            raise ContextTooLong(tokens=len(request.prompt), limit=request.num_ctx)
        self.request, self.reply, self.table, self.emit = request, reply, table, emit
        self.tokens = list(truncate(request.prompt, limit=request.num_ctx, keep=request.num_keep))
        self.prompt_tokens = len(self.tokens)
        self.sampler = Sampler(request.sampling)
        self.client = request.client
        self.guesser, self.grammar = guesser, grammar
        self.guess: list[int] = []  # what may follow the last token, to be checked in one step
        self.guessed = self.accepted = self.learned = 0  # guesses checked, come true, and known to the guesser
        self.cached_tokens = 0  # of the prompt, when the reply first began
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

    @property
    def truncated(self) -> int:
        """Prompt tokens that were cut on entry."""
        return len(self.request.prompt) - self.prompt_tokens

    def put_down(self) -> None:
        """Give back all memory: it has ended, or will be computed again from its tokens."""
        self.table.clear()
        self.guess = []
        if self.guesser is not None:
            self.guesser.close()

    def append(self, token: int) -> bool:
        """Take a sampled token; False if it does not fit and the request forbids shifting.

        A shift drops half of what follows the first num_keep tokens. The rest is computed anew at its new positions,
        which is exact where moving cached keys would not be.
        """
        self.tokens.append(token)
        limit = self.request.num_ctx
        if len(self.tokens) <= limit:
            return True
        if not self.request.shift:
            return False
        wanted = self.prompt_tokens if self.request.num_keep < 0 else self.request.num_keep
        keep = min(wanted, limit - 1)
        drop = max(1, (limit - keep) // 2)
        del self.tokens[keep : keep + drop]
        self.shifted += drop
        self.table.clear()
        self.table.adopt(self.tokens)
        return True
