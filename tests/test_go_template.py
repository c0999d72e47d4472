"""Go templates: the expected texts below were printed by Go 1.27's own text/template for the same data."""
# ruff: noqa: E501  # a table is easier to check unwrapped

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import BadModel, BadRequest
from puna.text.templates.go import GoTemplate, Listed, Ordered, Record, Shape
from puna.text.templates.go.render import MAX_STEPS
from puna.text.templates.go.values import MAX_TEXT

DATA = {
    "S": "str",
    "E": "",
    "I": 5,
    "Z": 0,
    "F": 2.5,
    "T": True,
    "N": None,
    "L": [1, "b", None, True],
    "LE": [],
    "M": {"b": 1, "a": [1, None, "x"], "c": {"d": "e"}},
    "ME": {},
    "U": "héllo",
}


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        (
            "{{ .S }} {{ .I }} {{ .F }} {{ .T }} {{ .L }} {{ .M }} {{ .LE }} {{ .ME }}",
            "str 5 2.5 true [1 b <nil> true] map[a:[1 <nil> x] b:1 c:map[d:e]] [] map[]",
        ),
        ('{{ .Missing }}|{{ .N }}|{{ print .N }}|{{ .Missing | printf "%v" }}', "<no value>|<no value>|<nil>|<nil>"),
        (
            "{{ 100000.0 }} {{ 1234567.0 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1e20 }} {{ -0.5 }}",
            "100000 1.234567e+06 0.0001 1e-05 1e+20 -0.5",
        ),
        (
            "{{ 'a' }} {{ 0x1F }} {{ 0b101 }} {{ 017 }} {{ 1_000 }} {{ 0x1p4 }} {{ .5 }} {{ -3 }}",
            "97 31 5 15 1000 16 0.5 -3",
        ),
        ('{{ "\\x41\\u00e9\\101\\t\\"" }}{{ `raw \\n "x"` }}', 'AéA\t"raw \\n "x"'),
        ('{{ print 1 2 "a" "b" 3 nil true }}|{{ println 1 "a" nil }}|{{ print }}', "1 2ab3 <nil> true|1 a <nil>\n|"),
        ('a  {{- "x" -}}  b {{- /* c */ -}} d {{/* e */}} f {{- 3 -}} g {{ -3 -}} h', "axbd  f3g -3h"),
        (
            "{{ if .E }}a{{ else if .Z }}b{{ else if .S }}c{{ else }}d{{ end }}{{ if .ME }}x{{ end }}{{ if .LE }}x{{ end }}{{ if .N }}x{{ end }}{{ if .F }}f{{ end }}",
            "cf",
        ),
        (
            "{{ range .L }}[{{ . }}]{{ else }}none{{ end }}{{ range .LE }}x{{ else }}none{{ end }}{{ range .Missing }}x{{ else }}none{{ end }}",
            "[1][b][<no value>][true]nonenone",
        ),
        (
            "{{ range $i, $x := .L }}{{ $i }}={{ $x }},{{ end }}{{ range $x := .L }}{{ $x }}{{ end }}{{ range 3 }}{{ . }}{{ end }}",
            "0=1,1=b,2=<no value>,3=true,1b<no value>true012",
        ),
        (
            "{{ range $k, $v := .M }}{{ $k }}:{{ $v }};{{ end }}{{ range .M }}{{ . }}{{ end }}",
            "a:[1 <nil> x];b:1;c:map[d:e];[1 <nil> x]1map[d:e]",
        ),
        (
            "{{ range $i, $x := .L }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ if eq $i 3 }}{{ break }}{{ end }}{{ $i }}{{ end }}",
            "02",
        ),
        (
            "{{ with .S }}{{ . }}{{ $.I }}{{ end }}{{ with .E }}a{{ else with .I }}b{{ . }}{{ else }}c{{ end }}{{ with $y := .S }}{{ $y }}{{ end }}",
            "str5b5str",
        ),
        (
            "{{ $a := 1 }}{{ if true }}{{ $a = 2 }}{{ $a := 3 }}{{ $a }}{{ end }}{{ $a }}{{ range $i, $e := .L }}{{ $a = $i }}{{ end }}{{ $a }}",
            "323",
        ),
        (
            '{{ define "t" }}<{{ . }}{{ $ }}>{{ end }}{{ template "t" .S }}{{ template "t" }}{{ block "b" .I }}[{{ . }}]{{ end }}',
            "<strstr><<no value><no value>>[5]",
        ),
        ("{{ $x := .Missing }}{{ $x.Y }}", "<no value>"),
        (
            '{{ and 1 0 2 }} {{ or 0 "" "x" }} {{ and 1 2 }} {{ or 0 "" }} {{ not .S }} {{ not 0 }} {{ not nil }} {{ 1 | and 0 }} {{ "x" | or 0 }}',
            "0 x 2  false true true 0 x",
        ),
        ("{{ and .E (index .L 99) }}|{{ or .S (index .L 99) }}", "|str"),
        (
            '{{ eq 1 1 }} {{ eq "a" "b" "a" }} {{ ne 1 2 }} {{ lt 1 2 }} {{ le 2 2 }} {{ gt "b" "a" }} {{ ge 1.5 1.5 }} {{ eq .N nil }} {{ eq .Missing "x" }} {{ eq .I 5 }}',
            "true true true true true true true true false true",
        ),
        (
            "{{ len .U }} {{ index .U 1 }} {{ slice .U 0 3 }} {{ slice .U 0 2 }}{{ slice .U 2 }} {{ slice .L 1 2 }} {{ slice .L 1 }} {{ len .L }} {{ len .M }}",
            "6 195 hé héllo [b] [b <nil> true] 4 3",
        ),
        ('{{ printf "%q" (slice .U 0 2) }} {{ json (slice .U 0 2) }}', '"h\\xc3" "h�"'),
        ('{{ index .M "a" 2 }} {{ index .M "zz" }} {{ index .L 0 }}', "x <no value> 1"),
        (
            '{{ printf "%d %s %z %d" "x" 5 1 }}|{{ printf "%d" 1 2 "x" }}|{{ printf "%" }}|{{ printf "100%%" }}',
            "%!d(string=x) %!s(int=5) %!z(int=1) %!d(MISSING)|1%!(EXTRA int=2, string=x)|%!(NOVERB)|100%",
        ),
        (
            '{{ printf "%*d|%-*d|%05d|%5d|%-5d|%+d|% d|%x|%X|%o|%b|%c|%U" 5 42 5 42 -42 -42 -42 5 5 255 255 8 5 97 97 }}',
            "   42|42   |-0042|  -42|-42  |+5| 5|ff|FF|10|101|a|U+0061",
        ),
        (
            '{{ printf "%s|%d|%q|%v|%t|%T" .L .L .L .M true .S }}',
            "[%!s(int=1) b <nil> %!s(bool=true)]|[1 %!d(string=b) <nil> %!d(bool=true)]|['\\x01' \"b\" <nil> %!q(bool=true)]|map[a:[1 <nil> x] b:1 c:map[d:e]]|true|string",
        ),
        (
            '{{ printf "%6.2f|%.0f|%g|%e|%G|%.3g|%08.3f|%v|%d" 3.14159 2.5 1234567.0 1.5 1e-7 1234567.0 3.14159 1.5 1.5 }}',
            "  3.14|2|1.234567e+06|1.500000e+00|1E-07|1.23e+06|0003.142|1.5|%!d(float64=1.5)",
        ),
        (
            '{{ printf "%5s|%-5s|%5.2s|%x|% x|%q|%#q|%+q" "a" "a" "abcdef" "hi" "hi" "a\\"é\\n" "x" "é" }}',
            '    a|a    |   ab|6869|68 69|"a\\"é\\n"|`x`|"\\u00e9"',
        ),
        (
            '{{ printf "%s %v %d" nil .N true }}|{{ printf "%-8s|" 2 }}|{{ printf "%6v|" .L }}',
            "%!s(<nil>) <nil> %!d(bool=true)|%!s(int=2       )||[     1      b <nil>   true]|",
        ),
        (
            '{{ json .M }} {{ json "<a>&\\u2028\\x00\\"\\\\/" }} {{ json 1.0 }} {{ json 1e21 }} {{ json 1e-7 }} {{ json .U }} {{ json nil }} {{ json .F }}',
            '{"a":[1,null,"x"],"b":1,"c":{"d":"e"}} "\\u003ca\\u003e\\u0026\\u2028\\u0000\\"\\\\/" 1 1e+21 1e-7 "héllo" null 2.5',
        ),
        (
            '{{ html "<a b=\\"c\\" d=\'e\'>&" }} {{ js "a\'b\\"<>&=\\n\\\\é" }} {{ urlquery "a b&c/é~-_.*" }} {{ html .N }}',
            "&lt;a b=&#34;c&#34; d=&#39;e&#39;&gt;&amp; a\\'b\\\"\\u003C\\u003E\\u0026\\u003D\\u000A\\\\é a+b%26c%2F%C3%A9~-_.%2A &lt;no value&gt;",
        ),
    ],
)
def test_prints_what_go_prints(template, printed):
    assert GoTemplate(template).render(DATA) == printed


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("line one\n{{ .S }", 'template: :2: unexpected "}" in operand'),
        ("{{ .S", "template: :1: unclosed action"),
        ("{{ .S ) }}", "template: :1: unexpected right paren"),
        ("{{ ( .S }}", "template: :1: unclosed left paren"),
        ('{{ "abc }}', "template: :1: unterminated quoted string"),
        ("line one\n{{ `abc }}", "template: :2: unterminated raw quoted string"),
        ("{{ 'abc }}", "template: :1: unterminated character constant"),
        ("{{/* open", "template: :1: unclosed comment"),
        ("{{/* bad */ x}}", "template: :1: comment ends before closing delimiter"),
        ("{{ foo }}", 'template: :1: function "foo" not defined'),
        ("line one\n{{ $x }}", 'template: :2: undefined variable "$x"'),
        ("{{ if }}{{ end }}", "template: :1: missing value for if"),
        ("{{ if .S }}", "template: :1: unexpected EOF"),
        ("{{ end }}", "template: :1: unexpected {{end}}"),
        ("{{ else }}", "template: :1: unexpected {{else}}"),
        ("line one\n{{ () }}", "template: :2: missing value for parenthesized pipeline"),
        ('{{ "a" | "b" }}', "template: :1: non executable command in pipeline stage 2"),
        ('{{ "bad \\q" }}', "template: :1: invalid syntax"),
        ("{{ 99999999999999999999 }}", 'template: :1: integer overflow: "99999999999999999999"'),
        ("{{ .a-b }}", "template: :1: bad character U+002D '-'"),
        ("{{ ! }}", 'template: :1: unexpected "!" in command'),
        ("{{ break }}", "template: :1: {{break}} outside {{range}}"),
        ("{{ if .S }}{{ continue }}{{ end }}", "template: :1: {{continue}} outside {{range}}"),
        ("line one\n{{ range $i, $j, $k := .L }}{{ end }}", "template: :2: too many declarations in range"),
        ("{{ $x, $y := .L }}", "template: :1: too many declarations in command"),
        (
            '{{ define "a" }}1{{ end }}{{ define "a" }}2{{ end }}',
            'template: :1: template: multiple definition of template "a"',
        ),
        ('{{ range .L }}{{ define "x" }}{{ end }}{{ end }}', "template: :1: unexpected <define> in command"),
        ("{{ template }}", 'template: :1: unexpected "}}" in template clause'),
        ("line one\n{{ if .S }}{{ else }}{{ else }}{{ end }}", "template: :2: expected end; found {{else}}"),
        ("{{ with .S }}{{ else if .I }}{{ end }}{{ end }}", "template: :1: unexpected <if> in input"),
        ("{{ true.x }}", 'template: :1: unexpected . after term "true"'),
    ],
)
def test_says_in_gos_words_and_with_the_line_why_a_template_does_not_parse(template, problem):
    with pytest.raises(BadRequest) as error:
        GoTemplate(template)
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "line one\n{{ index .L 9 }}",
            'template: :2:3: executing "" at <index .L 9>: error calling index: index out of range: 9',
        ),
        (
            '{{ index .L "a" }}',
            'template: :1:3: executing "" at <index .L "a">: error calling index: cannot index slice/array with type string',
        ),
        ("{{ index .N 1 }}", 'template: :1:3: executing "" at <index .N 1>: error calling index: index of untyped nil'),
        (
            "{{ slice .S 2 1 }}",
            'template: :1:3: executing "" at <slice .S 2 1>: error calling slice: invalid slice index: 2 > 1',
        ),
        (
            "{{ slice .S 0 9 }}",
            'template: :1:3: executing "" at <slice .S 0 9>: error calling slice: index out of range: 9',
        ),
        ("line one\n{{ len .I }}", 'template: :2:3: executing "" at <len .I>: error calling len: len of type int'),
        (
            '{{ eq 1 "a" }}',
            'template: :1:3: executing "" at <eq 1 "a">: error calling eq: incompatible types for comparison: int and string',
        ),
        ("{{ lt nil 1 }}", 'template: :1:3: executing "" at <lt nil 1>: error calling lt: invalid type for comparison'),
        (
            "{{ lt true false }}",
            'template: :1:3: executing "" at <lt true false>: error calling lt: invalid type for comparison',
        ),
        ("{{ eq 1 }}", 'template: :1:3: executing "" at <eq 1>: error calling eq: missing argument for comparison'),
        (
            "line one\n{{ not 1 2 }}",
            'template: :2:3: executing "" at <not>: wrong number of args for not: want 1 got 2',
        ),
        ("{{ or }}", 'template: :1:3: executing "" at <or>: wrong number of args for or: want at least 1 got 0'),
        ("{{ .M.zz.y }}", 'template: :1:5: executing "" at <.M.zz.y>: nil pointer evaluating interface {}.y'),
        (
            '{{ template "nope" }}',
            'template: :1:12: executing "" at <{{template "nope"}}>: template "nope" not defined',
        ),
        ("{{ .S 1 }}", 'template: :1:3: executing "" at <.S>: S is not a method but has arguments'),
        ("line one\n{{ $ 1 }}", 'template: :2:3: executing "" at <$>: can\'t give argument to non-function $'),
        ("{{ nil }}", 'template: :1:3: executing "" at <nil>: nil is not a command'),
        ("{{ range .S }}{{ end }}", 'template: :1:9: executing "" at <.S>: range can\'t iterate over str'),
        ("{{ call .N }}", 'template: :1:3: executing "" at <call .N>: error calling call: call of nil'),
    ],
)
def test_says_in_gos_words_and_with_the_place_why_a_run_failed(template, problem):
    with pytest.raises(BadModel) as error:
        GoTemplate(template).render(DATA)
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a \n {{- .S }}", "astr"),
        ("{{ .S -}} \r\n\t b", "strb"),
        ("{{ .S -}}\n\n{{- .S }}", "strstr"),
        ("{{- /* a\nb */ -}}\n x", "x"),
        ("a\n{{/* b */}}\nc", "a\n\nc"),
        ("{{ print\n1\n2 }}", "1 2"),
        ("{{`a\n b`}}", "a\n b"),
        ("{ {} }", "{ {} }"),
    ],
)
def test_trim_marks_remove_all_white_space_on_their_side_only(template, text):
    assert GoTemplate(template).render(DATA) == text


