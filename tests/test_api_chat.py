"""POST /api/chat against a live server whose runner is scripted."""

import json

import pytest

from puna.core.errors import RunnerDied

from .serving import ScriptedRunner, make_model, running_server

pytestmark = pytest.mark.asyncio

TEMPLATE = "{{ range .Messages }}[{{ .Role }}]{{ .Content }}{{ end }}[assistant]"
HI = [{"role": "user", "content": "Hi"}]


async def ask(live, **body):
    return await live.http.post("/api/chat", json={"model": "demo", "messages": HI, "stream": False} | body)


async def test_a_stream_has_a_message_in_each_line(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(words=["Hel", "", "lo"])) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        answer = await live.http.post("/api/chat", json={"model": "demo", "messages": HI})
    *pieces, last = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["message"] for line in pieces] == [
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
    ]
    assert (last["message"], last["done"]) == ({"role": "assistant", "content": ""}, True)
    assert last["eval_count"] == 3
    assert "context" not in last


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        (HI, "[system]Be brief.[user]Q[assistant]A[user]Hi[assistant]"),
        ([{"role": "SYSTEM", "content": "Rhyme."}, *HI], "[user]Q[assistant]A[system]Rhyme.[user]Hi[assistant]"),
        (
            [*HI, {"role": "assistant", "content": None}, {"role": "user", "content": "So?"}],
            "[system]Be brief.[user]Q[assistant]A[user]Hi[assistant][user]So?[assistant]",
        ),
    ],
)
async def test_the_models_own_messages_come_first(tmp_path, messages, prompt):
    runner = ScriptedRunner()
    stored = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template=TEMPLATE, system="Be brief.", messages=stored)
        answer = await ask(live, messages=messages)
    assert answer.json()["message"] == {"role": "assistant", "content": "Hello there."}
    assert runner.prompt == prompt


async def test_a_long_conversation_loses_its_oldest_turns_unless_that_is_forbidden(tmp_path):
    runner = ScriptedRunner()
    turns = [{"role": "system", "content": "S"}, *({"role": "user", "content": f"turn {n}"} for n in range(9))]
    turns = [turn for turn in turns for turn in (turn, {"role": "assistant", "content": "ok"})][:-1]
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        await ask(live, messages=turns, options={"num_ctx": 80})
        refused = await ask(live, messages=turns, options={"num_ctx": 80}, truncate=False)
    assert runner.prompt.startswith("[system]S") and runner.prompt.endswith("[user]turn 8[assistant]")
    assert len(runner.prompt) <= 80
    assert "turn 7" in runner.prompt and "turn 0" not in runner.prompt
    assert [request.truncated for request in runner.seen] == [0]  # turns went, and nothing was cut
    whole = len("[system]S[assistant]ok" + "[user]turn 0[assistant]ok" * 9) - len("ok")
    assert refused.status_code == 400
    assert f"({whole} tokens, the limit is 80)" in refused.json()["error"]


async def test_tool_results_in_the_history_reach_the_template(tmp_path):
    runner = ScriptedRunner()
    call = {"function": {"name": "add", "arguments": {"b": 2, "a": 1}}, "id": "call_1"}
    messages = [
        *HI,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_name": "add", "tool_call_id": "call_1"},
    ]
    template = (
        "{{ range .Messages }}{{ .Role }}{{ range .ToolCalls }} {{ .Function.Name }}{{ .Function.Arguments }}{{ end }}"
        "{{ .Content }} {{ .ToolName }}|{{ end }}"
    )
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo", template=template)
        await ask(live, messages=messages)
    assert runner.prompt == 'userHi |assistant add{"b":2,"a":1} |tool3 add|'


async def test_no_messages_load_and_a_keep_alive_of_zero_unloads(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        loaded = (await live.http.post("/api/chat", json={"model": "demo", "messages": []})).json()
        assert len(live.models.loaded()) == 1
        unloaded = (await live.http.post("/api/chat", json={"model": "demo", "keep_alive": 0})).json()
        assert live.models.loaded() == []
    for answer, reason in ((loaded, "load"), (unloaded, "unload")):
        del answer["created_at"]
        message = {"role": "assistant", "content": ""}
        assert answer == {"model": "demo", "message": message, "done": True, "done_reason": reason}


async def test_render_only_shows_the_prompt(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo", template=TEMPLATE)
        answer = (await ask(live, _debug_render_only=True)).json()
    assert answer["_debug_info"] == {"rendered_template": "[user]Hi[assistant]"}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"model": "nobody"}, 404, "model 'nobody' not found"),
        ({"model": ""}, 400, "model is required"),
        ({"model": "a b"}, 400, "model is required"),
        ({"tools": [TOOL]}, 400, "registry.ollama.ai/library/demo:latest does not support tools"),
        ({"think": True}, 400, '"demo" does not support thinking'),
        (
            {"format": [1]},
            500,
            'invalid format: "[1]"; expected "json" or a valid JSON Schema object',
        ),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, '"demo" cannot read images'),
        ({"messages": [{"role": "u", "content": [1]}]}, 400, "messages[0].content: expected `str | null`, got `array`"),
        ({"messages": [{"content": "x"}]}, 400, "messages[0]: object missing required field `role`"),
        ({"options": {"temperature": "hot"}}, 500, 'option "temperature" must be of type float32'),
        ({"options": {"mirostat": 2}}, 400, 'option "mirostat" is no longer supported; leave it out'),
        ({"options": {"temperature": 1e999}}, 400, "invalid JSON: Infinity is not a JSON number"),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_is_refused(tmp_path, body, status, error):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        content = json.dumps({"model": "demo", "messages": HI} | body)
        answer = await live.http.post("/api/chat", content=content)
    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert not runner.seen


@pytest.mark.parametrize(
    ("format", "schema"),
    [
        ("json", {"type": "object"}),
        ({"type": "array", "items": {"enum": ["é", None]}}, {"type": "array", "items": {"enum": ["é", None]}}),
        ({"properties": {"b": {}, "a": {}}}, {"properties": {"b": {}, "a": {}}}),
        ("", None),
        (None, None),
    ],
)
async def test_a_format_reaches_the_runner_as_a_schema(tmp_path, format, schema):
    runner = ScriptedRunner()
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        assert (await ask(live, format=format)).status_code == 200
    found = runner.seen[-1].schema
    assert repr(None if found is None else json.loads(found)) == repr(schema)  # keys in their order


async def test_neutral_values_are_accepted(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo")
        answer = await ask(live, tools=[], think=False, format="", shift=True, keep_alive=None, colour="blue")
    assert answer.status_code == 200


async def test_a_template_that_fails_is_an_error_and_the_next_request_works(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        await make_model(live.store, "demo", template="{{ range .Messages }}{{ .Nonsense }}{{ end }}")
        answer = await ask(live)
        assert answer.status_code == 500
        assert "Nonsense" in answer.json()["error"]
        await make_model(live.store, "demo", template=TEMPLATE)
        assert (await ask(live)).status_code == 200


async def test_a_runner_that_dies_in_mid_sentence_ends_the_stream_with_an_error(tmp_path):
    async with running_server(tmp_path, ScriptedRunner(failure=RunnerDied("boom"), fails_after=2)) as live:
        await make_model(live.store, "demo")
        answer = await ask(live, stream=True)
    assert json.loads(answer.text.splitlines()[-1]) == {
        "error": "an error was encountered while running the model: boom"
    }
