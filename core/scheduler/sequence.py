"""One reply in progress, as the engine sees it: its tokens, what the cache holds of them, and where they go."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import ContextTooLong
from ..memory.cache import SequenceCache
from ..tensor.sampling import Sampler
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

    def __init__(self, request: Generate, reply: Reply, cache: SequenceCache, emit: Callable[[Event], None]) -> None:
        if len(request.prompt) > request.num_ctx and not request.truncate:
            raise ContextTooLong(tokens=len(request.prompt), limit=request.num_ctx)
        self.request, self.reply, self.cache, self.emit = request, reply, cache, emit
        self.tokens = list(truncate(request.prompt, limit=request.num_ctx, keep=request.num_keep))
        self.prompt_tokens = len(self.tokens)
        self.sampler = Sampler(request.sampling)
        self.shifted = 0
        self.started_ns = time.perf_counter_ns()
        self.first_token_ns: int | None = None

    @property
    def unread(self) -> int:
        """Tokens the cache does not hold yet; 1 while the reply is growing."""
        return len(self.tokens) - self.cache.length

    @property
    def truncated(self) -> int:
        """Prompt tokens that were cut on entry."""
        return len(self.request.prompt) - self.prompt_tokens

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
        self.cache.clear()
        return True
