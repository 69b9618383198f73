"""How long somebody has had others wait."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class FairShare:
    """Seconds that each has taken of the last `WINDOW_S`. Used by one thread; times in seconds."""

    def __init__(self) -> None:
        #: When each of them ended, and how long it took, oldest first.
        self._spent: dict[str, deque[tuple[float, float]]] = {}

    def taken(self, who: str, now: float) -> float:
        """What somebody has taken."""
        spent = self._spent.get(who, deque())
        while spent and spent[0][0] < now - WINDOW_S:
            spent.popleft()
        return sum(seconds for _, seconds in spent)

    def spend(self, who: str, now: float, seconds: float) -> None:
        """Somebody has taken `seconds` until `now`."""
        self._spent.setdefault(who, deque()).append((now, seconds))
        self.taken(who, now)  # what is older is forgotten
