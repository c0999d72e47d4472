"""POST /api/generate against a live server whose runner is scripted."""

import json
import time

import pytest

from puna.core.errors import Busy, ContextTooLong, RunnerDied
from puna.core.scheduler.engine import BROKEN

from .serving import ScriptedRunner, make_model, running_server

pytestmark = pytest.mark.asyncio

TEMPLATE = (
    "{{ if .Suffix }}<pre>{{ .Prompt }}<suf>{{ .Suffix }}<mid>{{ else }}"
    "{{ range .Messages }}[{{ .Role }}]{{ .Content }}{{ end }}[assistant]{{ end }}"
)


def lines(answer):
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n") and "\n\n" not in answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def generate(live, **body):
    return await live.http.post("/api/generate", json={"model": "demo", "stream": False} | body)


async def test_a_stream_has_a_line_for_each_piece_and_ends_with_the_metrics(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        answer = await live.http.post("/api/generate", json={"model": "Demo", "prompt": "Hi"})
    *pieces, last = lines(answer)
    assert [(line["model"], line["response"], line["done"]) for line in pieces] == [
        ("Demo", word, False) for word in ("Hello", " there", ".")
    ]
    assert all(set(line) == {"model", "created_at", "response", "done"} for line in pieces)
    prompt = "[user]Hi[assistant]"
    assert last["context"] == [ord(letter) for letter in prompt + "Hello there."]
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "stop")
    assert (last["prompt_eval_count"], last["prompt_eval_duration"]) == (len(prompt), 5)
    assert (last["eval_count"], last["eval_duration"]) == (3, 7)
    assert 0 < last["load_duration"] < last["total_duration"]


async def test_a_single_answer_holds_everything(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(reason="length")) as live:
        await make_model(live.store, "demo")
        answer = await generate(live, prompt="Hi", stream=False)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert int(answer.headers["content-length"]) == len(answer.content)
    fields = answer.json()
    assert (fields["response"], fields["done"], fields["done_reason"]) == ("Hello there.", True, "length")


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "Hi"}, "[system]Be brief.[user]Q[assistant]A[user]Hi[assistant]"),
        ({"prompt": "Hi", "system": "Rhyme."}, "[system]Rhyme.[user]Q[assistant]A[user]Hi[assistant]"),
        ({"prompt": "Hi", "raw": True}, "Hi"),
        ({"prompt": "a", "suffix": "z"}, "<pre>a<suf>z<mid>"),
        ({"prompt": "Hi", "template": "{{ .System }}|{{ .Prompt }}|"}, None),
        ({"prompt": "Hi", "context": [79, 75]}, "OK[system]Be brief.[user]Hi[assistant]"),
    ],
)
async def test_the_prompt_is_what_template_system_messages_and_context_make_it(tmp_path, fields, prompt):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        await make_model(live.store, "demo", template=TEMPLATE, system="Be brief.", messages=messages)
        answer = (await generate(live, **fields)).json()
    assert answer["done"]
    if prompt is None:
        assert runner.prompt.startswith("Be brief.|Q|") and runner.prompt.endswith("|Hi|")
    else:
        assert runner.prompt == prompt
    assert ("context" in answer) == ("raw" not in fields)


async def test_a_continued_prompt_begins_with_one_start_token_though_its_template_writes_one(tmp_path):
    async with running_server(tmp_path, precise=True) as live:
        await make_model(live.store, "demo")
        first = (await generate(live, prompt="Hi", options={"num_predict": 1, "temperature": 0})).json()
        shown = (await generate(live, prompt="And?", context=first["context"], _debug_render_only=True)).json()
    prompt = shown["_debug_info"]["rendered_template"]
    assert prompt.startswith("<|begin_of_text|>") and prompt.count("<|begin_of_text|>") == 1
    assert prompt.count("<|start_header_id|>user") == 2


async def test_options_come_from_defaults_then_the_model_then_the_request(tmp_path):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner, context_length=100) as live:
        await make_model(live.store, "demo", parameters={"temperature": 0.1, "top_k": 5, "stop": ["END"]})
        options = {"top_k": 7, "seed": 3, "num_predict": 9, "num_ctx": 64, "num_keep": -1, "unknown": 1, "min_p": None}
        await generate(live, prompt="Hi", raw=True, options=options)
        await generate(live, prompt="Hi", raw=True, options={"num_predict": -2, "num_ctx": 5000}, shift=False)
        await generate(live, prompt="Hi", raw=True, options={"num_predict": 0, "num_keep": 500}, truncate=False)
    first, second, third = runner.seen
    assert (first.sampling.temperature, first.sampling.top_k, first.sampling.seed) == (0.1, 7, 3)
    assert (first.stop, first.max_tokens, first.num_ctx, first.num_keep) == (["END"], 9, 64, 2)
    assert (first.truncate, first.shift, first.logprobs) == (True, True, None)
    assert (second.num_ctx, second.max_tokens, second.shift) == (1024, 10240, False)
    assert (third.num_ctx, third.max_tokens, third.num_keep, third.truncate) == (100, 1000, 99, False)


