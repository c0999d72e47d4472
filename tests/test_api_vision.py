"""Pictures over HTTP, with real models: the reference's replies, and second turns that compute only what is new."""

import base64

import pytest

from puna.core.tensor.weights import open_weights
from puna.text.tokenizers import open_tokenizer

from .reference import FIXTURES, cases
from .serving import running_server, upload

pytestmark = pytest.mark.asyncio

FAMILIES = ["gemma3-vl", "llama4-scout", "mistral3", "qwen2.5-vl"]
FILES = {
    "checkpoint": lambda folder: {file.name: file for file in sorted((folder / "hf").iterdir())},
    "pair": lambda folder: {file.name: file for file in sorted((folder / "gguf").glob("*.gguf"))},
}


def talks_of(family, kind):
    """Return the conversations; for GGUF files those that the reference held with the sizes that these give."""
    known = cases(family)
    return (known.get("gguf", known) if kind == "pair" else known)["multimodal"]


async def created(live, family, kind):
    """Make a model of a fixture's files, and return its name."""
    digests = {file: await upload(live.store, path) for file, path in FILES[kind](FIXTURES / family).items()}
    name = family.replace(".", "")
    answer = await live.http.post("/api/create", json={"model": name, "files": digests, "stream": False})
    assert answer.json() == {"status": "success"}, answer.text
    return name


def picture(family, name):
    return base64.b64encode((FIXTURES / family / "images" / f"{name}.png").read_bytes()).decode()


def as_openai(family, case):
    """Return the case's messages with its pictures as data URLs."""
    shown = iter(case["images"])
    messages = []
    for message in case["messages"]:
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture(family, next(shown))}"}}
            if part["type"] == "image"
            else part
            for part in message["content"]
        ]
        text = message["role"] == "assistant"
        messages.append({"role": message["role"], "content": parts[0]["text"] if text else parts})
    return messages


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("family", FAMILIES)
async def test_replies_to_pictures_are_the_references(tmp_path, family, kind):
    tokenizer = open_tokenizer(open_weights(FILES[kind](FIXTURES / family)))
    async with running_server(tmp_path, local=True, precise=True) as live:
        name = await created(live, family, kind)
        shown = (await live.http.post("/api/show", json={"model": name})).json()
        assert "vision" in shown["capabilities"]
        for case in talks_of(family, kind):
            body = {"model": name, "messages": as_openai(family, case), "temperature": 0, "max_tokens": 16}
            answer = (await live.http.post("/v1/chat/completions", json=body)).json()
            assert answer["usage"]["prompt_tokens"] == len(case["ids"]), answer
            ends = [at for at, token in enumerate(case["greedy"]) if token in tokenizer.stop_ids]
            said = case["greedy"][: min(ends, default=len(case["greedy"]))]
            assert answer["choices"][0]["message"]["content"] == tokenizer.decode(said)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_second_turn_sees_and_computes_no_picture_again(tmp_path, family):
    async with running_server(tmp_path, precise=True) as live:
        name = await created(live, family, "checkpoint")
        messages = [{"role": "user", "content": "What is it?", "images": [picture(family, "gradient")]}]
        body = {"model": name, "messages": messages, "stream": False, "options": {"temperature": 0, "num_predict": 8}}
        first = (await live.http.post("/api/chat", json=body)).json()
        (runner,) = [resident.runner for resident in live.models.loaded()]
        before = runner.stats
        body["messages"] = [*messages, first["message"], {"role": "user", "content": "And in one word?"}]
        second = (await live.http.post("/api/chat", json=body)).json()
        after = runner.stats
        assert second["done"]
        assert before.images.prepared == before.images.encoded == 1
        assert (after.images.prepared, after.images.encoded) == (1, 1)
        new = after.prompt_tokens - before.prompt_tokens
        assert new <= second["prompt_eval_count"] - first["prompt_eval_count"] + 32
