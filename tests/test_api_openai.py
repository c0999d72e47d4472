"""The /v1 endpoints against a live server whose runner is scripted."""

import json

import pytest

from puna.core.errors import RunnerDied

from .serving import ScriptedRunner, make_model, running_server

pytestmark = pytest.mark.asyncio

TEMPLATE = (
    "{{ if .Suffix }}<pre>{{ .Prompt }}<suf>{{ .Suffix }}<mid>{{ else }}"
    "{{ range .Messages }}[{{ .Role }}]{{ .Content }}{{ end }}[assistant]{{ end }}"
)
HI = [{"role": "user", "content": "Hi"}]


def events(answer):
    assert answer.headers["content-type"] == "text/event-stream"
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == "" and all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


async def chat(live, **body):
    return await live.http.post("/v1/chat/completions", json={"model": "demo", "messages": HI} | body)


async def complete(live, **body):
    return await live.http.post("/v1/completions", json={"model": "demo", "prompt": "Hi"} | body)


async def test_a_chat_is_answered_in_one_object_unless_a_stream_is_asked_for(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        answer = (await chat(live)).json()
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there."},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 19, "completion_tokens": 3, "total_tokens": 22}


async def test_a_chat_stream_ends_with_done(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(reason="length")) as live:
        await make_model(live.store, "demo")
        answer = await chat(live, stream=True, stream_options={"include_usage": True})
    *chunks, done = events(answer)
    choices = [json.loads(chunk)["choices"] for chunk in chunks]
    assert done == "[DONE]"
    assert [choice[0]["delta"].get("content") for choice in choices[:-1]] == ["Hello", " there", ".", None]
    assert (choices[-2][0]["finish_reason"], choices[-1]) == ("length", [])
    assert json.loads(chunks[-1])["usage"]["completion_tokens"] == 3


async def test_sampling_follows_openais_defaults_over_the_models(tmp_path):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        parameters = {"temperature": 0.1, "top_p": 0.2, "top_k": 3, "seed": 5, "stop": ["END"], "num_predict": 7}
        await make_model(live.store, "demo", parameters=parameters)
        await chat(live)
        await chat(
            live,
            temperature=0.5,
            top_p=0,
            seed=9,
            stop="X",
            max_tokens=4,
            frequency_penalty=0.25,
            presence_penalty=-0.5,
        )
        await chat(live, stop=["X", "Y"], max_tokens=4, max_completion_tokens=2)
        await complete(live, top_p=0, max_tokens=6)
    plain, chosen, newer, completion = runner.seen
    sampling = plain.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (1.0, 1.0, 3, 5)
    assert (plain.stop, plain.max_tokens) == (["END"], 7)
    sampling = chosen.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.0, 9)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.25, -0.5)
    assert (chosen.stop, chosen.max_tokens) == (["X"], 4)
    assert (newer.stop, newer.max_tokens) == (["X", "Y"], 2)
    assert (completion.sampling.top_p, completion.max_tokens) == (1.0, 6)


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "developer", "content": "Rhyme."}, *HI], "[system]Rhyme.[user]Hi[assistant]"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "[system]S[user]a\n\nb[assistant]",
        ),
        (
            [
                *HI,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
            ],
            "[system]S[user]Hi[assistant][tool]3[assistant]",
        ),
    ],
)
async def test_messages_become_the_templates(tmp_path, messages, prompt):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template=TEMPLATE, system="S")
        answer = await chat(live, messages=messages)
    assert answer.status_code == 200
    assert runner.prompt == prompt


async def test_a_tools_result_carries_the_name_of_the_tool(tmp_path):
    runner = ScriptedRunner()
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "assistant", "content": "Well", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    template = (
        "{{ range .Messages }}{{ .Content }}{{ range .ToolCalls }}({{ .Function.Name }}{{ .Function.Arguments }})"
        "{{ end }}<{{ .ToolName }}>{{ end }}"
    )
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template=template)
        await chat(live, messages=messages)
    assert runner.prompt == 'Well(add{"a":1})<>3<add>'


async def test_chat_logprobs(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(words=["a"])) as live:
        await make_model(live.store, "demo")
        answer = (await chat(live, logprobs=True, top_logprobs=1)).json()
    entry = {"token": "a", "logprob": -0.5, "bytes": [97]}
    assert answer["choices"][0]["logprobs"] == {"content": [entry | {"top_logprobs": [entry]}]}


async def test_a_completion_uses_the_template_and_may_fill_in_the_middle(tmp_path):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template=TEMPLATE, system="S")
        answer = (await complete(live, logprobs=0)).json()
        assert runner.prompt == "[system]S[user]Hi[assistant]"
        await complete(live, suffix="end")
        assert runner.prompt == "<pre>Hi<suf>end<mid>"
        loaded = (await complete(live, prompt="")).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], answer["object"]) == ("Hello there.", "stop", "text_completion")
    assert choice["logprobs"]["text_offset"] == [0, 5, 11]
    assert loaded["choices"][0]["finish_reason"] == "load"


