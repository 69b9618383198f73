"""A clock for tests that moves only when the test moves it."""

from __future__ import annotations

from aipass.clock import Instant

#: 2026-01-01T00:00:00Z, where every virtual clock begins.
BEGINNING = 1_767_225_600.0


class VirtualClock:
    """The monotonic clock and the wall clock of an `Instant`, in seconds. Not thread-safe."""

    def __init__(self, mono: float = 1000.0, wall: float = BEGINNING) -> None:
        self._mono, self._wall = mono, wall

    def now(self) -> Instant:
        """Return the current moment; the same one until the clock is moved."""
        return Instant(self._mono, self._wall)

    def advance(self, seconds: float) -> None:
        """Move both clocks forward. `Bench.advance` does this and also fires the timers."""
        self._mono += seconds
        self._wall += seconds

    def jump(self, seconds: float) -> None:
        """Set only the wall clock, as a person or a time server (NTP) does. Durations use the monotonic clock and do not change."""
        self._wall += seconds
