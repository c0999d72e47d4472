"""Which tokens an output format allows, and that replies keep to it."""

import asyncio
import itertools
import json
import random
import string
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import regex
from bench.schemas import schemas

from puna.core.errors import BadRequest, Busy
from puna.core.scheduler import engine
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.guess import Lookup
from puna.core.scheduler.inline import InlineRunner, TextParts
from puna.core.scheduler.messages import Generate
from puna.core.scheduler.plan import Limits
from puna.core.tensor.sampling import SamplingParams
from puna.core.tensor.weights import open_weights
from puna.plugins import llama
from puna.text.grammars import Grammars, compiler
from puna.text.grammars.schema import MAX_BYTES, MAX_OBJECTS, UnsupportedSchema, parse_schema
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = {
    "byte-level": "llama-bpe",
    "SentencePiece": "llama-spm",
    "SentencePiece without dummy prefix": "mistral-v3",
    "Qwen": "qwen3",
}
GGUF = FIXTURES / "llama-bpe" / "gguf" / "model-f32.gguf"
WILD = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=11)


@cache
def opened(fixture="llama-bpe"):
    """Return a tokenizer and the grammars of it."""
    tokenizer = open_tokenizer(open_weights(FIXTURES / fixture / "gguf" / "model-f32.gguf"))
    return tokenizer, Grammars(tokenizer, tokenizer.stop_ids)


def allowed(grammar):
    """Return the ids in a grammar's mask."""
    return set(np.flatnonzero(np.unpackbits(grammar.mask().view(np.uint8), bitorder="little")).tolist())


def after(grammars, schema, tokens):
    grammar = grammars.open(json.dumps(schema))
    for token in tokens:
        grammar.accept(token)
    return grammar


def compiled(schema):
    return opened()[1].open(schema if isinstance(schema, str) else json.dumps(schema))


def accepts(schema, text):
    """Whether a reply can be text, byte by byte, and end there."""
    tokenizer, _ = opened()
    spelled = {tokenizer.piece(token): token for token in range(tokenizer.size)}
    grammar = compiled(schema)
    for byte in text.encode():
        if spelled[bytes([byte])] not in allowed(grammar):
            return False
        grammar.accept(spelled[bytes([byte])])
    return tokenizer.stop_ids <= allowed(grammar)


# ---- masks, against an enumeration of what is valid -----------------------------------------------------------------


@pytest.mark.parametrize("fixture", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_mask_allows_exactly_the_tokens_that_keep_a_reply_the_beginning_of_a_value(fixture):
    tokenizer, grammars = opened(fixture)
    values = ["the", "then", "é세계", 'q"\n', 12, 123, -0.5, True, None]
    texts = [json.dumps(value, ensure_ascii=False).encode() for value in values]
    pieces = [(token, tokenizer.piece(token)) for token in range(tokenizer.size)]
    rest, checked = [((), b"")], set()
    while rest:
        tokens, prefix = rest.pop()
        checked.add(prefix)
        left = {text[len(prefix) :] for text in texts if text.startswith(prefix)}
        fitting = {t for t, piece in pieces if piece and any(text.startswith(piece) for text in left)}
        grammar = after(grammars, {"enum": values}, tokens)
        assert allowed(grammar) == fitting | (tokenizer.stop_ids if b"" in left else set())
        assert grammar.ended == (left == {b""})
        longer = {prefix + piece: (*tokens, token) for token, piece in pieces if token in fitting}
        rest += [(spelled, text) for text, spelled in longer.items() if text not in checked]
    assert len(checked) > 30


OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "array", "items": {"enum": [1, 23]}, "maxItems": 2}},
    "required": ["a"],
    "additionalProperties": False,
}
SPACE = rb"[ \n\r\t]{0,64}"
VALID = regex.compile(
    rb'\{_"a"_:_(true|false)(_,_"b"_:_\[(_(1|23)(_,_(1|23))?)?_\])?_\}'.replace(b"_", SPACE), flags=regex.V1
)


@pytest.mark.parametrize("fixture", FAMILIES.values(), ids=FAMILIES.keys())
def test_masks_along_random_replies_are_those_of_a_regular_expression(fixture):
    tokenizer, grammars = opened(fixture)
    pieces = [tokenizer.piece(token) for token in range(tokenizer.size)]
    draw, ends = random.Random(5), 0
    for _ in range(12):
        grammar, text = grammars.open(json.dumps(OBJECT)), b""
        while not grammar.ended and len(text) < 120:
            fitting = {t for t, p in enumerate(pieces) if p and VALID.fullmatch(text + p, partial=True)}
            assert allowed(grammar) == fitting
            token = draw.choice(
                sorted(t for t in fitting if draw.random() < 0.5 or not pieces[t].isspace()) or [*fitting]
            )
            grammar.accept(token)
            text += pieces[token]
        ends += grammar.ended
        assert not grammar.ended or (VALID.fullmatch(text) and allowed(grammar) == tokenizer.stop_ids)
    assert ends > 3


