"""A process that serves one model, as the server sees it: how it starts, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from subprocess import DEVNULL, PIPE, STDOUT

from ..errors import RunnerDied
from .wire import Channel, FromRunner

log = logging.getLogger("puna.runner")

LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"  # of a runner's lines; the server adds the time
LINE = 2000  # characters; what a line of log has more is cut off
CHUNK = 2**16  # bytes
LINGER_S = 1.0  # what a process gets to end once its socket has, and to say where it is before it is ended
WHERE = signal.SIGUSR1  # has a runner print what each of its threads is doing


class Child:
    """A running process, the channel to it, and what it printed last. Belongs to one event loop."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel[FromRunner]) -> None:
        self._process, self.channel = process, channel
        self._last_line = ""
        self._log = asyncio.create_task(self._copy_log(), name=f"log of {process.pid}")

    @classmethod
    async def start(cls, entry: str) -> Child:
        """Run the module entry in a process of its own, with the number of its end of the channel as argument.

        It finds the modules that this process finds, reads this process's environment, and is in a session of its
        own: Ctrl-C in a terminal reaches the server only. It must be started on a thread that lives as long as the
        server, because Linux counts the end of that thread as the end of the parent.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await Channel[FromRunner].over(ours, FromRunner)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-u", "-P", "-m", entry, str(theirs.fileno())),
                    stdin=DEVNULL,
                    stdout=PIPE,
                    stderr=STDOUT,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                )
            except BaseException:
                await channel.close()
                raise
        return cls(process, channel)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def kill(self) -> None:
        """End the process at once, if it has not ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def kill_stuck(self) -> None:
        """End a process that gets no further, after it had a moment to print where it is."""
        with suppress(ProcessLookupError):
            self._process.send_signal(WHERE)
        await asyncio.sleep(LINGER_S)
        self.kill()

    async def ended(self) -> RunnerDied:
        """Wait a little for the process to end, else end it, and close the channel; return what it died of."""
        try:
            async with asyncio.timeout(LINGER_S):
                code = await self._process.wait()
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        await asyncio.wait([self._log], timeout=LINGER_S)  # longer only if somebody else holds the pipe
        self._log.cancel()
        await self.channel.close()
        return RunnerDied(words_of_end(code, self._last_line))

    async def _copy_log(self) -> None:
        """Log what the process prints, line by line."""
        assert self._process.stdout is not None
        decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
        while data := await self._process.stdout.read(CHUNK):
            *lines, rest = (rest + decoder.decode(data)).split("\n")
            if len(rest) > LINE:
                lines, rest = [*lines, rest], ""
            self._note(lines)
        self._note([rest])

    def _note(self, lines: list[str]) -> None:
        for line in filter(str.strip, lines):
            self._last_line = line[:LINE]
            level, _, words = self._last_line.partition(" ")
            known = logging.getLevelNamesMapping().get(level)
            log.log(known or logging.INFO, "%d: %s", self.pid, words if known else self._last_line)


def words_of_end(code: int, last_line: str) -> str:
    """Return how a process ended. code: its exit status, or minus the number of a signal; last_line: of its log."""
    if code >= 0:
        said = f", and said last: {last_line}" if last_line else ""
        return f"its process exited with status {code}{said}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        why = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{why}"
    return f"its process was ended by signal {-code}"
