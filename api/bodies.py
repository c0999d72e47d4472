"""What the bodies of all requests in progress may take together, so that many large ones do not use up the memory."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..core.errors import Busy

_HOLD = "puna.hold"  # in a request's scope


class BodyBudget:
    """ASGI middleware that counts what requests hold, each until it is answered: its images are kept so long."""

    def __init__(self, app: ASGIApp, *, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; what `hold` counts until it returns is this request's."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self._held + count > self._most:
                self._held, held = self._held - held, 0  # at once, so that not all that arrive together fail
                raise Busy(f"server busy, please try again: requests in progress may hold {self._most} bytes in all")
            held += count
            self._held += count

        scope[_HOLD] = take
        try:
            await self._app(scope, receive, send)
        finally:
            self._held -= held


def hold(request: Request, count: int) -> None:
    """Count so many bytes of a request as they arrive: what a client only announces takes nothing.

    Raises Busy where there is no room for them; then nothing of the request counts any longer, and it is to be dropped.
    """
    request.scope[_HOLD](count)
