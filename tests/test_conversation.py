"""Conversations written by the shapes of templates that models come with, in both languages."""
# ruff: noqa: E501  # templates keep their own lines

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import BadModel, BadRequest, Unsupported
from puna.text.conversation import Message, PromptTemplate, ToolCall, fit_messages

FIXTURES = Path(__file__).parent / "fixtures"

HEADERS = """{{- range .Messages }}<|start|>{{ .Role }}<|stop|>

{{ .Content }}<|eot|>{{ end }}<|start|>assistant<|stop|>

"""
CHATML_TURNS = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
MISTRAL_TOOLS = """{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq $m.Role "user" }}
{{- if and $last $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]{{ end }}[INST] {{ if and $last $.System }}{{ $.System }}

{{ end }}{{ $m.Content }}[/INST]
{{- else if eq $m.Role "assistant" }}
{{- if $m.ToolCalls }}[TOOL_CALLS] [
{{- range $j, $c := $m.ToolCalls }}{{ if $j }}, {{ end }}{"name": "{{ $c.Function.Name }}", "arguments": {{ $c.Function.Arguments }}}
{{- end }}]</s>
{{- else }} {{ $m.Content }}{{ if not $last }}</s>{{ end }}
{{- end }}
{{- else if eq $m.Role "tool" }}[TOOL_RESULTS] {"content": {{ $m.Content }}}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""
FILL = """{{- if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>
{{- else }}{{ .System }}|{{ .Prompt }}|{{ .Response }}
{{- end }}"""
THINKING = """{{- range $i, $m := .Messages }}<{{ $m.Role }}>{{ if and (eq $m.Role "assistant") $m.Thinking }}
<think>{{ $m.Thinking }}</think>
{{ end }}{{ $m.Content }}
{{- end }}<assistant>{{ if and $.IsThinkSet (not $.Think) }}<think></think>{{ end }}[{{ .ThinkLevel }}]"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather <now>",
        "strict": True,
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "city": {"type": ["string", "null"], "description": "where"},
            },
        },
    },
}


def user(text: str, **more) -> Message:
    return Message(role="user", content=text, **more)


def assistant(text: str = "", **more) -> Message:
    return Message(role="assistant", content=text, **more)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def go(source: str) -> PromptTemplate:
    return PromptTemplate.open(go=source)


def said(template: PromptTemplate, messages: list[Message], **more) -> str:
    """What a template writes about a conversation without images."""
    [text] = template.chat(messages, **more)
    return text


# Go templates


def test_a_template_over_messages_writes_the_whole_conversation():
    assert said(go(HEADERS), [system("Be brief."), user("Hi")]) == (
        "<|start|>system<|stop|>\n\nBe brief.<|eot|><|start|>user<|stop|>\n\nHi<|eot|><|start|>assistant<|stop|>\n\n"
    )


def test_a_template_without_messages_is_run_once_a_turn_and_left_open_after_the_last():
    text = said(go(CHATML_TURNS), [system("S"), user("a"), assistant("b"), user("c")])
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_begun_is_continued_where_it_ends():
    text = said(go(CHATML_TURNS), [user("a"), assistant("The answer")])
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nThe answer"


def test_a_system_message_in_the_middle_begins_a_turn():
    template = go("({{ .System }}/{{ .Prompt }}/{{ .Response }})")
    assert said(template, [user("a"), system("S"), user("b")]) == "(/a/)(S/b/"
    assert said(template, [system("S"), user("a"), assistant("b"), assistant("c"), user("d")]) == "(S/a/b\n\nc)(/d/"


def test_neighbours_of_one_role_become_one_message_but_results_of_tools_do_not():
    template = go("{{ range .Messages }}[{{ .Role }}:{{ .Content }}{{ .ToolCalls | len }}]{{ end }}")
    messages = [
        user("a"),
        user("b"),
        assistant(),
        assistant("c", tool_calls=(ToolCall("f"),)),
        Message("tool", "1"),
        Message("tool", "2"),
    ]
    assert said(template, messages) == "[user:a\n\nb0][assistant:\n\nc0][tool:10][tool:20]"


def test_system_is_all_system_messages_while_the_list_keeps_them():
    template = go("{{ .System }}|{{ range .Messages }}{{ .Role }},{{ end }}")
    assert said(template, [system("a"), user("b"), system("c")]) == "a\n\nc|system,user,system,"


