"""Responses that are produced while they are sent."""

import anyio
import anyio.lowlevel
import msgspec
import pytest

from puna.api.streaming import EVENTS, NDJSON, SINGLE, ProducedResponse
from puna.core.errors import BadRequest, Busy, RunnerDied

pytestmark = pytest.mark.asyncio


class Word(msgspec.Struct):
    text: str


class Client:
    """The client's side of a response: what it was sent, and the moment at which it leaves."""

    def __init__(self):
        self.messages = []
        self.gone = anyio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.messages.append(message)

    async def get(self, chunks, framing):
        await ProducedResponse(chunks, framing)({"type": "http"}, self.receive, self.send)
        return self

    @property
    def headers(self):
        return dict(self.messages[0]["headers"])

    @property
    def bodies(self):
        return [message["body"] for message in self.messages[1:]]


async def words(*texts, failure=None):
    for text in texts:
        yield Word(text)
    if failure is not None:
        raise failure


async def test_lines_are_sent_one_body_message_each():
    client = await Client().get(words("a", "b"), NDJSON)
    assert client.headers[b"content-type"] == b"application/x-ndjson"
    assert client.bodies == [b'{"text":"a"}\n', b'{"text":"b"}\n', b""]
    assert [message.get("more_body", False) for message in client.messages[1:]] == [True, True, False]


async def test_events_end_with_done():
    client = await Client().get(words("a"), EVENTS)
    assert client.headers[b"content-type"] == b"text/event-stream"
    assert client.bodies == [b'data: {"text":"a"}\n\n', b"data: [DONE]\n\n"]


async def test_a_single_object_has_a_length():
    client = await Client().get(words("a"), SINGLE)
    assert client.headers[b"content-length"] == b"12"
    assert client.headers[b"content-type"] == b"application/json; charset=utf-8"
    assert client.bodies == [b'{"text":"a"}']


@pytest.mark.parametrize("framing", [NDJSON, EVENTS, SINGLE])
async def test_a_failure_before_the_first_chunk_is_raised_with_nothing_sent(framing):
    client = Client()
    with pytest.raises(Busy, match="full"):
        await client.get(words(failure=Busy("full")), framing)
    assert client.messages == []


async def test_a_failure_later_is_the_last_line():
    client = await Client().get(words("a", failure=RunnerDied("it fell over")), NDJSON)
    said = b"an error was encountered while running the model: it fell over"
    assert client.bodies == [b'{"text":"a"}\n', b'{"error":"' + said + b'"}\n']


async def test_a_failure_later_is_the_last_event_and_not_done():
    client = await Client().get(words("a", failure=BadRequest("no")), EVENTS)
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    last = client.bodies[-1]
    assert last.startswith(b"data: ") and last.endswith(b"\n\n")
    assert msgspec.json.decode(last[6:]) == {"error": error}


async def test_a_bug_later_tells_the_client_nothing_of_its_cause(caplog):
    client = await Client().get(words("a", failure=ZeroDivisionError("secret")), NDJSON)
    assert client.bodies[-1] == b'{"error":"internal server error"}\n'
    assert "secret" in caplog.text


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_a_client_that_leaves_closes_the_generator(before):
    client, cleaned = Client(), anyio.Event()

    async def endless():
        try:
            for _ in range(before):
                yield Word("a")
            client.gone.set()
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    with anyio.fail_after(5):
        await client.get(endless(), NDJSON)
    assert cleaned.is_set()
    assert len(client.messages) == (before + 1 if before else 0)


async def test_closing_the_generator_is_awaited_when_the_client_leaves_between_chunks():
    client, cleaned = Client(), anyio.Event()

    async def slow_to_close():
        try:
            while True:
                yield Word("a")
        finally:
            await anyio.lowlevel.checkpoint()
            cleaned.set()

    async def leave_while_sending(message):
        client.messages.append(message)
        if len(client.messages) == 3:
            client.gone.set()
            await anyio.sleep_forever()

    client.send = leave_while_sending
    with anyio.fail_after(5):
        await client.get(slow_to_close(), NDJSON)
    assert cleaned.is_set()


async def test_chunks_are_pulled_only_as_fast_as_they_are_sent():
    client, pulled = Client(), []

    async def numbered():
        for number in range(5):
            pulled.append(number)
            yield Word(str(number))

    async def count_while_sending(message):
        client.messages.append(message)
        assert len(pulled) <= max(1, len(client.messages) - 1)

    client.send = count_while_sending
    await client.get(numbered(), NDJSON)
    assert len(pulled) == 5


async def test_a_connection_that_breaks_while_sending_closes_the_generator_and_is_no_error(caplog):
    client, cleaned = Client(), anyio.Event()

    async def endless():
        try:
            while True:
                yield Word("a")
        finally:
            cleaned.set()

    async def break_at_the_third_message(message):
        client.messages.append(message)
        if len(client.messages) == 3:
            raise ConnectionResetError

    client.send = break_at_the_third_message
    await client.get(endless(), NDJSON)
    assert cleaned.is_set()
    assert not caplog.records


async def test_a_file_that_cannot_be_read_is_not_taken_for_a_client_that_left():
    with pytest.raises(OSError, match="disk"):
        await Client().get(words(failure=OSError("disk")), NDJSON)
