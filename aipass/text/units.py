"""Durations and sizes in the form that people write: `90s`, `30m`, `1h30m`, `20MB`."""

from __future__ import annotations

import re
from datetime import datetime

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
# Within the 64 bits of SQLite.
MAX_SIZE = 2**62
# Longer than any run or retention, and short enough for a timer on every platform.
MAX_DURATION_S = 100 * 365 * 86400.0

#: Stands for "without a limit".
FOR_EVER_S = 1e12


def parse_duration(value: object) -> float:
    """The seconds of a duration such as `1h30m`; 0 needs no unit. Raises ValueError that shows a valid form."""
    # `timeout = false` is a mistake, but in Python False equals 0.
    if value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f'a duration needs a unit; write "{value}s", "{value}m" or the like')
    if not isinstance(value, str):
        raise ValueError('a duration is text such as "30s", "15m", "1h30m" or "90d"')
    text = value.strip()
    parts = _DURATION.findall(text)
    # `findall` skips what it does not know; joined again, the parts must be the whole text.
    if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        if text == "0":
            return 0.0
        raise ValueError(f'"{_short(value)}" is not a duration; write "30s", "15m", "1h30m" or "90d"')
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > MAX_DURATION_S:
        raise ValueError(f'"{_short(value)}" is longer than a hundred years')
    return seconds


def parse_size(value: object) -> int:
    """The bytes of a size: a whole number, or text with a unit. Raises ValueError that shows a valid form."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = (
        re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B)", value.strip(), re.IGNORECASE)
        if isinstance(value, str)
        else None
    )
    if match is None:
        raise ValueError('a size is a number of bytes or text such as "500KB", "20MB" or "1GiB"')
    size = float(match[1]) * _BYTES[match[2].upper()]
    if size > MAX_SIZE:
        raise ValueError(f'"{_short(str(value))}" is larger than any disk')
    return int(size)


def wait_until(now: float, waits: float | None) -> float | None:
    """The end of a wait of `waits` seconds from `now`; far in the future for 0 (no limit); None for None (no wait)."""
    return None if waits is None else now + (waits or FOR_EVER_S)


def show_duration(seconds: float) -> str:
    """A duration for people, in its two largest units: `1h 30m`, `2.5s`."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    for unit, lower in (("d", "h"), ("h", "m"), ("m", "s")):
        size, smaller = _SECONDS[unit], _SECONDS[lower]
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            more = int(rest // smaller)
            return f"{int(whole)}{unit}" + (f" {more}{lower}" if more else "")
    raise AssertionError(seconds)


def show_moment(seconds: float, now: float) -> str:
    """A time (seconds since the epoch) for people, in local time: the time of day, with the date if it is not today."""
    moment, today = (datetime.fromtimestamp(one).astimezone() for one in (seconds, now))
    return moment.strftime("%H:%M" if moment.date() == today.date() else "%Y-%m-%d %H:%M")


def show_size(size: int) -> str:
    """A size in bytes for people: `1.5 MB`."""
    value = float(size)
    for unit in ("bytes", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        value /= 1000
    return f"{value:.3g} GB"


def _short(value: str, limit: int = 40) -> str:
    return value if len(value) <= limit else value[:limit] + "…"


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 phase`, `3 phases`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
