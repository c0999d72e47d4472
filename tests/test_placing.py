"""Where images stand in prompts: where messages or templates put them, whatever people type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import BadRequest
from puna.core.scheduler.messages import Media
from puna.text.conversation import Message, PromptTemplate, ToolCall, with_images

FIXTURES = Path(__file__).parent / "fixtures"
SEEING = {
    "gemma3-vl": "<start_of_image>",
    "qwen2.5-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "mistral3": "[IMG]",
    "llava": "<image>",
    "mllama": "<|image|>",
}  # fixture -> what its template writes for an image
A, B, C, D, E = (Media([name.encode()]) for name in "ABCDE")
LOOP = "{{ range .Messages }}{{ .Content }};{{ end }}"


def user(*content: str | Media, **more: object) -> Message:
    return Message(role="user", content=content[0] if content and isinstance(content[0], str) and not content[1:]
                   else content, **more)  # fmt: skip


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def go(source: str) -> PromptTemplate:
    return PromptTemplate.open(go=source)


def jinja(source: str) -> PromptTemplate:
    return PromptTemplate.open(jinja=source)


def checkpoint(name: str) -> tuple[PromptTemplate, list[dict]]:
    tokenizer = json.loads((FIXTURES / name / "hf" / "tokenizer_config.json").read_text())
    cases = json.loads((FIXTURES / name / "cases.json").read_text())
    tokens = {"bos": tokenizer.get("bos_token") or "", "eos": tokenizer.get("eos_token") or ""}
    return PromptTemplate.open(jinja=tokenizer["chat_template"], **tokens), cases["multimodal"]


def told(message: dict) -> Message:
    parts = [Media([b"?"]) if part["type"] == "image" else part["text"] for part in message["content"]]
    return Message(role=message["role"], content=parts[0] if parts == [str(parts[0])] else tuple(parts))


def shown(parts: list[str | Media], marker: str = "") -> str:
    """A prompt as text, each image written as its name, or as the marker."""
    return "".join(part if isinstance(part, str) else marker or f"({part.frames[0].decode()})" for part in parts)


# What messages say


@pytest.mark.parametrize(
    ("text", "images", "content"),
    [
        ("look", [], "look"),
        ("look", [A, B], (A, B, "look")),
        ("left [img] right [img]", [A, B], ("left ", A, " right ", B)),
        ("left [img] right [img]", [A, B, C], (C, "left ", A, " right ", B)),
        ("left [img] right [img]", [A], ("left ", A, " right [img]")),
        ("[img][img]", [A, B], (A, B)),
        ("", [A], (A,)),
        ("[img-0] [img]", [A], ("[img-0] ", A)),
    ],
)
def test_an_image_beside_a_text_stands_before_it_or_where_the_text_says(text, images, content):
    assert with_images(text, images) == content


def test_go_templates_keep_images_where_messages_have_them():
    talk = [user(A, "look ", B, "and this"), assistant("ok"), user("so ", C)]
    assert shown(go(LOOP).chat(talk)) == "(A)look (B)and this;ok;so (C);"
    assert shown(go("<{{ .Prompt }}|{{ .Response }}>").chat(talk)) == "<(A)look (B)and this|ok><so (C)|"


def test_images_survive_the_merging_of_messages():
    assert shown(go(LOOP).chat([user(A, "a"), user(B, "b"), user(C)])) == "(A)a\n\n(B)b\n\n(C);"


def test_a_go_template_can_count_images():
    template = go("{{ range .Messages }}{{ len .Images }}{{ if .Images }}!{{ end }}{{ .Content }};{{ end }}")
    assert shown(template.chat([user("a"), assistant("b"), user(A, "c", B)])) == "0a;0b;2!(A)c(B);"


def test_an_image_may_be_shown_twice():
    assert shown(go("{{ range .Messages }}{{ .Content }}{{ .Content }}{{ end }}").chat([user(A, "x")])) == "(A)x(A)x"


@pytest.mark.parametrize(
    "template",
    [go("{{ range .Messages }}{{ .Role }}{{ end }}"), go("{{ range .Messages }}{{ slice .Content 1 }}{{ end }}"),
     jinja("{% for m in messages %}{{ m.role }}{% endfor %}"), jinja("{{ messages[-1].content }}")],
)  # fmt: skip
def test_a_template_that_leaves_an_image_out_is_an_error(template):
    with pytest.raises(BadRequest, match="the model's template leaves out images"):
        template.chat([user(A, "look"), assistant("x"), user("y")])


# What templates of models that see write


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("number", range(3))
def test_prompts_are_the_references(name, number):
    template, cases = checkpoint(name)
    case = cases[number]
    parts = template.chat([told(message) for message in case["messages"]], image_marker=SEEING[name])
    assert shown(parts, SEEING[name]) == case["rendered"]
    assert sum(isinstance(part, Media) for part in parts) == len(case["images"])


@pytest.mark.parametrize("name", SEEING)
def test_a_marker_that_somebody_typed_is_text(name):
    template, _ = checkpoint(name)
    marker = SEEING[name]
    talk = [
        user(f"What is {marker}?"),
        assistant(f"It is {marker}."),
        user(A, f"{marker} and ", B, f"{marker}{marker}"),
    ]
    parts = template.chat(talk, image_marker=marker)
    assert [part for part in parts if isinstance(part, Media)] == [A, B]
    last = shown(parts).rpartition("(A)")[2]
    assert "".join(last.split()).startswith(f"{marker}and(B){marker}{marker}")
    assert shown(template.chat(talk[:1], image_marker=marker)).count(marker) == 1


@pytest.mark.parametrize("name", SEEING)
def test_a_marker_that_parts_make_together_is_no_image(name):
    template, _ = checkpoint(name)
    marker = SEEING[name]
    talk = [user(A, marker[:5]), assistant(marker[5:]), user(marker[:7], B, marker[7:], C)]
    assert [p for p in template.chat(talk, image_marker=marker) if isinstance(p, Media)] == [A, B, C]
    source = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ p.text or MARKER }}{% endfor %}{% endif %}{% endfor %}"
    )
    together = jinja(source.replace("MARKER", repr(marker)))
    parts = together.chat([user(A, marker[:7]), user(marker[7:], B)], image_marker=marker)
    assert [part for part in parts if isinstance(part, Media)] == [A, B]


@pytest.mark.parametrize("name", SEEING)
def test_stand_ins_that_somebody_typed_are_text(name):
    template, _ = checkpoint(name)
    typed = "\ue000" + "0" + "\ue000 \ue0011\ue001 [img-0] \ue000m\ue000"
    for talk in ([user(typed)], [user(A, typed, B)], [user(typed), assistant(typed), user(A, "x", B)]):
        for found in (template.chat(talk, image_marker=SEEING[name]), go(LOOP).chat(talk)):
            assert [part for part in found if isinstance(part, Media)] == [m for t in talk for m in t.media]
            assert typed in shown(found)


def test_stand_ins_in_tools_and_calls_are_text():
    typed = "\ue0000\ue000"
    tool = {"type": "function", "function": {"name": typed, "parameters": {"properties": {}}}}
    call = Message(role="assistant", tool_calls=(ToolCall("f", {"x": [{typed: typed}]}),))
    for template in (go(LOOP + "{{ .Tools }}"), jinja("{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}")):
        parts = template.chat([user("hi"), call, user(A, "x")], tools=[tool])
        assert [part for part in parts if isinstance(part, Media)] == [A]


def test_a_conversation_that_uses_every_private_character_holds_no_images():
    private = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]))
    assert shown(go(LOOP).chat([user(private[:-1], A)])) == private[:-1] + "(A);"
    with pytest.raises(BadRequest, match="every private character"):
        go(LOOP).chat([user(private, A)])
    assert go(LOOP).chat([user(private)]) == [private + ";"]


def test_a_template_of_texts_alone_has_images_in_its_texts():
    source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    parts = jinja(source).chat([user(" a ", A), assistant("b"), user(B, " c ")], image_marker="<image>")
    assert shown(parts) == "[a (A)][b][(B) c]"


def test_without_a_known_marker_images_stand_in_texts_too():
    template, _ = checkpoint("gemma3-vl")
    assert "user\n(A)What?<end_of_turn>" in shown(template.chat([user(A, "What? ")]))
    assert "user\nLook: (A)What?<end" in shown(template.chat([user("Look: ", A, "What?")], image_marker="<other>"))


def test_a_template_that_numbers_its_images_keeps_its_numbers():
    source = (
        "{% set n = namespace(x=0) %}{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{% if p.type == 'image' %}{% set n.x = n.x + 1 %}Picture {{ n.x }}: <i>"
        "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %};{% endfor %}"
    )
    talk = [user(A, "a", B), assistant("b"), user("c", C)]
    assert shown(jinja(source).chat(talk, image_marker="<i>")) == "Picture 1: (A)aPicture 2: (B);b;cPicture 3: (C);"


def test_a_template_may_put_images_first():
    source = (
        "{% for m in messages %}{% for p in m.content if p.type == 'image' %}<i>\n{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    assert shown(jinja(source).chat([user("a", A, "b", B)], image_marker="<i>")) == "(A)\n(B)\nab"


@pytest.mark.parametrize("name", SEEING)
def test_an_answer_begun_goes_on_behind_images(name):
    template, _ = checkpoint(name)
    parts = template.chat([user(A, "What?"), assistant(f"A {SEEING[name]} ")], image_marker=SEEING[name])
    assert [part for part in parts if isinstance(part, Media)] == [A]
    assert shown(parts).endswith(f"A {SEEING[name]} ")
    begun = Message(role="assistant", content=("Here ", B, " is"))
    assert shown(template.chat([user(A, "What?"), begun], image_marker=SEEING[name])).endswith("Here (B) is")


texts = st.text(alphabet="ab <|[]>{%}\n\ue000\ue0010m", max_size=12)
contents = st.lists(st.one_of(texts, st.sampled_from([A, B, C])), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=1, max_size=4))
def test_every_image_stands_where_it_was_put(conversation):
    talk = [Message(role="user" if n % 2 == 0 else "assistant", content=tuple(c)) for n, c in enumerate(conversation)]
    template = jinja("{% for m in messages %}{{ m.content }}{% endfor %}")
    joined = "".join(shown(list(message.content)) for message in talk)
    assert shown(template.chat([*talk, user("")])) == joined
