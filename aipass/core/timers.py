"""Named timers on the monotonic clock, in one heap. It is asked when the next is due, and never polls."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Timers:
    """Names and when they are due. Setting a name again moves it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: str) -> bool:
        return key in self._due

    def set(self, key: str, due: float) -> None:
        """Have `key` come due at `due` on the monotonic clock."""
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))

    def is_due(self, key: str, now: float) -> bool:
        """Whether `key` has come due; one that does not wait has."""
        return self._due.get(key, now) <= now

    def when(self, key: str) -> float | None:
        """When `key` is due; None where it does not wait."""
        return self._due.get(key)

    def drop(self, key: str) -> None:
        """Forget `key`."""
        self._due.pop(key, None)

    def drop_all(self, prefix: str) -> None:
        """Forget all whose key begins with `prefix:`."""
        for key in [key for key in self._due if key.startswith(f"{prefix}:")]:
            del self._due[key]

    def next(self) -> float | None:
        """When the next is due; None where nothing waits."""
        self._tidy()
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> list[str]:
        """Names that are due, in order; they are forgotten."""
        taken = []
        while (due := self.next()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            taken.append(key)
        return taken

    def items(self) -> list[tuple[str, float]]:
        """All that wait, and when they are due."""
        return list(self._due.items())

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._due))

    def _tidy(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