async def test_keys_match_in_any_case_and_null_is_a_default(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        body = b'{"MODEL": "demo", "Prompt": "Hi", "STREAM": null, "format": ""} '
        answer = await live.http.post("/api/generate", content=body, headers={"content-type": "text/plain"})
    assert lines(answer)[-1]["done"]


async def test_logprobs_are_reported_on_request(tmp_path):
    runner = ScriptedRunner(words=["a", "b"])
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        answer = (await generate(live, prompt="Hi", raw=True, logprobs=True, top_logprobs=2)).json()
    entry = {"token": "a", "logprob": -0.5, "bytes": [97]}
    assert runner.seen[0].logprobs == 2
    assert answer["logprobs"][0] == entry | {"top_logprobs": [entry, entry]}
    assert [token["token"] for token in answer["logprobs"]] == ["a", "b"]


async def test_render_only_shows_the_prompt_and_runs_nothing(tmp_path):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        answer = (await generate(live, prompt="Hi", _debug_render_only=True)).json()
    assert answer["_debug_info"] == {"rendered_template": "[user]Hi[assistant]"}
    assert not runner.seen


async def test_an_empty_prompt_loads_and_a_keep_alive_of_zero_unloads(tmp_path):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        loaded = (await live.http.post("/api/generate", json={"model": "demo"})).json()
        assert [model.name for model in live.models.loaded()] == ["demo:latest"]
        unloaded = (await live.http.post("/api/generate", json={"model": "demo", "keep_alive": 0})).json()
        assert (live.models.loaded(), runner.closed) == ([], True)
        again = (await live.http.post("/api/generate", json={"model": "demo", "keep_alive": "0s"})).json()
    for answer, reason in ((loaded, "load"), (unloaded, "unload"), (again, "unload")):
        del answer["created_at"]
        assert answer == {"model": "demo", "response": "", "done": True, "done_reason": reason}
    assert not runner.seen


@pytest.mark.parametrize(
    ("keep_alive", "stays"),
    [(30, 30), (1.5, 1.5), ("1m30s", 90), (-1, None), ("-1m", None), (1e300, None), (None, 300)],
)
async def test_keep_alive_says_how_long_the_model_stays(tmp_path, keep_alive, stays):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        before = time.time()
        assert (await generate(live, prompt="Hi", keep_alive=keep_alive)).status_code == 200
        (model,) = live.models.loaded()
    if stays is None:
        assert model.expires_at is None
    else:
        assert before + stays <= model.expires_at <= time.time() + stays


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"model": "nobody"}, 404, "model 'nobody' not found"),
        ({"model": ""}, 404, "model '' not found"),
        ({"model": "a b"}, 404, "model 'a b' not found"),
        ({"raw": True, "system": "x"}, 400, "raw mode does not support template, system, or context"),
        ({"raw": True, "context": [1]}, 400, "raw mode does not support template, system, or context"),
        ({"raw": True, "template": "x"}, 400, "raw mode does not support template, system, or context"),
        ({"raw": True, "suffix": "x"}, 400, "raw mode does not support suffix: write the markers into the prompt"),
        ({"suffix": "z"}, 400, "registry.ollama.ai/library/demo:latest does not support insert"),
        ({"think": True}, 400, '"demo" does not support thinking'),
        ({"think": "high"}, 400, '"demo" does not support thinking'),
        (
            {"think": "deep"},
            400,
            'invalid think value: "deep" (must be "high", "medium", "low", "max", true, or false)',
        ),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": 2}, 400, "top_logprobs needs logprobs to be true"),
        ({"options": {"top_k": "5"}}, 500, 'option "top_k" must be of type integer'),
        ({"options": {"temperature": 10**400}}, 500, 'option "temperature" must be of type float32'),
        ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        ({"options": {"stop": [1]}}, 500, 'option "stop" must be of an array of strings'),
        ({"keep_alive": "300"}, 400, 'time: missing unit in duration "300"'),
        ({"keep_alive": True}, 400, "keep_alive: expected `float | str`, got `bool`"),
        ({"format": "xml"}, 500, r'invalid format: "\"xml\""; expected "json" or a valid JSON Schema object'),
        ({"format": True}, 500, 'invalid format: "true"; expected "json" or a valid JSON Schema object'),
        ({"images": ["aGk="]}, 400, '"demo" cannot read images'),
        ({"width": 64}, 400, "image generation models are not supported: leave out width, height and steps"),
        ({"context": [-1]}, 400, "token outside the vocabulary"),
        ({"prompt": 3}, 400, "prompt: expected `str`, got `int`"),
    ],
)
async def test_what_cannot_be_served_is_refused_before_anything_is_sent(tmp_path, body, status, error):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template="{{ .Prompt }}")
        answer = await live.http.post("/api/generate", json={"model": "demo", "prompt": "Hi"} | body)
    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert not runner.seen


async def test_thinking_may_be_declined(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        assert (await generate(live, prompt="Hi", think=False)).status_code == 200


async def test_a_template_that_does_not_parse_is_refused(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        answer = await generate(live, prompt="Hi", template="{{ if }")
    assert answer.status_code == 500
    assert "error" in answer.json()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("failure", "status", "error"),
    [
        (Busy("server busy"), 503, "server busy"),
        (
            ContextTooLong(tokens=9, limit=4),
            400,
            "the input length exceeds the context length (9 tokens, the limit is 4)",
        ),
        (RunnerDied("boom"), 500, "an error was encountered while running the model: boom"),
        (RunnerDied(BROKEN), 500, BROKEN),
    ],
)
async def test_a_failure_before_the_first_piece_is_a_status(tmp_path, failure, status, error, stream):
    async with running_server(tmp_path, ScriptedRunner(failure=failure)) as live:
        await make_model(live.store, "demo")
        answer = await generate(live, prompt="Hi", stream=stream)
    assert (answer.status_code, answer.json()) == (status, {"error": error})


async def test_a_failure_after_the_first_piece_is_the_last_line(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(failure=RunnerDied("boom"), fails_after=1)) as live:
        await make_model(live.store, "demo")
        answer = await generate(live, prompt="Hi", stream=True)
    first, last = lines(answer)
    assert (answer.status_code, first["response"]) == (200, "Hello")
    assert last == {"error": "an error was encountered while running the model: boom"}


async def test_an_empty_body_is_missing(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        answer = await live.http.post("/api/generate")
    assert (answer.status_code, answer.json()) == (400, {"error": "missing request body"})
