"""Aggregation of refusals (fence denials): consecutive ones for one path become one message with a count."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.timers import Schedule

#: Wait for further refusals of the same path; a program that retries does so immediately. The second number limits the total wait.
QUIET_S, AT_MOST_S = 0.05, 1.0


@dataclass(slots=True)
class _Row:
    message: dict[str, Any]
    began: float
    last: float
    count: int = 1


class Refusals:
    """Collects the `denied` messages of each run and reports them aggregated."""

    def __init__(self, timers: Schedule, tell: Callable[[dict[str, Any]], None]) -> None:
        self._timers, self._tell = timers, tell
        self._rows: dict[int, _Row] = {}

    def add(self, message: dict[str, Any]) -> None:
        """Add one refusal. A refusal of another path reports the previous one first, so their order is kept."""
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
        """Report what was collected for a run; no effect where there is nothing."""
        row = self._rows.pop(run, None)
        if row is not None:
            self._tell({**row.message, "count": row.count})


class Unheard:
    """Messages that no engine has received yet, kept for the next engine. Memory use is limited.

    Of each run the first refusals are kept one by one. The rest are counted, and only the last of them is
    kept.
    """

    def __init__(self, most: int) -> None:
        """`most`: the limit of refusals per run, and of messages of all other kinds together."""
        self._most = most
        self._kept: deque[dict[str, Any]] = deque()
        self._denied: dict[int, int] = {}
        self._others = 0
        self._more: dict[int, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._kept or self._more)

    def append(self, message: dict[str, Any]) -> None:
        """Keep a message. Beyond the limit the oldest message that is no refusal is dropped."""
        if message["tell"] != "denied":
            self._others += 1
            if self._others > self._most:
                self._drop_oldest()
            self._kept.append(message)
            return
        # Limited per run: one run that is refused in a loop must not push out another run's refusals.
        run = message["run"]
        if self._denied.get(run, 0) < self._most:
            self._denied[run] = self._denied.get(run, 0) + 1
            self._kept.append(message)
            return
        before = self._more.get(run, {}).get("count", 0)
        self._more[run] = {**message, "count": before + message.get("count", 1)}

    def _drop_oldest(self) -> None:
        """Drop the oldest message that is no refusal: newer ones describe the current state."""
        for place, message in enumerate(self._kept):
            if message["tell"] != "denied":
                del self._kept[place]
                self._others -= 1
                return

    def popleft(self) -> dict[str, Any]:
        """Remove and return the oldest message; the counted refusals come last."""
        if self._kept:
            message = self._kept.popleft()
            if message["tell"] == "denied":
                self._denied[message["run"]] -= 1
            else:
                self._others -= 1
            return message
        run = next(iter(self._more))
        message = self._more.pop(run)
        reason = (
            f"one of {message['count']} further refusals while no engine was running: {message['reason']}"
        )
        return {**message, "reason": reason}
