"""The engine's side of agents' contributions: which paths an agent wrote last, and the PR requests made from them.

Everything here runs in the engine's thread and reads the ledger. Only the pull request worker runs git, in its own threads.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass import action as act
from aipass.core.requests import answer
from aipass.core.run_hook import RunHook
from aipass.core.step import Applied, Effect
from aipass.errors import EXIT_FAILED, EXIT_REFUSED
from aipass.features.git.fair_share import FairShare
from aipass.features.git.pr_open import PrRequest, WrittenPath, touched
from aipass.features.git.pr_worker import CheckAsked, GitDone, PrJob, Sealed
from aipass.features.ownership import layers
from aipass.supervisor.fence.territory import Kind, Territory
from aipass.supervisor.wire import read_exit
from aipass.text.patterns import Patterns
from aipass.workspace.layout import MERGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.core.step import Pending, Step
    from aipass.event import Event, Fact
    from aipass.features.dispatch.launcher import Launcher
    from aipass.features.git.pr_worker import PullRequestWorker
    from aipass.features.ownership.feature import OwnershipFeature
    from aipass.ledger import Row

#: Rate limit: seconds per minute that the engine's thread spends on collecting the paths of one agent's runs.
#: An agent decides how many files it writes, so without a limit it could block the engine for every other agent.
CLAIMS_SHARE_S = 1.0
#: The name of a merge check among agents: the owner of its temporary folder and its caches.
CHECK_NAME = "check.merge"


class Contributions(RunHook):
    """Records what each run wrote, and turns PR actions into jobs for the worker and results into events.

    `worker` is None in an engine that makes no PRs; every PR request is then answered with a failure.
    """

    def __init__(
        self, core: Core, launcher: Launcher, ownership: OwnershipFeature, worker: PullRequestWorker | None
    ) -> None:
        self._core, self._ledger, self._launcher = core, core.ledger, launcher
        self._ownership, self._authors, self._worker = ownership, ownership.authors, worker
        self._share = FairShare()
        #: Called inside the transaction that records a PR request, with the action and its id.
        self.opening: list[Callable[[act.OpenPr, int], None]] = []
        #: Called with each PR event and the id of its action, before the event is recorded; returns the event to record.
        self.changes: list[Callable[[Fact, int], Fact]] = []

    @property
    def _config(self) -> Config:
        return self._core.config()

    # -- runs that end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Resume what the previous engine left: fingerprint runs that ended without it, and stop its merge checks."""
        if self._worker is None:
            return
        for row in self._ledger.all("unsealed"):
            self._worker.seal(row["id"], row["finished"], self._authors.last_of(row["id"]), late=True)
        # The merge that waited for such a check begins again with a check of its own. The old one must not
        # go on: it would use the machine for a result that nothing reads.
        merges = self._core.layout.merges
        for path in merges.iterdir() if merges.is_dir() else ():
            if path.name.isdecimal() and read_exit(path) is None:
                self._launcher.stop(
                    MERGES + int(path.name), "cancelled", "the engine that started this check has ended"
                )

    def over(self, step: Step, run: Row, finished: float) -> None:
        """After the commit, queue a fingerprint of every path that the run was the last to write."""
        if self._worker is not None:
            wrote = self._authors.last_of(run["id"])
            step.effects.append(partial(self._worker.seal, run["id"], finished, wrote))

    def sealed(self, step: Step, item: Sealed) -> None:
        """Record the fingerprints of a run's paths, and that the run is sealed. Idempotent."""
        del step
        row = self._ledger.one("run", {"id": item.run})
        if row is None:
            return
        about = {"run": row["id"], "agent": row["agent"], "dispatch": row["dispatch"]}
        # The engine knows the order of writes only for runs that it followed. For a run that ended without an
        # engine, a later run may have written the path since: `put_late_work` keeps the entry of the later run.
        statement = "put_late_work" if item.late else "put_work"
        for path, seal in item.seals.items():
            # As bytes: a file name on Linux need not be valid UTF-8, and SQLite text must be.
            self._ledger.run(statement, {"path": os.fsencode(path), "seal": seal, **about})
        self._ledger.run("run_sealed", {"id": row["id"]})

    # -- requests --------------------------------------------------------------------------------------------------

    def open(self, step: Step, event: Event, action: act.OpenPr) -> Applied:
        """Queue a PR, or a commit on the agent's draft branch. A plan's phase is linked to it in the same transaction."""
        del step, event
        if (refused := self._refused(action.request)) is not None:
            return refused

        def recorded(number: int) -> None:
            for opening in self.opening:
                opening(action, number)

        return Applied("queued", effect=Effect("git.open", asdict(action)), recorded=recorded)

    def make(self, pending: Pending) -> None:
        """After the commit: hand the PR to the worker, with the paths that the agent has written until now.

        The result comes back as a `GitDone` report. Called again after a crash; the worker recognises the request.
        """
        assert self._worker is not None
        action, number, event = act.OpenPr(**pending.arguments), pending.action, pending.event
        dispatch = action.dispatch
        if (
            dispatch is None
            and action.run is not None
            and (row := self._ledger.one("run", {"id": action.run}))
        ):
            dispatch = row["dispatch"]
        plan, phase = action.plan, action.phase
        if plan is None and dispatch is not None and (row := self._ledger.one("dispatch", {"id": dispatch})):
            plan, phase = row["plan"], row["phase"]
        asked = self._ledger.one("event", {"id": event})
        fenced = layers.active(self._config).fence
        allowed = Patterns(self._config.pr.allow_secrets)
        begun = time.monotonic()
        taken = self._share.taken(action.agent, begun)
        # Only runs are limited: a person who asks for a PR by hand does not flood the engine.
        is_much = action.run is not None and taken > CLAIMS_SHARE_S
        wish = PrRequest(
            str(self._core.layout.root),
            # The idempotency key of the request. A new ledger numbers its actions from 1 again, while the PR records
            # in git's folder stay: the time keeps a new request apart from an old one with the same number.
            f"{number} {asked['time'] if asked else 0}",
            action.agent,
            action.title,
            action.body,
            dispatch,
            plan,
            phase,
            claims={} if is_much else self._claims(action, dispatch) if fenced else None,
            owned=None if fenced or is_much else self._owned(action),
            only=tuple(action.paths),
            include=action.include,
            draft=action.draft,
            searched=lambda path: not allowed.match(path),
        )
        if action.run is not None:
            self._share.spend(action.agent, time.monotonic(), time.monotonic() - begun)
        refused = (
            f"aipass needed {taken:.0f} s within one minute to find the changes of {action.agent}, and other agents are waiting; ask again in a minute, with one request for all changes"
            if is_much
            else ""
        )
        about = (
            action.agent if action.run is None else f"run {action.run} of {action.agent}",
            action.run,
            event,
        )
        self._worker.ask(
            PrJob("open", number, action.request, *about, self._config.pr, wish, refused=refused)
        )

    def merge(self, step: Step, event: Event, action: act.MergePr) -> Applied:
        """Queue a merge; refused for a run where no sandbox is active."""
        del step
        if (refused := self._refused(action.request)) is not None:
            return refused
        # Without a sandbox every run can write the request spool as any agent, so an agent could merge its own PR
        # in the orchestrator's name.
        if event.by is not None and not any(layers.active(self._config)):
            text = "neither fence nor wall is active here, so aipass cannot verify which agent asks; a person must merge"
            answer(self._ledger, action.request, EXIT_REFUSED, text)
            return Applied(text, failed=True)
        return Applied("queued", effect=Effect("git.merge", asdict(action)))

    def close(self, step: Step, event: Event, action: act.ClosePr) -> Applied:
        """Queue the closing of PRs without a merge."""
        del step, event
        if (refused := self._refused(action.request)) is not None:
            return refused
        return Applied("queued", effect=Effect("git.close", asdict(action)))

    def ask(self, do: str, pending: Pending) -> None:
        """After the commit: hand a merge or a close to the worker. Called again after a crash."""
        assert self._worker is not None
        by, about = pending.run, pending.arguments
        row = None if by is None else self._ledger.one("run", {"id": by})
        who = "a person" if row is None else row["agent"]
        method = about.get("method") or self._config.pr.method
        reason = about.get("reason") or f"closed by {who}"
        asked = (do, pending.action, about["request"], who, by, pending.event)
        self._worker.ask(PrJob(*asked, self._config.pr, None, tuple(about["prs"]), method, reason))

    def _refused(self, request: str | None) -> Applied | None:
        if self._worker is not None:
            return None
        text = "this engine makes no pull requests"
        answer(self._ledger, request, EXIT_FAILED, text)
        return Applied(text, failed=True)

    # -- results ---------------------------------------------------------------------------------------------------

    def take(self, step: Step, done: GitDone) -> None:
        """Settle the action of a request, answer the asking command, and record the events of the result."""
        state = "failed" if done.code else "done"
        self._ledger.run("settle_action", {"id": done.action, "state": state, "outcome": done.text})
        answer(self._ledger, done.request, done.code, done.text)
        for fact in done.facts:
            if self._is_told(fact):
                continue
            for change in self.changes:
                fact = change(fact, done.action)
            step.facts.append(fact)

    def _is_told(self, fact: Fact) -> bool:
        """Whether this merge already has its event: a merge that is asked for again, after a crash or by a person, must not
        record a second one.
        """
        if fact.kind != "pr.merged":
            return False
        # Events of this step are written in batches; without a flush the query would miss them.
        self._ledger.flush()
        return self._ledger.one("events_about", {"kind": fact.kind, "ref": fact.ref}) is not None

    def check(self, step: Step, asked: CheckAsked) -> None:
        """After the commit, start the checks of a merge in a sandbox that lets them write only the checkout of its result."""
        start = partial(self._launcher.start_command, asked.run, CHECK_NAME, asked.commands)
        timeout_s = self._config.pr.check_timeout
        step.effects.append(partial(start, folder=asked.folder, timeout_s=timeout_s))

    def adopt(self) -> None:
        """Ask a new supervisor for the result of the check that a merge waits for."""
        if self._worker is not None and (run := self._worker.checking()) is not None:
            self._launcher.adopt(run, CHECK_NAME)

    def take_check(self, step: Step, message: dict[str, Any]) -> None:
        """Pass a supervisor's message about a merge check to the worker's merge thread, which waits for it."""
        del step
        if self._worker is not None:
            self._worker.took(message)

    # -- write attribution -----------------------------------------------------------------------------------------

    def _claims(self, action: act.OpenPr, dispatch: int | None) -> dict[str, WrittenPath]:
        """The paths that an agent was the last to write: from the ledger for ended runs, from the journals for live ones."""
        found: dict[str, WrittenPath] = {}
        sealed = {}
        works = {dispatch}
        if action.plan is not None:
            # The PR that ends a phase contains the work of every attempt, also of those that failed before.
            phase = {"plan": action.plan, "phase": action.phase}
            works |= {row["id"] for row in self._ledger.all("dispatches_of_phase", phase)}
        for row in self._ledger.all("work_of", {"agent": action.agent}):
            path = os.fsdecode(row["path"])
            sealed[path] = row["run"]
            now = dispatch is None or row["dispatch"] in works
            found[path] = WrittenPath(row["seal"], row["seal"] is None, now)
        runs: dict[int, Row | None] = {}
        for path, run in self._authors.known():
            if run not in runs:
                runs[run] = self._ledger.one("run", {"id": run})
            about = runs[run]
            if about is None or about["agent"] != action.agent:
                found.pop(path, None)  # another agent has written the path since
            # A fingerprint from the ledger is more exact than the journal, which knows no contents.
            elif sealed.get(path) != run:
                now = dispatch is None or about["dispatch"] in works
                # The worker builds the commit later, in its own thread. With the ctime it notices a change in between.
                at = touched(self._core.layout.root / path)
                found[path] = WrittenPath(None, self._authors.by(path) != run, now, at)
        # A phase's PR, and a person's PR of one dispatch, contain the work of that phase or dispatch only.
        if action.plan is not None or (action.run is None and action.dispatch is not None):
            found = {path: claim for path, claim in found.items() if claim.now}
        return found

    def _owned(self, action: act.OpenPr) -> Callable[[str], bool]:
        """Returns the test whether a path is the agent's to write; it replaces write attribution where no fence is active."""
        territory = Territory.of(self._ownership.table())

        def owned(path: str) -> bool:
            owner = territory.owner(path)
            # Unowned paths may be a person's work, so a PR takes them only where the request names paths.
            return action.agent in owner.agents or (owner.kind is Kind.FREE and bool(action.paths))

        return owned
