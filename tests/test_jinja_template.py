"""Jinja chat templates: the same text as the reference, and no harm from a hostile one."""
# ruff: noqa: E501  # a table is easier to check unwrapped

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from puna.core.errors import BadModel, BadRequest
from puna.text.templates import JinjaTemplate

FIXTURES = Path(__file__).parent / "fixtures"


def _chat_cases():
    for path in sorted(FIXTURES.glob("*/cases.json")):
        known = json.loads(path.read_text())
        for number, case in enumerate([*known.get("chat", []), *known.get("multimodal", [])]):
            yield pytest.param(path.parent / "hf", case, id=f"{path.parent.name}-{number}")


@pytest.mark.parametrize(("checkpoint", "case"), list(_chat_cases()))
def test_renders_a_conversation_as_the_reference_does(checkpoint, case):
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    text = JinjaTemplate(tokenizer["chat_template"]).render(
        messages=case["messages"],
        add_generation_prompt=case.get("add_generation_prompt", True),
        bos_token=tokenizer.get("bos_token") or "",
        eos_token=tokenizer.get("eos_token") or "",
    )
    assert text == case["rendered"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if true %}\na\n{% endif %}\n  {% if true %}\nb\n  {% endif %}\n", "a\nb\n"),
        ("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% generation %}a{% if true %}b{% endif %}{% endgeneration %}c", "abc"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ '<&>' | safe }}{{ '<' | e }}{{ '&' }}", "<&>&lt;&"),
        ("{{ '%s is %d' % ('a', 2) }}", "a is 2"),
        ("{{ 7 % 4 }}{{ 2 ** 3 }}{{ 'ab' * 2 }}{{ [1] * 2 }}{{ [1] + [2] }}{{ 1.5 + 1 }}", "38abab[1, 1][1, 2]2.5"),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% for i in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ '' if loop.last else ',' }}{% endfor %}", "1/3,2/3,3/3"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{% for i in missing %}x{% else %}none{% endfor %}{{ missing }}{{ missing is defined }}", "noneFalse"),
        ("{% for n in [[1, [2]]] recursive %}{% if n is iterable %}({{ loop(n) }}){% else %}{{ n }}{% endif %}{% endfor %}", "(1(2))"),
        ("{{ ['a', 'b'] | join('-') }}{{ [{'n': 1}, {'n': 2}] | map(attribute='n') | join(',') }}", "a-b1,2"),
        ("{{ [{'n': 1}, {'n': 2}] | join('+', attribute='n') }}{{ ', '.join(['x', 'y']) }}", "1+2x, y"),
        ("{{ 'a-b'.split('-')[1].upper() }}{{ 'aXbX'.replace('X', '', 1) }}{{ 'aX' | replace('X', 'y') }}", "BabXay"),
        ("{{ 'a\nb' | indent(2) }}{{ 2.567 | round(1) }}{{ ' x ' | trim }}{{ [3, 1] | sort | first }}", "a\n  b2.6x1"),
        ("{% macro f(x, y='d') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='c') }}", "adbc"),
        ("{% set a, b = 1, 2 %}{{ a }}{{ b }}{{ dict(k=1).k }}", "121"),
        ("{{ messages[-1].content }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "hi1"),
    ],
)  # fmt: skip
def test_knows_what_chat_templates_use(source, text):
    assert JinjaTemplate(source).render(messages=[{"role": "user", "content": "hi"}]) == text


def test_a_list_may_grow_by_one_for_each_of_thousands_of_messages():
    source = "{% set ns = namespace(x=[]) %}{% for m in messages %}{% set ns.x = ns.x + [m] %}{% endfor %}{{ ns.x | length }}"
    assert JinjaTemplate(source).render(messages=[{"role": "user", "content": "hi"}] * 5000) == "5000"


def test_the_time_of_day_can_be_asked_for():
    assert JinjaTemplate("{{ strftime_now('%Y') }}").render() == time.strftime("%Y")


