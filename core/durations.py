"""Go durations, as the environment and the `keep_alive` field of requests write them."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.]*)")

LONGEST_S = 2**63 / 1e9  # what Go holds: 64 bits of nanoseconds, 292 years


def parse_go_duration(text: str) -> float:
    """Return the seconds that a Go duration such as "1h30m", "-1.5s" or "0" means. Raises ValueError otherwise.

    The messages are Go's own, which clients show as they are.
    """
    sign, rest = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    seconds, at = 0.0, 0
    while at == 0 or at < len(rest):  # at least one term
        term = _TERM.match(rest, at)
        if term is None:
            raise ValueError(f'time: invalid duration "{text}"')
        seconds += float(term[1]) * _unit(term[2], text)
        at = term.end()
    if seconds >= LONGEST_S:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * seconds


def _unit(name: str, text: str) -> float:
    if not name:
        raise ValueError(f'time: missing unit in duration "{text}"')
    if name not in _UNITS:
        raise ValueError(f'time: unknown unit "{name}" in duration "{text}"')
    return _UNITS[name]


def parse_duration(text: str) -> float | None:
    """Return seconds from a Go duration or a plain number of seconds; None ("forever") for anything negative.

    Raises ValueError for other texts and for durations that Go could not hold.
    """
    plain = re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", text)
    seconds = parse_go_duration(text + "s" if plain else text)
    return None if seconds < 0 else seconds
