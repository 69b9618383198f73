"""Refusals as they are told: those of one path in a row are one, with their count."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.timers import Timers

#: A program that is refused tries again at once, or not: so long is waited for more of the same, and at most so long.
QUIET_S, AT_MOST_S = 0.05, 1.0


@dataclass(slots=True)
class _Row:
    message: dict[str, Any]
    began: float
    last: float
    count: int = 1


class Refusals:
    """Gathers `denied` messages of each run."""

    def __init__(self, timers: Timers, tell: Callable[[dict[str, Any]], None]) -> None:
        self._timers, self._tell = timers, tell
        self._rows: dict[int, _Row] = {}

    def add(self, message: dict[str, Any]) -> None:
        """One refusal."""
        now, run = time.monotonic(), message["run"]
        row = self._rows.get(run)
        if row is not None and row.message["path"] == message["path"]:
            row.count += 1
            row.last = now
            return
        self.flush(run)
        self._rows[run] = row = _Row(message, now, now)
        self._timers.at(now + QUIET_S, lambda now: self._look(run, row, now))

    def _look(self, run: int, row: _Row, now: float) -> None:
        if self._rows.get(run) is not row:
            return
        due = min(row.last + QUIET_S, row.began + AT_MOST_S)
        if now >= due:
            self.flush(run)
        else:
            self._timers.at(due, lambda now: self._look(run, row, now))

    def flush(self, run: int) -> None:
        """Tell what has been gathered of a run."""
        row = self._rows.pop(run, None)
        if row is not None:
            self._tell({**row.message, "count": row.count})
