"""What the repository promises about itself: import directions, the settings table, no architecture in the core."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import puna.core.plugin
import puna.core.tensor
from puna.core.kernel import find_plugins
from puna.core.settings import describe_settings

ROOT = Path(__file__).parent.parent
INNER = ("core", "api", "store", "text", "cli")
BUILT_IN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["puna"]
PLUGINS = sorted(path for path in (ROOT / "plugins").glob("*.py") if path.stem != "__init__")


def test_imports_point_one_way() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def plugin_of(module: str) -> str:
    """Return the plugin that a module is part of: the longest name that it begins with."""
    return max((name for name in BUILT_IN if f"{module}_".startswith(f"{name}_")), key=len)


def imports_of_ours(path: Path) -> Iterator[str]:
    """Yield what a module imports of this project, as it is written there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("puna")):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("puna"))


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_plugins_import_the_contract_the_operations_and_nothing_of_each_other(path: Path) -> None:
    allowed = {f".{other.stem}" for other in PLUGINS if plugin_of(other.stem) == plugin_of(path.stem)}
    assert {*imports_of_ours(path)} <= {"..core.plugin", "..core.tensor", *allowed}


def test_the_readme_lists_every_setting() -> None:
    rows = re.findall(r"^\| `(PUNA_\w+)` \| (.*?) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == [(name, f"`{default}`" if default else "", help) for name, default, help in describe_settings()]


@pytest.mark.parametrize("folder", INNER)
def test_nothing_outside_the_plugins_compares_an_architecture_s_name(folder: str) -> None:
    names = {name for report in find_plugins() for name in report.names}
    pattern = re.compile(
        r"[!=]=\s*[\"'](" + "|".join(map(re.escape, names)) + r")[\"']|\bcase\s+[\"'](" + "|".join(names) + ")[\"']"
    )
    found = [
        f"{path}: {line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if pattern.search(line)
    ]
    assert found == []


def test_every_built_in_plugin_loads() -> None:
    reports = {report.name: report.error for report in find_plugins() if report.distribution == "puna"}
    names = [
        "gemma3", "llama", "llama4", "llava", "mistral", "mistral_small", "mllama", "qwen2", "qwen25vl", "qwen3",
        "qwen3vl",
    ]  # fmt: skip
    assert reports == dict.fromkeys(names)


@pytest.mark.parametrize("module", [puna.core.plugin, puna.core.tensor])
def test_what_plugins_may_import_is_listed_and_sorted(module) -> None:
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