@pytest.mark.parametrize(
    ("source", "text"), [("{{ .Prompt }}", "hi"), ("> {{ .Prompt }}\n< ", "> hi\n< "), (None, "hi")]
)
def test_a_template_that_mentions_no_reply_gets_it_at_its_end(source, text):
    template = PromptTemplate.open(go=source)
    assert said(template, [user("hi")]) == text
    assert said(template, [user("hi"), assistant("yes")]) == text + "yes"


def test_tools_and_calls_are_written_as_json_in_the_order_sent():
    call = ToolCall("weather", {"unit": "C", "city": "Zürich"})
    text = said(
        go(MISTRAL_TOOLS),
        [system("S"), user("a"), assistant(tool_calls=(call, call)), Message("tool", "21"), user("b")],
        tools=[WEATHER],
    )
    calls = ", ".join(['{"name": "weather", "arguments": {"unit":"C","city":"Zürich"}}'] * 2)
    assert text == (
        f'[INST] a[/INST][TOOL_CALLS] [{calls}]</s>[TOOL_RESULTS] {{"content": 21}}[/TOOL_RESULTS]'
        '[AVAILABLE_TOOLS] [{"type":"function","function":{"name":"weather","description":"Weather \\u003cnow\\u003e",'
        '"parameters":{"type":"object","required":["city"],"properties":{"unit":{"type":"string","enum":["C","F"]},'
        '"city":{"type":["string","null"],"description":"where"}}}}}][/AVAILABLE_TOOLS][INST] S\n\nb[/INST]'
    )


def test_the_parts_of_a_tool_can_be_written_one_by_one():
    template = go(
        "{{ range .Tools }}{{ with .Function }}{{ .Name }}: {{ .Description }}"
        "{{ range $name, $p := .Parameters.Properties }} {{ $name }}={{ toTypeScriptType $p }} {{ $p.Type }}"
        "{{ range $p.Enum }}/{{ . }}{{ end }}{{ end }}{{ end }}{{ end }}{{ len .Messages }}"
    )
    assert said(template, [user("a")], tools=[WEATHER]) == (
        "weather: Weather <now> city=string | null [string null] unit=string string/C/F1"
    )


def test_the_parts_of_a_call_can_be_written_one_by_one():
    template = go(
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }} {{ .Function.Index }} {{ .Function.Name }}"
        "{{ range $k, $v := .Function.Arguments }} {{ $k }}={{ $v }}{{ end }} {{ json . }}{{ end }}"
        "{{ .ToolName }} {{ .ToolCallID }}{{ end }}"
    )
    call = ToolCall("f", {"b": 1, "a": [True, None]}, id="call_1", index=2)
    answer = Message("tool", "x", tool_name="f", tool_call_id="call_1")
    assert said(template, [assistant(tool_calls=(call,)), answer]) == (
        "call_1 2 f a=[true <nil>] b=1 "
        '{"id":"call_1","function":{"index":2,"name":"f","arguments":{"b":1,"a":[true,null]}}} f call_1'
    )


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        ({"type": "function"}, "missing required field `function`"),
        ({"function": {"name": 1}}, r"Expected `str`, got `int` - at `\$\[0\].function.name`"),
        ({"function": {"name": "f", "parameters": {"properties": []}}}, "properties"),
        (3, "Expected `object`"),
    ],
)
def test_a_tool_of_another_form_is_refused_with_its_place(tool, problem):
    with pytest.raises(BadRequest, match=f"invalid tools: .*{problem}"):
        said(go("{{ range .Messages }}{{ end }}{{ .Tools }}"), [user("a")], tools=[tool])


@pytest.mark.parametrize(
    ("think", "text"),
    [
        (None, "<user>a<assistant>\n<think>hm</think>\nb<user>c<assistant>[]"),
        (True, "<user>a<assistant>\n<think>hm</think>\nb<user>c<assistant>[medium]"),
        (False, "<user>a<assistant>\n<think>hm</think>\nb<user>c<assistant><think></think>[]"),
        ("high", "<user>a<assistant>\n<think>hm</think>\nb<user>c<assistant>[high]"),
    ],
)
def test_a_template_knows_whether_thinking_was_asked_for(think, text):
    messages = [user("a"), assistant("b", thinking="hm"), user("c")]
    assert said(go(THINKING), messages, think=think) == text