def test_no_control_token_is_ever_allowed_within_a_value():
    tokenizer, grammars = opened()
    control = {t for t in range(tokenizer.size) if not tokenizer.piece(t)}
    assert control > tokenizer.stop_ids
    grammar = grammars.open('{"type": "string"}')
    for token in tokenizer.encode('"lighthouse', special=False, start=False):
        assert not allowed(grammar) & control
        grammar.accept(token)
    assert not allowed(grammar) & control


def test_every_way_to_end_a_reply_is_allowed_where_a_value_may_end():
    tokenizer, _ = opened()
    for stop_ids in (frozenset({5, 7}), tokenizer.stop_ids):
        grammar = Grammars(tokenizer, stop_ids).open('{"type": "integer"}')
        assert not allowed(grammar) & stop_ids
        grammar.accept(tokenizer.encode("8", special=False, start=False)[0])
        assert stop_ids < allowed(grammar)
        assert not grammar.ended


def test_a_model_that_cannot_say_that_it_ends_still_gets_a_grammar():
    tokenizer, _ = opened()
    grammar = Grammars(tokenizer, frozenset()).open('{"const": 8}')
    (token,) = tokenizer.encode("8", special=False, start=False)
    assert allowed(grammar) == {token}
    grammar.accept(token)
    assert grammar.ended


@pytest.mark.parametrize("fixture", FAMILIES.values(), ids=FAMILIES.keys())
def test_what_has_to_follow_is_told_in_tokens_that_are_allowed(fixture):
    tokenizer, grammars = opened(fixture)
    grammar = grammars.open('{"enum": ["the lighthouse", "the cat"]}')
    spelled = b""
    while forced := grammar.forced():
        for token in forced:
            assert token in allowed(grammar)
            grammar.accept(token)
            spelled += tokenizer.piece(token)
    assert spelled == b'"the '


def test_two_replies_with_one_schema_do_not_disturb_each_other():
    first, second = compiled({"enum": [1, 2]}), compiled({"enum": [1, 2]})
    before = allowed(second)
    first.accept(min(allowed(first)))
    assert first.ended
    assert (allowed(second), second.ended) == (before, False)


class Poor:
    """A tokenizer that lacks most bytes."""

    size, stop_ids = 4, frozenset({3})

    def piece(self, token):
        return (b'"', b"a", b"b", b"")[token]


def test_a_reply_that_no_token_can_continue_fails_and_is_no_value_cut_off():
    grammars = Grammars(Poor(), Poor.stop_ids)
    assert allowed(after(grammars, {"const": "ab"}, [0, 1, 2, 0])) == {3}
    with pytest.raises(BadRequest, match="can be followed no further: no token can come next"):
        after(grammars, {"const": "az"}, [0, 1]).mask()
    with pytest.raises(UnsupportedSchema, match="no token can come next"):
        grammars.open('{"type": "array"}')


def test_a_reply_that_the_library_gives_up_fails_and_is_no_value_cut_off():
    grammar = compiled({"type": "string"})
    grammar.accept(opened()[0].encode("{", special=False, start=False)[0])
    with pytest.raises(BadRequest, match="can be followed no further"):
        grammar.mask()
    assert not grammar.ended


# ---- what a schema means -------------------------------------------------------------------------------------------

A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "object"}, ["{}", '{ "a" : [ ] }'], ["[]", "1", " {}", "{} ", '{"a":1,}']),
        (A, ['{"a":1}', '{"a":1,"z":"x"}'], ["{}", '{"z":1,"a":1}', '{"a":1,"a":"x"}', r'{"a":1,"\u0061":"x"}']),
        ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, ['{"ab":1}'], [r'{"\u0061b":"x"}']),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, ["[1]", "[]"], ["[2]", "[1,1]"]),
        ({"type": "string", "maxLength": 2}, ['"é세"', r'"\n\""'], ['"abc"', '"\n"']),
        ({"type": "integer", "minimum": 3, "multipleOf": 4}, ["4", "8"], ["3", "0", "4.0", "04"]),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, ["null"], ["1"]),
        ({"type": "object", "additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}, ["{ }"], []),
        ({"type": "string", "$comment": "y", "example": {"not": {"$ref": "http://z"}}}, ['"y"'], ["1"]),
        ({"type": "array", "items": {"$ref": "#"}}, ["[[],[[]]]"], ["[1]"]),
    ],
)
def test_a_schema_allows_what_follows_it(schema, good, bad):
    assert [text for text in good if not accepts(schema, text)] == []
    assert [text for text in bad if accepts(schema, text)] == []


