"""Modelfiles: reading, writing, options and their values, and the files that a FROM line stands for."""

import re
from pathlib import Path

import pytest

from puna.core.errors import BadRequest, NotFound, Unsupported
from puna.core.tensor.sampling import SamplingParams
from puna.store import OPTIONS, Digest, Message, Options, check_options, digest_of, gather, parse_parameter
from puna.store.modelfile import decode, parameter_lines, parse, quoted, render
from puna.store.options import DEPRECATED, checked_parameters, unknown_options


def test_every_instruction_is_read_in_any_case_and_order():
    modelfile = parse(
        "# a comment\n\n"
        "  system You are brief.\n"
        "FROM llama3\n"
        "from ./mmproj.gguf\n"
        "Template {{ .Prompt }}\n"
        "PARAMETER temperature 0.5\n"
        "parameter stop <a>\n"
        "PARAMETER stop <b>\n"
        "PARAMETER temperature 0.25\n"
        "LICENSE MIT\n"
        "LICENSE also this\n"
        "MESSAGE user Hello\n"
        "MESSAGE assistant Hi there\n"
        "ADAPTER one\n"
        "ADAPTER two\n"
        "REQUIRES 0.14.0\n"
        "SYSTEM Last wins."
    )
    assert modelfile.sources == ("llama3", "./mmproj.gguf")
    assert modelfile.system == "Last wins."
    assert modelfile.template == "{{ .Prompt }}"
    assert modelfile.parameters == {"temperature": 0.25, "stop": ["<a>", "<b>"]}
    assert modelfile.licenses == ("MIT", "also this")
    assert modelfile.messages == (Message("user", "Hello"), Message("assistant", "Hi there"))
    assert modelfile.adapters == ("two",)
    assert modelfile.requires == "0.14.0"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("plain  with   blanks  ", "plain  with   blanks"),
        ("   \t leading", "leading"),
        ('"quoted"', "quoted"),
        ('"quoted"   ', "quoted"),
        ('""', ""),
        ('"over\ntwo lines"', "over\ntwo lines"),
        ('"""\nkept\n"""', "\nkept\n"),
        ('"""say "hi" now"""', 'say "hi" now'),
        ('"a" b\nc"', 'a" b\nc'),
        ('"""one"" \ntwo"""', 'one"" \ntwo'),
        ('""""""', ""),
        ("it's # no comment", "it's # no comment"),
        ('"first\n# no comment\nFROM x"', "first\n# no comment\nFROM x"),
        ("back\\nslash", "back\\nslash"),
        ("a\u200bb\x07c", "abc"),
        ("tab\tinside", "tab\tinside"),
        ('say "hi"', 'say "hi"'),
        ('"\r\nx\r\n"', "\r\nx\r\n"),
    ],
)
def test_a_value_is_read_as_written(written, value):
    assert parse(f"FROM m\nSYSTEM {written}\n").system == value
    assert parse(f"SYSTEM {written}\nFROM m").system == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no FROM line"),
        ("SYSTEM x", "no FROM line"),
        ("FROM \n", "no FROM line"),
        ("# FROM x", "no FROM line"),
        ("FROM", "unexpected EOF: FROM"),
        ('FROM x\nSYSTEM "open', 'unexpected EOF: "open'),
        ('FROM x\nSYSTEM "a" b\n', 'unexpected EOF: "a" b\n'),
        ('FROM x\nSYSTEM """\nopen "\n', 'unexpected EOF: """\nopen "\n'),
        ('FROM x\nSYSTEM "', 'unexpected EOF: "'),
        ("FROM x\nPARAMETER top_k\n", "unexpected EOF: top_k"),
        ("FROM x\nPARAMETER top-k 1\n", "unexpected EOF: top-k 1"),
        ("FROM x\nMESSAGE user", "unexpected EOF: user"),
        ("FROM x\nPARAMETER  top_k 1\n", "unknown parameter ''"),
        ("FROM x\nPARAMETER num_gqa 1\n", "unknown parameter 'num_gqa'"),
        ("FROM x\nPARAMETER top_k many\n", "invalid int value [many]"),
        ("FROM x\nPARAMETER top_k 1.5\n", "invalid int value [1.5]"),
        ("FROM x\nPARAMETER temperature hot\n", "invalid float value [hot]"),
        ("FROM x\nPARAMETER use_mmap yes\n", "invalid bool value [yes]"),
        ("FROM x\nMESSAGE tool x\n", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM x\nMESSAGE User x\n", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM x\nMESSAGE  user x\n", '(line 2): message role must be one of "system", "user", or "assistant"'),
    ],
)
def test_what_is_wrong_with_a_modelfile_is_said(text, problem):
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FROM x\nBADCOMMAND y\n", 2),
        ("FROM x\n\nSYSTEM\n", 3),
        ("FROM x\r\nBAD y\r\n", 3),  # each of CR and LF ends a line
        ('FROM x\nSYSTEM """\n\n"""\nFROM: y\n', 5),
        ("FRÖM x\n", 1),
    ],
)
def test_an_unknown_instruction_is_reported_with_its_line(text, line):
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert str(caught.value).startswith(f'(line {line}): command must be one of "from", "license", ')


