"""Unmodified client libraries against a live server and the real engine."""

import asyncio
import functools
import json

import anyio.to_thread
import jsonschema
import ollama
import openai
import pytest

from puna.store import digest_of

from .serving import CHECKPOINT, GGUF, make_model, running_server

pytestmark = pytest.mark.asyncio

DIGEST = str(digest_of(GGUF))
GREEDY = {"temperature": 0, "num_predict": 8, "num_ctx": 128}
HI = [{"role": "user", "content": "The cat and the dog"}]


async def with_ollama(live, session):
    """Return what session does with a synchronous client, in a thread where it does not hold up the server."""

    def run():
        with ollama.Client(host=live.url, trust_env=False) as client:
            return session(client)

    return await anyio.to_thread.run_sync(run)


async def test_ollama_chats_and_generates_streaming_or_not(tmp_path):
    def session(client):
        chat = client.chat("demo", HI, options=GREEDY)
        streamed = list(client.chat("demo", HI, options=GREEDY, stream=True))
        generated = client.generate("demo", "The cat", options=GREEDY)
        more = client.generate("demo", " and", options=GREEDY, context=generated.context)
        pieces = list(client.generate("demo", "The cat", options=GREEDY, stream=True, logprobs=True, top_logprobs=2))
        return chat, streamed, generated, more, pieces

    async with running_server(tmp_path) as live:
        await make_model(live.store, "demo")
        chat, streamed, generated, more, pieces = await with_ollama(live, session)
    assert (chat.message.role, chat.done, chat.model) == ("assistant", True, "demo")
    assert 0 < chat.eval_count <= 8 and chat.total_duration > chat.load_duration > 0
    assert "".join(chunk.message.content for chunk in streamed) == chat.message.content
    assert streamed[-1].done_reason == chat.done_reason == "length"
    assert len(generated.context) > 8 and generated.context == pieces[-1].context
    assert "".join(piece.response for piece in pieces) == generated.response
    assert more.prompt_eval_count > generated.prompt_eval_count
    first = pieces[0].logprobs[0]
    assert first.logprob == pytest.approx(first.top_logprobs[0].logprob)
    assert first.logprob > first.top_logprobs[1].logprob


async def test_ollamas_async_client_streams(tmp_path):
    async with running_server(tmp_path) as live:
        await make_model(live.store, "demo")
        async with ollama.AsyncClient(host=live.url, trust_env=False) as client:
            chunks = [chunk async for chunk in await client.chat("demo", HI, options=GREEDY, stream=True)]
            listed = await client.list()
    assert chunks[-1].done and len(chunks) > 1
    assert [model.model for model in listed.models] == ["demo:latest"]


async def test_ollama_makes_models_from_uploaded_files(tmp_path):
    def session(client):
        digest = client.create_blob(GGUF)
        assert digest == DIGEST
        steps = [
            step.status for step in client.create("made", files={"m.gguf": digest}, system="Be brief.", stream=True)
        ]
        files = {path.name: client.create_blob(path) for path in CHECKPOINT.iterdir()}
        assert client.create("checkpoint", files=files, parameters={"temperature": 0}).status == "success"
        replies = [client.generate(name, "The cat", options=GREEDY).response for name in ("made", "checkpoint")]
        return steps, client.show("made"), client.show("checkpoint"), replies

    async with running_server(tmp_path, precise=True) as live:
        steps, made, checkpoint, replies = await with_ollama(live, session)
    assert steps[-1] == "success"
    assert made.modelinfo["general.architecture"] == checkpoint.modelinfo["general.architecture"] == "llama"
    assert (made.capabilities, checkpoint.parameters.split()) == (["completion"], ["temperature", "0"])
    assert (made.details.format, checkpoint.details.format) == ("gguf", "safetensors")
    assert all(replies)


async def test_ollama_lists_copies_deletes_and_sees_what_is_loaded(tmp_path):
    def session(client):
        client.copy("demo", "other")
        names = {model.model for model in client.list().models}
        client.generate("demo", keep_alive="10m")
        loaded = client.ps().models
        client.generate("demo", keep_alive=0)
        client.delete("other")
        return names, loaded, client.ps().models, client.list().models

    async with running_server(tmp_path) as live:
        await make_model(live.store, "demo")
        names, loaded, unloaded, left = await with_ollama(live, session)
    assert names == {"demo:latest", "other:latest"}
    assert [model.model for model in loaded] == ["demo:latest"]
    assert loaded[0].size > 0 and loaded[0].expires_at.tzinfo is not None
    assert (list(unloaded), [model.model for model in left]) == ([], ["demo:latest"])


