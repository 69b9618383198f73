"""How much a run may ask of the engine within a time. Pure."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: An agent asks for less in an hour; a person may at any rate. In requests, and in bytes of all of them: each is looked through for
#: secrets, which takes half a microsecond a byte, and at most about twelve for a text that was made to take long (`tests/whole/test_shared_engine.py`).
MOST_ASKED, MOST_BYTES, WINDOW_S = 600, 2_000_000, 60.0


class Budget:
    """What every run has asked for in the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        #: When, and how many bytes, oldest first.
        self._asked: dict[int, deque[tuple[float, int]]] = {}
        self._told: set[int] = set()

    def take(self, run: int, now: float, size: int) -> str | None:
        """Take one request of `size` bytes into account at `now` (seconds); the limit in words where that goes beyond it."""
        for other in [one for one, asked in self._asked.items() if asked[-1][0] < now - WINDOW_S]:
            del self._asked[other]
            self._told.discard(other)
        asked = self._asked.setdefault(run, deque())
        while asked and asked[0][0] < now - WINDOW_S:
            asked.popleft()
        # One that alone is more than all is taken when nothing else was.
        if len(asked) >= MOST_ASKED or (asked and sum(size for _, size in asked) + size > MOST_BYTES):
            return f"more than {MOST_ASKED} requests, or {MOST_BYTES // 1_000_000} MB of them, within {WINDOW_S:.0f} seconds"
        asked.append((now, size))
        return None

    def is_first(self, run: int) -> bool:
        """Whether nobody was told yet that this run asks for too much; asked once it is so."""
        if run in self._told:
            return False
        self._told.add(run)
        return True


def cost(detail: Mapping[str, Any], besides: int) -> int:
    """What a request costs, in bytes, where its verb costs so many besides its length."""
    return len(json.dumps(detail, default=str)) + besides
