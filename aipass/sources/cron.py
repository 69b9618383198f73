"""The due times of cron expressions on the local clock, correct across changes of daylight saving time. Pure, except `local_zone`.

As in Debian's cron, an expression for a time of day (`30 2 * * *`) is due once a day. If the clock skips that time, it is due at the first
moment after the gap; if the time comes twice, at the first. An expression with a wildcard in minutes or hours (`*/10 * * * *`) goes by
elapsed time.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

LOCALTIME = "/etc/localtime"
#: Debian's cron treats a larger jump as a corrected clock: times that the wrong clock showed then no longer count.
FORGETS_S = 3 * 3600.0


class Due(NamedTuple):
    """The next due time of a rule: `wall`, in seconds since the epoch. `asked` and `mono`: the wall and the monotonic clock at its calculation."""

    expression: str
    wall: float
    asked: float
    mono: float


def local_zone() -> tzinfo:
    """Return the time zone of TZ, else of this machine, with its daylight saving rules; a fixed offset where there are none."""
    name = os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with open(LOCALTIME, "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError, KeyError, ImportError):
        pass  # TZ is a POSIX rule such as CET-1CEST, or this machine has no zone files
    return datetime.now(UTC).astimezone().tzinfo or UTC


def next_after(expression: str, wall: float, zone: tzinfo) -> float:
    """Return the first moment after `wall` at which the expression is due; both in seconds since the epoch."""
    if not is_fixed(expression):
        return _by_elapsed_time(expression, wall, zone)
    found = next(CronSim(expression, datetime.fromtimestamp(wall, zone)))
    due = found.timestamp()
    while due <= wall:  # `wall` is in the second pass of an hour that comes twice: cronsim counts the first
        found = next(CronSim(expression, found))
        due = found.timestamp()
    return due


def _by_elapsed_time(expression: str, wall: float, zone: tzinfo) -> float:
    """The same for an expression with wildcards, with a fixed offset up to each change of the clock: cronsim takes no half hours."""
    offset = _offset(wall, zone)
    while True:
        due = next(CronSim(expression, datetime.fromtimestamp(wall, timezone(offset)))).timestamp()
        if _offset(due, zone) == offset:
            return due
        change = _first_change(wall, due, zone)
        wall, offset = change - 1, _offset(change, zone)


def _offset(wall: float, zone: tzinfo) -> timedelta:
    return datetime.fromtimestamp(wall, zone).utcoffset() or timedelta(0)


def _first_change(low: float, high: float, zone: tzinfo) -> float:
    """Return the first whole second after `low` with another offset than at `low`; `high` must have another one."""
    offset = _offset(low, zone)
    # Hour by hour first: a bisection over the whole span would miss a change that is undone within it.
    while low + 3600 < high and _offset(low + 3600, zone) == offset:
        low += 3600
    first, last = int(low), int(min(high, low + 3600)) + 1
    while last - first > 1:
        middle = (first + last) // 2
        if _offset(middle, zone) == offset:
            first = middle
        else:
            last = middle
    return float(last)


def is_fixed(expression: str) -> bool:
    """Return whether the expression is due at times of day, not by elapsed time."""
    minute, hour = expression.split()[:2]
    return not (minute.startswith("*") or hour.startswith("*"))


def first(expression: str, wall: float, mono: float, zone: tzinfo) -> Due:
    """Return the next due time, calculated from both clocks as they are now."""
    return Due(expression, next_after(expression, wall, zone), wall, mono)


def look(due: Due, wall: float, mono: float, zone: tzinfo) -> Due:
    """Return `due`, or a new due time where the clock was set back since. A small step back never makes a time of day due twice."""
    # The monotonic clock cannot be set, so the difference is how far the wall clock was set back.
    back = (mono - due.mono) - (wall - due.asked)
    if back <= 1.0:
        return due
    # Without a new calculation a rule by elapsed time would wait as long as the clock was set back.
    if back > FORGETS_S or not is_fixed(due.expression):
        return first(due.expression, wall, mono, zone)
    return due
