"""Timers of the supervisor's loop: one heap on the monotonic clock. Not thread-safe."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Schedule:
    """Callbacks by due time. There is no cancellation: a callback checks whether it is still needed."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        # Breaks ties: callbacks have no order, and heapq would compare them.
        self._order = count()

    def at(self, when: float, call: Callable[[float], None]) -> None:
        """Call `call(now)` at `when`, in seconds of the monotonic clock. Equal times keep their order."""
        heapq.heappush(self._heap, (when, next(self._order), call))

    def next(self) -> float | None:
        """The earliest due time; None where nothing is scheduled."""
        return self._heap[0][0] if self._heap else None

    def fire(self, now: float) -> None:
        """Call everything that is due at `now`, in order of due time."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2](now)
