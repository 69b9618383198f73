"""A counter of events within the last hour (sliding window), on the monotonic clock."""

from __future__ import annotations

from collections import deque

HOUR_S = 3600.0
# More than floats round: without it, a timer set to the time of `free_at` could come due when `count` still counts the
# event.
MARGIN_S = 0.001


class Hourly:
    """Times of events by name; entries older than an hour are dropped. The caller must add them in the order of time."""

    def __init__(self) -> None:
        self._moments: dict[str, deque[float]] = {}

    def add(self, name: str, moment: float) -> None:
        """Count one event at `moment`, in seconds of the monotonic clock."""
        self._moments.setdefault(name, deque()).append(moment)

    def count(self, name: str, now: float) -> int:
        """The number of events within the hour before `now`."""
        moments = self._moments.get(name)
        if not moments:
            return 0
        while moments and moments[0] <= now - HOUR_S:
            moments.popleft()
        return len(moments)

    def free_at(self, name: str, limit: int, now: float) -> float | None:
        """The time of the next event that a limit per hour allows; None: now."""
        if self.count(name, now) < limit:
            return None
        moments = self._moments[name]
        return moments[len(moments) - limit] + HOUR_S + MARGIN_S

    def forget(self, name: str) -> None:
        """Set the count of one name to 0."""
        self._moments.pop(name, None)

    def clear(self) -> None:
        """Set all counts to 0."""
        self._moments.clear()
