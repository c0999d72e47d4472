"""Go durations, as the environment and the `keep_alive` field of requests write them."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_go_duration(text: str) -> float:
    """Return the seconds that a Go duration such as "1h30m", "-1.5s" or "0" means. Raises ValueError otherwise."""
    sign, rest = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    if re.fullmatch(r"\d+\.?\d*|\.\d+", rest):
        raise ValueError(f'time: missing unit in duration "{text}"')
    seconds, at = 0.0, 0
    while at < len(rest):
        term = _TERM.match(rest, at)
        if term is None:
            raise ValueError(f'time: invalid duration "{text}"')
        seconds += float(term[1]) * _UNITS[term[2]]
        at = term.end()
    if at == 0:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * seconds


def parse_duration(text: str) -> float | None:
    """Return seconds from a Go duration or a plain number of seconds; None ("forever") for anything negative."""
    plain = re.fullmatch(r"[-+]?\d+(\.\d+)?", text)
    seconds = float(text) if plain else parse_go_duration(text)
    return None if seconds < 0 else seconds
