"""Tokenizers give the ids and the text of the published ones, from checkpoints and from GGUF files alike."""

import gc
import json
import logging
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from puna.core.errors import BadFile, BadModel, Unsupported
from puna.core.tensor.weights import open_weights
from puna.text.tokenizers import TextTokenizer, open_tokenizer, read_bos_eos
from puna.text.tokenizers.merging import ScoredMerging, derive_merges
from puna.text.tokenizers.patterns import SPLITS

FIXTURES = Path(__file__).parent / "fixtures"
FILES = [
    "bert-minilm/hf", "mistral-swa/hf",
    "llama-bpe/hf", "llama-bpe/gguf/model-f32.gguf", "llama-bpe/gguf/model-bf16.gguf",
    "llama-quant/hf", "llama-quant/gguf/model-Q8_0.gguf", "llama-quant/gguf/model-Q4_K_M.gguf",
    "llama-spm/hf", "llama-spm/gguf/model-f16.gguf", "mistral-v3/hf", "mistral-v3/gguf/model-f32.gguf",
    "qwen2/hf", "qwen2/gguf/model-f32.gguf", "qwen3/hf", "qwen3/gguf/model-f32.gguf",
    "gemma3-text/hf", "gemma3-text/gguf/model-f32.gguf", "gemma3-vl/hf", "gemma3-vl/gguf/model-f32.gguf",
    "qwen2.5-vl/hf", "qwen2.5-vl/gguf/model-f32.gguf", "mistral3/hf", "mistral3/gguf/model-f32.gguf",
]  # fmt: skip
files = pytest.mark.parametrize("file", FILES)


class SideFiles:
    """A checkpoint folder without its weights; `changed` replaces the JSON of single files."""

    kind = "safetensors"

    def __init__(self, folder: Path, **changed):
        self.folder, self.changed = folder, changed
        self.metadata = json.loads((folder / "config.json").read_text())

    def side_file(self, name):
        if name in self.changed:
            return self.changed[name]
        return path.read_bytes() if (path := self.folder / name).exists() else None


class Metadata:
    """The keys of a GGUF file, without the file. Short names stand behind tokenizer.ggml."""

    kind = "gguf"

    def __init__(self, **keys):
        self.metadata = {"general.architecture": "test"}
        self.metadata |= {f"tokenizer.ggml.{name}": value for name, value in keys.items() if value is not None}


@cache
def opened(file: str) -> TextTokenizer:
    path = FIXTURES / file
    weightless = path.is_dir() and not (path / "model.safetensors").exists()
    return open_tokenizer(SideFiles(path) if weightless else open_weights(path))


@cache
def cases(file: str) -> dict:
    return json.loads((FIXTURES / file.split("/")[0] / "cases.json").read_text())


def ids(tokenizer: TextTokenizer, text: str, *, special: bool = True, start: bool = False) -> list[int]:
    return tokenizer.encode(text, special=special, start=start)


# Against the published tokenizers


@files
def test_ids_equal_the_published_tokenizers(file):
    tokenizer, listed = opened(file), cases(file)["tokenizer"]
    assert len(listed) == 55
    assert [ids(tokenizer, case["text"]) for case in listed] == [case["ids"] for case in listed]


@files
def test_a_start_is_put_around_the_text_once(file):
    tokenizer, listed = opened(file), cases(file)["tokenizer"]
    before = listed[0]["ids_with_special"][:1]
    assert listed[0]["text"] == ""
    for case in listed:
        # A text that writes its own start gets a second one from the published tokenizers, not here.
        doubled = before != [] and case["ids"][:1] == before
        wanted = case["ids_with_special"][1:] if doubled else case["ids_with_special"]
        assert ids(tokenizer, case["text"], start=True) == wanted


@files
def test_rendered_chats_and_prompts_get_the_reference_ids(file):
    tokenizer = opened(file)
    for case in cases(file).get("chat", []):
        assert ids(tokenizer, case["rendered"], start=True) == case["ids"]
    for case in cases(file).get("text", []):
        if case["prompt"]:
            assert ids(tokenizer, case["prompt"], start=True) == case["ids"]


@files
def test_text_equals_the_published_tokenizers(file):
    tokenizer, listed = opened(file), cases(file)["tokenizer"]
    assert [tokenizer.decode(case["ids"], special=True) for case in listed] == [case["decoded"] for case in listed]


