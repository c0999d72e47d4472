"""A parsed Go template: render it, or ask what it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from . import inspect
from .functions import FUNCTIONS
from .nodes import Block
from .parser import parse
from .render import Renderer
from .values import Value

_KNOWN = frozenset([*FUNCTIONS, "and", "or"])


class GoTemplate:
    """A Go `text/template`. Immutable; one instance may render in several threads.

    Raises BadRequest with Go's message and the line if source does not parse.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._blocks = parse(source, _KNOWN)
        self._names = inspect.names(self._blocks)

    def render(self, data: Mapping[str, Value]) -> str:
        """Return the text for data (values as in values.py). Raises BadModel with Go's message and the position."""
        return Renderer(self.source, self._blocks, dict(data)).run()

    def mentions(self, name: str) -> bool:
        """Return whether a field of that name, in any letter case, occurs anywhere in the template."""
        return name.lower() in self._names

    def until_response(self) -> Self:
        """Return the template without anything behind its first `{{ .Response }}`, so that a reply can follow."""
        shortened: dict[str, Block] = {**self._blocks, "": inspect.until_response(self._blocks[""])}
        copy = type(self).__new__(type(self))
        copy.source, copy._blocks, copy._names = self.source, shortened, self._names
        return copy

    @property
    def thinking_tags(self) -> tuple[str, str] | None:
        """The marks the template writes before and after a message's thinking; None if it has none."""
        return inspect.thinking_tags(self._blocks)

    @property
    def tool_tag(self) -> str | None:
        """The text that begins tool calls, "{" if bare JSON does; None if the template writes no tool calls."""
        return inspect.tool_tag(self._blocks)
