"""One heap of timers on the monotonic clock."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Schedule:
    """What is to be called when. A timer whose owner ended is simply called and finds nothing to do."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()

    def at(self, when: float, call: Callable[[float], None]) -> None:
        """Call `call(now)` at `when`."""
        heapq.heappush(self._heap, (when, next(self._order), call))

    def next(self) -> float | None:
        """When the next is due."""
        return self._heap[0][0] if self._heap else None

    def fire(self, now: float) -> None:
        """Call all that is due."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2](now)
