"""Reading request bodies as clients of Go servers write them."""

import json
from contextlib import asynccontextmanager

import anyio
import httpx2
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from puna.api.asking import schema_of
from puna.api.bodies import BodyBudget
from puna.api.errors import answer_failure
from puna.api.requests import BodyTooLarge, client_of, parse_body, read_body
from puna.core.errors import BadRequest, Failure


def sent_from(host, *headers):
    return Request({"type": "http", "client": (host, 5000) if host else None, "headers": headers})


def test_a_client_is_a_machine_and_no_key_makes_it_another():
    plain, keyed = sent_from("10.0.0.1"), sent_from("10.0.0.1", (b"authorization", b"Bearer secret"))
    assert client_of(plain) == client_of(keyed) == "10.0.0.1"
    assert client_of(sent_from("10.0.0.2")) == "10.0.0.2"
    assert client_of(sent_from(None)) == ""


class Body(msgspec.Struct):
    model: str = ""
    stream: bool = True
    options: dict[str, float] = {}


def test_keys_of_the_outermost_object_match_in_any_case():
    assert parse_body(b'{"MODEL": "m", "Stream": false}', Body) == Body("m", False)


def test_the_last_of_repeated_keys_wins():
    assert parse_body(b'{"model": "a", "Model": "b", "model2": 1}', Body).model == "b"
    assert parse_body(b'{"model": "a", "model": "b"}', Body).model == "b"


def test_keys_inside_values_keep_their_case():
    assert parse_body(b'{"options": {"Top": 1}}', Body).options == {"Top": 1.0}


def test_null_means_not_given():
    assert parse_body(b'{"model": null, "stream": null}', Body) == Body()


def test_only_the_first_json_value_is_read():
    assert parse_body(b' \n{"model": "m"} trailing', Body).model == "m"


@pytest.mark.parametrize("values", [b"1," * 2_000_000, b"{}," * 600_000, b"[[]]," * 400_000])
def test_a_body_of_so_many_values_that_parsing_would_hold_everybody_up_is_refused(values):
    with pytest.raises(BodyTooLarge, match="at most 1048576 commas and brackets"):
        parse_body(b'{"context": [' + values + b"1]}", Body)


def test_unknown_fields_are_accepted():
    assert parse_body(b'{"model": "m", "flavour": 3}', Body).model == "m"


@pytest.mark.parametrize(
    ("text", "read"), [(b'"\xff"', "\ufffd"), (rb'"\ud83d!"', "\ufffd!"), (rb'"\ud83d\ude00"', "😀")]
)
def test_what_is_no_unicode_becomes_the_replacement_character(text, read):
    assert parse_body(b'{"model": %s}' % text, Body).model == read


@pytest.mark.parametrize("body", [b"", b"  \r\n"])
def test_an_empty_body_is_missing(body):
    with pytest.raises(BadRequest, match=r"^missing request body$"):
        parse_body(body, Body)
    with pytest.raises(BadRequest, match=r"^EOF$"):
        parse_body(body, Body, missing="EOF")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model": }', "invalid JSON: Expecting value, line 1, column 11"),
        (b'{"model": "m"', "invalid JSON"),
        (b'{"options": {"a": NaN}}', "invalid JSON: NaN is not a JSON number"),
        (b'{"options": ' + b"[" * 100_000, "invalid JSON: nested too deeply"),
        (b'{"options": {"a": 1' + b"0" * 5000 + b"}}", "invalid JSON"),
        (b"[1]", "must be a JSON object, not array"),
        (b"null", "must be a JSON object, not null"),
        (b'{"stream": "yes"}', "stream: expected `bool`, got `str`"),
        (b'{"options": {"a": "b"}}', r"options\[...\]: expected `float`, got `str`"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(body, said):
    with pytest.raises(BadRequest, match=said):
        parse_body(body, Body)


def test_a_schema_is_passed_on_without_blanks_and_so_is_never_longer_than_it_was_sent():
    sent = '{"enum":[1,"é b",{"a":null}]}'
    assert schema_of(json.loads(sent)) == sent


class Slow:
    """A server of 100 bytes of bodies, whose answers to /slow begin at once and end when they are told to."""

    def __init__(self):
        self.begun, self.end = anyio.Event(), anyio.Event()

    @asynccontextmanager
    async def running(self):
        app = Starlette(
            routes=[Route("/slow", self._slow, methods=["POST"]), Route("/fast", self._fast, methods=["POST"])],
            middleware=[Middleware(BodyBudget, most_bytes=100)],
            exception_handlers={Failure: answer_failure},
        )
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:
            yield http

    async def _slow(self, request):
        await read_body(request, Body)
        return StreamingResponse(self._answer())

    async def _answer(self):
        self.begun.set()
        yield b"so"
        await self.end.wait()

    async def _fast(self, request):
        await read_body(request, Body)
        return PlainTextResponse("done")


def of_length(count):
    return b'{"model": "%s"}' % (b"m" * (count - 13))


@pytest.mark.asyncio
async def test_bodies_have_a_budget_until_their_requests_are_answered():
    slow = Slow()
    async with slow.running() as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: http.post("/slow", content=of_length(60)))
            await slow.begun.wait()
            refused = await http.post("/fast", content=of_length(41))
            assert refused.status_code == 503
            said = "server busy, please try again: requests in progress may hold 100 bytes in all"
            assert refused.json() == {"error": said}
            assert (await http.post("/fast", content=of_length(40))).status_code == 200
            slow.end.set()
        assert (await http.post("/fast", content=of_length(100))).status_code == 200


@pytest.mark.asyncio
async def test_a_body_counts_as_it_arrives_and_not_as_it_is_announced():
    async def trickling():
        yield of_length(60)
        slow.begun.set()
        await slow.end.wait()

    slow = Slow()
    async with slow.running() as http, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: http.post("/fast", content=trickling(), headers={"Content-Length": "100"}))
        await slow.begun.wait()
        assert (await http.post("/fast", content=of_length(40))).status_code == 200
        assert (await http.post("/fast", content=of_length(41))).status_code == 503
        slow.end.set()


@pytest.mark.asyncio
async def test_a_refused_body_makes_room_at_once_and_is_read_to_its_end():
    async def trickling():
        yield of_length(60)
        yield b"x" * 41
        slow.begun.set()
        await slow.end.wait()
        yield b"x" * 500
        read.append("all")

    async def refused():
        assert (await http.post("/fast", content=trickling())).status_code == 503
        assert read == ["all"]

    slow, read = Slow(), []
    async with slow.running() as http, anyio.create_task_group() as tasks:
        tasks.start_soon(refused)
        await slow.begun.wait()
        assert (await http.post("/fast", content=of_length(100))).status_code == 200
        slow.end.set()


@pytest.mark.asyncio
@pytest.mark.parametrize(("content", "status"), [(of_length(100), 200), (b"x" * 100, 400), (b"x" * 101, 503)])
async def test_what_a_request_held_is_given_back_however_it_ends(content, status):
    async with Slow().running() as http:
        for _ in range(3):
            assert (await http.post("/fast", content=content)).status_code == status
        assert (await http.post("/fast", content=of_length(100))).status_code == 200
