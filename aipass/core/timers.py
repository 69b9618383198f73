"""Named timers on the monotonic clock, in one heap. The engine sleeps until the next one is due and does not poll."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Timers:
    """Timers by name, in memory only. Setting a name again replaces its time."""

    def __init__(self) -> None:
        # Entries of the heap are not removed when a timer is moved or dropped; `_due` says which one is valid.
        self._heap: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: str) -> bool:
        return key in self._due

    def set(self, key: str, due: float) -> None:
        """Set the timer `key` to `due`, in seconds of the monotonic clock."""
        self._due[key] = due
        # The counter keeps the order of timers with equal times, as those of one step.
        heapq.heappush(self._heap, (due, next(self._order), key))

    def is_due(self, key: str, now: float) -> bool:
        """Whether `key` is due. True as well if there is no such timer."""
        return self._due.get(key, now) <= now

    def when(self, key: str) -> float | None:
        """When `key` is due; None if there is no such timer."""
        return self._due.get(key)

    def drop(self, key: str) -> None:
        """Remove `key`, if it exists."""
        self._due.pop(key, None)

    def drop_all(self, prefix: str) -> None:
        """Remove all timers whose key begins with `prefix:`."""
        for key in [key for key in self._due if key.startswith(f"{prefix}:")]:
            del self._due[key]

    def next(self) -> float | None:
        """When the next timer is due; None if there is none."""
        self._tidy()
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> list[str]:
        """Remove and return the keys that are due, in the order of their times."""
        taken = []
        while (due := self.next()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            taken.append(key)
        return taken

    def items(self) -> list[tuple[str, float]]:
        """All timers, each with its time."""
        return list(self._due.items())

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._due))

    def _tidy(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
