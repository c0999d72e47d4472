"""How many sums of a product grow side by side: as many as the processor has registers for.

With 512-bit vectors, a whole tile of activations is multiplied with a pair of groups at once. Elsewhere a vector of
sixteen lanes is two or four registers, and sums that find none would be written and read back for each dot product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numba.core import cgutils

from .layouts import PAIR
from .simd import LONG, registers

FREE = registers() - 4  # vectors: the others are for weights, activations and what lies between
CHAINS = min(6, registers() // 2)  # sums at least: a dot instruction takes up to five cycles, and two begin in each


def abreast(each: int) -> int:
    """Return how many columns of activations there are registers for. each: sums of a column and a group."""
    return max(1, FREE // (each * PAIR))


def column_parts(builder: Any, columns: int, each: int) -> Iterator[tuple[int, Any]]:
    """Emit what follows for as many columns of a tile at a time as go `abreast`; yield how many, and the first.

    Tiles have 1, 2, 4 or 6 columns, so that all parts are alike: if one is not all columns, they are an emitted loop.
    """
    count = min(columns, abreast(each))
    if count == columns:
        yield count, LONG(0)
        return
    assert columns % count == 0, (columns, count)
    with cgutils.for_range_slice(builder, LONG(0), LONG(columns), LONG(count)) as (first, _):
        yield count, first