@pytest.mark.parametrize(
    "harmless",
    [
        {"uniqueItems": False},
        {"not": False},
        {"propertyNames": True},
        {"unevaluatedItems": {}},
        {"unevaluatedProperties": True},
        {"dependentRequired": {}},
        {"dependentSchemas": {}},
        {"dependencies": {}},
    ],
    ids=lambda harmless: next(iter(harmless)),
)
def test_a_keyword_whose_value_restricts_nothing_is_as_good_as_not_there(harmless):
    schema = {"type": "array", "items": {"type": "array"} | harmless} | harmless
    assert accepts(schema, "[[1,1],[]]")
    assert not accepts(schema, "[1]")


def test_white_space_is_bounded_so_that_a_reply_gets_on():
    assert accepts({"type": "object"}, "{" + 64 * " " + "}")
    assert not accepts({"type": "object"}, "{" + 65 * " " + "}")


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"not": {"type": "string"}}, "not is not supported, at #"),
        ({"properties": {"a": {"uniqueItems": True, "if": {}}}}, "if, uniqueItems is not supported, at #/properties/a"),
        ({"uniqueItems": 0, "not": {}, "dependentSchemas": {"a": {}}}, "dependentSchemas, not, uniqueItems is not"),
        ({"items": [{"contains": {}}]}, "contains is not supported, at #/items/0"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "dependentRequired": {"a": ["b"]}},
            "dependentRequired",
        ),
        ({"x-guidance": {"lenient": True}, "propertyNames": {"maxLength": 1}}, "propertyNames is not supported"),
        (
            {"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "integer"}, {"type": "number"}]},
            "the alternatives of a oneOf must exclude each other",
        ),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, "exclusiveMinimum must be a number"),
        ({"type": "object", "minProperties": 1}, "minProperties above the number of required ones"),
        ({"$ref": "https://example.com/schema"}, "$ref must point to a schema within this one"),
        ({"$ref": "#/x/a", "x": {"a": {"not": {}}}}, "$ref must point to a schema within this one, not to '#/x/a'"),
        ({"$ref": 5}, "$ref must point to a schema"),
        ({"$defs": {"a": {"$id": "http://a/b"}}}, "an $id is supported at the root only, not at #/$defs/a"),
        ({"const": "\x01"}, "control characters are not supported"),
        ({"properties": {"\x7f": {}}}, "control characters are not supported"),
        ({"type": "strnig"}, "Invalid type: strnig"),
        ({"type": "string", "format": "colour"}, "Unknown format: colour"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex parse error"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable schema"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "Unsatisfiable schema"),
    ],
)
def test_a_schema_that_cannot_be_followed_to_the_letter_is_refused_by_name(schema, problem):
    with pytest.raises(UnsupportedSchema) as refusal:
        compiled(schema)
    assert str(refusal.value).startswith(f"replies cannot be made to follow this JSON schema: {problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "must be an object"),
        ("{", "not valid JSON"),
        ('{"a":' * 1500 + "1" + "}" * 1500, "not valid JSON"),
        (json.dumps({"enum": [12345] * (MAX_BYTES // 6)}), "characters: at most"),
        (json.dumps({"enum": [{}] * MAX_OBJECTS}), "opening braces: at most 2048"),
    ],
)
def test_a_text_that_is_no_schema_or_too_large_is_refused(text, problem):
    with pytest.raises(BadRequest, match=problem):
        compiled(text)


@pytest.mark.parametrize("inner", [{}, {"$ref": "#/x"}, {"not": {}}], ids=["taken", "bad reference", "bad keyword"])
def test_a_long_name_around_many_schemas_is_not_held_once_for_each(inner):
    text = json.dumps({"properties": {"x" * 200_000: {"properties": {str(i): inner for i in range(1000)}}}})
    tracemalloc.start()
    try:
        parse_schema(text)
    except UnsupportedSchema as refusal:
        assert len(str(refusal)) < 400
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * len(text)


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("#", True),
        ("#/", True),
        ("#/$defs/a~1b%25/items", True),
        ("#/$defs/a~1b%25/items/", True),
        ("#/$defs/a/b%25/items", False),
        ("#/$defs/~2", False),
        ("#/$defs/~02", True),
        ("#/$defs/yes", False),
        ("#/$defs", False),
        ("#/$defs/none", False),
        ("#/anyOf", False),
        ("#/anyOf/1", True),
        ("#/anyOf/01", False),
        ("#/anyOf/-1", False),
        ("#/anyOf/2", False),
        ("#/anyOf/1/items/0", True),
        ("#/anyOf/1/items/0/items", False),
        ("#/enum/0", False),
        ("/anyOf/1", False),
        ("", False),
    ],
)
def test_a_reference_must_lead_to_a_schema_that_was_checked(pointer, found):
    root = {
        "$defs": {"a/b%": {"items": {}}, "~2": {}, "yes": True, "r": {"$ref": pointer}},
        "anyOf": [{}, {"items": [{}]}],
        "enum": [{}],
    }
    if found:
        assert parse_schema(json.dumps(root)) == root
    else:
        with pytest.raises(UnsupportedSchema, match=r"\$ref must point to a schema within this one"):
            parse_schema(json.dumps(root))


def chain(count, link):
    """Return a schema of count schemas, each of which refers to the next."""
    return {"$ref": "#/$defs/0", "$defs": {str(i): link(f"#/$defs/{i + 1}") for i in range(count)} | {str(count): {}}}


@pytest.mark.parametrize(
    ("count", "link"),
    [
        (1000, lambda ref: {"$ref": ref}),
        (650, lambda ref: {"type": "object", "properties": {"x": {"$ref": ref}}}),
        (500, lambda ref: {"anyOf": [{"type": "array", "items": {"$ref": ref}}, {"type": "null"}]}),
        (400, lambda ref: {"allOf": [{"properties": {"x": {"$ref": ref}}}, {"required": ["x"]}]}),
    ],
)
def test_no_chain_of_references_ends_the_process(count, link):
    schema = chain(count, link)
    assert json.dumps(schema).count("{") <= MAX_OBJECTS
    compiled(schema)


def test_a_small_schema_that_would_compile_for_days_is_refused():
    with pytest.raises(UnsupportedSchema, match="it is too complex"):
        compiled({"allOf": [{"type": "string", "pattern": f"x{i}"} for i in range(60)]})


# ---- what is remembered ---------------------------------------------------------------------------------------------


def count_trials(monkeypatch):
    """Return a list that grows by each grammar that is tried out."""
    trials, try_out = [], compiler._try_out
    monkeypatch.setattr(compiler, "_try_out", lambda grammar: (trials.append(grammar), try_out(grammar)))
    return trials


def test_a_schema_that_was_refused_is_refused_again_without_a_trial(monkeypatch):
    trials, grammars = count_trials(monkeypatch), Grammars(Poor(), Poor.stop_ids)
    said = []
    for _ in range(3):
        with pytest.raises(UnsupportedSchema) as refusal:
            grammars.open('{"type": "strnig"}')
        said.append(str(refusal.value))
    assert len(trials) == 1
    assert len(set(said)) == 1
    with pytest.raises(UnsupportedSchema, match="strnig"):
        grammars.recall('{"type": "strnig"}')


def test_a_schema_whose_trial_the_system_ended_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "trial.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    grammars = Grammars(Poor(), Poor.stop_ids)
    with monkeypatch.context() as without_memory:
        without_memory.setattr(compiler, "TRIAL", tmp_path / "trial.py")
        with pytest.raises(Busy, match="short of memory: please try again"):
            grammars.open('{"const": "ab"}')
    assert grammars.recall('{"const": "ab"}') is None
    assert grammars.open('{"const": "ab"}').forced()


def test_equal_schemas_at_once_are_compiled_once(monkeypatch):
    trials, grammars = count_trials(monkeypatch), Grammars(Poor(), Poor.stop_ids)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(grammars.open, ['{"const": "ab"}'] * 8))
    assert len(trials) == 1
    assert len(set(map(id, found))) == 8