async def test_ollama_raises_the_servers_words_and_status(tmp_path):
    def session(client):
        with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as missing:
            client.chat("nobody", HI)
        with pytest.raises(ollama.ResponseError, match="does not support tools") as refused:
            list(client.chat("demo", HI, tools=[session], stream=True))
        return missing.value.status_code, refused.value.status_code

    async with running_server(tmp_path) as live:
        await make_model(live.store, "demo")
        assert await with_ollama(live, session) == (404, 400)


def openai_client(live):
    return openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


async def test_openai_chats_streaming_or_not(tmp_path):
    async with running_server(tmp_path) as live, openai_client(live) as client:
        await make_model(live.store, "demo")
        ask = functools.partial(client.chat.completions.create, model="demo", messages=HI, temperature=0)
        whole = await ask(max_completion_tokens=8, logprobs=True, top_logprobs=2)
        stream = await ask(max_tokens=8, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 8 == len(whole.choices[0].logprobs.content)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
    assert (chunks[-2].choices[0].finish_reason, chunks[-1].usage) == ("length", whole.usage)


async def test_openai_completes(tmp_path):
    async with running_server(tmp_path) as live, openai_client(live) as client:
        await make_model(live.store, "demo")
        ask = functools.partial(
            client.completions.create, model="demo", prompt="The cat", temperature=0, max_tokens=6, seed=1
        )
        whole = await ask(logprobs=1)
        chunks = [chunk async for chunk in await ask(stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(whole.choices[0].logprobs.tokens) == 6


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


async def test_ollama_gets_a_reply_in_the_format_it_asks_for(tmp_path):
    def session(client):
        wild = {"temperature": 1, "num_ctx": 512, "num_predict": 400}
        with pytest.raises(ollama.ResponseError, match="uniqueItems is not supported, at #/items") as refused:
            client.chat("demo", HI, format={"type": "array", "items": {"uniqueItems": True}}, stream=False)
        chats = [client.chat("demo", HI, format=PERSON, options=wild | {"seed": seed}) for seed in range(3)]
        return refused.value.status_code, chats, client.generate("demo", "The cat", format={"const": {}}, options=wild)

    async with running_server(tmp_path) as live:
        await make_model(live.store, "demo")
        status, chats, generated = await with_ollama(live, session)
    assert status == 400
    for chat in chats:
        assert chat.done_reason == "stop"
        jsonschema.validate(json.loads(chat.message.content), PERSON)
    assert json.loads(generated.response) == {}


async def test_openai_gets_a_reply_in_the_format_it_asks_for(tmp_path):
    async with running_server(tmp_path) as live, openai_client(live) as client:
        await make_model(live.store, "demo")
        ask = functools.partial(client.chat.completions.create, model="demo", messages=HI, max_tokens=400, seed=3)
        named = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
        whole = await ask(response_format=named)
        chunks = [chunk async for chunk in await ask(response_format=named, stream=True)]
        cut = await ask(response_format={"type": "json_object"}, max_tokens=2)
        refusing = named | {"json_schema": {"name": "x", "schema": {"not": {}}}}
        with pytest.raises(openai.BadRequestError, match="not is not supported, at #"):
            await ask(response_format=refusing)
    jsonschema.validate(json.loads(whole.choices[0].message.content), PERSON)
    assert (whole.choices[0].finish_reason, cut.choices[0].finish_reason) == ("stop", "length")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content


async def test_openai_lists_models_and_raises_typed_errors(tmp_path):
    async with running_server(tmp_path) as live, openai_client(live) as client:
        await make_model(live.store, "demo")
        models = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("demo")
        with pytest.raises(openai.NotFoundError, match="model 'nobody' not found"):
            await client.chat.completions.create(model="nobody", messages=HI)
        with pytest.raises(openai.BadRequestError, match="does not support tools"):
            await client.chat.completions.create(
                model="demo", messages=HI, tools=[{"type": "function", "function": {"name": "f"}}]
            )
    assert (models, one.id, one.owned_by) == (["demo:latest"], "demo", "library")


async def test_every_client_sees_the_same_reply(tmp_path):
    """Greedy replies do not depend on the API or on what else is running."""
    async with running_server(tmp_path, precise=True) as live, openai_client(live) as client:
        await make_model(live.store, "demo")

        async def through_openai():
            answer = await client.chat.completions.create(model="demo", messages=HI, temperature=0, max_tokens=8)
            return answer.choices[0].message.content

        async def through_ollama():
            body = {"model": "demo", "messages": HI, "options": {"temperature": 0, "num_predict": 8}}
            answer = await live.http.post("/api/chat", json=body)
            return "".join(json.loads(line)["message"]["content"] for line in answer.text.splitlines())

        replies = await asyncio.gather(*(ask() for ask in [through_openai, through_ollama] * 4))
    assert len(set(replies)) == 1
