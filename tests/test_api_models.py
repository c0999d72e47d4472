"""Listing, showing, copying, deleting and making models over HTTP."""

import json
from datetime import datetime

import anyio
import pytest

from puna import __version__
from puna.store import digest_of

from .serving import GGUF, ScriptedRunner, make_model, running_server

pytestmark = pytest.mark.asyncio

DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "189K",
    "quantization_level": "F32",
}
DIGEST = str(digest_of(GGUF))
NOWHERE = "sha256:" + "0" * 64


async def test_the_root_says_what_clients_look_for(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        answer = await live.http.get("/")
        assert (answer.status_code, answer.text) == (200, "Ollama is running")
        head = await live.http.head("/")
        assert (head.status_code, head.content) == (200, b"")


async def test_the_version_is_that_of_the_interface_beside_the_packages(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        assert (await live.http.get("/api/version")).json() == {"version": "0.7.0", "puna": __version__}


async def test_a_path_or_a_method_that_does_not_exist_is_told_in_plain_text(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        missing, wrong = await live.http.get("/api/nothing"), await live.http.get("/api/chat")
    assert (missing.status_code, missing.text) == (404, "404 page not found")
    assert (wrong.status_code, wrong.text) == (405, "405 method not allowed")
    assert missing.headers["content-type"].startswith("text/plain")


async def test_origins_and_hosts_are_checked_before_anything_else(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        for headers in ({"Origin": "https://example.com"}, {"Host": "example.com"}):
            for path in ("/", "/api/tags", "/nothing"):
                answer = await live.http.get(path, headers=headers)
                assert (answer.status_code, answer.content) == (403, b"")


async def test_tags_lists_models_with_the_last_change_first(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        assert (await live.http.get("/api/tags")).json() == {"models": []}
        await make_model(live.store, "first")
        await make_model(live.store, "someone/second:v2")
        models = (await live.http.get("/api/tags")).json()["models"]
    assert [(model["name"], model["model"]) for model in models] == [
        ("someone/second:v2", "someone/second:v2"),
        ("first:latest", "first:latest"),
    ]
    assert models[0]["details"] == DETAILS
    assert len(models[0]["digest"]) == 64
    assert models[0]["size"] > GGUF.stat().st_size
    assert datetime.fromisoformat(models[0]["modified_at"]).tzinfo is not None


async def test_ps_lists_what_is_loaded_and_the_longest_stay_first(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        assert (await live.http.get("/api/ps")).json() == {"models": []}
        await make_model(live.store, "demo")
        await live.http.post("/api/generate", json={"model": "demo", "keep_alive": -1})
        (model,) = (await live.http.get("/api/ps")).json()["models"]
    assert (model["name"], model["size"], model["size_vram"], model["context_length"]) == ("demo:latest", 1234, 0, 1024)
    assert model["details"] == DETAILS
    assert datetime.fromisoformat(model["expires_at"]).year - datetime.now().year in (291, 292, 293)


async def test_ps_lists_a_model_in_memory_whose_name_was_deleted(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        await live.http.post("/api/generate", json={"model": "demo"})
        await live.http.request("DELETE", "/api/delete", json={"model": "demo"})
        (model,) = (await live.http.get("/api/ps")).json()["models"]
    assert (model["name"], model["size"], model["details"]["family"]) == ("demo:latest", 1234, "scripted")
    assert model["digest"] == digest_of(GGUF).hex


async def test_show_tells_all(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        template = "{{ .Suffix }}{{ .Prompt }}"
        messages = [{"role": "user", "content": "Q"}]
        parameters = {"stop": ["END"], "top_k": 3}
        await make_model(
            live.store,
            "demo",
            template=template,
            system="Be brief.",
            license="MIT",
            parameters=parameters,
            messages=messages,
        )
        card = (await live.http.post("/api/show", json={"model": "", "name": "Demo"})).json()
        verbose = (await live.http.post("/api/show", json={"model": "demo", "verbose": True})).json()
    assert (card["template"], card["system"], card["license"]) == (template, "Be brief.", "MIT")
    assert (card["details"], card["messages"]) == (DETAILS, messages)
    assert sorted(card["parameters"].split()) == sorted(["stop", '"END"', "top_k", "3"])
    assert card["modelfile"].splitlines()[2] == "# FROM demo:latest"
    assert card["capabilities"] == ["completion", "insert"]
    info = card["model_info"]
    assert (info["general.architecture"], info["llama.context_length"]) == ("llama", 1024)
    assert info["general.parameter_count"] == 189_384
    assert info["tokenizer.ggml.tokens"] is None
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == 419
    embedding = next(tensor for tensor in card["tensors"] if tensor["name"] == "token_embd.weight")
    assert embedding == {"name": "token_embd.weight", "type": "F32", "shape": [64, 419]}
    assert "projector_info" not in card


async def test_a_template_for_tools_does_not_promise_what_the_server_cannot_do(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo", template="{{ .Tools }}{{ .Prompt }}")
        assert (await live.http.post("/api/show", json={"model": "demo"})).json()["capabilities"] == ["completion"]


async def test_a_model_with_a_broken_template_can_be_shown_but_not_asked(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo", template="{{ if }")
        card = (await live.http.post("/api/show", json={"model": "demo"})).json()
        answer = await live.http.post("/api/generate", json={"model": "demo", "prompt": "Hi"})
    assert (card["template"], card["capabilities"]) == ("{{ if }", [])
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("demo:latest: template error: ")


async def test_copy_and_delete(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        copied = await live.http.post("/api/copy", json={"source": "demo", "destination": "other"})
        assert (copied.status_code, copied.content) == (200, b"")
        deleted = await live.http.request("DELETE", "/api/delete", json={"name": "demo"})
        assert (deleted.status_code, deleted.content) == (200, b"")
        assert [model.name.short for model in live.store.list()] == ["other:latest"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/api/show", {}, 400, "model is required"),
        ("POST", "/api/show", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("POST", "/api/show", {"model": "a b"}, 400, "invalid model name"),
        ("POST", "/api/copy", {"source": "", "destination": "x"}, 400, 'source "" is invalid'),
        ("POST", "/api/copy", {"source": "x", "destination": "/"}, 400, 'destination "/" is invalid'),
        ("POST", "/api/copy", {"source": "x", "destination": "y"}, 404, 'model "x" not found'),
        ("DELETE", "/api/delete", {"model": "a b"}, 400, 'name "a b" is invalid'),
        ("DELETE", "/api/delete", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("POST", "/api/create", {"model": "a b", "from": "x"}, 400, "invalid model name"),
        ("POST", "/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("POST", "/api/create", {"model": "x", "from": "nobody"}, 404, "model 'nobody' not found"),
        ("POST", "/api/create", {"model": "x", "files": {"../a.gguf": DIGEST}}, 400, "file path must be relative"),
        ("POST", "/api/create", {"model": "x", "files": {"a.gguf": "sha256:1"}}, 400, "invalid digest format"),
        ("POST", "/api/create", {"model": "x", "from": "x", "info": {"a": 1}}, 400, None),
        ("POST", "/api/create", {"model": "x", "from": "x", "quantization": "q8_0"}, 400, None),
        ("POST", "/api/create", {"model": "x", "from": "x", "template": "{{ if }"}, 400, None),
        ("POST", "/api/create", {"model": "x", "from": "x", "parameters": {"no": 1}}, 400, "unknown parameter 'no'"),
        ("POST", "/api/blobs/sha256:12", {}, 400, "invalid digest format"),
        ("GET", "/v1/models/nobody", None, 404, None),
    ],
)  # fmt: skip
async def test_mistakes_are_named(tmp_path, method, path, body, status, error):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        answer = await live.http.request(method, path, json=body)
    assert answer.status_code == status
    assert error is None or answer.json() == {"error": error}
    assert answer.json()["error"]


async def test_a_template_error_says_that_it_is_one(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        answer = await live.http.post("/api/create", json={"model": "x", "from": "demo", "template": "{{ if }"})
    assert answer.json()["error"].startswith("template error: ")


async def test_a_blob_is_uploaded_once_and_checked(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        assert (await live.http.head(f"/api/blobs/{DIGEST}")).status_code == 404
        wrong = await live.http.post(f"/api/blobs/{NOWHERE}", content=GGUF.read_bytes())
        assert wrong.status_code == 400
        assert wrong.json()["error"] == f'digest mismatch, expected "{NOWHERE}", got "{DIGEST}"'
        assert (await live.http.post(f"/api/blobs/{DIGEST}", content=GGUF.read_bytes())).status_code == 201
        assert (await live.http.post(f"/api/blobs/{DIGEST}", content=GGUF.read_bytes())).status_code == 200
        head = await live.http.head(f"/api/blobs/{DIGEST.replace(':', '-')}")
        assert (head.status_code, head.content) == (200, b"")


async def test_an_upload_of_what_is_there_is_answered_without_being_read(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await live.http.post(f"/api/blobs/{DIGEST}", content=GGUF.read_bytes())

        async def endless():
            while True:
                yield bytes(1 << 16)

        port = int(live.url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            head = f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n\r\n"
            await stream.send(head.encode())
            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:

                    async def upload():
                        try:
                            async for piece in endless():
                                await stream.send(piece)
                        except anyio.BrokenResourceError:
                            pass  # the server has answered and hung up

                    tasks.start_soon(upload)
                    answer = await stream.receive()
                    tasks.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 200")
        assert (await live.http.get("/")).status_code == 200


async def test_create_tells_of_each_step(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await live.http.post(f"/api/blobs/{DIGEST}", content=GGUF.read_bytes())
        body = {"name": "made", "files": {"m.gguf": DIGEST}, "system": "S", "stream": True}
        answer = await live.http.post("/api/create", json=body)
        steps = [json.loads(line)["status"] for line in answer.text.splitlines()]
        last = await live.http.post("/api/create", json={"model": "again", "from": "made", "stream": False})
        assert live.store.open("again").system == "S"
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert steps[0] == "parsing GGUF" and steps[-2:] == ["writing manifest", "success"]
    assert f"using existing layer {DIGEST}" in steps
    assert last.json() == {"status": "success"}


async def test_openai_lists_models(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "someone/demo")
        listed = (await live.http.get("/v1/models")).json()
        one = (await live.http.get("/v1/models/Someone/Demo")).json()
    (entry,) = listed["data"]
    assert (listed["object"], entry["id"], entry["owned_by"]) == ("list", "someone/demo:latest", "someone")
    assert one == entry | {"id": "Someone/Demo"}
    assert isinstance(entry["created"], int)
