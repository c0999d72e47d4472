"""Settings: what the environment may say, what it means, and that nothing else is taken for a default."""

import dataclasses
from pathlib import Path

import pytest

from puna.core.errors import BadSetting
from puna.core.settings import Address, Settings, describe_settings, load_settings, read_setting

# What the environment says -> what is then in force.
MEANINGS = [
    ("host", "0.0.0.0", Address("http", "0.0.0.0", 11434)),
    ("host", ":8080", Address("http", "127.0.0.1", 8080)),
    ("host", "http://box", Address("http", "box", 80)),
    ("host", "https://box/", Address("https", "box", 443)),
    ("host", "https://box:8443", Address("https", "box", 8443)),
    ("host", "[::1]:5000", Address("http", "::1", 5000)),
    ("host", "[::1]", Address("http", "::1", 11434)),
    ("host", "fe80::1", Address("http", "fe80::1", 11434)),
    ("models", "/srv/models", Path("/srv/models")),
    ("models", "~/models", Path.home() / "models"),
    ("models", "models", Path.cwd() / "models"),
    ("keep_alive", "10m", 600.0),
    ("keep_alive", "90", 90.0),
    ("keep_alive", "0", 0.0),
    ("keep_alive", "-1", None),
    ("keep_alive", "-1m", None),
    ("num_parallel", "3", 3),
    ("num_parallel", "0", 8),
    ("max_loaded_models", "0", 3),
    ("max_queue", "1", 1),
    ("context_length", "0", 4096),
    ("runner", "inline", "inline"),
    ("load_timeout", "10m", 600.0),
    ("load_timeout", "0", None),
    ("load_timeout", "-1", None),
    ("step_timeout", "1h", 3600.0),
    ("step_timeout", "0", None),
    ("num_batch", "64", 64),
    ("num_threads", "2", 2),
    ("kv_cache_type", "f32", "f32"),
    ("kv_cache_type", "q8_0", "q8_0"),
    ("kv_cache_type", "q4_0", "q4_0"),
    ("image_cache", "0", 0),
    ("image_cache", "1000000", 1000000),
    ("image_cache", "1.5GiB", 3 << 29),
    ("image_cache", "64M", 64 << 20),
    ("image_cache", "2 gb", 2 << 30),
    ("speculate", "0", False),
    ("weights", "mmap", "mmap"),
    ("weights", "packed", "packed"),
    ("precise", "1", True),
    ("precise", "Off", False),
    ("noprune", "true", True),
    ("nohistory", "T", True),
    ("origins", "http://a.org, https://*.b.org,*", ("http://a.org", "https://*.b.org", "*")),
    ("plugins", "mine.arch , other", ("mine.arch", "other")),
    ("allowed_hosts", "Puna.example, *.lan", ("puna.example", "*.lan")),
    ("remote_media", "Images.example, *.cdn.example", ("images.example", "*.cdn.example")),
    ("kernel_cache", "/var/cache/kernels", Path("/var/cache/kernels")),
    ("debug", "2", 2),
    ("debug", "true", 1),
]

REFUSED = [
    ("host", "ftp://box"), ("host", "box:123456"), ("host", "box:65536"), ("host", "abc:123456"), ("host", "bad:"),
    ("host", "[box]:1"), ("host", "a b"), ("host", "me@box"), ("host", "box/path"), ("host", "[::1"),
    ("models", "~nobody-has-this-name/models"),
    ("step_timeout", "5s"), ("step_timeout", "soon"),
    ("keep_alive", "soon"), ("keep_alive", "5 m"), ("keep_alive", "nan"), ("keep_alive", "9999999h"),
    ("runner", "Local"), ("load_timeout", "later"),
    ("num_parallel", "-1"), ("num_parallel", "two"), ("num_parallel", "1.5"),
    ("max_loaded_models", "-1"), ("max_queue", "0"), ("context_length", "-4096"), ("num_batch", "0"),
    ("weights", "mapped"), ("weights", "1"),
    ("num_threads", "0"), ("kv_cache_type", "q5_0"), ("kv_cache_type", "F16"), ("precise", "maybe"), ("debug", "3"),
    ("origins", "a.org"), ("allowed_hosts", "*"), ("allowed_hosts", "a b"),
    ("remote_media", "*"), ("remote_media", "http://a.org"), ("remote_media", "a.org:80"),
    ("origins", "http://*.*.org"), ("kernel_cache", "~nobody-has-this-name/cache"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), MEANINGS)
def test_a_variable_sets_its_field(name, text, value):
    assert getattr(load_settings({f"PUNA_{name.upper()}": text}), name) == value
    assert read_setting(name, {f"PUNA_{name.upper()}": text}) == value


def test_every_field_has_an_example_above():
    assert {name for name, _, _ in MEANINGS} == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(("name", "text"), REFUSED)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(name, text):
    variable = f"PUNA_{name.upper()}"
    with pytest.raises(BadSetting, match=f"^{variable}=.* is not allowed: expected ") as caught:
        load_settings({variable: text})
    assert (caught.value.name, caught.value.value) == (variable, text)


def test_an_empty_environment_gives_the_defaults():
    assert load_settings({}) == Settings()


def test_blanks_and_quotes_around_a_value_do_not_count():
    assert load_settings({"PUNA_NUM_BATCH": ' "64"\r\n', "PUNA_DEBUG": "''"}) == Settings(num_batch=64)


def test_ollamas_variable_is_read_where_ours_is_not_set():
    assert load_settings({"OLLAMA_NUM_PARALLEL": "2"}).num_parallel == 2
    assert load_settings({"OLLAMA_NUM_PARALLEL": "2", "PUNA_NUM_PARALLEL": "5"}).num_parallel == 5
    assert load_settings({"OLLAMA_NUM_PARALLEL": "2", "PUNA_NUM_PARALLEL": " "}).num_parallel == 2


def test_a_bad_ollama_variable_is_refused_by_its_own_name():
    with pytest.raises(BadSetting, match="OLLAMA_KEEP_ALIVE='soon'"):
        load_settings({"OLLAMA_KEEP_ALIVE": "soon"})


def test_settings_that_ollama_does_not_have_ignore_its_prefix():
    assert load_settings({"OLLAMA_NUM_BATCH": "nonsense", "OLLAMA_PLUGINS": "x"}) == Settings()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("::", "http://[::1]:11434"),
        ("[fe80::2]:80", "http://[fe80::2]:80"),
        ("https://box", "https://box:443"),
    ],
)
def test_clients_reach_the_address_that_is_listened_on(host, url):
    assert load_settings({"PUNA_HOST": host}).host.url == url


def test_every_default_that_is_shown_reads_back_as_the_default():
    shown = {name: default for name, default, _ in describe_settings()}
    assert load_settings(shown) == Settings()
    assert all(meaning for _, _, meaning in describe_settings())
