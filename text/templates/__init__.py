"""Templates that write prompts: Go `text/template` (a Modelfile's) and sandboxed Jinja (a checkpoint's)."""

from __future__ import annotations

from .go import GoTemplate
from .jinja import JinjaTemplate

__all__ = ["GoTemplate", "JinjaTemplate"]