def test_a_deprecated_parameter_warns_and_has_no_effect():
    modelfile = parse("FROM m\nPARAMETER mirostat 2\nPARAMETER top_k 5")
    assert modelfile.warnings == ("warning: parameter mirostat is deprecated",)
    assert modelfile.parameters == {"top_k": 5}


@pytest.mark.parametrize(
    ("lines", "draft"),
    [("", None), ("DRAFT small", "small"), ('draft a\nDraft "./b c.gguf"', "./b c.gguf"), ('DRAFT a\nDRAFT ""', None)],
)
def test_the_last_draft_counts(lines, draft):
    assert parse(f"FROM m\n{lines}").draft == draft


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_selects_the_encoding(encoding):
    assert parse(decode("FROM m\nSYSTEM Grüße".encode(encoding))).system == "Grüße"


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(BadRequest, match="not UTF-8 text: byte 7"):
        decode(b"SYSTEM \xff")


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        " leading",
        "trailing ",
        "two\nlines",
        'two\n"quoted" lines',
        '"starts with a quote"',
        'in "the" middle',
        "",
    ],
)
def test_a_rendered_modelfile_reads_back_the_same(text):
    parameters = {"temperature": 0.25, "top_k": 5, "use_mmap": True, "stop": [text, "<end>"]}
    written = render(
        "m:latest",
        ["/weights", "/projector"],
        system=text,
        draft="/my draft",
        template="{{ .Prompt }}",
        parameters=parameters,
        licenses=["free\nas in beer"],
        messages=[Message("user", text)],
    )
    modelfile = parse(written)
    assert modelfile.sources == ("/weights", "/projector")
    assert modelfile.draft == "/my draft"
    assert (modelfile.system or "") == text
    assert modelfile.template == "{{ .Prompt }}"
    assert modelfile.parameters == parameters
    assert modelfile.licenses == ("free\nas in beer",)
    assert modelfile.messages == (Message("user", text),)


def test_the_third_line_of_a_rendered_modelfile_names_the_model():
    lines = render("m:latest", ["/weights"]).splitlines()
    assert lines[2:] == ["# FROM m:latest", "", "FROM /weights"]
    assert all(line.startswith("#") for line in lines[:3])


def test_texts_are_quoted_only_where_they_must_be():
    assert [quoted("a b"), quoted(" a"), quoted("a\nb"), quoted('a\n"b"')] == [
        "a b",
        '" a"',
        '"a\nb"',
        '"""a\n"b""""',
    ]


def test_parameter_lines_are_padded_with_one_line_for_each_string():
    lines = parameter_lines({"stop": ["<a>", "<b>"], "top_p": 1.0, "num_ctx": 4096}, width=30)
    assert lines == [f"{'stop':30} <a>", f"{'stop':30} <b>", f"{'top_p':30} 1", f"{'num_ctx':30} 4096"]


# Options


def test_the_table_and_the_options_of_a_reply_name_the_same_things():
    assert set(OPTIONS) == set(Options.__struct_fields__)
    assert not set(OPTIONS) & set(DEPRECATED)


def test_documented_defaults_come_to_the_defaults_of_a_reply():
    documented = {name: option.default for name, option in OPTIONS.items()}
    assert Options.merge(Options(), documented, {}) == Options()


def test_a_request_goes_before_the_model_and_the_model_before_the_defaults():
    defaults = Options(num_ctx=8192, top_k=1)
    merged = Options.merge(defaults, {"top_k": 2, "top_p": 0.5, "stop": ["a"]}, {"top_k": 3, "top_p": None})
    assert (merged.num_ctx, merged.top_k, merged.top_p, merged.stop) == (8192, 3, 0.5, ("a",))


def test_numbers_for_integers_are_truncated():
    assert Options.merge(Options(), {}, {"top_k": 3.9, "num_keep": -1.5}).top_k == 3
    assert Options.merge(Options(), {}, {"num_keep": -1.5}).num_keep == -1


def test_special_numbers_are_spelled_out():
    merged = Options.merge(
        Options(num_ctx=99), {}, {"seed": -1, "num_predict": 0, "num_ctx": 1, "num_batch": 0, "num_gpu": -1}
    )
    assert (merged.seed, merged.num_predict, merged.num_ctx, merged.num_batch, merged.num_gpu) == (
        None,
        None,
        4,
        1,
        None,
    )
    assert Options.merge(Options(), {}, {"seed": 0}).seed == 0
    assert Options.merge(Options(), {}, {"num_predict": 7}).num_predict == 7