POINT = Shape("Point", X="x", Label="label?")


def test_a_record_has_its_fields_and_prints_as_json():
    point = Record(POINT, {"X": 1, "Label": ""})
    assert GoTemplate("{{ .P.X }}{{ .P }}{{ json .P }}{{ if .P }}true{{ end }}").render({"P": point}) == (
        '1{"x":1}{"x":1}true'
    )


def test_an_unknown_field_of_a_record_is_an_error():
    with pytest.raises(BadModel, match=r"<\$p\.Z>: can't evaluate field Z in type Point"):
        GoTemplate("{{ range $p := .L }}{{ $p.Z }}{{ end }}").render({"L": [Record(POINT, {"X": 1, "Label": ""})]})


def test_json_keeps_the_order_of_an_ordered_map_and_range_sorts_it():
    data = {"O": Ordered({"b": {"z": 1, "a": 2}, "a": "<"}), "P": {"b": 1, "a": 2}}
    template = GoTemplate("{{ .O }}{{ json .P }}{{ range $k, $v := .O }}{{ $k }}{{ end }}")
    assert template.render(data) == '{"b":{"a":2,"z":1},"a":"\\u003c"}{"a":2,"b":1}ab'


def test_a_listed_list_prints_as_json_and_is_false_when_empty():
    template = GoTemplate('{{ .L }}{{ if .None }}x{{ end }}{{ printf "%s" .L }}')
    assert template.render({"L": Listed(["a", 1]), "None": Listed()}) == '["a",1]["a",1]'