@pytest.mark.parametrize(
    ("source", "capabilities"),
    [
        ("{{ .Prompt }}", {"completion"}),
        (FILL, {"completion", "insert"}),
        (MISTRAL_TOOLS, {"completion", "tools"}),
        (THINKING, {"completion", "thinking"}),
        ("{{ range .Messages }}{{ end }}{{ .tools }}{{ $.suffix }}", {"completion", "insert", "tools"}),
        ("tools suffix {{ .Prompt }}", {"completion"}),
    ],
)
def test_capabilities_are_read_off_a_go_template(source, capabilities):
    assert go(source).capabilities == capabilities


def test_the_marks_of_thinking_and_of_calls_are_read_off_a_go_template():
    assert go(THINKING).thinking_tags == ("<think>", "</think>")
    assert go(MISTRAL_TOOLS).tool_tag == "[TOOL_CALLS] ["


def test_a_go_template_wins_over_jinja():
    assert said(PromptTemplate.open(go="{{ .Prompt }}", jinja="jinja"), [user("a")]) == "a"


def test_a_template_that_does_not_parse_is_refused_with_the_line():
    with pytest.raises(BadRequest, match='template: :2: unexpected "}" in operand'):
        go("a\n{{ .Prompt }")


def test_an_unknown_field_of_a_message_is_an_error_and_an_unknown_name_is_not():
    with pytest.raises(BadModel, match="can't evaluate field Name in type Message"):
        said(go("{{ range .Messages }}{{ .Name }}{{ end }}"), [user("a")])
    assert said(go("{{ range .Messages }}{{ end }}{{ if .Nope }}x{{ end }}{{ .Nope }}"), [user("a")]) == "<no value>"


def test_text_of_users_is_never_read_as_a_template():
    assert said(go("{{ .Prompt }}"), [user("{{ .System }}{% if %}")]) == "{{ .System }}{% if %}"


def test_a_conversation_of_thousands_of_messages_stays_within_the_budget():
    messages = [user("x" * 2000) if i % 2 else assistant("y" * 2000) for i in range(4000)]
    assert len(said(go(MISTRAL_TOOLS), messages)) > 8_000_000


# Completions


def test_a_completion_is_one_turn_of_system_and_prompt():
    assert said(go(FILL), [system("S"), user("P")]) == "S|P|"
    assert said(go(CHATML_TURNS), [user("P")]) == "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n"


def test_a_suffix_asks_for_the_middle():
    assert go(FILL).insert("def f():", "return x") == "<PRE> def f(): <SUF>return x <MID>"


@pytest.mark.parametrize("template", [go("{{ .Prompt }}"), PromptTemplate.open(jinja="{{ messages }}")])
def test_a_template_without_suffix_does_not_fill_in(template):
    with pytest.raises(Unsupported, match="does not support insert"):
        template.insert("a", "b")


# Jinja


def _checkpoint(name: str) -> tuple[PromptTemplate, list[dict]]:
    tokenizer = json.loads((FIXTURES / name / "hf" / "tokenizer_config.json").read_text())
    tokens = {"bos": tokenizer.get("bos_token") or "", "eos": tokenizer.get("eos_token") or ""}
    cases = json.loads((FIXTURES / name / "cases.json").read_text())["chat"]
    return PromptTemplate.open(jinja=tokenizer["chat_template"], **tokens), cases


