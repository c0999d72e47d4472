"""The server as a whole: clients that leave, many at once, an event loop that never waits, and shutting down."""

import asyncio
import json
import os
import signal
import sys
import threading

import anyio
import anyio.lowlevel
import httpx2
import pytest

from puna.api.server import listen
from puna.core.errors import Failure
from puna.core.settings import Address
from puna.store import digest_of

from .serving import GGUF, ScriptedRunner, make_model, running_server

pytestmark = pytest.mark.asyncio

DIGEST = str(digest_of(GGUF))
TEMPLATE = "{{ range .Messages }}{{ .Content }} {{ end }}"
NATIVE = ("/api/chat", {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]})
OPENAI = ("/v1/chat/completions", NATIVE[1] | {"stream": True})


async def request_and_leave(live, path, body, *, wait_for=b""):
    """Send a request over a socket, read until the answer holds wait_for, and hang up."""
    content = json.dumps(body).encode()
    port = int(live.url.rpartition(":")[2])
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        await stream.send(head.encode() + content)
        seen = b""
        while wait_for not in seen:
            seen += await stream.receive()


@pytest.mark.parametrize(("path", "body"), [NATIVE, OPENAI])
async def test_a_client_that_leaves_in_mid_stream_ends_its_reply(tmp_path, path, body):
    runner = ScriptedRunner(endless=True)
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        with anyio.fail_after(30):
            await request_and_leave(live, path, body, wait_for=b"there")
            await runner.ended.wait()
    assert runner.running == 0


async def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_ends_its_reply(tmp_path):
    class Watched(ScriptedRunner):
        async def tokenize(self, text, **more):
            started.set()
            return await super().tokenize(text, **more)

    started, runner = anyio.Event(), Watched(endless=True)
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(request_and_never_read, live, started)
                await runner.ended.wait()
    assert runner.running == 0


async def request_and_never_read(live, started):
    content = json.dumps(NATIVE[1] | {"stream": False}).encode()
    port = int(live.url.rpartition(":")[2])
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
        )
        await started.wait()


