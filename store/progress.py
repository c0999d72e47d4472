"""What a long operation on the store tells its client."""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of progress. digest, total (bytes) and completed (bytes) are there where a blob moves."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
