"""How often something happened within the last hour, on the monotonic clock."""

from __future__ import annotations

from collections import deque

HOUR_S = 3600.0
# Past the hour by more than a float rounds, so that what is free at a moment is free when that moment is there.
MARGIN_S = 0.001


class Hourly:
    """Moments by name, those older than an hour forgotten."""

    def __init__(self) -> None:
        self._moments: dict[str, deque[float]] = {}

    def add(self, name: str, moment: float) -> None:
        """It happened at `moment`."""
        self._moments.setdefault(name, deque()).append(moment)

    def count(self, name: str, now: float) -> int:
        """How often within the hour before `now`."""
        moments = self._moments.get(name)
        if not moments:
            return 0
        while moments and moments[0] <= now - HOUR_S:
            moments.popleft()
        return len(moments)

    def free_at(self, name: str, limit: int, now: float) -> float | None:
        """When it may happen again under `limit` an hour; None: now."""
        if self.count(name, now) < limit:
            return None
        moments = self._moments[name]
        return moments[len(moments) - limit] + HOUR_S + MARGIN_S

    def forget(self, name: str) -> None:
        """It counts anew from here."""
        self._moments.pop(name, None)

    def clear(self) -> None:
        """Forget all."""
        self._moments.clear()