@pytest.mark.parametrize(
    ("schema", "type_script"),
    [
        ({"Type": "integer"}, "number"),
        ({"Type": "array"}, "any[]"),
        ({"Type": "object"}, "Record<string, any>"),
        ({"Type": ["string", "null"]}, "string | null"),
        ({"Type": ""}, "any"),
        ({"Type": "", "AnyOf": [{"Type": "string"}, {"Type": "boolean"}]}, "string | boolean"),
    ],
)
def test_a_tools_property_has_a_type_script_type(schema, type_script):
    shape = Shape("ToolProperty", Type="type", AnyOf="anyOf?")

    def record(schema):
        return Record(shape, {"Type": schema["Type"], "AnyOf": [record(one) for one in schema.get("AnyOf", [])]})

    assert GoTemplate("{{ toTypeScriptType .P }}").render({"P": record(schema)}) == type_script


def test_dates_are_iso_dates_a_day_apart_whatever_the_arguments():
    today, yesterday = GoTemplate('{{ currentDate }} {{ yesterdayDate "x" }}').render({}).split()
    assert time.strptime(yesterday, "%Y-%m-%d") < time.strptime(today, "%Y-%m-%d")


def test_bytes_of_a_character_cut_apart_join_again_and_alone_become_a_replacement():
    assert GoTemplate("{{ slice .U 0 2 }}{{ slice .U 2 }}").render(DATA) == "héllo"
    assert GoTemplate("{{ slice .U 0 2 }}").render(DATA) == "h\ufffd"


