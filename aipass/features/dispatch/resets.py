"""Finds the end of a rate limit or usage limit in the message of a CLI.

Uses the clock and the time zone of this machine.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# CLIs report the end of a limit in sentences for people, and not as data, so only known forms are recognised.
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_EPOCH = re.compile(r"\|\s*(1\d{9})\b")
_IN = re.compile(
    r"\b(?:again|retry|resets?|wait)\b[^.;\n]{0,20}?\b(?:in|after|for)?\s*"
    r"((?:\d+(?:\.\d+)?\s*(?:days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|[dhms])(?![a-z])[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
_PIECE = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.IGNORECASE)
_AT = re.compile(
    r"\b(?:again|resets?)\b(?:\s+(?:at|on))?\s+(?:(?P<month>[A-Z][a-z]{2})[a-z]*\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?,?"
    r"(?:\s+(?P<year>\d{4}))?,?\s+(?:at\s+)?)?(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>[ap]\.?m\b)?",
    re.IGNORECASE,
)
#: A time of day that passed less than this ago means today, and not tomorrow: the clocks of machines differ.
_PASSED_S = 300.0
#: A later end is taken for a misread text: no known limit lasts longer than a year.
_LONGEST_S = 366 * 86400.0
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def reset_of(text: str, now: float | None = None) -> float | None:
    """The end of the limit that `text` reports, in seconds since the epoch; None if the text does not contain it.

    Known: `…|1764021600`, `try again in 3 hours 22 minutes`, `retry in 34.07s`, `will reset after 7h32m5s`, `resets 3pm`,
    `try again at 10:30 PM`, `try again at Nov 25th, 2026 10:30 PM`. Times of day are in this machine's time zone.
    """
    now = time.time() if now is None else now
    found = _find(text, now)
    return found if found is None or found < now + _LONGEST_S else None


def said_at(path: Path) -> float:
    """The time of the last write to an output file, in seconds since the epoch; the current time if it cannot be read."""
    # A relative time in the output ("in 3 hours") counts from when the CLI wrote it: an engine may read it hours later.
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _find(text: str, now: float) -> float | None:
    if (epoch := _EPOCH.search(text)) is not None:
        return float(epoch[1])
    if (wait := _IN.search(text)) is not None:
        pieces = _PIECE.findall(wait[1])
        return now + sum(float(number) * _UNITS[unit.lower()] for number, unit in pieces)
    if (at := _AT.search(text)) is not None:
        return _moment(at, datetime.fromtimestamp(now).astimezone())
    return None


def _moment(at: re.Match[str], now: datetime) -> float | None:
    """The next occurrence of a matched time of day, or date, after `now`; None if it is no valid time."""
    hour, minute = int(at["hour"]), int(at["minute"] or 0)
    if at["half"]:
        hour = hour % 12 + (12 if at["half"][0] in "pP" else 0)
    elif at["minute"] is None:
        return None  # a bare number, such as a count, is not a time
    try:
        found = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        if at["month"]:
            month = _MONTHS.index(at["month"].lower()) + 1
            found = found.replace(year=int(at["year"] or now.year), month=month, day=int(at["day"]))
            if not at["year"] and (now - found).total_seconds() >= _PASSED_S:
                found = found.replace(year=now.year + 1)
        elif (now - found).total_seconds() >= _PASSED_S:
            found += timedelta(days=1)
    except ValueError:
        return None
    return found.timestamp()