# A GGUF file may call other tokens control tokens than its checkpoint does: Gemma's <mask> is ordinary there, and the
# places of its pictures are not.
CALLED_OTHERWISE = {
    "gemma3-text/gguf/model-f32.gguf": {
        "<eos><start_of_turn><end_of_turn><table><code><start_of_image>": "<table><code><start_of_image>",
        "x<start_of_image>y <start_of_turn>\n z": "x<start_of_image>y \n z",
    },
    "gemma3-vl/gguf/model-f32.gguf": {"<pad><eos><mask>[multimodal]▁▁▁▁▁▁▁": "[multimodal]       "},
}


@files
def test_text_without_control_tokens_equals_the_published_tokenizers(file):
    # GGUF files call Qwen's infilling markers control tokens, checkpoints call them ordinary added tokens.
    hidden = r"<\|(fim_\w+|repo_name|file_sep)\|>" if file.startswith("qwen") and "gguf" in file else "(?!)"
    tokenizer, differs = opened(file), CALLED_OTHERWISE.get(file, {})
    assert differs.keys() <= {case["text"] for case in cases(file)["tokenizer"]}
    for case in cases(file)["tokenizer"]:
        expected = differs.get(case["text"], re.sub(hidden, "", case["decoded_skip_special"]))
        assert tokenizer.decode(case["ids"]) == expected


def word_piece_metadata() -> Metadata:
    """The fixture's BERT vocabulary, written as a GGUF file has it."""
    pieces = (FIXTURES / "bert-minilm/hf/vocab.txt").read_text().splitlines()
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return Metadata(
        model="bert",
        tokens=[p if p in control else p[2:] if p.startswith("##") else "▁" + p for p in pieces],
        token_type=np.array([3 if p in control else 1 for p in pieces], np.int32),
        bos_token_id=pieces.index("[CLS]"),
        seperator_token_id=pieces.index("[SEP]"),
        unknown_token_id=pieces.index("[UNK]"),
    )


