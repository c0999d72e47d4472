"""Reads what the user types: one message at a time, over several lines where it opens three quotes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

QUOTES = '"""'
HISTORY_FILE = Path("~/.local/state/puna/history")

_KEPT_MESSAGES = 100
_OPENINGS = (QUOTES, f"/set system {QUOTES}")
_PLACEHOLDER = FormattedText([("fg:ansibrightblack", "Send a message (/? for help)")])


def is_open(text: str) -> bool:
    """Return whether text opened three quotes that no line has closed yet."""
    opening = next((opening for opening in _OPENINGS if text.startswith(opening)), None)
    return opening is not None and not text[len(opening) :].rstrip().endswith(QUOTES)


def unquoted(text: str) -> str:
    """Return text without the three quotes around it, if it has them."""
    return text.strip().removeprefix(QUOTES).removesuffix(QUOTES) if text.startswith(QUOTES) else text


class PromptHistory(History):
    """The last hundred messages, one JSON string a line, in a file that only its owner may read.

    enabled: asked before each message is stored; the file is read in any case.
    """

    def __init__(self, path: Path, enabled: Callable[[], bool]) -> None:
        super().__init__()
        self._path, self._enabled = path.expanduser(), enabled

    def load_history_strings(self) -> Iterable[str]:
        """Yield the stored messages, newest first. A line that is no JSON string is passed over."""
        if not self._path.exists():
            return
        for line in reversed(self._path.read_text("utf-8", errors="replace").splitlines()):
            try:
                text = json.loads(line)
            except ValueError:
                continue
            if isinstance(text, str):
                yield text

    def store_string(self, string: str) -> None:
        """Append a message and forget the oldest beyond a hundred."""
        if not self._enabled():
            return
        kept = [string, *self.load_history_strings()][:_KEPT_MESSAGES]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.writelines(json.dumps(text) + "\n" for text in reversed(kept))
        fresh.replace(self._path)


class PromptReader:
    """The line editor of a conversation. input, output: the terminal, unless a test brings its own."""

    def __init__(self, history: History, *, input: Input | None = None, output: Output | None = None) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history,
            key_bindings=_keys(),
            multiline=Condition(lambda: is_open(self._session.default_buffer.text)),
            prompt_continuation="... ",
            placeholder=lambda: None if get_app().is_done else _PLACEHOLDER,
            reserve_space_for_menu=0,  # nothing is completed
            input=input,
            output=output,
        )

    def read(self) -> str:
        """Return the next message. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C on an empty line."""
        return self._session.prompt(">>> ")


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(" " * 8)

    @keys.add("c-g")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys
