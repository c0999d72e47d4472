"""Pictures from a client's request to the reply: unmodified clients, real models, and the reference's words."""

from __future__ import annotations

import base64
from contextlib import closing

import anyio.to_thread
import ollama
import openai
import pytest

from puna.core.tensor.weights import open_weights
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES, cases
from .serving import running_server, upload

pytestmark = pytest.mark.asyncio

FAMILIES = ["gemma3-vl", "llama4-scout", "mistral3", "mllama", "qwen2.5-vl", "qwen3-vl"]
FILES = {
    "checkpoint": lambda folder: {file.name: file for file in sorted((folder / "hf").iterdir())},
    "pair": lambda folder: {file.name: file for file in sorted((folder / "gguf").glob("*.gguf"))},
}
SHOWN = [(family, kind) for family in FAMILIES for kind in FILES if FILES[kind](FIXTURES / family)]
GREEDY = {"temperature": 0, "num_predict": 16}


def talks_of(family: str, kind: str) -> list[dict]:
    """Return the conversations; for GGUF files those that the reference held with the sizes that these give."""
    known = cases(family)
    return (known.get("gguf", known) if kind == "pair" else known)["multimodal"]


async def create(live, family: str, kind: str = "checkpoint") -> None:
    """Make the model "demo" of a fixture's files."""
    digests = {file: await upload(live.store, path) for file, path in FILES[kind](FIXTURES / family).items()}
    answer = await live.http.post("/api/create", json={"model": "demo", "files": digests, "stream": False})
    assert answer.json() == {"status": "success"}, answer.text


def case(family: str, name: str) -> dict:
    return next(case for case in cases(family)["multimodal"] if case["name"] == name)


def image(family: str, name: str) -> bytes:
    return (FIXTURES / family / "images" / f"{name}.png").read_bytes()


def base64_of(family: str, name: str) -> str:
    return base64.b64encode(image(family, name)).decode()


def as_openai(family: str, case: dict) -> list[dict]:
    """Return the case's messages with its pictures as data URLs."""
    files = iter(case["images"])

    def part(given: dict) -> dict:
        if given["type"] == "text":
            return given
        url = f"data:image/png;base64,{base64_of(family, next(files))}"
        return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}

    def content(message: dict) -> str | list[dict]:
        parts = [part(given) for given in message["content"]]
        return parts[0]["text"] if message["role"] == "assistant" else parts

    return [message | {"content": content(message)} for message in case["messages"]]


def words(family: str, tokens: list[int], kind: str = "checkpoint") -> str:
    """What the reference says, up to the end of its reply."""
    with closing(open_weights(FILES[kind](FIXTURES / family))) as source:
        tokenizer = open_tokenizer(source)
    ends = [at for at, token in enumerate(tokens) if token in tokenizer.stop_ids]
    detokenizer = tokenizer.detokenizer([1])
    return "".join(map(detokenizer.push, tokens[: min(ends, default=len(tokens))])) + detokenizer.flush()


# ---- the reference's words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), SHOWN)
async def test_replies_to_pictures_are_the_references(tmp_path, family, kind):
    async with running_server(tmp_path, local=True, precise=True) as live:
        await create(live, family, kind)
        shown = (await live.http.post("/api/show", json={"model": "demo"})).json()
        assert "vision" in shown["capabilities"]
        for asked in talks_of(family, kind):
            body = {"model": "demo", "messages": as_openai(family, asked), "temperature": 0, "max_tokens": 16}
            answer = (await live.http.post("/v1/chat/completions", json=body)).json()
            assert answer["usage"]["prompt_tokens"] == len(asked["ids"]), answer
            assert answer["choices"][0]["message"]["content"] == words(family, asked["greedy"], kind)


@pytest.mark.parametrize("family", FAMILIES)
async def test_ollamas_client_gets_the_references_words_about_a_picture(tmp_path, family):
    asked = case(family, "one")
    message = {"role": "user", "content": asked["messages"][0]["content"][1]["text"]}

    def session(url):
        with ollama.Client(host=url, trust_env=False) as client:
            sent = message | {"images": [image(family, asked["images"][0])]}
            reply = client.chat("demo", [sent], options=GREEDY)
            return client.show("demo").capabilities, reply

    async with running_server(tmp_path, precise=True) as live:
        await create(live, family)
        capabilities, reply = await anyio.to_thread.run_sync(session, live.url)
    assert "vision" in capabilities
    assert reply.prompt_eval_count == len(asked["ids"])
    assert reply.message.content == words(family, asked["greedy"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["two", "text-image-text"])
async def test_openais_client_gets_the_references_words_about_pictures_between_texts(tmp_path, family, name):
    asked = case(family, name)

    def session(url):
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key="x", http_client=openai.DefaultHttpxClient(trust_env=False)
        ) as client:
            return client.chat.completions.create(
                model="demo", messages=as_openai(family, asked), temperature=0, max_tokens=16
            )

    async with running_server(tmp_path, precise=True) as live:
        await create(live, family)
        reply = await anyio.to_thread.run_sync(session, live.url)
    assert reply.usage.prompt_tokens == len(asked["ids"])
    assert reply.choices[0].message.content == words(family, asked["greedy"])


# ---- what is computed, and what is refused ---------------------------------------------------------------------------


def figures(live) -> tuple[int, ...]:
    """How many pictures were unknown, known, decoded and encoded."""
    (resident,) = live.models.loaded()
    found = resident.runner.stats.images
    return found.misses, found.hits, found.prepared, found.encoded


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_second_turn_sees_and_computes_no_picture_again(tmp_path, family):
    async with running_server(tmp_path, precise=True) as live:
        await create(live, family)
        messages = [{"role": "user", "content": "What is it?", "images": [base64_of(family, "gradient")]}]
        body = {"model": "demo", "messages": messages, "stream": False, "options": GREEDY | {"num_predict": 8}}
        first = (await live.http.post("/api/chat", json=body)).json()
        (runner,) = [resident.runner for resident in live.models.loaded()]
        before = runner.stats
        assert figures(live) == (1, 0, 1, 1)
        body["messages"] = [*messages, first["message"], {"role": "user", "content": "And in one word?"}]
        second = (await live.http.post("/api/chat", json=body)).json()
        assert second["done"]
        assert figures(live) == (1, 1, 1, 1)
        new = runner.stats.prompt_tokens - before.prompt_tokens
        assert new <= second["prompt_eval_count"] - first["prompt_eval_count"] + 32


@pytest.mark.parametrize("family", FAMILIES)
async def test_what_one_client_has_shown_is_neither_decoded_nor_encoded_nor_read_again_for_another(tmp_path, family):
    seen, same, new = base64_of(family, "gradient"), "What is it, and what is it made of?", "Which colours are there?"
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{seen}"}}

    def session(address):
        with openai.OpenAI(
            base_url=f"{address}/v1", api_key="other", http_client=openai.DefaultHttpxClient(trust_env=False)
        ) as client:
            for text in (same, new):
                messages = [{"role": "user", "content": [url, {"type": "text", "text": text}]}]
                yield client.chat.completions.create(model="demo", messages=messages, temperature=0, max_tokens=8)

    async with running_server(tmp_path, precise=True) as live:
        await create(live, family)
        body = {"model": "demo", "messages": [{"role": "user", "content": same, "images": [seen]}], "stream": False}
        first = (await live.http.post("/api/chat", json=body | {"options": GREEDY | {"num_predict": 8}})).json()
        again, _ = await anyio.to_thread.run_sync(lambda: list(session(live.url)))
        assert figures(live) == (1, 2, 1, 1)
    assert again.choices[0].message.content == first["message"]["content"]
    assert again.usage.prompt_tokens == first["prompt_eval_count"]
    whole_blocks = (again.usage.prompt_tokens - 1) // 32 * 32
    assert again.usage.prompt_tokens_details.cached_tokens == whole_blocks > 0


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_picture_is_decoded_once_for_a_request_even_where_none_is_kept(tmp_path, family):
    async with running_server(tmp_path, image_cache=0) as live:
        await create(live, family)
        message = {"role": "user", "content": "What is it?", "images": [base64_of(family, "alpha")]}
        body = {"model": "demo", "messages": [message], "stream": False, "options": GREEDY}
        assert (await live.http.post("/api/chat", json=body)).json()["done"]
        assert figures(live) == (1, 0, 1, 1)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_process_of_its_own_sees_too_and_refuses_what_is_no_picture(tmp_path, family):
    files = [image(family, "gradient"), b"nothing", b"\x89PNG"]
    async with running_server(tmp_path, local=True) as live:
        await create(live, family)
        body = {"model": "demo", "prompt": "What?", "stream": False, "options": GREEDY}
        answers = [
            await live.http.post("/api/generate", json=body | {"images": [base64.b64encode(file).decode()]})
            for file in files
        ]
    assert [answer.status_code for answer in answers] == [200, 400, 400], [answer.text for answer in answers]
    assert answers[1].json()["error"].startswith("an image is damaged, or in no format that is read: PNG, JPEG, WEBP")