@pytest.mark.parametrize("name", ["messages", "Messages", "TOOLS", "d", "e"])
def test_mentions_a_name_wherever_it_stands_and_in_any_case(name):
    source = "{{ if .Messages }}{{ range $i, $x := $.tools }}{{ ($x).D }}{{ $x.e }}{{ end }}{{ end }}"
    assert GoTemplate(source).mentions(name)


def test_does_not_mention_text_strings_functions_or_variables():
    template = GoTemplate('tools {{ "tools" }}{{ $tools := 1 }}{{ len .X }}')
    assert not template.mentions("tools")
    assert not template.mentions("len")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a{{ .Response }}b{{ .S }}", "a"),
        ("{{ if .S }}a{{ .Response }}b{{ else }}c{{ end }}d", "a"),
        ("{{ if .E }}a{{ .Response }}b{{ else }}c{{ end }}d", ""),
        ("{{ if .E }}a{{ else }}c{{ .Response }}{{ end }}d", "c"),
        ("a{{ if .Response }}b{{ end }}{{ .Response }}c", "a"),
        ("a{{ .S }}", "astr"),
    ],
)
def test_can_be_cut_behind_the_response(template, text):
    assert GoTemplate(template).until_response().render({**DATA, "Response": ""}) == text


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        (
            "{{ range .Messages }}{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>{{ end }}{{ end }}",
            ("<think>", "</think>"),
        ),
        (
            "{{ range $m := $.Messages }}{{ with $m.Thinking }}[T]{{ $m.Thinking }}[/T] {{ end }}{{ end }}",
            ("[T]", "[/T]"),
        ),
        ("{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}{{ end }}{{ end }}", None),
        ("{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}", None),
        ("{{ range .Messages }}{{ .Content }}{{ end }}", None),
    ],
)
def test_reads_the_marks_of_thinking_off_a_template(template, tags):
    assert GoTemplate(template).thinking_tags == tags


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        (
            "{{ range .Messages }}{{ if .ToolCalls }}\n<call>{{ range .ToolCalls }}{}{{ end }}{{ end }}{{ end }}",
            "<call>",
        ),
        ('{{ if .ToolCalls }}[CALLS] [{{ range .ToolCalls }}{"name"{{ end }}]{{ end }}', "[CALLS] ["),
        ('{{ if and .ToolCalls .X }} {{ range .ToolCalls }}{"name": {{ end }}{{ end }}', "{"),
        ("{{ range .ToolCalls }}<call>{{ end }}", None),
    ],
)
def test_reads_the_mark_of_tool_calls_off_a_template(template, tag):
    assert GoTemplate(template).tool_tag == tag