@pytest.mark.parametrize(("given", "most"), [(None, None), (-1, None), (0, 0), (3, 3)])
def test_how_far_to_guess_ahead_is_told_from_not_at_all(given, most):
    assert Options.merge(Options(), {"draft_num_predict": given}, {}).draft_num_predict == most
    assert Options.merge(Options(), {"draft_num_predict": 5}, {"draft_num_predict": 0}).draft_num_predict == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"top_k": "40"}, 'option "top_k" must be of type integer'),
        ({"top_k": True}, 'option "top_k" must be of type integer'),
        ({"top_k": 1e300}, 'option "top_k" must be of type integer'),
        ({"temperature": "1"}, 'option "temperature" must be of type float32'),
        ({"temperature": float("nan")}, 'option "temperature" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": ["x", 1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_an_option_of_the_wrong_type_is_named(options, problem):
    for check in (check_options, checked_parameters, lambda wrong: Options.merge(Options(), wrong, {})):
        with pytest.raises(BadRequest) as caught:
            check(options)
        assert str(caught.value) == problem


@pytest.mark.parametrize(
    "options", [{"mirostat": 0}, {"mirostat_tau": 5.0}, {"low_vram": True}, {"tfs_z": 1}, {"numa": None}]
)
def test_a_dead_option_that_asks_for_nothing_is_accepted(options):
    assert Options.merge(Options(), {}, options) == Options()


@pytest.mark.parametrize(
    "options", [{"mirostat": 2}, {"tfs_z": 0.5}, {"vocab_only": True}, {"penalize_newline": False}]
)
def test_a_dead_option_that_asks_for_something_is_refused_by_name(options):
    with pytest.raises(Unsupported, match=f'option "{next(iter(options))}" is no longer supported'):
        Options.merge(Options(), {}, options)
    assert Options.merge(Options(), options, {}) == Options()  # in a stored model it never had an effect


def test_unknown_options_of_a_request_are_listed_and_passed_over():
    options = {"top_k": 1, "frobnicate": {}, "mirostat": 0}
    assert unknown_options(options) == ["frobnicate"]
    assert Options.merge(Options(), {}, options).top_k == 1
    with pytest.raises(BadRequest, match="unknown parameter 'frobnicate'"):
        checked_parameters(options)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("num_ctx", "4096", 4096), ("seed", "-1", -1), ("seed", "+7", 7), ("temperature", "0.7", 0.7),
        ("temperature", "1", 1.0), ("top_p", ".5", 0.5), ("min_p", "5e-2", 0.05), ("stop", "<|end|>", ["<|end|>"]),
        ("use_mmap", "t", True), ("use_mmap", "False", False), ("use_mmap", "0", False),
    ],
)  # fmt: skip
def test_a_parameters_text_becomes_its_value(name, text, value):
    parsed = parse_parameter(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "1_000", "0x10", "٣", " 1", "9" * 20, "inf", "nan", "1e999", "1,5"])
def test_other_spellings_of_numbers_are_refused(text):
    for name in ("num_ctx", "temperature") if text != "9" * 20 else ("num_ctx",):
        with pytest.raises(BadRequest, match=r"invalid (int|float) value"):
            parse_parameter(name, text)


def test_the_samplers_share_of_the_options_reaches_it():
    merged = Options.merge(Options(), {}, {"temperature": 0.1, "top_k": 7, "seed": 42, "repeat_last_n": -1})
    assert merged.sampling() == SamplingParams(temperature=0.1, top_k=7, seed=42, repeat_last_n=-1)
    assert Options().sampling() == SamplingParams()


# What FROM stands for


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_a_from_where_nothing_lies_is_a_models_name(tmp_path):
    gathered = gather(parse("FROM llama3\nSYSTEM x\nPARAMETER top_k 3\nLICENSE MIT"), tmp_path)
    request = gathered.request("mine", {})
    assert (request.model, request.from_, request.files) == ("mine", "llama3", None)
    assert (request.system, request.parameters, request.license) == ("x", {"top_k": 3}, ["MIT"])


@pytest.mark.parametrize("source", ["./absent.gguf", "../absent", "~/absent.gguf", "/absent/model.gguf"])
def test_a_from_that_can_be_neither_a_path_nor_a_name_says_where_nothing_lies(tmp_path, source):
    place = re.escape(str(Path(tmp_path, Path(source).expanduser())))
    with pytest.raises(NotFound, match=rf"^FROM {re.escape(source)}: there is no file or folder {place}$"):
        gather(parse(f"FROM {source}"), tmp_path)


