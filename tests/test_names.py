"""Model names, digests and file names: what is accepted, what it means, and that nothing else gets through."""

from inspect import ismodule
from pathlib import Path

import pytest

import puna.store
from puna.store import Digest, InvalidDigest, InvalidFileName, InvalidName, ModelName
from puna.store.names import checked_file_name

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("llama3", ("registry.ollama.ai", "library", "llama3", "latest")),
        ("LLaMA3:8B-q4_K", ("registry.ollama.ai", "library", "LLaMA3", "8B-q4_K")),
        ("me/llama3", ("registry.ollama.ai", "me", "llama3", "latest")),
        ("hf.co/bartowski/Llama-3.2-1B:Q4_0", ("hf.co", "bartowski", "Llama-3.2-1B", "Q4_0")),
        ("localhost:5000/me/m", ("localhost:5000", "me", "m", "latest")),
        ("http://localhost:5000/me/m:t", ("localhost:5000", "me", "m", "t")),
        ("_a/_b:_c", ("registry.ollama.ai", "_a", "_b", "_c")),
    ],
)
def test_parts_left_out_of_a_name_are_filled_in(text, parts):
    assert ModelName.parse(text).parts == parts


@pytest.mark.parametrize(
    "text",
    [
        "", "m:", ":t", "/m", "m/", "a//m", "//m", "a/b/c/d", "m:t:u", "m@sha256:" + HEX, "m m", "m\n", "m\0", "é",
        "..", ".", "a/..", "../m", "../../etc/passwd", "m:..", "m:../../x", "h/../m", "a.b/m", ".hidden", "m:.tag",
        "-m", "m\\n", "m:a\\b", "%2e%2e/m", "x" * 81, "m:" + "x" * 81, "n" * 81 + "/m", "h" * 351 + "/n/m",
    ],
)  # fmt: skip
def test_a_text_that_is_no_name_is_refused(text):
    with pytest.raises(InvalidName, match="invalid model name"):
        ModelName.parse(text)


def test_a_name_cannot_be_built_around_the_grammar():
    with pytest.raises(InvalidName):
        ModelName("..", "library", "m", "latest")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("llama3", "llama3:latest"),
        ("library/llama3:x", "llama3:x"),
        ("me/m", "me/m:latest"),
        ("hf.co/library/m", "hf.co/library/m:latest"),
        ("https://registry.ollama.ai/library/m", "m:latest"),
    ],
)
def test_the_short_form_drops_what_is_default_and_keeps_the_tag(text, short):
    assert ModelName.parse(text).short == short
    assert ModelName.parse(short) == ModelName.parse(text)


def test_the_full_form_has_all_parts():
    assert ModelName.parse("m").full == "registry.ollama.ai/library/m:latest"


def test_a_digest_may_be_written_with_a_dash_and_is_named_after_its_hex():
    assert Digest(f"sha256-{HEX}") == Digest(f"sha256:{HEX}") == f"sha256:{HEX}"
    assert Digest(f"sha256:{HEX}").file_name == f"sha256-{HEX}"
    assert Digest.of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    "text",
    [
        "", HEX, f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"sha256:{HEX.upper()}", f"sha256:{HEX}\n", f"md5:{HEX}",
        "sha256:../../../../../../etc/passwd", f"sha256:../{HEX[3:]}", f"sha256-{HEX[:-8]}-partial", f"../sha256:{HEX}",
        f"sha256:{HEX[:-1]}\0", f"SHA256:{HEX}", f"sha256:{HEX[:-1]}٣",
    ],
)  # fmt: skip
def test_a_text_that_is_no_digest_is_refused(text):
    with pytest.raises(InvalidDigest, match="invalid digest format"):
        Digest(text)


def test_one_function_makes_the_paths_of_blobs():
    """A second place that joins a digest to a folder is how another server came to read any file."""
    places = {
        path.name
        for path in Path(puna.store.__file__).parent.glob("*.py")
        if ".file_name" in path.read_text() or "sha256-" in path.read_text()
    }
    assert places == {"blobs.py", "digests.py"}


@pytest.mark.parametrize("text", ["model.gguf", "1_Pooling/config.json", "a..b", "x-00001-of-00002.gguf"])
def test_a_clean_relative_path_is_a_file_name(text):
    assert checked_file_name(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "/etc/passwd", "..", "../x", "a/../b", "a/..", "./a", "a//b", "a/", "a\\..\\b", "a\0", "a\nb", "x" * 1025],
)
def test_any_other_path_is_no_file_name(text):
    with pytest.raises(InvalidFileName, match="file path must be relative"):
        checked_file_name(text)


def test_the_package_exports_exactly_what_it_imports():
    there = {name for name, value in vars(puna.store).items() if not name.startswith("_") and not ismodule(value)}
    assert set(puna.store.__all__) == there
