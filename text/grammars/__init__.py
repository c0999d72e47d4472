"""Output formats: replies that are JSON and follow a schema, token by token.

Which tokens may come next is computed by the `llguidance` library. What is ours is which schemas are taken: only those
that the library follows to the letter, small enough that no request can exhaust the process.
"""

from __future__ import annotations

from .compiler import Grammars
from .grammar import SchemaGrammar

__all__ = ["Grammars", "SchemaGrammar"]
