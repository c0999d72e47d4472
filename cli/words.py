"""Sizes, times and counts as people read them."""

from __future__ import annotations

from datetime import datetime, timedelta

_FOREVER = timedelta(days=20 * 365)


def size_words(count: int) -> str:
    """Return count bytes in decimal units: "4.7 GB", "42 GB", "999 B"."""
    value, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{_short(value)} {unit}"


def _short(value: float) -> str:
    return str(int(value)) if value >= 10 or value == int(value) else f"{value:.1f}"


def count_words(count: int) -> str:
    """Return a number of parameters: "8B", "8.0B", "137M", "22.57M", "12K", "512"."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{digits if count % unit else 0}f}{letter}"
    return str(count)


def span_words(span: timedelta) -> str:
    """Return the length of a span of time, roughly: "About an hour", "3 weeks"."""
    seconds = int(span.total_seconds())
    minutes, hours = seconds // 60, round(seconds / 3600)
    days = hours // 24
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for count, limit, unit in ((days, 14, "days"), (days // 7, 60, "weeks"), (days // 30, 730, "months")):
        if days < limit:
            return f"{count} {unit}"
    return f"{days // 365} years"


def ago_words(moment: datetime, now: datetime) -> str:
    """Return where moment lies as seen from now: "3 weeks ago", "4 minutes from now"."""
    return f"{span_words(now - moment)} ago" if moment <= now else f"{span_words(moment - now)} from now"


def until_words(expires: datetime, now: datetime) -> str:
    """Return how long a loaded model stays: "4 minutes from now", "Forever", or "Stopping..." if its time is over."""
    if expires < now:
        return "Stopping..."
    return "Forever" if expires - now > _FOREVER else ago_words(expires, now)


def processor_words(size: int, size_vram: int) -> str:
    """Return where size bytes lie of which accelerators hold size_vram: "100% CPU", "30%/70% CPU/GPU"."""
    if size <= 0 or size_vram > size:
        return "Unknown"
    if size_vram in (0, size):
        return "100% GPU" if size_vram else "100% CPU"
    cpu = round(100 * (size - size_vram) / size)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def duration_words(nanoseconds: int) -> str:
    """Return a duration as Go prints it: "1m2.5s", "350ms", "12.5µs", "0s"."""
    if nanoseconds == 0:
        return "0s"
    for unit, name in ((1, "ns"), (10**3, "µs"), (10**6, "ms")):
        if nanoseconds < unit * 1000:
            return f"{_trimmed(nanoseconds, unit)}{name}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    seconds = f"{_trimmed(rest, 10**9)}s"
    if minutes < 60:
        return f"{minutes}m{seconds}" if minutes else seconds
    return f"{minutes // 60}h{minutes % 60}m{seconds}"


def _trimmed(count: int, unit: int) -> str:
    """Return count / unit with every digit and no trailing zeros."""
    whole, part = divmod(count, unit)
    digits = str(part).zfill(len(str(unit)) - 1).rstrip("0") if unit > 1 else ""
    return f"{whole}.{digits}" if digits else str(whole)
