"""When a cron expression comes due: on the local clock, right on both nights of a year on which that is changed. Pure.

As Debian's cron: what is due at a time of day (`30 2 * * *`) happens once a day, at the first moment after the gap where the clock skips it and
the first time where it comes twice; what has a wildcard in minutes or hours (`*/10 * * * *`) goes by elapsed time through both.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

LOCALTIME = "/etc/localtime"
#: A clock that was set back by more is another clock: what has been done by the old one says nothing.
FORGETS_S = 3 * 3600.0


class Due(NamedTuple):
    """When a rule comes due: `wall` in seconds since the epoch; `asked` and `mono`: both clocks when that was worked out."""

    expression: str
    wall: float
    asked: float
    mono: float


def local_zone() -> tzinfo:
    """The zone of this machine, or of TZ, with its changes."""
    name = os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with open(LOCALTIME, "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError, KeyError, ImportError):
        pass  # a rule written out, such as CET-1CEST, or no zones here at all
    return datetime.now(UTC).astimezone().tzinfo or UTC


def next_after(expression: str, wall: float, zone: tzinfo) -> float:
    """The first moment after `wall` at which the expression is due, both in seconds since the epoch."""
    if not is_fixed(expression):
        return _by_elapsed_time(expression, wall, zone)
    found = next(CronSim(expression, datetime.fromtimestamp(wall, zone)))
    due = found.timestamp()
    while due <= wall:  # the second time of an hour that comes twice
        found = next(CronSim(expression, found))
        due = found.timestamp()
    return due


def _by_elapsed_time(expression: str, wall: float, zone: tzinfo) -> float:
    """The same with the clock as it is set now, and from where it is changed with that one: cronsim takes no half hours."""
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
    """The first whole second after `low` at which the clock is another, where it is another at `high`."""
    offset = _offset(low, zone)
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
    """Whether it is due at times of day, and not by elapsed time."""
    minute, hour = expression.split()[:2]
    return not (minute.startswith("*") or hour.startswith("*"))


def first(expression: str, wall: float, mono: float, zone: tzinfo) -> Due:
    """When it comes due next, seen from now."""
    return Due(expression, next_after(expression, wall, zone), wall, mono)


def look(due: Due, wall: float, mono: float, zone: tzinfo) -> Due:
    """The same looked at again at a later moment: a clock that was set back makes nothing happen twice, nor wait for days."""
    back = (mono - due.mono) - (wall - due.asked)
    if back <= 1.0:
        return due
    if back > FORGETS_S or not is_fixed(due.expression):
        return first(due.expression, wall, mono, zone)
    return due
