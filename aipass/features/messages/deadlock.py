"""Deadlock detection: a search in the graph of agents and dispatches that wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.features.messages.mailbox import HUMAN

if TYPE_CHECKING:
    from aipass.ledger import Ledger, Row


class WaitCycle:
    """A depth-first search for a cycle that a new wait would close.

    `asker`: the agent whose run would wait; None if the run ends after asking. `dispatch`: the dispatch that needs the answer.
    """

    def __init__(self, ledger: Ledger, asker: str | None, dispatch: int | None, now: float) -> None:
        self._ledger, self._asker, self._dispatch, self._now = ledger, asker, dispatch, now
        #: Visited nodes: without them shared waits would make the search exponential.
        self._seen: set[tuple[str, object]] = set()

    def of(self, agent: str, path: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the agents of the cycle that a wait for `agent` would close, in order; empty if there is none."""
        path = (*path, agent)
        if agent == self._asker and len(path) > 1:
            return path
        if ("agent", agent) in self._seen:
            return ()
        self._seen.add(("agent", agent))
        # A new question to an agent starts after its live run ends, and a waiting run does not end.
        for question in self._ledger.all("waits_of", {"agent": agent, "now": self._now}):
            if found := self._asked(question, path):
                return found
        return ()

    def _asked(self, question: Row, path: tuple[str, ...]) -> tuple[str, ...]:
        # A person can answer at any time, so no deadlock goes through one.
        if question["recipient"] == HUMAN or question["work"] is None:
            return ()
        return self._work(question["work"], path)

    def _work(self, dispatch: int, path: tuple[str, ...]) -> tuple[str, ...]:
        row = self._ledger.one("dispatch", {"id": dispatch})
        if row is None or ("work", dispatch) in self._seen:
            return ()
        self._seen.add(("work", dispatch))
        if dispatch == self._dispatch:
            return (*path, row["agent"])
        # A queued dispatch starts when its agent is free, so it waits for everything that the agent waits for.
        if row["state"] == "queued":
            return self.of(row["agent"], path)
        waits = self._ledger.all("open_questions", {"dispatch": dispatch})
        if row["state"] == "running":
            waits += self._ledger.all("waits_of", {"agent": row["agent"], "now": self._now})
        for one in waits:
            if found := self._asked(one, (*path, row["agent"])):
                return found
        return ()
