"""`puna run`: one answer, or a conversation."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from ..core.errors import BadRequest, NotFound
from .answer import show_answer
from .client import Client, Refused
from .media import take_images
from .replies import ModelCard
from .session import Session


def run_model(session: Session, words: tuple[str, ...]) -> None:
    """Answer the prompt in words and a piped stdin, or hold a conversation if there is none and this is a terminal."""
    if not words and sys.stdin.isatty() and sys.stdout.isatty():
        from .chat import converse  # the line editor takes a while to import

        converse(session)
    else:
        answer_once(session, _prompt(words))


def answer_once(session: Session, prompt: str) -> None:
    """Answer prompt on stdout; an empty one only loads the model."""
    if not prompt:
        return session.load()
    text, images = take_images(prompt) if session.sees else (prompt, [])
    chunks = session.client.generate(
        session.model,
        text,
        images=images or None,
        format=session.format,
        think=session.think,
        keep_alive=session.keep_alive,
    )
    show_answer(chunks, session.style)
    return None


def find_model(client: Client, model: str) -> ModelCard:
    """Return what the server knows about model. Raises NotFound, saying how to get it, if the store has none."""
    try:
        return client.show(model)
    except Refused as refusal:
        if refusal.status != 404:
            raise
        raise NotFound(
            f"model {model!r} is not in the store, and this version of Puna cannot download models. "
            f"If you have its GGUF file, write `FROM ./FILE.gguf` in a file named Modelfile and "
            f"run `puna create {model} -f Modelfile`."
        ) from refusal


def read_format(text: str | None) -> Any:
    """Return the `format` field that text asks for: "json", or a JSON Schema. Raises BadRequest for anything else."""
    if text in (None, "", "json"):
        return text or None
    try:
        schema = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise BadRequest(f"--format must be json or a JSON Schema: {error}") from None
    if not isinstance(schema, dict):
        raise BadRequest("--format must be json or a JSON Schema, which is an object")
    return schema


def _prompt(words: tuple[str, ...]) -> str:
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    return " ".join(filter(None, (piped, *words)))
