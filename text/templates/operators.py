"""Checks of operands before Jinja's operators make something too large of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ...core.errors import BadModel
from .limits import check_items, check_text, measured, text_of

MAX_INTEGER_BITS = 4096


def _bound_sum(left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        check_text(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        check_items(len(left) + len(right))
        measured(min(left, right, key=len))  # a list grown one by one has been measured on the way; a doubled one is


def _bound_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            check_text(len(sequence) * max(times, 0))
            if not isinstance(sequence, str):
                check_items(measured(sequence)[0] * times)


def _bound_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_INTEGER_BITS:
        raise BadModel(f"chat template computes an integer of more than {MAX_INTEGER_BITS} bits")


# A width from the arguments or of four digits and more, or a named argument, which may be repeated at will.
_COSTLY_LAYOUT = re.compile(r"%[-+ #0]*(?:\d{4}|\d*\*|\d*\.(?:\d{4}|\*)|\()")


def _bound_remainder(left: Any, right: Any) -> None:
    """`%` is the remainder of numbers, and printf for strings."""
    if not isinstance(left, str):
        return
    if _COSTLY_LAYOUT.search(left):
        raise BadModel("chat template formats text with a width or name that is not supported")
    arguments = right if isinstance(right, tuple) else (right,)
    check_text(len(left) + left.count("%") * 1000 + sum(len(text_of(argument)) for argument in arguments))


_BOUNDS: dict[str, Callable[[Any, Any], None]] = {
    "+": _bound_sum,
    "*": _bound_product,
    "**": _bound_power,
    "%": _bound_remainder,
}


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Raise BadModel if the result of + * ** or % would be too large."""
    _BOUNDS[operator](left, right)
