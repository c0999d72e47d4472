"""What reading JSON that somebody else wrote may raise."""

from __future__ import annotations

import msgspec

# msgspec promises the first; for bytes that are no UTF-8 and for deep nesting it lets Python's own errors through.
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
