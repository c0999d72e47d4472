"""Shows an answer while it arrives, and its figures afterwards."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TextIO

from ..core.errors import Failure
from .progress import waiting
from .replies import Chunk, ToolCall
from .words import duration_words
from .wrap import WordWrap, printable

_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"
_LABEL_COLUMNS = 22


@dataclass(frozen=True)
class Style:
    """How answers are shown. word_wrap has an effect on a terminal only."""

    word_wrap: bool = True
    hide_thinking: bool = False
    verbose: bool = False


@dataclass
class Answer:
    """What has arrived of an answer; last is None while its end has not."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    last: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in the next chunk."""
        self.text += chunk.text
        self.thinking += chunk.thought
        self.tool_calls += chunk.message.tool_calls if chunk.message else []
        self.last = chunk if chunk.done else None


class Screen:
    """Writes an answer to a stream; on a terminal wrapped and cleared of control characters."""

    def __init__(self, stream: TextIO, style: Style) -> None:
        self._stream, self._style = stream, style
        self._terminal = stream.isatty()
        wraps = self._terminal and style.word_wrap
        self._wrap = WordWrap(shutil.get_terminal_size().columns if wraps else 0)
        self._thinking = False

    def show(self, chunk: Chunk) -> None:
        """Write what is new in chunk."""
        if chunk.thought and not self._style.hide_thinking:
            self._switch(thinking=True)
            self._write(chunk.thought)
        if chunk.text:
            self._switch(thinking=False)
            self._write(chunk.text)
        for call in chunk.message.tool_calls if chunk.message else ():
            self._write(f"{call.function.name}({call.function.arguments})\n")
        self._stream.flush()

    def close(self) -> None:
        """End the answer: grey ends, the line too, and one line stays free."""
        self._switch(thinking=False)
        self._stream.write("\n\n")
        self._stream.flush()

    def _switch(self, *, thinking: bool) -> None:
        if thinking != self._thinking:
            self._thinking = thinking
            grey, plain = (_GREY, _PLAIN) if self._terminal else ("", "")
            self._stream.write(f"{grey}Thinking...\n" if thinking else f"\n...done thinking.\n\n{plain}")
            self._wrap.push("\n")

    def _write(self, text: str) -> None:
        self._stream.write(self._wrap.push(printable(text)) if self._terminal else text)


def show_answer(chunks: Generator[Chunk, None, None], style: Style, answer: Answer | None = None) -> Answer:
    """Write an answer to stdout as it arrives, its figures to stderr if style asks for them, and return it.

    answer: filled as the chunks come in, so that a caller still has what arrived before an interruption.
    Raises Failure if the stream ends before the answer does.
    """
    answer = answer or Answer()
    screen = Screen(sys.stdout, style)
    with closing(chunks), ExitStack() as spinner:
        spinner.enter_context(waiting())
        try:
            for chunk in chunks:
                spinner.close()
                answer.add(chunk)
                screen.show(chunk)
        finally:
            spinner.close()
            if answer.text or answer.thinking or answer.last:
                screen.close()
    if answer.last is None:
        raise Failure("the server ended the answer before it was complete")
    if style.verbose:
        sys.stderr.write(figures(answer.last))
    return answer


def figures(last: Chunk) -> str:
    """Return the lines of `--verbose`: how long an answer took, and at what rate."""
    rows = (
        ("total duration", duration_words(last.total_duration)),
        ("load duration", duration_words(last.load_duration)),
        ("prompt eval count", f"{last.prompt_eval_count} token(s)"),
        ("prompt eval duration", duration_words(last.prompt_eval_duration)),
        ("prompt eval rate", _rate(last.prompt_eval_count, last.prompt_eval_duration)),
        ("eval count", f"{last.eval_count} token(s)"),
        ("eval duration", duration_words(last.eval_duration)),
        ("eval rate", _rate(last.eval_count, last.eval_duration)),
    )
    return "".join(f"{label + ':':<{_LABEL_COLUMNS}}{value}\n" for label, value in rows)


def _rate(tokens: int, nanoseconds: int) -> str:
    return f"{tokens / (nanoseconds / 1e9) if nanoseconds else 0.0:.2f} tokens/s"
