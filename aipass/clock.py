"""Time as the engine sees it: a monotonic reading for durations and a wall reading for people."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on both clocks, in seconds. Durations are counted on `mono`; `wall` is only shown and stored."""

    mono: float
    wall: float


class Clock(Protocol):
    """Where the engine gets its time from."""

    def now(self) -> Instant:
        """This moment."""
        ...


class SystemClock:
    """The machine's clocks. Linux's monotonic clock stands still while the machine is suspended."""

    def now(self) -> Instant:
        """This moment."""
        return Instant(time.monotonic(), time.time())