CHECKPOINTS = sorted(
    path.parent.name for path in FIXTURES.glob("*/cases.json") if "chat" in json.loads(path.read_text())
)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoints_template_writes_what_the_reference_writes(name):
    template, cases = _checkpoint(name)
    asked = [case for case in cases if case["messages"][-1]["role"] == "user"]
    assert asked
    for case in asked:
        assert said(template, [Message(**message) for message in case["messages"]]) == case["rendered"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoints_template_leaves_an_answer_begun_open(name):
    template, cases = _checkpoint(name)
    case = next(case for case in cases if case["messages"][-1]["role"] == "assistant")
    text = said(template, [Message(**message) for message in case["messages"]])
    assert text.endswith(case["messages"][-1]["content"])
    assert case["rendered"].startswith(text)
    assert case["rendered"] != text


def test_an_answer_begun_keeps_its_white_space_and_its_own_marks():
    template, _ = _checkpoint("qwen3")
    begun = "<think>\nhm\n</think>\n\nWell, "
    text = said(template, [user("a"), assistant(begun)])
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n" + begun


def test_an_answer_that_a_template_leaves_out_is_put_behind_the_opened_reply():
    source = "{% for m in messages if m.role == 'user' %}Q: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    assert said(PromptTemplate.open(jinja=source), [user("a"), assistant("b")]) == "Q: a\nA: b"


@pytest.mark.parametrize(("think", "tail"), [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")])
def test_a_jinja_template_knows_whether_thinking_was_asked_for(think, tail):
    template, _ = _checkpoint("qwen3")
    assert said(template, [user("a")], think=think).endswith("<|im_start|>assistant\n" + tail)


def test_a_jinja_template_sees_tools_calls_and_results_as_transformers_passes_them():
    source = (
        "{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
        "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ reasoning_effort }}"
    )
    call = ToolCall("f", {"b": 1, "a": 2}, id="c1")
    text = said(
        PromptTemplate.open(jinja=source, bos="<s>", eos="</s>"),
        [assistant(tool_calls=(call,), thinking="hm"), Message("tool", "3", tool_name="f", tool_call_id="c1")],
        tools=[WEATHER],
        think="low",
    )
    decoder = json.JSONDecoder()
    tools, end = decoder.raw_decode(text)
    first, end = decoder.raw_decode(text, end)
    second, end = decoder.raw_decode(text, end)
    assert tools == [WEATHER]
    assert first == {
        "role": "assistant",
        "content": "",
        "thinking": "hm",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}],
    }
    assert second == {"role": "tool", "content": "3", "name": "f", "tool_call_id": "c1"}
    assert text[end:] == "<s></s>Truelow"


def test_a_refused_role_is_reported_in_the_templates_words():
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(BadRequest, match=r"^System role not supported$"):
        said(PromptTemplate.open(jinja=source), [system("S"), user("a")])


@pytest.mark.parametrize(
    ("source", "capabilities"),
    [
        ("{{ messages }}", {"completion"}),
        ("{% if tools %}{% endif %}", {"completion", "tools"}),
        ("{% if m.tool_calls %}{% endif %}<think></think>", {"completion", "tools", "thinking"}),
        ("<think>", {"completion"}),
    ],
)
def test_capabilities_are_read_off_a_jinja_template(source, capabilities):
    assert PromptTemplate.open(jinja=source).capabilities == capabilities


# What fits


def _fit(messages: list[Message], limit: int) -> tuple[list[Message], int]:
    asked = []

    async def fits(kept):
        asked.append(kept)
        return sum(len(message.content) for message in kept) <= limit

    return asyncio.run(fit_messages(messages, fits)), len(asked)


def test_a_conversation_that_fits_is_kept_after_one_question():
    messages = [system("s"), user("a"), assistant("b"), user("c")]
    assert _fit(messages, 4) == (messages, 1)


def test_the_latest_messages_and_the_system_messages_before_them_are_kept():
    messages = [system("s"), user("aaa"), system("t"), user("bbb"), assistant("cc"), user("dd")]
    assert _fit(messages, 6)[0] == [messages[0], messages[2], *messages[4:]]


def test_the_last_message_is_kept_even_if_it_alone_is_too_long():
    messages = [system("s"), user("a"), user("b" * 100)]
    assert _fit(messages, 10)[0] == [messages[0], messages[2]]
    assert _fit([user("b" * 100)], 10)[0] == [user("b" * 100)]
    assert _fit([], 10)[0] == []


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=40), st.integers(0, 200))
def test_no_longer_run_would_have_fitted_and_few_questions_are_asked(shape, limit):
    messages = [system("x" * size) if is_system else user("x" * size) for is_system, size in shape]
    kept, questions = _fit(messages, limit)
    runs = [[m for m in messages[:i] if m.role == "system"] + messages[i:] for i in range(len(messages))]
    fitting = [run for run in runs if sum(len(m.content) for m in run) <= limit]
    assert kept == (fitting or runs[-1:] or [[]])[0]
    assert questions <= 7
