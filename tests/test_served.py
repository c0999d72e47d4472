"""The runner's side of the socket, without the socket: messages that come together."""

import asyncio

import pytest

from puna.core.scheduler.messages import Generate
from puna.core.scheduler.served import _Served
from puna.core.scheduler.stats import EngineStats
from puna.core.scheduler.wire import Ask, Cancel, Close, Detokenize, Status, Tokenize

pytestmark = pytest.mark.asyncio


class Together:
    """A channel over which all messages come in one read (`Channel`)."""

    def __init__(self, *messages):
        self._messages, self.sent = list(messages), []

    async def receive(self):
        return self._messages.pop(0)

    async def send(self, message):
        self.sent.append(message)

    async def close(self):
        pass


class Idle:
    """A runner of which nothing is asked in the end (`InlineRunner`)."""

    stats, memory_bytes = EngineStats(), 0

    async def close(self):
        pass


ASKED = [Ask(1, Generate(prompt=[1], num_ctx=8)), Tokenize(1, "x", False, False), Detokenize(1, [1])]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: type(asked).__name__)
async def test_what_is_cancelled_before_it_begins_leaves_nothing_behind(recwarn, asked):
    channel = Together(asked, Cancel(1), Close())
    await _Served(channel, Idle()).run()
    await asyncio.sleep(0)
    assert [message for message in channel.sent if not isinstance(message, Status)] == []
    assert [str(warning.message) for warning in recwarn] == []
