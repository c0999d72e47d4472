"""The outcome of a comparison: numbers as they were measured, and a table of them for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec
from rich.table import Table

from .ceilings import Ceilings
from .rows import ROWS, Row, effort
from .work import Work

OURS, THEIRS = "puna", "llama.cpp"


class Line(msgspec.Struct, frozen=True):
    """One row, as measured in each run of each engine."""

    name: str
    unit: str
    puna: list[float]
    llama_cpp: list[float]
    ratio: float  # of the medians: above 1, Puna is better


class Comparison(msgspec.Struct, frozen=True):
    """The rows of one model."""

    model: str
    work: Work
    ceilings: list[Ceilings]  # of each run
    lines: list[Line]

    @property
    def ceiling(self) -> Ceilings:
        """The best that the machine did in any run."""
        return Ceilings(
            max(c.bytes_per_s for c in self.ceilings),
            max(c.operations_per_s for c in self.ceilings),
        )


class Report(msgspec.Struct, frozen=True):
    """Everything that one call of bench.compare found out."""

    date: str
    processor: str
    threads: int
    versions: dict[str, str]
    models: list[Comparison]


def make_line(row: Row, ours: list[float], theirs: list[float]) -> Line:
    """Return a row with its ratio."""
    ratio = row.ratio(statistics.median(ours), statistics.median(theirs))
    return Line(row.name, row.unit, ours, theirs, ratio)


def table(comparison: Comparison) -> Table:
    """Return medians with their ranges, the ratio, and what each engine makes of the machine."""
    shown = Table("", OURS, THEIRS, "ratio", f"{OURS} uses", f"{THEIRS} uses")
    for column in shown.columns[1:]:
        column.justify = "right"
    rows = {row.name: row for row in ROWS}
    for line in comparison.lines:
        uses = [used(rows[line.name], values, comparison) for values in (line.puna, line.llama_cpp)]
        label = f"{line.name}, {line.unit}"
        shown.add_row(label, spread(line.puna), spread(line.llama_cpp), f"{line.ratio:.2f}", *uses)
    return shown


def used(row: Row, values: Sequence[float], comparison: Comparison) -> str:
    """Return the memory read, or the operations done, in a second, and their share of what the machine can do."""
    asked = effort(row, statistics.median(values), comparison.work)
    if asked is None:
        return ""
    limit = comparison.ceiling.bytes_per_s if asked.unit == "bytes" else comparison.ceiling.operations_per_s
    return f"{giga(asked.amount, asked.unit)}, {asked.amount / limit:.0%}"


def giga(amount: float, unit: str) -> str:
    """Return bytes or operations a second, readably."""
    return f"{readable(amount / 1e9)} {'GB/s' if unit == 'bytes' else 'GOP/s'}"


def spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the range."""
    return f"{readable(statistics.median(values))} ({readable(min(values))}–{readable(max(values))})"


def readable(value: float) -> str:
    """Return three digits of a number, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