def test_files_are_named_relative_to_the_modelfile(tmp_path):
    write(tmp_path, "weights/model.gguf", "mmproj.gguf")
    gathered = gather(parse("FROM ./weights/model.gguf\nFROM mmproj.gguf"), tmp_path)
    assert gathered.files == {
        "model.gguf": tmp_path / "weights/model.gguf",
        "mmproj.gguf": tmp_path / "mmproj.gguf",
    }
    digests = {path: digest_of(path) for path in gathered.paths}
    assert gathered.request("mine", digests).files == {
        "model.gguf": str(Digest.of(b"weights/model.gguf")),
        "mmproj.gguf": str(Digest.of(b"mmproj.gguf")),
    }


def test_the_draft_has_files_of_its_own_and_none_is_uploaded_twice(tmp_path):
    write(tmp_path, "big/model.gguf", "small/model.gguf", "small/model-draft.gguf")
    gathered = gather(parse("FROM big/model.gguf\nDRAFT small"), tmp_path)
    assert gathered.draft_files == {name: tmp_path / "small" / name for name in ("model.gguf", "model-draft.gguf")}
    request = gathered.request("mine", {path: digest_of(path) for path in gathered.paths})
    assert request.files == {"model.gguf": str(Digest.of(b"big/model.gguf"))}
    assert request.draft_files["model.gguf"] == str(Digest.of(b"small/model.gguf"))
    assert gather(parse("FROM big/model.gguf\nDRAFT big/model.gguf"), tmp_path).paths == [tmp_path / "big/model.gguf"]


def test_a_draft_where_nothing_lies_is_a_models_name(tmp_path):
    request = gather(parse("FROM llama3\nDRAFT llama3:1b"), tmp_path).request("mine", {})
    assert (request.from_, request.draft, request.draft_files) == ("llama3", "llama3:1b", None)
    with pytest.raises(NotFound, match=r"^DRAFT \./absent\.gguf: there is no file or folder"):
        gather(parse("FROM llama3\nDRAFT ./absent.gguf"), tmp_path)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "model.gguf")
    assert gather(parse("FROM ~/model.gguf"), tmp_path / "elsewhere").files == {"model.gguf": tmp_path / "model.gguf"}


def test_a_checkpoints_folder_gives_weights_json_and_tokenizer(tmp_path):
    write(
        tmp_path,
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "consolidated.safetensors", "config.json", "tokenizer.model", "chat_template.jinja", "1_Pooling/config.json",
        "a/b/deep.json", "pytorch_model.bin", "README.md", "other.gguf", "modeling.py",
    )  # fmt: skip
    assert sorted(gather(parse("FROM ."), tmp_path).files) == [
        "1_Pooling/config.json", "chat_template.jinja", "config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model",
    ]  # fmt: skip


def test_a_folder_of_gguf_files_gives_those_alone(tmp_path):
    write(tmp_path, "a.gguf", "b.gguf", "config.json")
    assert sorted(gather(parse(f"FROM {tmp_path}"), tmp_path / "x").files) == ["a.gguf", "b.gguf"]


def test_a_folder_without_weights_is_refused(tmp_path):
    write(tmp_path, "config.json")
    with pytest.raises(BadRequest, match=r"^no Modelfile or safetensors files found$"):
        gather(parse("FROM ."), tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_alone_and_in_a_folder(tmp_path, name):
    write(tmp_path, name)
    for source in (".", name):
        with pytest.raises(Unsupported, match=f"{name} may hold Python code"):
            gather(parse(f"FROM {source}"), tmp_path)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    write(tmp_path, "secret.json", "model/model.safetensors")
    (tmp_path / "model/config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BadRequest, match=r"^insecure path: .*config\.json$"):
        gather(parse("FROM model"), tmp_path)


def test_a_link_within_the_folder_is_followed(tmp_path):
    write(tmp_path, "model/model.safetensors", "model/real.json")
    (tmp_path / "model/config.json").symlink_to("real.json")
    assert "config.json" in gather(parse("FROM model"), tmp_path).files


def test_a_git_lfs_pointer_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BadRequest, match=r"model\.gguf is a Git LFS pointer"):
        gather(parse("FROM model.gguf"), tmp_path)


def test_a_device_is_no_file(tmp_path):
    with pytest.raises(BadRequest, match="/dev/null is not a regular file"):
        gather(parse("FROM /dev/null"), tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path):
    write(tmp_path, "a/model.gguf", "b/model.gguf")
    with pytest.raises(BadRequest, match=r"two files are called model\.gguf"):
        gather(parse("FROM a/model.gguf\nFROM b/model.gguf"), tmp_path)


def test_adapters_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(Unsupported, match="adapters are not supported"):
        gather(parse("FROM m\nADAPTER ./lora"), tmp_path)
