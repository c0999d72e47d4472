"""What is compared: the rows of the table, in groups that share a process and its context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from .work import Work

Group = Literal["prefill", "decode", "context", "streams", "load"]
Unit = Literal["tokens/s", "s", "GB"]

GROUPS: tuple[Group, ...] = get_args(Group)
DECODED = 32  # tokens of every reply that is timed
WHOLE, BEHIND = "whole prompt", "decode behind"  # what is timed of a reply to a long prompt


@dataclass(frozen=True)
class Row:
    """One number of each engine."""

    group: Group
    name: str
    unit: Unit
    size: int = 0  # prefill: tokens of the prompt; context: tokens before the reply; streams: replies at once

    def ratio(self, ours: float, theirs: float) -> float:
        """Return how many times better the first number is: more tokens, or less time or memory."""
        return ours / theirs if self.unit == "tokens/s" else theirs / ours


class Effort(msgspec.Struct, frozen=True):
    """What a speed asks of the machine, beside what the machine can do."""

    amount: float  # of the unit, in a second
    unit: Literal["bytes", "operations"]


def effort(row: Row, value: float, work: Work) -> Effort | None:
    """Return the weights multiplied, or read, in a second at that many tokens/s; None for a row that is no speed."""
    if row.unit != "tokens/s":
        return None
    if row.group == "prefill" or row.name.startswith(WHOLE):
        return Effort(value * work.operations, "operations")
    passes = value / row.size if row.group == "streams" else value  # a pass reads the weights once for all replies
    return Effort(passes * work.read_bytes, "bytes")


ROWS = (
    *(Row("prefill", f"prefill {size:,}", "tokens/s", size) for size in (32, 128, 512, 2048)),
    Row("decode", "decode", "tokens/s"),
    *(Row("context", f"{phase} {size:,}", "tokens/s", size) for size in (2048, 8192) for phase in (WHOLE, BEHIND)),
    *(Row("streams", f"{size} replies at once", "tokens/s", size) for size in (4, 8, 16)),
    Row("load", "load", "s"),
    Row("load", "first token", "s"),
    Row("load", "peak memory", "GB"),
)


def rows_of(group: Group) -> list[Row]:
    """Return the rows of one group."""
    return [row for row in ROWS if row.group == group]