def test_word_pieces_of_a_gguf_file_equal_the_checkpoint():
    tokenizer = open_tokenizer(word_piece_metadata())
    for case in cases("bert-minilm")["tokenizer"]:
        assert ids(tokenizer, case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"], special=True) == case["decoded"]
        assert tokenizer.decode(case["ids"]) == case["decoded_skip_special"]
    assert ids(tokenizer, "", start=True) == cases("bert-minilm")["tokenizer"][0]["ids_with_special"]


# Untrusted text


def control_texts(file: str) -> dict[str, int]:
    """Return the control tokens of a fixture; its checkpoint lists them."""
    added = json.loads((FIXTURES / file.split("/")[0] / "hf/tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in added if token["special"]}


@files
def test_untrusted_text_cannot_write_control_tokens(file):
    tokenizer, control = opened(file), control_texts(file)
    control.pop("[UNK]", None)  # what no piece spells is unknown, whoever wrote it
    if file == "gemma3-text/gguf/model-f32.gguf":
        del control["<image_soft_token>"]  # it has no embedding, and the file no token for it
    for text, token in control.items():
        assert token in ids(tokenizer, f"a{text}b")
        spelled = ids(tokenizer, f"a{text}b", special=False)
        assert not set(control.values()) & set(spelled)
        if not file.startswith("bert"):
            assert tokenizer.decode(spelled) == f"a{text}b"


@pytest.mark.parametrize("file", ["qwen3/hf", "qwen3/gguf/model-f32.gguf"])
def test_added_tokens_that_are_not_control_tokens_are_found_in_untrusted_text(file):
    assert ids(opened(file), "<think>", special=False) == [424]
    assert opened(file).piece(424) == b"<think>"


def test_a_control_token_spelled_like_a_word_is_not_found_by_looking_the_word_up():
    tokens = [*"helo", "hello", "stop"]
    source = Metadata(model="gpt2", pre="llama-bpe", tokens=tokens, token_type=[1, 1, 1, 1, 1, 3], merges=[])
    tokenizer = open_tokenizer(source)
    assert ids(tokenizer, "hello", special=False) == [4]
    assert ids(tokenizer, "stop", special=False) == [3]  # the letters s, t and p have no tokens here
    assert ids(tokenizer, "stop") == [5]


def test_pairs_that_lead_to_a_control_token_are_left_out_and_the_others_keep_their_order():
    tokens = [*"abcd", "bc", "ab", "cd", "abcd"]
    merges = ["a b", "ab cd", "c d", "b c"]
    source = Metadata(model="gpt2", pre="qwen2", tokens=tokens, token_type=[1, 1, 1, 1, 1, 1, 1, 3], merges=merges)
    assert ids(open_tokenizer(source), "abcd", special=False) == [5, 6]


def test_of_two_equal_pieces_the_first_is_found_and_both_are_shown():
    source = Metadata(model="gpt2", pre="qwen2", tokens=["b", "a", "c", "a"], merges=[])
    tokenizer = open_tokenizer(source)
    assert ids(tokenizer, "abc") == [1, 0, 2]
    assert tokenizer.decode([1, 3]) == "aa"


@pytest.mark.parametrize(
    "source",
    [
        Metadata(model="gpt2", tokens=["<s>", "a"], token_type=[3, 1], merges=[], bos_token_id=0),
        Metadata(model="gpt2", tokens=["<s>", "a"], token_type=[3, 1], merges=[], seperator_token_id=0),
        SideFiles(FIXTURES / "qwen3/hf"),
        SideFiles(FIXTURES / "qwen3/hf", **{"tokenizer_config.json": b'{"bos_token":{"content":"<b>"}}'}),
    ],
)
def test_the_tokens_a_template_writes_are_known_without_the_tokenizer(source):
    tokenizer = open_tokenizer(source)
    assert read_bos_eos(source) == (tokenizer.bos_token, tokenizer.eos_token) != ("", "")


def test_opening_a_tokenizer_leaves_the_collector_as_it_was():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            open_tokenizer(plain())
            with pytest.raises(BadModel):
                open_tokenizer(plain(merges=["a c"]))
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_padding_rows_are_not_found_in_text():
    tokens = ["a", "<|eos|>", "[PAD0]", "[PAD1]"]
    source = Metadata(model="gpt2", pre="qwen2", tokens=tokens, token_type=[1, 3, 4, 4], merges=[], eos_token_id=1)
    tokenizer = open_tokenizer(source)
    assert ids(tokenizer, "a[PAD0]a") == [0, 0]  # no other character has a token
    assert tokenizer.piece(2) == tokenizer.piece(2, special=True) == b""


def test_roles_named_by_the_checkpoint_make_control_tokens():
    settings = json.dumps({"extra_special_tokens": {"boi_token": "<think>"}}).encode()
    folder = FIXTURES / "qwen3/hf"
    tokenizer = open_tokenizer(SideFiles(folder, **{"tokenizer_config.json": settings}))
    assert tokenizer.decode([424, 425]) == "</think>"
    assert 424 not in ids(tokenizer, "<think>", special=False)


# Round trips and incremental decoding

BYTE_COMPLETE = [file for file in FILES if not file.startswith("bert")]


@pytest.mark.parametrize("file", BYTE_COMPLETE)
@given(text=st.text())
def test_text_survives_encoding_and_decoding(file, text):
    if file.startswith("qwen"):
        text = unicodedata.normalize("NFC", text)
    if file.startswith("mistral-v3"):
        text = text.lstrip(" ")  # the first space is taken for the one that the tokenizer puts there
    if file.startswith(("llama-spm", "mistral-", "gemma3")):
        text = text.replace("▁", " ")  # SentencePiece writes spaces so
    tokenizer = opened(file)
    assert tokenizer.decode(ids(tokenizer, text, special=False)) == text


@files
@given(data=st.data())
def test_tokens_decoded_one_by_one_make_the_whole_text(file, data):
    tokenizer = opened(file)
    some_ids = st.lists(st.integers(-1, tokenizer.size + 3), max_size=30)
    prompt, reply = data.draw(some_ids), data.draw(some_ids)
    assert_continues(tokenizer, [], reply)
    assert_continues(tokenizer, prompt, reply)


def assert_continues(tokenizer: TextTokenizer, prompt: list[int], reply: list[int]) -> None:
    decoder = tokenizer.detokenizer(prompt)
    text = "".join([decoder.push(token) for token in reply]) + decoder.flush()
    whole = tokenizer.decode([*prompt, *reply])
    unfinished = tokenizer.detokenizer(prompt).flush()  # one U+FFFD if the prompt ends inside a character
    start = tokenizer.decode(prompt).removesuffix(unfinished)
    assert start + text == whole


@pytest.mark.parametrize("file", BYTE_COMPLETE)
def test_no_half_character_is_ever_shown(file):
    tokenizer, text = opened(file), "naïve 世界 🙂👨‍👩‍👧 é\n"
    decoder = tokenizer.detokenizer()
    shown = [decoder.push(token) for token in ids(tokenizer, text, special=False)]
    assert "".join(shown) == text
    assert "\ufffd" not in "".join(shown)
    assert decoder.flush() == ""


@pytest.mark.parametrize("file", ["llama-spm/hf", "llama-spm/gguf/model-f16.gguf"])
def test_only_the_start_of_a_text_loses_the_dummy_prefix(file):
    tokenizer = opened(file)
    hello = ids(tokenizer, "a")
    assert tokenizer.piece(hello[0]) == b" a"
    assert tokenizer.decode(hello) == "a"
    assert tokenizer.detokenizer().push(hello[0]) == "a"
    assert tokenizer.detokenizer([1]).push(hello[0]) == "a"  # after <s> the text has not begun
    assert tokenizer.detokenizer(ids(tokenizer, "x", start=True)).push(hello[0]) == " a"


def test_a_character_that_the_prompt_left_unfinished_is_finished():
    tokenizer = opened("qwen3/hf")
    giraffe = ids(tokenizer, "🦒")
    assert len(giraffe) > 1
    assert tokenizer.detokenizer(giraffe[:-1]).push(giraffe[-1]) == "🦒"


def test_ids_that_pad_the_vocabulary_add_nothing():
    for file in ("qwen2/hf", "qwen2/gguf/model-f32.gguf"):
        tokenizer = opened(file)
        assert tokenizer.size == 416
        assert all(tokenizer.piece(token, special=True) == b"" for token in range(403, 420))
        assert tokenizer.decode([*range(403, 420), -1]) == ""


def test_half_a_surrogate_pair_is_read_as_a_replacement_character():
    tokenizer = opened("llama-bpe/hf")
    assert tokenizer.decode(ids(tokenizer, "a\ud83db\ud83d\ude42")) == "a\ufffdb🙂"


@pytest.mark.parametrize("file", ["llama-spm/gguf/model-f16.gguf", "qwen3/hf"])
def test_threads_do_not_disturb_each_other(file):
    tokenizer, listed = opened(file), cases(file)["tokenizer"] * 20

    def encode(case):
        ids(tokenizer, case["text"], special=False)
        return ids(tokenizer, case["text"])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encode, listed)) == [case["ids"] for case in listed]


# Ends of a reply

STOPS = {
    "bert-minilm": [], "llama-bpe": [408, 415, 416], "llama-quant": [404, 411, 412], "llama-spm": [2],
    "mistral-swa": [2], "mistral-v3": [2], "qwen2": [400, 402], "qwen3": [400, 402], "gemma3-text": [1, 9],
    "gemma3-vl": [1, 9],
    "qwen2.5-vl": [406, 408],
    "mistral3": [2],
}  # fmt: skip


@files
def test_all_ends_of_turns_stop_a_reply(file):
    assert sorted(opened(file).stop_ids) == STOPS[file.split("/")[0]]


def plain(**changed) -> Metadata:
    """A byte-level vocabulary of a few tokens, to be damaged."""
    tokens = ["a", "b", "ab", "<|end|>", "<|return|>", "<|call|>", "<end>", "<more>"]
    keys = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "token_type": [1, 1, 1, 3, 3, 3, 3, 3],
        "merges": ["a b"],
    }
    return Metadata(**(keys | changed))


