"""Pictures from the client's request to the reply: unmodified clients, the real engine, and the reference's words."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from functools import partial

import anyio.to_thread
import msgspec
import ollama
import openai
import pytest

from puna.core.tensor.weights import open_weights
from puna.store import CreateRequest
from puna.text.tokenizers import open_tokenizer

from .serving import FIXTURES, running_server, upload

pytestmark = pytest.mark.asyncio

MODELS = ["gemma3-vl", "llama4-scout", "mistral3", "qwen2.5-vl"]
GREEDY = {"temperature": 0, "num_predict": 16}


def case(name: str, which: str) -> dict:
    cases = json.loads((FIXTURES / name / "cases.json").read_text())["multimodal"]
    return next(case for case in cases if case["name"] == which)


def image(name: str, file: str) -> bytes:
    return (FIXTURES / name / "images" / f"{file}.png").read_bytes()


def words(name: str, tokens: list[int]) -> str:
    """What the reference says, up to the end of its reply."""
    with closing(open_weights(FIXTURES / name / "hf")) as source:
        tokenizer = open_tokenizer(source)
    ends = [at for at, token in enumerate(tokens) if token in tokenizer.stop_ids]
    detokenizer = tokenizer.detokenizer([1])
    return "".join(map(detokenizer.push, tokens[: min(ends, default=len(tokens))])) + detokenizer.flush()


async def add(live, name: str) -> None:
    files = {path.name: await upload(live.store, path) for path in (FIXTURES / name / "hf").iterdir()}
    request = msgspec.convert({"model": "demo", "files": files}, CreateRequest)
    await anyio.to_thread.run_sync(lambda: list(live.store.create(request)))


@pytest.mark.parametrize("name", MODELS)
async def test_ollamas_client_gets_the_references_words_about_a_picture(tmp_path, name):
    asked = case(name, "one")
    message = {"role": "user", "content": asked["messages"][0]["content"][1]["text"]}

    def session(url):
        with ollama.Client(host=url, trust_env=False) as client:
            sent = message | {"images": [image(name, asked["images"][0])]}
            reply = client.chat("demo", [sent], options=GREEDY)
            return client.show("demo").capabilities, reply

    async with running_server(tmp_path, precise=True) as live:
        await add(live, name)
        capabilities, reply = await anyio.to_thread.run_sync(session, live.url)
    assert "vision" in capabilities
    assert reply.prompt_eval_count == len(asked["ids"])
    assert reply.message.content == words(name, asked["greedy"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("which", ["two", "text-image-text"])
async def test_openais_client_gets_the_references_words_about_pictures_between_texts(tmp_path, name, which):
    asked = case(name, which)
    files = iter(asked["images"])

    def part(part: dict) -> dict:
        if part["type"] == "text":
            return part
        url = "data:image/png;base64," + base64.b64encode(image(name, next(files))).decode()
        return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}

    messages = [message | {"content": [part(item) for item in message["content"]]} for message in asked["messages"]]

    def session(url):
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key="x", http_client=openai.DefaultHttpxClient(trust_env=False)
        ) as c:
            return c.chat.completions.create(model="demo", messages=messages, temperature=0, max_tokens=16)

    async with running_server(tmp_path, precise=True) as live:
        await add(live, name)
        reply = await anyio.to_thread.run_sync(session, live.url)
    assert reply.usage.prompt_tokens == len(asked["ids"])
    assert reply.choices[0].message.content == words(name, asked["greedy"])


@pytest.mark.parametrize("name", MODELS)
async def test_a_process_of_its_own_sees_too_and_refuses_what_is_no_picture(tmp_path, name):
    asked = case(name, "one")
    body = {"model": "demo", "prompt": "What?", "stream": False, "options": GREEDY}
    async with running_server(tmp_path, local=True) as live:
        await add(live, name)
        post = partial(live.http.post, "/api/generate")
        data = [base64.b64encode(file).decode() for file in (image(name, asked["images"][0]), b"nothing", b"\x89PNG")]
        answers = [await post(json=body | {"images": [text]}) for text in data]
    assert [answer.status_code for answer in answers] == [200, 400, 400], [answer.text for answer in answers]
    assert answers[1].json()["error"].startswith("an image is damaged, or in no format that is read: PNG, JPEG, WEBP")
