"""The feature that accepts requests: deduplication, a rate limit for each run, and removal of recorded files."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass.core.budget import Budget, cost
from aipass.core.requests import answer, known_as
from aipass.core.spool import Spool
from aipass.core.spool_files import SpoolFiles
from aipass.core.unattended import UnattendedRequests
from aipass.errors import EXIT_REFUSED
from aipass.event import Fact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.event import Event


class Requests:
    """Accepts every request once and enforces the rate limit of runs."""

    name = "requests"

    def setup(self, core: Core) -> None:
        """Add the spool source, the filters for repeated and excessive requests, and the handling of their files.

        Provides `SpoolFiles` to later features.
        """
        self._core, self._ledger = core, core.ledger
        self._files = SpoolFiles(core.layout, core.ledger, core.remover)
        #: What each run has asked for recently.
        self._budget = Budget()
        self._unattended = UnattendedRequests(time.time())
        core.provide(self._files)
        core.add_prune(partial(core.remover.prune, core.layout.quarantine / "spool"))
        if core.observes:
            core.add_source(Spool(core.layout.spool, core.fields))
        core.add_fact_filter(("request.received",), self._if_new)
        core.add_fact_filter(("request.rejected",), self._if_not_too_many)
        core.add_listener(("request.received",), self._received)
        core.add_listener(("request.rejected",), self._rejected)
        core.add_step(end=self._tell_refusals)
        core.add_start(start=lambda step: step.effects.append(self._files.tidy))

    def _if_new(self, step: Step, fact: Fact) -> Fact | None:
        """The fact, if the request is new and within the limit of its run; otherwise None. The file is removed after the commit."""
        # After the commit, because a crash before it must leave the file for the next engine.
        if "spool" in fact.detail:
            step.effects.append(partial(self._files.consume, fact.detail["spool"], fact.by))
        name = known_as(str(fact.ref), fact.by)
        if self._ledger.one("is_request", {"id": name}) is not None:
            return None
        if fact.by is None:
            self._unattended.note(name, str(fact.detail.get("verb")))
            return fact
        words = self._against(fact.by, fact.detail, step.now.mono)
        if words is None:
            return fact
        # Recorded without an event, so that a flood of refused requests does not fill the ledger with events.
        self._ledger.run("insert_request", {"id": name, "event": 0})
        answer(self._ledger, name, EXIT_REFUSED, words)
        return None

    def _if_not_too_many(self, step: Step, fact: Fact) -> Fact | None:
        if fact.by is not None and self._against(fact.by, fact.detail, step.now.mono):
            step.effects.append(partial(self._files.consume, fact.detail["spool"], fact.by))
            return None
        return fact

    def _against(self, run: int, detail: Mapping[str, Any], now: float) -> str | None:
        """The reason to refuse a request of a run that exceeds its rate limit, or None. Emits `request.flood` once."""
        verb = self._core.verbs.get(str(detail.get("verb")))
        words = self._budget.take(run, now, cost(detail, 0 if verb is None else verb.cost_bytes))
        if words is not None and self._budget.is_first(run):
            row = self._ledger.one("run", {"id": run})
            whose = "?" if row is None else row["agent"]
            text = f"agent {whose} sent {words} (run {run}); its further requests are refused"
            about = {"agent": whose, "reason": text}
            self._core.post(Fact("request.flood", "engine", ref=str(run), by=run, detail=about))
        return None if words is None else f"{words}; ask again later"

    def _received(self, step: Step, event: Event) -> None:
        del step
        self._ledger.run("insert_request", {"id": known_as(str(event.ref), event.by), "event": event.id})

    def _rejected(self, step: Step, event: Event) -> None:
        path, reason = event.detail["spool"], event.detail["reason"]
        step.effects.append(partial(self._files.set_aside, path, reason, event.id))

    def _tell_refusals(self, step: Step) -> None:
        for text in self._unattended.refused(self._ledger):
            step.notify(self._ledger, text)