def test_every_end_that_a_gguf_file_names_counts():
    tokenizer = open_tokenizer(plain(eos_token_id=6, eot_token_id=7, eom_token_id=2**32 - 1, eos_token_ids=[0]))
    assert tokenizer.stop_ids == {0, 4, 5, 6, 7}


def test_a_marker_that_only_ends_one_of_several_messages_is_no_end():
    assert open_tokenizer(plain()).stop_ids == {4, 5}
    assert open_tokenizer(plain(token_type=[1, 1, 1, 3, 3, 1, 3, 3])).stop_ids == {3, 4}


def test_an_end_marker_that_a_converter_called_user_defined_is_a_control_token():
    tokenizer = open_tokenizer(plain(token_type=[1, 1, 1, 4, 1, 1, 4, 1]))
    assert tokenizer.stop_ids == {3}
    assert tokenizer.piece(3) == b""
    assert tokenizer.piece(6) == b"<end>"


@pytest.mark.parametrize("file", ["llama-bpe/hf", "llama-bpe/gguf/model-f32.gguf"])
def test_templates_get_the_texts_of_the_first_and_last_token(file):
    assert (opened(file).bos_token, opened(file).eos_token) == ("<|begin_of_text|>", "<|eot_id|>")


# Cutting text


@pytest.mark.parametrize(
    ("pre", "text", "cuts"),
    [
        ("default", "it's 1234  x", ["it", "'s", " 1234", " ", " x"]),
        ("starcoder", "x 12", ["x", " ", "1", "2"]),
        ("llama-bpe", "IT'S 1234  x!\n\n y", ["IT", "'S", " ", "123", "4", " ", " x", "!\n\n", " y"]),
        ("qwen2", "IT'S 12\r\n", ["IT", "'S", " ", "1", "2", "\r\n"]),
        (
            "llama4",
            "iPhone's HTTPServer 1234 a/\n/b",
            [*"i", "Phone's", " HTTPServer", " ", "123", "4", " a", "/\n/", "b"],
        ),
        ("tekken", "aB's ЩиТ 12 e\u0301x", ["a", "B", "'s", " Щи", "Т", " ", "1", "2", " e\u0301x"]),
        ("deepseek-v3", "x1234 世界.foo", ["x", "123", "4", " ", "世界", ".foo"]),
        ("deepseek-coder", "a 12\n好", ["a", " ", "1", "2", "\n", "好"]),
        ("falcon", "it's 12345", ["it", "'", "s", " ", "123", "45"]),
    ],
)
def test_each_family_cuts_text_its_own_way(pre, text, cuts):
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in SPLITS[pre].patterns])
    assert [cut for cut, _ in splitter.pre_tokenize_str(text)] == cuts