async def test_a_client_that_leaves_in_mid_request_does_no_harm(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        port = int(live.url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert (await live.http.get("/")).status_code == 200


@pytest.mark.parametrize(("stream", "status"), [(True, 200), (False, 503)])
async def test_shutting_down_ends_long_replies_with_an_error(tmp_path, monkeypatch, stream, status):
    class Closing(ScriptedRunner):
        """Ends its replies when it is closed, as the engine does."""

        async def close(self):
            self.endless, self.reason = False, "cancelled"
            await super().close()

    async def ask(url):
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            answers.append(await http.post(url + NATIVE[0], json=NATIVE[1] | {"stream": stream}))

    monkeypatch.setattr("puna.api.server.SHUTDOWN_S", 0.1)
    runner, answers = Closing(endless=True), []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks, running_server(tmp_path, runner) as live:
            await make_model(live.store, "demo")
            tasks.start_soon(ask, live.url)
            while not runner.running:
                await anyio.lowlevel.checkpoint()
    assert answers[0].status_code == status
    assert json.loads(answers[0].text.splitlines()[-1]) == {"error": "the server is shutting down"}


async def test_shutting_down_cuts_replies_that_do_not_end(tmp_path):
    runner, first = ScriptedRunner(endless=True), anyio.Event()

    async def read(url):
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            with pytest.raises(httpx2.RemoteProtocolError):
                async with http.stream("POST", url + NATIVE[0], json=NATIVE[1]) as answer:
                    async for _ in answer.aiter_lines():
                        first.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks, running_server(tmp_path, runner) as live:
            await make_model(live.store, "demo")
            tasks.start_soon(read, live.url)
            await first.wait()
    assert (runner.running, runner.closed) == (0, True)


async def test_an_address_in_use_is_named(tmp_path):
    with listen(Address("http", "127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Failure, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            listen(Address("http", "127.0.0.1", port))


@pytest.mark.parametrize("host", ["localhost", "::1", "0.0.0.0", "::"])
async def test_it_listens_where_it_is_told(host):
    with listen(Address("http", host, 0)) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("local", [False, True])
async def test_thirty_two_streams_at_once_give_what_each_gives_alone(tmp_path, local):
    async def ask(live, number):
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": f"the {number} cats and the dogs"}],
            "options": {"temperature": 0, "num_predict": 12, "num_ctx": 64},
        }
        async with live.http.stream("POST", "/api/chat", json=body) as answer:
            lines = [json.loads(line) async for line in answer.aiter_lines()]
        assert lines[-1]["done"] and lines[-1]["eval_count"] <= 12
        return "".join(line["message"]["content"] for line in lines)

    async with running_server(tmp_path, local=local, num_parallel=8, precise=True) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        alone = [await ask(live, number) for number in range(4)]
        together = await asyncio.gather(*(ask(live, number % 4) for number in range(32)))
    assert together == alone * 8


@pytest.mark.parametrize("local", [False, True])
async def test_a_client_that_leaves_frees_its_slot_in_the_engine(tmp_path, local):
    endless = {"num_ctx": 1024, "temperature": 2.0}  # up to ten times the context
    async with running_server(tmp_path, local=local, num_parallel=1) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        path, body = NATIVE
        await request_and_leave(live, path, body | {"options": endless}, wait_for=b'"done":false')
        (model,) = live.models.loaded()
        with anyio.fail_after(5):
            while model.runner.stats.finished == 0:
                await anyio.lowlevel.checkpoint()
        answer = await live.http.post(path, json=body | {"options": {"num_predict": 2}, "stream": False})
    assert answer.json()["done"]


async def test_a_runner_that_dies_ends_its_streams_with_an_error_and_the_next_request_works(tmp_path):
    body = NATIVE[1] | {"options": {"num_ctx": 1024, "temperature": 2.0}}

    async def read_on(answer):
        return [json.loads(line) async for line in answer]

    async with running_server(tmp_path, local=True) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        async with live.http.stream("POST", "/api/chat", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            (model,) = live.models.loaded()
            os.kill(model.runner.pid, signal.SIGKILL)
            *_, last = await read_on(lines)
        assert "its process was ended by SIGKILL" in last["error"]
        assert (await live.http.get("/api/ps")).json()["models"] == []
        again = await live.http.post("/api/chat", json=body | {"options": {"num_predict": 2}, "stream": False})
        assert again.json()["done"]
        (listed,) = (await live.http.get("/api/ps")).json()["models"]
        assert listed["size"] > 0


async def test_no_request_touches_the_disk_on_the_event_loop(tmp_path):
    loop_thread, armed, touched = threading.get_ident(), False, []

    def watch(event, arguments):
        watched = event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir")
        if armed and watched and threading.get_ident() == loop_thread:
            touched.append((event, arguments))

    async def ask_everything(live):
        await live.http.post("/api/create", json={"model": "made", "from": "demo", "system": "S"})
        for method, path, body in [
            ("GET", "/api/tags", None),
            ("POST", "/api/show", {"model": "demo"}),
            ("POST", "/api/copy", {"source": "demo", "destination": "other"}),
            ("POST", "/api/generate", {"model": "demo", "prompt": "Hi", "options": {"num_predict": 2}}),
            ("POST", "/api/chat", NATIVE[1] | {"options": {"num_predict": 2}}),
            ("GET", "/api/ps", None),
            ("GET", "/v1/models", None),
            ("GET", "/v1/models/demo", None),
            ("POST", "/v1/chat/completions", OPENAI[1] | {"max_tokens": 2}),
            ("POST", "/v1/completions", {"model": "demo", "prompt": "Hi", "max_tokens": 2}),
            ("POST", f"/api/blobs/{DIGEST}", None),
            ("POST", "/api/generate", {"model": "demo", "keep_alive": 0}),
            ("DELETE", "/api/delete", {"model": "other"}),
        ]:
            answer = await live.http.request(method, path, json=body)
            assert answer.status_code == 200, answer.text

    sys.addaudithook(watch)  # cannot be taken away again, only disarmed
    async with running_server(tmp_path) as live:
        await make_model(live.store, "demo")
        await ask_everything(live)  # the first time, modules are imported
        armed = True
        await ask_everything(live)
        armed = False
    assert not touched
