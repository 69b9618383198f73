"""Requests as the engine takes them: each once, no more of one run than anybody needs, and their files removed when they are recorded."""

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
    """The spool, and what is recorded of requests."""

    name = "requests"

    def setup(self, core: Core) -> None:
        """The source of requests, what keeps facts of them from being recorded, and what is done with their files."""
        self._core, self._ledger = core, core.ledger
        self._files = SpoolFiles(core.layout, core.ledger, core.remover)
        #: How much each run asks for.
        self._budget = Budget()
        self._unattended = UnattendedRequests(time.time())
        core.provide(self._files)
        if core.observes:
            core.add_source(Spool(core.layout.spool, core.fields))
        core.add_fact_filter(("request.received",), self._if_new)
        core.add_fact_filter(("request.rejected",), self._if_not_too_many)
        core.add_listener(("request.received",), self._received)
        core.add_listener(("request.rejected",), self._rejected)
        core.add_step(end=self._tell_refusals)
        core.add_start(start=lambda step: step.effects.append(self._files.tidy))

    def _if_new(self, step: Step, fact: Fact) -> Fact | None:
        """A request that is new; its file is removed in any case, once this is committed."""
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
        self._ledger.run("insert_request", {"id": name, "event": 0})
        answer(self._ledger, name, EXIT_REFUSED, words)
        return None

    def _if_not_too_many(self, step: Step, fact: Fact) -> Fact | None:
        if fact.by is not None and self._against(fact.by, fact.detail, step.now.mono):
            step.effects.append(partial(self._files.consume, fact.detail["spool"], fact.by))
            return None
        return fact

    def _against(self, run: int, detail: Mapping[str, Any], now: float) -> str | None:
        """What is to be said against a request of a run that asks for more than anybody can need; told once."""
        verb = self._core.verbs.get(str(detail.get("verb")))
        words = self._budget.take(run, now, cost(detail, 0 if verb is None else verb.cost_bytes))
        if words is not None and self._budget.is_first(run):
            row = self._ledger.one("run", {"id": run})
            whose = "?" if row is None else row["agent"]
            text = f"{whose} asks for {words} (run {run}); the rest is refused"
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
