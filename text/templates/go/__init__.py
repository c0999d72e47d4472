"""Go's `text/template` language, as far as it can be used without Go: parse once, render often.

Source: pkg.go.dev/text/template and pkg.go.dev/fmt. Differences, both outside what a template file can observe in
practice: complex numbers are refused, and a value's Go type is inferred from its Python type.
"""

from __future__ import annotations

from .template import GoTemplate
from .values import Listed, Ordered, Record, Shape, Value

__all__ = ["GoTemplate", "Listed", "Ordered", "Record", "Shape", "Value"]
