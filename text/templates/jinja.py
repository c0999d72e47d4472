"""Chat templates in Jinja, as Hugging Face checkpoints carry them, run without trust in their author."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from ...core.errors import BadModel, BadRequest, Failure
from .limits import budget
from .sandbox import BoundedEnvironment, guarded

MAX_LAYOUT = 256  # characters; the system expands a layout of the date in one go, up to 256 times its length
MAX_SOURCE = 1 << 20  # characters; the largest published chat templates have 30 thousand


class JinjaTemplate:
    """A chat template. Immutable; one instance may render in several threads.

    Raises BadModel, with the line, if source is no template.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise BadModel(f"chat template has {len(source)} characters, the limit is {MAX_SOURCE}")
        self.source = source
        try:
            with budget():  # constant expressions are evaluated here
                code = _ENVIRONMENT.compile(guarded(_ENVIRONMENT.parse(source)))
                self._template = jinja2.Template.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))
        except Failure:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise BadModel(f"chat template, line {error.lineno}: {error.message}") from None
        except Exception as error:  # whatever hostile nesting makes Jinja or Python's compiler raise
            raise BadModel(f"chat template cannot be compiled: {_described(error)}") from None

    def render(self, **context: Any) -> str:
        """Return the text for the given variables.

        Raises BadRequest with the template's own words if it calls raise_exception, BadModel if it fails or costs
        too much.
        """
        try:
            with budget():
                return self._template.render(context)
        except Failure:
            raise
        except Exception as error:  # template code may raise anything; none of it is a bug of ours
            raise BadModel(f"chat template failed: {_described(error)}") from None


def _described(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    return f"{kind}{error}"[:300]


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; at inference its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> NoReturn:
    raise BadRequest(str(message))


def _strftime_now(layout: str) -> str:
    if len(layout) > MAX_LAYOUT:
        raise BadModel(f"chat template writes the date in more than {MAX_LAYOUT} characters")
    return datetime.now().strftime(layout)  # the local time is meant


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    del environment.globals["lipsum"]
    return environment


_ENVIRONMENT = _environment()
