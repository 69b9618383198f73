"""The holds (write locks) of runs: which run wrote a path first. Python's own table; `fast.py` has the compiled one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from aipass.supervisor.fence.decide import Hold

if TYPE_CHECKING:
    from collections.abc import Iterable


class Holds(Protocol):
    """The holds of all runs, by path below the root. Safe to use from several threads."""

    def get(self, path: str) -> Hold | None:
        """The hold on a path; None where no run holds it."""

    def items(self) -> Iterable[tuple[str, Hold]]:
        """All holds at this moment."""

    def claim(self, path: str, run: int, agent: str) -> bool | None:
        """Hold a path. Returns True if it is held from now on, None if the run held it already, False if another run holds it."""

    def let_go(self, path: str, run: int, *, forced: bool = False) -> None:
        """Drop the hold that a call took which failed; with `forced` whatever else relies on it."""

    def end(self, run: int) -> None:
        """Drop all holds of a run."""


class HoldTable:
    """The holds in a dictionary."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}

    def get(self, path: str) -> Hold | None:
        """See Holds."""
        return self._holds.get(path)

    def items(self) -> list[tuple[str, Hold]]:
        """See Holds."""
        return list(self._holds.items())

    def claim(self, path: str, run: int, agent: str) -> bool | None:
        """See Holds."""
        hold = self._holds.setdefault(path, mine := Hold(run, agent, time.time()))
        return True if hold is mine else None if hold.run == run else False

    def let_go(self, path: str, run: int, *, forced: bool = False) -> None:
        """See Holds."""
        del forced  # calls are answered one by one here
        hold = self._holds.get(path)
        if hold is not None and hold.run == run:
            del self._holds[path]

    def end(self, run: int) -> None:
        """See Holds."""
        for path in [path for path, hold in self._holds.items() if hold.run == run]:
            del self._holds[path]