def test_only_so_many_schemas_are_remembered():
    grammars = Grammars(Poor(), Poor.stop_ids)
    assert grammars.recall('{"const": 0}') is None
    for i in range(compiler.REMEMBERED + 1):
        with pytest.raises(UnsupportedSchema):
            grammars.open(json.dumps({"not": {"const": i}}))
    assert grammars.recall('{"not": {"const": 0}}') is None
    with pytest.raises(UnsupportedSchema):
        grammars.recall('{"not": {"const": 1}}')


# ---- replies -------------------------------------------------------------------------------------------------------


def open_runner(**more):
    options = EngineOptions(Limits(64, 32), threads=2, cache_type="f32", positions=32 * 512, **more)
    text = TextParts(open_tokenizer, StopStrings, Grammars)
    return InlineRunner(GGUF, [llama.architectures()[0]], text, options)


@pytest.fixture(scope="module")
def runner():
    runner = open_runner()
    yield runner
    asyncio.run(runner.close())


async def reply(runner, schema, **options):
    """Return the text of a reply that follows schema, and its end."""
    request = {"prompt": [1, 2, 3], "sampling": WILD, "num_ctx": 512, "max_tokens": 250, "schema": json.dumps(schema)}
    *pieces, finished = [event async for event in runner.generate(Generate(**request | options))]
    return "".join(piece.text for piece in pieces), finished


