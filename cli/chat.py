"""The conversation of `puna run`: read a line, obey or answer it, again."""

from __future__ import annotations

import sys

from ..core.errors import Failure
from .media import starts_with_image
from .prompt import HISTORY_FILE, PromptHistory, PromptReader, unquoted
from .session import Session
from .slash import Leave, run_command


def converse(session: Session) -> None:
    """Hold a conversation until the user leaves it."""
    session.load()
    for message in session.card.messages or []:
        print(f">>> {message.content}" if message.role == "user" else f"{message.content}\n")
    reader = PromptReader(PromptHistory(HISTORY_FILE, lambda: session.remembers))
    while (line := _next_line(reader)) is not None:
        try:
            _obey(session, line)
        except Leave:
            return
        except Failure as failure:
            print(f"Error: {failure}\n", file=sys.stderr)
        except KeyboardInterrupt:
            print()


def _next_line(reader: PromptReader) -> str | None:
    """Return the next message, or None when the user leaves."""
    while True:
        try:
            return reader.read()
        except KeyboardInterrupt:
            print("Use Ctrl-D or /bye to leave.")
        except EOFError:
            return None


def _obey(session: Session, line: str) -> None:
    """Carry out a command, or send a message."""
    if not line.strip() or run_command(session, line):
        return
    if line.startswith("/") and not (session.sees and starts_with_image(line)):
        print(f"Unknown command '{line.split()[0]}'. Type /? for help")
    else:
        session.say(unquoted(line))