@pytest.mark.parametrize(
    "template",
    [
        "{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}",
        '{{ define "x" }}{{ template "x" }}{{ end }}{{ template "x" }}',
        '{{ define "x" }}{{ range 9 }}{{ template "y" }}{{ end }}{{ end }}{{ define "y" }}{{ template "x" }}{{ end }}{{ template "x" }}',
        '{{ $x := "abcdefgh" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}',
        '{{ $x := `"` }}{{ range 100 }}{{ $x = json $x }}{{ end }}',
        '{{ $x := "&" }}{{ range 100 }}{{ $x = html $x $x }}{{ end }}',
        '{{ range 1000 }}{{ printf "%1000000d" 1 }}{{ end }}',
        '{{ range 1000000 }}{{ printf "%.1000000f" 1.5 }}{{ end }}',
    ],
)
def test_a_template_that_would_not_end_or_would_fill_the_memory_is_stopped(template):
    with pytest.raises(BadModel, match=f"{MAX_STEPS} steps|beyond {MAX_TEXT} characters|maximum template depth"):
        GoTemplate(template).render({})


def test_a_width_beyond_gos_limit_is_printed_as_a_mistake():
    assert GoTemplate('{{ printf "%1000000000d" 1 }}').render({}) == "%!(BADWIDTH)1"


