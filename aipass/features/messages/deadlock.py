"""Whether an answer could ever come: who waits for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.features.messages.mailbox import HUMAN

if TYPE_CHECKING:
    from aipass.ledger import Ledger, Row


class WaitCycle:
    """The waits that lead on from one agent that is to be asked something.

    `asker`: who asks, where it would wait and could do nothing else; `dispatch`: the work that would need the answer.
    """

    def __init__(self, ledger: Ledger, asker: str | None, dispatch: int | None, now: float) -> None:
        self._ledger, self._asker, self._dispatch, self._now = ledger, asker, dispatch, now
        self._seen: set[tuple[str, object]] = set()

    def of(self, agent: str, path: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The agents through which all of them would wait for each other; empty where somebody could go on."""
        path = (*path, agent)
        if agent == self._asker and len(path) > 1:
            return path
        if ("agent", agent) in self._seen:
            return ()
        self._seen.add(("agent", agent))
        # It answers what it is asked when its run is over; one that waits is not over.
        for question in self._ledger.all("waits_of", {"agent": agent, "now": self._now}):
            if found := self._asked(question, path):
                return found
        return ()

    def _asked(self, question: Row, path: tuple[str, ...]) -> tuple[str, ...]:
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
        if row["state"] == "queued":
            return self.of(row["agent"], path)
        waits = self._ledger.all("open_questions", {"dispatch": dispatch})
        if row["state"] == "running":
            waits += self._ledger.all("waits_of", {"agent": row["agent"], "now": self._now})
        for one in waits:
            if found := self._asked(one, (*path, row["agent"])):
                return found
        return ()
