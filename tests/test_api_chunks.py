"""How replies are worded: runner events in, API objects out."""

import json
from dataclasses import replace

import msgspec

from puna.api.ollama import chunks as native
from puna.api.openai import chunks as openai
from puna.api.replies import Ended
from puna.core.scheduler.messages import Finished, Piece, SampledLogprob, TokenLogprob

FINISHED = Finished(reason="length", prompt_tokens=12, prompt_ns=300, tokens=4, decode_ns=250)
ENDED = Ended(reason="length", finished=FINISHED, context=(1, 77), load_ns=20, total_ns=900)
METRICS = {
    "total_duration": 900,
    "load_duration": 20,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 300,
    "eval_count": 4,
    "eval_duration": 250,
}
USAGE = {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}


def token(text, logprob):
    return TokenLogprob(7, text, text.encode(), logprob)


SURE = Piece("Hé", [7], [SampledLogprob(token("Hé", -0.5), [token("Hé", -0.5), token("x", -1.5)])])
ENTRY = {"token": "Hé", "logprob": -0.5, "bytes": [72, 195, 169]}
OTHER = {"token": "x", "logprob": -1.5, "bytes": [120]}


def plain(chunk, *dropped):
    """The JSON that a client gets, without the fields that differ each time."""
    fields = json.loads(msgspec.json.encode(chunk))
    return {name: value for name, value in fields.items() if name not in ("created_at", "created", "id", *dropped)}


def test_a_generate_chunk_holds_new_text_and_nothing_else():
    (chunk,) = native.GenerateWriter("demo").piece(Piece("Hel", [1]))
    assert plain(chunk) == {"model": "demo", "response": "Hel", "done": False}
    assert chunk.created_at.endswith("Z")


def test_the_last_generate_chunk_has_no_text_but_the_metrics_and_the_context():
    (chunk,) = native.GenerateWriter("demo").end(ENDED)
    expected = {"model": "demo", "response": "", "done": True, "done_reason": "length", "context": [1, 77]}
    assert plain(chunk) == expected | METRICS


def test_a_whole_generate_answer_has_both():
    answer = plain(native.GenerateWriter("demo").whole(Piece("Hello"), ENDED))
    assert (answer["response"], answer["done"], answer["eval_count"]) == ("Hello", True, 4)


def test_an_answer_says_what_was_dropped_and_what_need_not_be_computed():
    finished = msgspec.structs.replace(FINISHED, cached_tokens=8, truncated=5, shifted=3)
    ended = replace(ENDED, finished=finished)
    (chunk,) = native.GenerateWriter("demo").end(ended)
    ours = {"prompt_cached_count": 8, "prompt_truncated_count": 5, "context_shifted_count": 3}
    assert ours.items() <= plain(chunk).items()
    usage = plain(openai.ChatWriter("demo").whole(Piece("Hello"), ended))["usage"]
    assert usage == USAGE | {"prompt_tokens_details": {"cached_tokens": 8, "truncated_tokens": 5, "shifted_tokens": 3}}


def test_a_load_answer_carries_no_metrics():
    answer = native.ChatWriter("demo").whole(Piece(""), Ended(reason="load"))
    message = {"role": "assistant", "content": ""}
    assert plain(answer) == {"model": "demo", "message": message, "done": True, "done_reason": "load"}


def test_a_chat_chunk_holds_a_message():
    (chunk,) = native.ChatWriter("demo").piece(Piece("Hel"))
    assert plain(chunk) == {"model": "demo", "message": {"role": "assistant", "content": "Hel"}, "done": False}


def test_native_logprobs_name_token_bytes_and_likely_others():
    (chunk,) = native.ChatWriter("demo").piece(SURE)
    assert plain(chunk)["logprobs"] == [ENTRY | {"top_logprobs": [ENTRY, OTHER]}]
    alone = Piece("Hé", [7], [SampledLogprob(token("Hé", -0.5))])
    assert plain(native.GenerateWriter("demo").whole(alone, ENDED))["logprobs"] == [ENTRY]


def stream(writer, *pieces, ended=ENDED):
    return [chunk for piece in pieces for chunk in writer.piece(piece)] + list(writer.end(ended))


def test_a_chat_stream_names_its_role_once_and_its_reason_in_a_chunk_of_its_own():
    chunks = stream(openai.ChatWriter("demo"), Piece("Hel"), Piece("lo"))
    assert [chunk["choices"] for chunk in map(plain, chunks)] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}, "finish_reason": None, "logprobs": None}],
        [{"index": 0, "delta": {"content": "lo"}, "finish_reason": None, "logprobs": None}],
        [{"index": 0, "delta": {}, "finish_reason": "length", "logprobs": None}],
    ]
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[0].id.startswith("chatcmpl-")
    fixed = {"object": "chat.completion.chunk", "model": "demo", "system_fingerprint": "fp_ollama"}
    assert all(plain(chunk, "choices") == fixed for chunk in chunks)


def test_a_chat_stream_without_text_still_names_its_role():
    first, last = stream(openai.ChatWriter("demo"))
    assert plain(first)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert plain(last)["choices"][0]["finish_reason"] == "length"


def test_usage_comes_last_in_a_chunk_without_choices_and_only_when_asked_for():
    chunks = stream(openai.ChatWriter("demo", include_usage=True), Piece("Hel"))
    assert (plain(chunks[-1])["choices"], plain(chunks[-1])["usage"]) == ([], USAGE)
    assert all("usage" not in plain(chunk) for chunk in chunks[:-1])
    assert all("usage" not in plain(chunk) for chunk in stream(openai.ChatWriter("demo"), Piece("Hel")))


def test_a_whole_chat_completion():
    answer = plain(openai.ChatWriter("demo").whole(SURE, ENDED))
    message = {"content": "Hé", "role": "assistant"}
    logprobs = {"content": [ENTRY | {"top_logprobs": [ENTRY | {}, OTHER]}]}
    choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": logprobs}
    assert answer["choices"] == [choice]
    assert (answer["object"], answer["usage"]) == ("chat.completion", USAGE)


def test_a_whole_completion():
    answer = plain(openai.CompletionWriter("demo").whole(Piece("Hello"), ENDED))
    choice = {"text": "Hello", "index": 0, "finish_reason": "length", "logprobs": None}
    assert (answer["choices"], answer["object"], answer["usage"]) == ([choice], "text_completion", USAGE)


def test_every_chunk_of_a_completion_has_a_usage_when_asked_for():
    chunks = stream(openai.CompletionWriter("demo", include_usage=True), Piece("Hel"))
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert [plain(chunk)["usage"] for chunk in chunks] == [nothing, nothing, USAGE]
    assert [len(chunk.choices) for chunk in chunks] == [1, 1, 0]
    assert [plain(chunk)["choices"][0]["finish_reason"] for chunk in chunks[:2]] == [None, "length"]


def test_completion_logprobs_count_offsets_over_the_whole_reply():
    writer = openai.CompletionWriter("demo")
    chunks = [plain(chunk) for piece in (SURE, SURE) for chunk in writer.piece(piece)]
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [
        {"tokens": ["Hé"], "token_logprobs": [-0.5], "top_logprobs": [{"Hé": -0.5, "x": -1.5}], "text_offset": [offset]}
        for offset in (0, 2)
    ]


def test_a_completion_that_only_loaded_the_model_says_so():
    answer = plain(openai.CompletionWriter("demo").whole(Piece(""), Ended(reason="load")))
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["total_tokens"]) == ("load", 0)
