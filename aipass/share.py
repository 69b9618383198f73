"""How long somebody had others wait, within a time. Pure."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class Share:
    """How many seconds of the last `WINDOW_S` somebody had others wait for. Used by one thread."""

    def __init__(self) -> None:
        self._spent: dict[str, deque[tuple[float, float]]] = {}

    def taken(self, who: str, now: float) -> float:
        """Seconds within the window that ends at `now` (seconds)."""
        spent = self._spent.get(who, deque())
        while spent and spent[0][0] < now - WINDOW_S:
            spent.popleft()
        return sum(seconds for _, seconds in spent)

    def spend(self, who: str, now: float, seconds: float) -> None:
        """Take `seconds` that ended at `now` into account."""
        self._spent.setdefault(who, deque()).append((now, seconds))
