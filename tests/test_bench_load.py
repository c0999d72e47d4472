"""The load generator hears a live server as a client does: parts and their times, ends, errors, and those who leave."""

from types import SimpleNamespace

import pytest
from bench.load import Heard, Visitors, ask, chat, figure, load, prefix, words_per_token
from bench.servers import HttpServer, Refused, Said, said

from puna.core.errors import BadModel

from .serving import ScriptedRunner, make_model, running_server


def test_a_chunk_says_text_usage_or_an_error():
    assert said({"choices": [{"delta": {"content": "Hi"}}]}) == Said("Hi")
    assert said({"choices": [{"delta": {"role": "assistant"}}]}) == Said("")
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    assert said({"choices": [], "usage": usage}) == Said("", (7, 3))
    with pytest.raises(Refused, match="too long"):
        said({"error": {"message": "too long"}})


def test_times_between_parts_are_those_within_a_stretch():
    heard = Heard(asked=1.0, parts=[3.0, 4.0, 6.0, 9.0])
    assert heard.first_s == 2.0
    assert heard.gaps() == [1.0, 2.0, 3.0]
    assert heard.gaps(since=3.5, until=8.0) == [2.0]
    assert Heard(asked=1.0, ended=5.0).first_s == 4.0


def test_few_values_are_a_range_and_many_are_percentiles():
    assert figure([]) == "none"
    assert figure([2.5]) == "2.5"
    assert figure([3.0, 1.0]) == "1 to 3"
    assert figure([float(i) for i in range(101)]) == "p50 50, p95 95, p99 99 of 101"


@pytest.mark.asyncio
async def test_clients_hear_what_a_server_says(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(words=["One", " two", " three"])) as live:
        await make_model(live.store, "demo")
        server = HttpServer(live.url, "demo", pid=0)
        heard = await ask(server, chat("Be brief.", "Count."), 10)
        assert (len(heard.parts), heard.tokens, heard.error, heard.left) == (3, 3, None, False)
        left = await ask(server, chat("Be brief.", "Count."), 10, leave_after=2)
        assert (len(left.parts), left.left) == (2, True)
        assert 0 < await words_per_token(server) < 1  # tokens of this server are letters
        missing = await ask(HttpServer(live.url, "other", pid=0), chat("", "?"), 10)
        assert "404" in missing.error
        found = await prefix(server, SimpleNamespace(prefix=50), 0)
        assert found["times sooner"][0] > 0


@pytest.mark.asyncio
async def test_a_load_counts_replies_and_errors(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        server = HttpServer(live.url, "demo", pid=0)
        found = await load(server, SimpleNamespace(seconds=0.2, clients=3), 0)
        assert found["requests"][0] >= 3
        assert found["errors"] == [0]
        assert 0 < found["ended"][0] <= len(found["first token ms"]) <= found["requests"][0]


@pytest.mark.asyncio
async def test_an_error_in_the_middle_of_a_reply_is_an_error(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(failure=BadModel("broken"), fails_after=2)) as live:
        await make_model(live.store, "demo")
        heard = await ask(HttpServer(live.url, "demo", pid=0), chat("", "?"), 10)
        assert "broken" in heard.error
        assert len(heard.parts) == 2


@pytest.mark.asyncio
async def test_visitors_come_until_there_is_no_more_to_ask(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        visitors = Visitors(HttpServer(live.url, "demo", pid=0), 1, 0.2)
        await visitors.come(4, lambda made: made < 10)
        assert len(visitors.heard) == 10
