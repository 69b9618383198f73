"""A rate limit: how many seconds of shared work each agent has used within the last minute."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class FairShare:
    """Seconds used per name within the last `WINDOW_S`, as a sliding window. Not thread-safe; times are in seconds."""

    def __init__(self) -> None:
        #: By name: the end and the duration of each use, oldest first.
        self._spent: dict[str, deque[tuple[float, float]]] = {}

    def taken(self, who: str, now: float) -> float:
        """Seconds that `who` used within the window before `now`. Forgets older uses."""
        spent = self._spent.get(who, deque())
        while spent and spent[0][0] < now - WINDOW_S:
            spent.popleft()
        return sum(seconds for _, seconds in spent)

    def spend(self, who: str, now: float, seconds: float) -> None:
        """Record that `who` used `seconds`, ending at `now`."""
        self._spent.setdefault(who, deque()).append((now, seconds))
        # Forgets older uses: otherwise the list of a name that only spends would grow without limit.
        self.taken(who, now)