async def test_a_completion_stream(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        *chunks, done = events(await complete(live, stream=True))
    assert done == "[DONE]"
    assert [json.loads(chunk)["choices"][0]["text"] for chunk in chunks] == ["Hello", " there", ".", ""]


TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "nobody"}, 404, "model 'nobody' not found"),
        ({"model": ""}, 400, "model is required"),
        ({"messages": []}, 400, "[] is too short - 'messages'"),
        ({"tools": [TOOL]}, 400, "registry.ollama.ai/library/demo:latest does not support tools"),
        ({"functions": [TOOL]}, 400, "functions"),
        ({"function_call": {"name": "f"}}, 400, "function_call is not supported"),
        ({"verbosity": "low"}, 400, "verbosity is not supported"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"n": 2}, 400, "n must be 1"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"response_format": {"type": "grammar"}}, 400, 'response_format: type "grammar" is not supported'),
        ({"response_format": {"type": "json_schema"}}, 400, "json_schema needs json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, 400, "needs json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, 400, "json_schema.schema:"),
        ({"reasoning_effort": "high"}, 400, '"demo" does not support thinking'),
        ({"reasoning": {"effort": "low"}}, 400, '"demo" does not support thinking'),
        ({"reasoning_effort": "vast"}, 400, 'invalid reasoning value: "vast"'),
        ({"modalities": ["text", "audio"]}, 400, "modalities"),
        ({"audio": {"voice": "x"}}, 400, "audio"),
        ({"web_search_options": {}}, 400, "web_search_options"),
        ({"top_logprobs": 3}, 400, "top_logprobs needs logprobs to be true"),
        ({"logprobs": True, "top_logprobs": 30}, 400, "top_logprobs must be between 0 and 20"),
        ({"stop": [1]}, 400, "stop: expected a string or a list of strings"),
        ({"messages": [IMAGE]}, 400, '"demo" cannot read images'),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "input_audio"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "invalid message content type: number"),
        ({"messages": [{"role": "user"}]}, 400, "invalid message content type: null"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400, "invalid message format"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, 400, "invalid tool call arguments"),
        ({"messages": [{"role": "assistant", "tool_calls": [3]}]}, 400, "invalid tool call"),
        ({"max_tokens": "4"}, 400, "max_tokens: expected `int | null`, got `str`"),
    ],
)  # fmt: skip
async def test_a_chat_that_cannot_be_served_is_refused(tmp_path, body, status, said):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        answer = await chat(live, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, None, None)
    assert said in error["message"]
    assert error["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert not runner.seen


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "a b"}, 404, "model 'a b' not found"),
        ({"echo": True}, 400, "echo"),
        ({"best_of": 3}, 400, "best_of"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported here"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, 400, "response_format"),
        ({"n": 3}, 400, "n must be 1"),
        ({"logprobs": 21}, 400, "logprobs must be between 0 and 20"),
        ({"prompt": ["a"]}, 400, "prompt: expected `str`, got `array`"),
        ({"suffix": "z"}, 400, "does not support insert"),
    ],
)
async def test_a_completion_that_cannot_be_served_is_refused(tmp_path, body, status, said):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo", template="{{ .Prompt }}")
        answer = await complete(live, **body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"const": None}}},
            {"const": None},
        ),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, {}),
    ],
)
async def test_a_response_format_reaches_the_runner_as_a_schema(tmp_path, response_format, schema):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        assert (await chat(live, response_format=response_format)).status_code == 200
    found = runner.seen[-1].schema
    assert (None if found is None else json.loads(found)) == schema


async def test_neutral_values_are_accepted(tmp_path):
    neutral = {
        "n": 1, "logit_bias": {}, "tools": [], "tool_choice": "auto", "functions": None, "audio": None, "user": "me",
        "response_format": {"type": "text"}, "modalities": ["text"], "parallel_tool_calls": True, "store": False,
        "reasoning_effort": "none", "metadata": {}, "service_tier": "auto", "max_completion_tokens": None,
        "function_call": "auto", "verbosity": "medium",
    }  # fmt: skip
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        assert (await chat(live, **neutral)).status_code == 200
        assert (await complete(live, n=1, best_of=1, echo=False, logprobs=None, suffix="")).status_code == 200
        assert (await complete(live, response_format={"type": "text"})).status_code == 200


async def test_a_failure_in_mid_stream_is_the_last_event_and_not_done(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(failure=RunnerDied("boom"), fails_after=1)) as live:
        await make_model(live.store, "demo")
        first, last = events(await chat(live, stream=True))
    assert json.loads(first)["choices"]
    message = "an error was encountered while running the model: boom"
    assert json.loads(last) == {"error": {"message": message, "type": "api_error", "param": None, "code": None}}


async def test_an_empty_body_is_an_end_of_file(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        answer = await live.http.post("/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "EOF")