@pytest.mark.parametrize(
    "part", ["{{ if 1 }}", "{{ with 1 }}", "{{ (", "{{ range 1 }}{{ if 1 }}", "{{ if 1 }}{{ else "]
)
def test_nesting_too_deep_is_refused(part):
    with pytest.raises(BadRequest, match=r"depth exceeded|unexpected"):
        GoTemplate(part * 20_000)


def test_a_source_too_long_is_refused():
    with pytest.raises(BadRequest, match="the limit is"):
        GoTemplate("x" * (1 << 20) + "x")


_PIECES = st.sampled_from(
    [
        "{{",
        "}}",
        "{{- ",
        " -}}",
        "if ",
        "else ",
        "end",
        "range ",
        "with ",
        "define ",
        '"a"',
        "template ",
        "block ",
        ".S",
        ".L",
        ".M",
    ]
    + [
        "$x",
        "$",
        ":=",
        "=",
        "|",
        "(",
        ")",
        ",",
        ".",
        " ",
        "\n",
        "1",
        "-2.5",
        "'c'",
        "`r`",
        "nil",
        "true",
        "print",
        "index",
        "eq",
        "and",
    ]
    + ["break", "continue", "printf", '"%d%s%q"', "/*", "*/", "len", "slice", "é"]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=40).map("".join)))
def test_any_text_either_parses_and_ends_or_is_refused_with_a_line(source):
    try:
        template = GoTemplate(source)
    except BadRequest as error:
        assert str(error).startswith("template: :")
        return
    try:
        assert isinstance(template.render(DATA), str)
    except BadModel as error:
        assert str(error).startswith("template: ")


_EXPRESSIONS = st.recursive(
    st.sampled_from(
        [
            ".S",
            ".E",
            ".I",
            ".F",
            ".L",
            ".M",
            ".N",
            ".U",
            "$",
            ".",
            "1",
            '"a"',
            "nil",
            "true",
            ".M.c.d",
            "'x'",
            ".P",
            ".P.X",
        ]
    ),
    lambda inner: st.tuples(
        st.sampled_from(
            [
                "and",
                "or",
                "not",
                "eq",
                "lt",
                "ge",
                "len",
                "index",
                "slice",
                "print",
                'printf "%5v|%d"',
                "json",
                "js",
                "html",
            ]
        ),
        st.lists(inner, max_size=3),
    ).map(lambda call: f"({call[0]} {' '.join(call[1])})"),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(_EXPRESSIONS, _EXPRESSIONS)
def test_any_expression_gives_text_or_the_typed_error(first, second):
    point = Record(POINT, {"X": 1, "Label": ""})
    source = f"{{{{ with {first} }}}}{{{{ range {second} }}}}{{{{ . }}}}{{{{ end }}}}{{{{ end }}}}"
    try:
        assert isinstance(GoTemplate(source).render({**DATA, "P": point}), str)
    except BadModel as error:
        assert "executing" in str(error)
