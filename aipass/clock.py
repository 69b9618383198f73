"""The engine's source of time: a monotonic clock for durations and a wall clock for people."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on both clocks, in seconds. Durations are measured on `mono`; `wall` is only shown and stored."""

    mono: float
    wall: float


class Clock(Protocol):
    """The interface that the engine reads the time from; tests replace it by a clock that they move."""

    def now(self) -> Instant:
        """Both readings of the current moment."""
        ...


class SystemClock:
    """The clocks of this machine. On Linux the monotonic clock does not advance while the machine is suspended."""

    def now(self) -> Instant:
        """Both readings of the current moment."""
        return Instant(time.monotonic(), time.time())
