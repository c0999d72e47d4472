"""Moments as the APIs write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

FOREVER = timedelta(microseconds=2**63 // 1000)  # 292 years: the longest duration of clients that count nanoseconds


def utc_now() -> str:
    """Return the present moment: RFC 3339, UTC."""
    return rfc3339(datetime.now(UTC))


def rfc3339(moment: datetime) -> str:
    """Return a moment as RFC 3339 with its own offset; trailing zeros of the fraction are dropped."""
    digits = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    offset = moment.strftime("%z")
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}{digits}{zone}"


def expiry(unix_s: float | None) -> datetime:
    """Return when a model will be unloaded, in local time; None is forever."""
    if unix_s is None:
        return datetime.now().astimezone() + FOREVER
    return datetime.fromtimestamp(unix_s).astimezone()
