"""The memory feature: state files of agents, their notes, and a searchable memory of runs, messages, plans and PRs."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from aipass.action import FinishTodo, Forget, Note
from aipass.core.requests import answer
from aipass.core.run_hook import RunHook
from aipass.core.step import Applied
from aipass.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE
from aipass.features.dispatch import results
from aipass.features.dispatch.feature import DispatchFeature
from aipass.features.memory import sessions
from aipass.features.memory.index import Indexes
from aipass.features.memory.indexer import Indexer
from aipass.features.memory.requests import VERBS
from aipass.features.memory.state_files import StateFiles, StateRejected, StateSaved
from aipass.features.memory.store import StateStore
from aipass.features.ownership.feature import OwnershipFeature
from aipass.text.secret import Secrets, masked

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.core.registry import Core
    from aipass.core.run_hook import RunEnd
    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.ledger import Row


class MemoryFeature(RunHook):
    """The feature. Others use `store` to write memory, and set `tell` to receive messages for agents."""

    name = "memory"
    verbs = VERBS

    def setup(self, core: Core) -> None:
        """Add actions, verbs, reports, listeners and sources. Needs ownership (which files a run wrote), secrets and dispatch."""
        self._core, self._ledger = core, core.ledger
        self._ownership, secrets = core.need(OwnershipFeature), core.need(Secrets)
        files = StateFiles(core.layout, partial(masked, secrets.find)) if core.works else None
        indexer = Indexer(core.layout, core.need(Indexes).found)
        self.store = StateStore(core, files, secrets.mask, indexer)
        #: Sends an agent a message about its files. The messages feature sets it: it is set up later, because it needs this one.
        self.tell: Callable[[Step, str, str], object] = _nobody
        core.provide(self)
        core.add_action(Note, self._note)
        core.add_action(FinishTodo, self._finish)
        core.add_action(Forget, self._forget)
        core.add_prune(partial(core.remover.prune, core.layout.quarantine / "trinity", depth=2))
        for verb in self.verbs:
            core.add_verb(verb)
        core.add_report(StateSaved, self._saved)
        core.add_report(StateRejected, self._rejected)
        core.add_listener(("pr.opened", "plan.finished", "check.finished"), self._remember)
        core.need(DispatchFeature).outbox.listeners.append(self._answered)
        core.add_run_hook(self)
        core.add_step(begin=lambda step: self.store.at(step.now.wall), end=self.store.publish)
        core.add_start(start=self._start)
        core.add_reconfigure(self.store.serve)
        for source in (files, indexer):
            if source is not None:
                core.add_source(source)

    def _start(self, step: Step) -> None:
        self.store.serve(step)
        self.store.publish(step)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _note(self, step: Step, event: Event, action: Note) -> Applied:
        if action.agent not in self._core.config().agents:
            return self._answer(event, action.request, f"there is no agent `{action.agent}`", EXIT_USAGE)
        run = None if action.run is None else self._ledger.one("run", {"id": action.run})
        entry = (action.agent, action.kind, action.text, action.tags, run, action.added)
        text, failed = self.store.note(step, *entry)
        return self._answer(event, action.request, text, EXIT_REFUSED if failed else 0)

    def _finish(self, step: Step, event: Event, action: FinishTodo) -> Applied:
        text, failed = self.store.done(step, action.agent, action.todo)
        return self._answer(event, action.request, text, EXIT_FAILED if failed else 0)

    def _answer(self, event: Event, request: str | None, text: str, code: int) -> Applied:
        if event.detail.get("masked"):
            text += f"; what looks like a secret was masked: {', '.join(event.detail['masked'])}"
        answer(self._ledger, request, code, text)
        return Applied(text, bool(code))

    def _forget(self, step: Step, event: Event, action: Forget) -> Applied:
        del event
        code, text = self.store.forget(step, action.memory, action.agent)
        answer(self._ledger, action.request, code, text)
        return Applied(text, bool(code))

    # -- reports of the state files' thread ------------------------------------------------------------------------

    def _saved(self, step: Step, report: StateSaved) -> None:
        for text in self.store.take(step, report):
            self.tell(step, report.agent, text)
        # Before the next save of this step, which must be merged with the result of this one.
        self.store.publish(step)

    def _rejected(self, step: Step, report: StateRejected) -> None:
        self.tell(step, report.agent, self.store.rejected(step, report))

    # -- runs ------------------------------------------------------------------------------------------------------

    def before_start(self, step: Step, run: Row) -> None:
        """Update `now` in the state file of the run's agent, before the run can read it."""
        del step
        self.store.begun(run["agent"])

    def ended(self, step: Step, end: RunEnd) -> None:
        """Store the run as a session: its answer, open questions, outcome, and the files that it wrote."""
        run = end.run
        asked = self._ledger.all("open_questions", {"dispatch": run["dispatch"]})
        said = self.store.clean(results.words(end.outcome.answer)) or end.reason
        files = self._ownership.authors.written_by(run["id"])
        said = sessions.with_questions(said, asked)
        self.store.ended(step, run, sessions.of(run, end.finished, end.result, said, files))

    # -- what memory stores ----------------------------------------------------------------------------------------

    def _answered(self, step: Step, row: Row, path: str) -> None:
        said = results.said(self._core.layout, self._ledger, row["id"])
        if said.strip():
            when = step.now.wall
            self.store.remember("answer", row["agent"], said, when, dispatch=row["id"], path=path)

    def _remember(self, step: Step, event: Event) -> None:
        """Store opened PRs, ended plans, and the results of checks."""
        detail, when = event.detail, step.now.wall
        match event.kind:
            case "pr.opened":
                said = f"PR {detail['pr']}: {detail['title']}\n{' '.join(map(str, detail['paths'][:100]))}"
                self.store.remember("pr", detail["agent"], said, when, dispatch=detail["dispatch"])
            case "plan.finished":
                if (row := self._ledger.one("plan", {"id": event.ref})) is not None:
                    phases = [
                        f"{one['id']} ({one['agent']}): {one['task']}"
                        for one in json.loads(row["body"])["phases"]
                    ]
                    said = "\n".join([f"Plan {row['id']}, {row['title']}: {row['state']}", *phases])
                    self.store.remember("plan", "human", said, when, path=row["file"])
            case "check.finished":
                if (run := self._ledger.one("run", {"id": event.by})) is not None:
                    self.store.checked(run["agent"], run["id"])


def _nobody(step: Step, agent: str, text: str) -> None:
    """Do nothing: the default of `tell` without a feature that delivers messages."""
    del step, agent, text
