"""The rate limit for the requests of a run (sliding window). Pure."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Requests, and bytes of all of them, within a window; people have no limit. An honest agent asks for less in an hour.
#: Bytes count because each text is searched for secrets in the engine's thread. That takes half a microsecond for each
#: byte, and at most about twelve for a text that was made to be slow (`tests/whole/test_shared_engine.py`).
MOST_ASKED, MOST_BYTES, WINDOW_S = 600, 2_000_000, 60.0


class Budget:
    """The requests of every run in the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        #: By run: time and bytes of each request, oldest first.
        self._asked: dict[int, deque[tuple[float, int]]] = {}
        self._told: set[int] = set()

    def take(self, run: int, now: float, size: int) -> str | None:
        """Count one request of `size` bytes at `now` (monotonic seconds). Returns None, or the limit in words if exceeded.

        A request that is refused is not counted.
        """
        # Runs that have ended are never asked about again; without this their entries would stay.
        for other in [one for one, asked in self._asked.items() if asked[-1][0] < now - WINDOW_S]:
            del self._asked[other]
            self._told.discard(other)
        asked = self._asked.setdefault(run, deque())
        while asked and asked[0][0] < now - WINDOW_S:
            asked.popleft()
        # A single request that is larger than MOST_BYTES is accepted as the only one of the window: it could never pass.
        if len(asked) >= MOST_ASKED or (asked and sum(size for _, size in asked) + size > MOST_BYTES):
            return f"more than {MOST_ASKED} requests, or {MOST_BYTES // 1_000_000} MB of them, within {WINDOW_S:.0f} seconds"
        asked.append((now, size))
        return None

    def is_first(self, run: int) -> bool:
        """Whether this is the first call for a run that exceeds its limit. Later calls return False until it has been quiet."""
        if run in self._told:
            return False
        self._told.add(run)
        return True


def cost(detail: Mapping[str, Any], besides: int) -> int:
    """The cost of a request in bytes: its length plus `besides`, the additional cost of its verb."""
    return len(json.dumps(detail, default=str)) + besides
