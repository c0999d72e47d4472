"""Finding plugins: what works is listed, and what is broken disables itself and nothing else."""

import asyncio
import logging
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

from puna.core.kernel import Kernel, find_plugins
from puna.core.scheduler.inline import TextParts
from puna.core.settings import Settings

INSTALLED = [entry.name for entry in sorted(entry_points(group="puna"), key=lambda entry: entry.name)]

WORKING = """
    from puna.core.plugin import Architecture, Module, hookimpl
    from puna.plugins.llama import Config, Llama, cache_layout

    def make(*names, model=Llama, **more):
        return Architecture(gguf=names, config=Config, model=model, cache=cache_layout, **more)

    @hookimpl
    def architectures():
        return [make("mine", "mine2"), make("mine3")]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes an importable module: the working plugin, and code that comes after it."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, code="", *, working=True):
        source = textwrap.dedent(WORKING) if working else ""
        (tmp_path / f"{name}.py").write_text(source + textwrap.dedent(code))
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_the_installed_plugins_work_and_are_listed_by_name():
    reports = find_plugins()
    assert [report.name for report in reports] == INSTALLED
    assert {report.name: report.error for report in reports} == dict.fromkeys(INSTALLED)
    ours = {report.name: report for report in reports if report.distribution == "puna"}
    assert {"gemma3", "llama", "llama4", "mistral", "qwen2", "qwen3"} <= ours.keys()
    assert ours["llama"].names == ["llama", "LlamaForCausalLM"]
    assert ours["llama"].version != ""


def test_a_development_module_comes_first_with_all_its_names(module):
    reports = find_plugins((module("mine_plugin"),))
    assert [report.name for report in reports] == ["mine_plugin", *INSTALLED]
    assert reports[0].names == ["mine", "mine2", "mine3"]
    assert (reports[0].distribution, reports[0].error, reports[0].traceback) == ("", None, None)


BROKEN = [
    ("raise RuntimeError('boom')", "RuntimeError: boom"),
    ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
    ("def (", "SyntaxError: "),
    ("import sys; sys.exit('leave')", "SystemExit: leave"),
    ("raise RuntimeError('first line\\n   second line')", "RuntimeError: first line second line"),
    ("@hookimpl\ndef architectures(): return 1 / 0", "ZeroDivisionError: "),
    ("@hookimpl\ndef architectures(): raise SystemExit(3)", "SystemExit: 3"),
    ("@hookimpl\ndef architectures(): return None", "TypeError: "),
    ("@hookimpl\ndef architectures(): return make('one')", "TypeError: "),
    (
        "@hookimpl\ndef architectures(): return ['llama']",
        "TypeError: architectures() returned 'llama', expected a list of Architecture",
    ),
    ("@hookimpl\ndef architectures(): return [make()]", "ValueError: an architecture needs a name"),
    ("@hookimpl\ndef architectures(surprise): return []", "PluginValidationError: "),
    ("@hookimpl\ndef architecturs(): return []", "PluginValidationError: unknown hook 'architecturs'"),
    (
        "class Bad(Module):\n    size: int\n\n@hookimpl\ndef architectures(): return [make('one', model=Bad)]",
        "TypeError: Bad.size is neither tensor(...) nor layers(...)",
    ),
    (
        "class Bad(Module):\n    w: 'Nowhere'\n\n@hookimpl\ndef architectures(): return [make('one', model=Bad)]",
        "NameError: name 'Nowhere' is not defined",
    ),
    (
        "from puna.core.plugin import Encoder\n\nclass Eye(Encoder):\n    placeholder = '<p>'\n\n"
        "@hookimpl\ndef architectures(): return [make('one', vision=Eye, vision_config=Config)]",
        "TypeError: Eye.marker is None, expected the text of a token",
    ),
]


@pytest.mark.parametrize(("code", "error"), BROKEN, ids=[error for _, error in BROKEN])
def test_a_broken_plugin_disables_itself_and_nothing_else(module, caplog, code, error):
    broken, working = module("broken_plugin", code), module("mine_plugin")
    with caplog.at_level(logging.DEBUG, logger="puna"):
        reports = {report.name: report for report in find_plugins((broken, working))}
    assert reports[broken].error.startswith(error)
    assert "\n" not in reports[broken].error
    assert reports[broken].architectures == ()
    assert error.split(":")[0] in reports[broken].traceback
    assert f"plugin broken_plugin is disabled: {error}" in caplog.text
    assert "Traceback (most recent call last)" in caplog.text
    del reports[broken]
    assert {name: report.error for name, report in reports.items()} == dict.fromkeys([working, *INSTALLED])


def test_a_module_without_hooks_provides_nothing(module):
    report = find_plugins((module("empty_plugin", working=False),))[0]
    assert (report.architectures, report.error) == ((), None)


def test_a_name_that_is_taken_disables_the_later_plugin(module):
    again = module("mine_again", "@hookimpl\ndef architectures(): return [make('new', 'mine2')]")
    reports = find_plugins((module("mine_plugin"), again))
    assert reports[0].error is None
    assert reports[1].error == "ValueError: the architecture mine2 is already provided by mine_plugin"
    assert reports[1].names == []


def test_names_of_a_disabled_plugin_are_free_for_others(module):
    broken = module("broken_plugin", "@hookimpl\ndef architectures(): return [make('mine'), 5]")
    assert [report.error is None for report in find_plugins((broken, module("mine_plugin")))[:2]] == [False, True]


def test_a_development_version_takes_the_place_of_the_installed_one(module):
    mine = module("new_llama", "@hookimpl\ndef architectures(): return [make('llama')]")
    reports = {report.name: report for report in find_plugins((mine,))}
    assert reports[mine].names == ["llama"]
    assert reports["llama"].error == "ValueError: the architecture llama is already provided by new_llama"


def test_the_same_module_twice_disables_the_second_mention_only(module):
    mine = module("mine_plugin")
    first, second = find_plugins((mine, mine))[:2]
    assert first.names == ["mine", "mine2", "mine3"]
    assert second.error.startswith("ValueError: ")
    installed = {report.name: report for report in find_plugins(("puna.plugins.llama",))}
    assert installed["puna.plugins.llama"].error is None
    assert installed["llama"].error.startswith("ValueError: ")


def test_the_kernel_offers_what_working_plugins_provide(module):
    async def names():
        kernel = Kernel(
            Settings(runner="inline", plugins=(module("broken_plugin", "1 / 0"), module("mine_plugin"))),
            TextParts(open_tokenizer=None, stop_rule=None, open_grammars=None),
        )
        await kernel.close()
        return [architecture.name for architecture in kernel.architectures]

    found = asyncio.run(names())
    assert found[:2] == ["mine", "mine3"]
    assert {"llama", "MistralForCausalLM", "qwen2", "qwen3"} <= set(found)
