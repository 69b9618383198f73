"""The queue in memory: who is next. Pure; the ledger holds the truth and its constraints stand behind every rule here."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


@dataclass(frozen=True, slots=True, order=True)
class QueueRank:
    """A place in the queue: larger priority first, then the order of asking."""

    rank: int
    dispatch: int

    @classmethod
    def of(cls, priority: int, dispatch: int) -> QueueRank:
        """The place of a dispatch."""
        return cls(-priority, dispatch)


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many runs there may be at once: on the machine, and of each driver (missing: no limit of its own)."""

    machine: int
    drivers: dict[str, int]


class Queue:
    """Waiting dispatches by agent, and the agents that are busy."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[QueueRank]] = {}
        self._place: dict[int, tuple[str, QueueRank]] = {}
        self._busy: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._place)

    def add(self, agent: str, dispatch: int, priority: int) -> None:
        """Let a dispatch wait; one that waits already gets its new priority."""
        place = QueueRank.of(priority, dispatch)
        self._place[dispatch] = agent, place
        heapq.heappush(self._waiting.setdefault(agent, []), place)

    def remove(self, dispatch: int) -> None:
        """Let a dispatch wait no longer."""
        self._place.pop(dispatch, None)

    def is_waiting(self, dispatch: int) -> bool:
        """Whether a dispatch waits here."""
        return dispatch in self._place

    def begin(self, agent: str, driver: str) -> None:
        """A run of `agent` lives."""
        self._busy[agent] = driver

    def end(self, agent: str) -> None:
        """It lives no longer."""
        self._busy.pop(agent, None)

    def busy(self) -> dict[str, str]:
        """Agents with a living run, and its driver."""
        return dict(self._busy)

    def choose(
        self,
        capacity: Capacity,
        driver_of: Callable[[str], str],
        obstacle: Callable[[str], str | None],
        waiting: Collection[str] = (),
    ) -> list[tuple[str, int]]:
        """Agents and dispatches that start now, in order; they are taken out and their agents are busy.

        `obstacle` says why an agent may not start anything now, or None. The runs of agents that are `waiting` take no place.
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
