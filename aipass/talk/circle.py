"""Whether an answer could ever come: who waits for whom, and whether anybody is left to start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.talk.mail import HUMAN

if TYPE_CHECKING:
    from aipass.config import Config
    from aipass.ledger import Ledger, Row


class Circle:
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
        for question in self._ledger.all("open_questions", {"dispatch": dispatch}):
            if found := self._asked(question, (*path, row["agent"])):
                return found
        return ()


def no_place(ledger: Ledger, config: Config, run: Row, to: str, now: float) -> str | None:
    """Why nobody could be started to answer while this run waits as well; None where somebody could.

    Runs that wait keep their places (`limits.concurrency`, `limits.per_driver`).
    """
    waiting = {row["run"]: row["driver"] for row in ledger.all("waiting_runs", {"now": now})} | {
        run["id"]: run["driver"]
    }
    most = config.limits.concurrency
    if len(waiting) >= most:
        return f"limits.concurrency is {most}, and that many runs would wait"
    driver = config.agents[to].driver
    cap = config.limits.per_driver.get(driver)
    if cap is not None and sum(1 for one in waiting.values() if one == driver) >= cap:
        return f"limits.per_driver allows {driver} {cap}, and that many of its runs would wait"
    return None
