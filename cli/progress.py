"""What is being done, on stderr: a spinner or a bar on a terminal, and plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column

from ..core.errors import Failure
from .replies import Status

_REDRAWS_PER_SECOND = 10


class Progress:
    """One line for each step of a longer command; the last one is alive. Use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live: RichProgress | None = None
        self._task = TaskID(0)
        self._text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._finish(keep=kind is None)

    def step(self, text: str) -> None:
        """Begin a step of unknown length. The same text again is the same step."""
        if text != self._text:
            self._begin(text, None, (TextColumn("{task.description}", markup=False), SpinnerColumn("dots")))

    def bar(self, text: str, total: int) -> None:
        """Begin a step of total bytes; `advance` moves its bar. The same text again is the same step."""
        if text == self._text:
            return
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._begin(text, total, columns)

    def tally(self, text: str, done: int, total: int) -> None:
        """Say that done of the total parts of a step are ready, beginning it if need be."""
        if text != self._text:
            self._begin(
                text, total, (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            )
        if self._live:
            self._live.update(self._task, completed=done)

    def advance(self, count: int) -> None:
        """Say that count more bytes of the current step are done."""
        if self._live:
            self._live.advance(self._task, count)

    def reading(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield blocks, moving the current step's bar past each one."""
        for block in blocks:
            yield block
            self.advance(len(block))

    def follow(self, statuses: Iterable[Status]) -> None:
        """Show the server's progress to its end. Raises Failure if it ends without success."""
        status = Status()
        for status in statuses:
            if not status.total:
                self.step(status.status)
                continue
            self.bar(status.status, status.total)
            if self._live:
                self._live.update(self._task, completed=status.completed)
        if status.status != "success":
            raise Failure(f"the server stopped after {status.status!r}, without success")

    def _begin(self, text: str, total: int | None, columns: Iterable[ProgressColumn]) -> None:
        self._finish(keep=True)
        self._text = text
        if not self._console.is_terminal:
            self._print(text)
            return
        self._live = _live(self._console, columns)
        self._task = self._live.add_task(text, total=total)
        self._live.start()

    def _finish(self, *, keep: bool) -> None:
        if self._live:
            self._live.stop()
            self._live = None
            if keep:
                self._print(self._text)
        self._text = ""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


@contextmanager
def waiting(text: str = "") -> Iterator[None]:
    """Show a spinner while the body runs, and no trace of it afterwards. Silent where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with _live(console, (TextColumn("{task.description}", markup=False), SpinnerColumn("dots"))) as live:
        live.add_task(text, total=None)
        yield


def _live(console: Console, columns: Iterable[ProgressColumn]) -> RichProgress:
    return RichProgress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        refresh_per_second=_REDRAWS_PER_SECOND,
    )