def test_what_a_template_raises_is_the_requests_fault_in_the_templates_words():
    with pytest.raises(BadRequest) as error:
        JinjaTemplate("{{ raise_exception('System role not supported') }}").render()
    assert str(error.value) == "System role not supported"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a\n{% if %}", "chat template, line 2: Expected an expression"),
        ("{{ 'a' | nope }}", "No filter named 'nope'"),
        ("{{ '%s' | format(1) }}", "No filter named 'format'"),
        ("{{ 'a' | center(9) }}", "No filter named 'center'"),
        ("{% macro m() %}{{ varargs }}{% endmacro %}", "uses varargs, which is not supported"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{{ 1" + "+ 1" * 5000 + " }}", "nested too deeply"),
        ("x" * (1 << 20) + "x", "the limit is"),
    ],
)
def test_a_template_that_does_not_compile_is_the_models_fault(source, problem):
    with pytest.raises(BadModel, match=problem):
        JinjaTemplate(source)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'x' %}", "no loader"),
        ("{{ namespace(a=1) }}", "prints a Namespace"),
        ("{{ [namespace(a=1)] }}", "puts a namespace into a list"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ '{:>1000000000}'.format(1) }}", "'format' of 'str' object is unsafe"),
        ("{{ 'a'.center(10**9) }}", "'center' of 'str' object is unsafe"),
        ("{{ (1).to_bytes(10**9, 'big') }}", "'to_bytes' of 'int' object is unsafe"),
        ("{{ lipsum(n=100000) }}", "'lipsum' is undefined"),
        ("{{ range(10**9) | list }}", "Range too big"),
    ],
)
def test_a_template_reaches_nothing_but_its_data(source, problem):
    with pytest.raises(BadModel, match=problem):
        JinjaTemplate(source).render(messages=[])


def _grown(expression: str, start: str) -> str:
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set ns.x = {expression} %}}{{% endfor %}}"
    )


def _kept(expression: str) -> str:
    """Return a template that makes the same thing again and again, and keeps all of it."""
    made = "".join(f"{{% set kept{number} = {expression} %}}" for number in range(200))
    return f"{{% set s = 'ab ' * 1000000 %}}{{% set long = [1] * 200000 %}}{made}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**9 }}",
        "{{ [1] * 10**9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%.1000000000f' % 1.5 }}",
        "{{ '%(a)s' % {'a': 1} }}",
        _grown("ns.x + ns.x", "'ab'"),
        _grown("ns.x ~ ns.x", "'ab'"),
        _grown("ns.x + ns.x", "[1]"),
        _grown("ns.x * ns.x", "3"),
        _grown("'%s%s' % (ns.x, ns.x)", "'ab'"),
        _grown("[ns.x, ns.x]", "[1]") + "{{ ns.x }}",
        _grown("(ns.x, ns.x)", "[1]") + "{{ ns.x | tojson }}",
        _grown("{'a': ns.x, 'b': ns.x}", "1") + "{{ ns.x | string }}",
        _grown("dict(a=ns.x, b=ns.x)", "1") + "{{ ns.x == 1 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000) }}",
        "{{ (['a' * 1000000] * 1000) | join }}",
        "{{ ','.join(['a' * 1000000] * 1000) }}",
        "{{ (2 ** 4000) ** 4000 }}",
        "{{ 1 | round(10**9) }}",
        "{{ 'a' | indent(10**9) }}",
        "{{ [1] | tojson(indent=10**9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set s = 'ab ' * 4000000 %}{{ s.split() | length }}",
        "{% set s = 'ab' * 1000000 %}{{ s | list | length }}",
        "{% set s = 'ab' * 1000000 %}{{ s | sort | length }}{{ s | groupby(0) | length }}",
        "{{ strftime_now('%c' * 1000000) | length }}",
        _kept("s.split()"),
        _kept("s.split('c') + [1]"),
        _kept("s | upper"),
        _kept("s[1:]"),
        _kept("s ~ 'x'"),
        _kept("s + 'x'"),
        _kept("s.strip()"),
        _kept("s.replace('a', 'b')"),
        _kept("s | trim"),
        _kept("[s, 1] | join"),
        _kept("s | replace('a', 'b')"),
        _kept("long | list"),
        _kept("long[1:]"),
        _kept("long + [1]"),
    ],
)  # fmt: skip
def test_a_template_that_would_fill_the_memory_is_stopped(source):
    with pytest.raises(BadModel, match=r"more than|is not supported|rounds to|nested too deeply"):
        JinjaTemplate(source).render()


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(1000) recursive %}{% if loop.depth < 4 %}{{ loop(range(1000)) }}{% endif %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_that_would_not_end_is_stopped(source):
    with pytest.raises(BadModel, match=r"more than (500000 steps|5 seconds)"):
        JinjaTemplate(source).render()
