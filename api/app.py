"""The HTTP application: every route, and what stands before and behind all of them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..core.errors import Failure
from ..core.scheduler.models import Models
from ..core.settings import Settings
from ..store import Store
from . import ollama, openai
from .access import Access
from .bodies import BodyBudget
from .errors import answer_failure, answer_nobody, answer_routing
from .requests import MAX_BODIES_BYTES
from .serving import Serving


def create_app(*, settings: Settings, store: Store, models: Models) -> Starlette:
    """Return the application that serves store's models through models. It keeps no state besides these."""
    serving = Serving(settings, store, models)
    return Starlette(
        routes=[Route("/", alive, methods=["GET"]), *ollama.routes(serving), *openai.routes(serving)],
        middleware=[Middleware(Access, settings=settings), Middleware(BodyBudget, most_bytes=MAX_BODIES_BYTES)],
        exception_handlers={
            404: answer_routing,
            405: answer_routing,
            HTTPException: answer_failure,
            ClientDisconnect: answer_nobody,
            Failure: answer_failure,
            Exception: answer_failure,
        },
    )


async def alive(request: Request) -> Response:
    """Answer GET /: clients look here, and for these very words, before they do anything else."""
    return PlainTextResponse("Ollama is running")