def replies(runner, *wishes):
    """Return the replies to wishes, (schema, options), that were computed together; None for a schema refused."""

    async def one(schema, options):
        while True:
            try:
                return await reply(runner, schema, **options)
            except UnsupportedSchema:
                return None
            except Busy:
                await asyncio.sleep(0.05)

    async def together():
        return await asyncio.gather(*[one(*wish) for wish in wishes])

    return asyncio.run(together())


def test_replies_of_a_random_model_follow_generated_schemas(runner):
    wishes = [(schema, {}) for schema in itertools.islice(schemas(seed=1), 90)]
    found = [(schema, *answer) for (schema, _), answer in zip(wishes, replies(runner, *wishes), strict=True) if answer]
    assert len(found) >= 60
    whole = [(schema, text) for schema, text, finished in found if finished.reason == "stop"]
    assert len(whole) >= 60
    for schema, text in whole:
        jsonschema.validate(
            json.loads(text),
            schema,
            cls=jsonschema.Draft202012Validator,
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        )
    for _, text, finished in found:
        if finished.reason != "stop":
            assert (finished.reason, finished.tokens) == ("length", 250)
            with pytest.raises(json.JSONDecodeError):
                json.loads(text)


def test_a_reply_ends_with_its_value_and_says_how_many_tokens_it_took(runner):
    ((text, finished),) = replies(runner, ({"const": {"a": [1]}}, {"max_tokens": 250}))
    assert json.loads(text) == {"a": [1]}
    assert (finished.reason, finished.truncated) == ("stop", 0)


def test_a_limit_on_tokens_cuts_a_value_and_says_so(runner):
    ((text, finished),) = replies(runner, ({"const": string.ascii_letters}, {"max_tokens": 3}))
    assert (finished.reason, finished.tokens) == ("length", 3)
    assert json.dumps(string.ascii_letters).startswith(text)


def test_schemas_that_cannot_be_followed_are_refused_before_the_reply_and_others_go_on(runner):
    refused, kept = replies(runner, ({"not": {}}, {}), ({"enum": [True]}, {}))
    assert refused is None
    assert (kept[0], kept[1].reason) == ("true", "stop")


class Eager(Lookup):
    """Guesses whatever the cost, so that what is guessed does not depend on the clock."""

    def guess(self, tokens, most, cost):
        return super().guess(tokens, most, 0.0)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"enum": ["red", "round", "rare"]}, "minItems": 30, "maxItems": 30},
        {"const": string.ascii_letters},
        {"type": "object", "properties": {"colour": {"type": "boolean"}, "lighthouse": {"type": "null"}},
         "required": ["colour", "lighthouse"], "additionalProperties": False},
    ],
    ids=["seen before", "forced", "forced in part"],
)  # fmt: skip
def test_guesses_ahead_change_no_reply_with_a_grammar(monkeypatch, schema):
    monkeypatch.setattr(engine, "Lookup", Eager)
    wishes = [(schema, {"prompt": [5] * 60, "sampling": SamplingParams(top_k=0, seed=seed)}) for seed in range(3)]
    found = {}
    for speculate in (True, False):
        runner = open_runner(speculate=speculate)
        found[speculate] = [replies(runner, wish)[0] for wish in wishes]
        asyncio.run(runner.close())
    assert [text for text, _ in found[True]] == [text for text, _ in found[False]]
    assert all(finished.accepted > 0 for _, finished in found[True])
    assert all(finished.guessed == 0 for _, finished in found[False])
