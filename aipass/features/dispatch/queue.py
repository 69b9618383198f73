"""The queue in memory: it decides which dispatches (jobs) start next. Pure: no I/O.

The ledger is the authority: its unique indexes enforce each of these rules a second time.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


@dataclass(frozen=True, slots=True, order=True)
class QueueRank:
    """A position in the queue: larger priority first, then the order of the requests."""

    rank: int
    dispatch: int

    @classmethod
    def of(cls, priority: int, dispatch: int) -> QueueRank:
        """The position of a dispatch with this priority."""
        return cls(-priority, dispatch)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest number of simultaneous runs: on the machine, and of each driver (no entry: only the machine's limit)."""

    machine: int
    drivers: dict[str, int]


class Queue:
    """The waiting dispatches of each agent, and the agents with a live run (at most one each)."""

    def __init__(self) -> None:
        #: A heap per agent. Entries of dispatches that were removed or got another priority stay in it until they are
        #: at its top.
        self._waiting: dict[str, list[QueueRank]] = {}
        #: The valid position of each waiting dispatch; a heap entry that differs from it is outdated.
        self._place: dict[int, tuple[str, QueueRank]] = {}
        #: Agents with a live run, and the driver of that run.
        self._busy: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._place)

    def add(self, agent: str, dispatch: int, priority: int) -> None:
        """Add a dispatch; one that already waits gets the new priority."""
        place = QueueRank.of(priority, dispatch)
        self._place[dispatch] = agent, place
        heapq.heappush(self._waiting.setdefault(agent, []), place)

    def remove(self, dispatch: int) -> None:
        """Remove a dispatch; does nothing if it does not wait here."""
        self._place.pop(dispatch, None)

    def is_waiting(self, dispatch: int) -> bool:
        """Whether a dispatch is in the queue; one that waits for its retry timer is not."""
        return dispatch in self._place

    def begin(self, agent: str, driver: str) -> None:
        """Mark an agent as busy, with the driver of its live run."""
        self._busy[agent] = driver

    def end(self, agent: str) -> None:
        """Mark an agent as free."""
        self._busy.pop(agent, None)

    def busy(self) -> dict[str, str]:
        """The agents with a live run, each with its driver; a copy."""
        return dict(self._busy)

    def choose(
        self,
        capacity: Capacity,
        driver_of: Callable[[str], str],
        obstacle: Callable[[str], str | None],
        waiting: Collection[str] = (),
    ) -> list[tuple[str, int]]:
        """Take out the dispatches that start now, mark their agents as busy, and return both in the order of the queue.

        `obstacle` returns the reason why an agent must not start now, or None. Runs of `waiting` agents do not count against
        the capacity.
        """
        at_work = [driver for agent, driver in self._busy.items() if agent not in waiting]
        free = capacity.machine - len(at_work)
        if free <= 0 or not self._place:
            return []
        used: dict[str, int] = {}
        for driver in at_work:
            used[driver] = used.get(driver, 0) + 1
        heads = [
            (head, agent)
            for agent in list(self._waiting)
            if agent not in self._busy and (head := self._head(agent)) is not None
        ]
        heapq.heapify(heads)
        chosen: list[tuple[str, int]] = []
        while heads and free > 0:
            place, agent = heapq.heappop(heads)
            driver = driver_of(agent)
            # `obstacle` comes last: after a limit, the agent without an obstacle becomes the driver's only trial run,
            # so it must not be asked about an agent that has no free place.
            if (
                used.get(driver, 0) >= capacity.drivers.get(driver, capacity.machine)
                or obstacle(agent) is not None
            ):
                continue
            self.remove(place.dispatch)
            self.begin(agent, driver)
            used[driver] = used.get(driver, 0) + 1
            free -= 1
            chosen.append((agent, place.dispatch))
        return chosen

    def _head(self, agent: str) -> QueueRank | None:
        waiting = self._waiting[agent]
        while waiting:
            place = waiting[0]
            if self._place.get(place.dispatch) == (agent, place):
                return place
            heapq.heappop(waiting)
        del self._waiting[agent]
        return None