def test_a_pattern_that_is_not_known_is_logged_and_replaced(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = open_tokenizer(plain(pre="brand-new"))
    assert "brand-new" in caplog.text
    assert ids(tokenizer, "ab") == [2]


@pytest.mark.parametrize(("written", "used"), [("default", True), (None, True), ("brand-new", True), ("qwen2", False)])
def test_an_architecture_can_name_the_pattern_that_its_files_do_not(written, used):
    # Only "llama-bpe" looks whole words up before merging, and no merge makes this one.
    tokenizer = open_tokenizer(plain(pre=written, tokens=["a", "b", "ab"], token_type=None, merges=[]), pre="llama-bpe")
    assert ids(tokenizer, "ab") == ([2] if used else [0, 1])


def test_an_architecture_cannot_name_a_pattern_that_does_not_exist():
    with pytest.raises(BadModel, match="'brand-new', expected one of default"):
        open_tokenizer(plain(pre="default"), pre="brand-new")


def test_a_pattern_spelled_out_in_the_file_is_used():
    assert ids(open_tokenizer(plain(pretokenizer="b")), "ab") == [0, 1]


# SentencePiece

LETTERS = st.text("ab▁", min_size=1, max_size=6)


def merged(scores: dict[str, float], text: str) -> list[str]:
    """Merge the best pair, the leftmost of equals, until there is none: SentencePiece's rule, spelled out."""
    pieces = list(text)
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@given(st.dictionaries(LETTERS, st.sampled_from([0.0, -1.0, -2.0])), st.text("ab▁", max_size=20))
def test_pieces_of_equal_scores_are_merged_from_the_left(scores, text):
    starts = ScoredMerging(scores).cuts(text)
    assert [text[start:end] for start, end in pairwise([*starts, len(text)])] == merged(scores, text)


@pytest.mark.parametrize("tie", [False, True])
@given(pieces=st.lists(LETTERS, unique=True), text=st.text("ab ", max_size=20))
def test_scores_are_followed_with_and_without_ties(tie, pieces, text):
    pieces = list(dict.fromkeys([*"ab▁", *pieces]))
    scores = {piece: -float(i // 2 if tie else i) for i, piece in enumerate(pieces)}
    source = Metadata(model="llama", tokens=pieces, scores=list(scores.values()), add_space_prefix=False)
    tokens = ids(open_tokenizer(source), text)
    assert [pieces[token] for token in tokens] == merged(scores, text.replace(" ", "▁"))


def test_merges_are_ordered_by_the_score_of_what_they_make():
    scores = {"a": 0.0, "b": 0.0, "ab": -2.0, "aab": -1.0, "aa": -3.0}
    assert derive_merges(scores) == [("a", "ab"), ("aa", "b"), ("a", "b"), ("a", "a")]


def spm(**changed) -> Metadata:
    """A SentencePiece vocabulary with two bytes, a control token and pieces of spaces that are user-defined."""
    tokens = ["<unk>", "<s>", "<0xC3>", "<0xa9>", "▁", "a", "▁a", "  ", "▁▁▁", "<tag>"]
    keys = {"model": "llama", "tokens": tokens, "token_type": [2, 3, 6, 6, 1, 1, 1, 4, 4, 4]}
    keys |= {"scores": [0.0] * 6 + [-1.0] + [0.0] * 3, "bos_token_id": 1}
    return Metadata(**(keys | changed))


def test_characters_without_a_piece_are_spelled_in_bytes_or_unknown():
    tokenizer = open_tokenizer(spm())
    assert ids(tokenizer, "é") == [4, 2, 3]
    assert tokenizer.decode([4, 2, 3]) == "é"
    assert ids(tokenizer, "ü") == [4, 0]


def test_user_defined_spaces_are_found_however_the_text_writes_them():
    tokenizer = open_tokenizer(spm(add_space_prefix=False))
    for spaces in ("   ", "▁▁▁", "▁  ", " ▁ "):
        assert ids(tokenizer, f"a{spaces}<tag>", special=False) == [5, 8, 9]


def test_a_space_goes_before_text_after_every_control_token_unless_inst_is_one():
    assert ids(open_tokenizer(spm()), "a<s>a a") == [6, 1, 6, 6]
    tokens = ["<unk>", "<s>", "<0xC3>", "<0xa9>", "▁", "a", "▁a", "  ", "▁▁▁", "[INST]"]
    mistral = open_tokenizer(spm(tokens=tokens, token_type=[2, 3, 6, 6, 1, 1, 1, 4, 4, 3]))
    assert ids(mistral, "a[INST]a[INST] a") == [6, 9, 5, 9, 6]


# Damaged files


@pytest.mark.parametrize(
    ("make", "changed", "complaint"),
    [
        (plain, {"model": None}, "tokenizer.ggml.model is missing"),
        (plain, {"tokens": None}, "tokenizer.ggml.tokens"),
        (plain, {"tokens": []}, "tokenizer.ggml.tokens"),
        (plain, {"tokens": ["a", 1]}, "tokenizer.ggml.tokens"),
        (plain, {"tokens": ["a", "\ud800"]}, "tokenizer.ggml.tokens"),
        (plain, {"token_type": [1, 1]}, "tokenizer.ggml.token_type"),
        (plain, {"token_type": [1] * 7 + [9]}, "tokenizer.ggml.token_type"),
        (plain, {"token_type": [1] * 7 + [-1]}, "tokenizer.ggml.token_type"),
        (plain, {"token_type": [1.0] * 8}, "tokenizer.ggml.token_type"),
        (plain, {"token_type": "11111111"}, "tokenizer.ggml.token_type"),
        (plain, {"merges": ["a b", "a c"]}, "tokenizer.ggml.merges.*'a c'"),
        (plain, {"merges": ["ab"]}, "tokenizer.ggml.merges.*'ab'"),
        (plain, {"merges": ["a b", "ab <|return|><|return|>"]}, "tokenizer.ggml.merges.*'ab <"),
        (plain, {"merges": ["a b", "c ab"], "tokens": [*"ab", "ab", *"defg", "cab"]}, "tokenizer.ggml.merges.*'c ab'"),
        (plain, {"merges": [1]}, "tokenizer.ggml.merges"),
        (plain, {"pre": 5}, "tokenizer.ggml.pre"),
        (plain, {"pretokenizer": "(("}, "tokenizer.ggml.pretokenizer"),
        (plain, {"bos_token_id": 8}, "tokenizer.ggml.bos_token_id is 8, expected a token id below 8"),
        (plain, {"eos_token_id": "x"}, "tokenizer.ggml.eos_token_id"),
        (plain, {"eos_token_ids": [1, 8]}, "tokenizer.ggml.eos_token_ids"),
        (plain, {"eos_token_ids": ["x"]}, "tokenizer.ggml.eos_token_ids"),
        (plain, {"add_bos_token": 1}, "tokenizer.ggml.add_bos_token"),
        (spm, {"scores": None}, "tokenizer.ggml.scores"),
        (spm, {"scores": [0.0] * 9}, "tokenizer.ggml.scores"),
        (spm, {"scores": [float("nan")] * 10}, "tokenizer.ggml.scores"),
        (spm, {"scores": ["x"] * 10}, "tokenizer.ggml.scores"),
        (spm, {"token_type": [2, 3, 6, 6, 6, 1, 1, 4, 4, 4]}, "tokenizer.ggml.tokens.*token 4 is '▁'"),
        (spm, {"tokens": ["a" * 2000] + ["b"] * 9, "token_type": [1] * 10}, "tokenizer.ggml.tokens.*2000"),
    ],
)  # fmt: skip
def test_a_damaged_gguf_tokenizer_is_refused_by_key(make, changed, complaint):
    with pytest.raises(BadModel, match=complaint):
        open_tokenizer(make(**changed))


def test_word_pieces_need_a_token_for_unknown_words():
    source = word_piece_metadata()
    del source.metadata["tokenizer.ggml.unknown_token_id"]
    with pytest.raises(BadModel, match="unknown_token_id"):
        open_tokenizer(source)


def test_a_family_that_is_not_built_in_is_named():
    with pytest.raises(Unsupported, match="'t5'; tokenizers of gpt2, llama, bert can be read"):
        open_tokenizer(plain(model="t5"))


FALLBACK = b'"decoder":{"type":"ByteFallback"}}'


@pytest.mark.parametrize(
    ("name", "content", "error", "complaint"),
    [
        ("tokenizer.json", None, BadModel, "no tokenizer.json"),
        ("tokenizer.json", b"{", BadFile, "tokenizer.json: "),
        ("tokenizer.json", b'{"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}', Unsupported, "decoder .* None"),
        ("tokenizer.json", b'{"model":{"type":"BPE","vocab":{"a":9999999},"merges":[]},' + FALLBACK, BadFile, "999"),
        ("tokenizer.json", b'{"model":{"type":"BPE","vocab":{},"merges":[]},' + FALLBACK, BadFile, "up to -1"),
        ("tokenizer_config.json", b"[]", BadFile, "tokenizer_config.json: "),
        ("tokenizer_config.json", b'{"bos_token":"<|im_end|>","add_bos_token":1}', BadModel, "add_bos_token"),
        ("generation_config.json", b"nonsense", BadFile, "generation_config.json: "),
        ("generation_config.json", b'{"eos_token_id":[1,448]}', BadModel, "generation_config.json: key eos_token_id"),
        ("generation_config.json", b'{"eos_token_id":"</s>"}', BadModel, "generation_config.json: key eos_token_id"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused_by_file(name, content, error, complaint):
    with pytest.raises(error, match=complaint):
        open_tokenizer(SideFiles(FIXTURES / "qwen3/hf", **{name: content}))


@pytest.mark.parametrize(("written", "start"), [(True, [402]), (False, []), (None, [])])
def test_a_checkpoint_may_ask_for_a_first_token_in_its_settings(written, start):
    settings = json.dumps({"bos_token": {"content": "<|im_end|>"}, "add_bos_token": written}).encode()
    tokenizer = open_tokenizer(SideFiles(FIXTURES / "qwen3/hf", **{"tokenizer_config.json": settings}))
    assert ids(tokenizer, "", start=True) == start
    assert tokenizer.bos_token == "<|im_end|>"


def test_a_gguf_file_decides_what_goes_around_a_text():
    tokenizer = open_tokenizer(plain(bos_token_id=6, eos_token_id=7, add_bos_token=True, add_eos_token=True))
    assert ids(tokenizer, "ab", start=True) == [6, 2, 7]
    assert ids(tokenizer, "<end>ab<more>", start=True) == [6, 2, 7]
    assert ids(tokenizer, "", start=True) == [6, 7]
