"""A clock that stands still until it is told to move."""

from __future__ import annotations

from aipass.clock import Instant

#: 2026-01-01T00:00:00Z, where every virtual clock begins.
BEGINNING = 1_767_225_600.0


class VirtualClock:
    """Both clocks of an `Instant`, moved by hand."""

    def __init__(self, mono: float = 1000.0, wall: float = BEGINNING) -> None:
        self._mono, self._wall = mono, wall

    def now(self) -> Instant:
        """This moment."""
        return Instant(self._mono, self._wall)

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        self._mono += seconds
        self._wall += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock by hand, as a person or a time server does; durations do not notice."""
        self._wall += seconds
