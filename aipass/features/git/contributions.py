"""The engine's side of what agents have written, and of the PRs that are made of it. Git itself is asked by the pull request worker, in its own threads."""

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

#: Seconds of a minute that one agent's runs may have the engine look for what it has written.
CLAIMS_SHARE_S = 1.0
CHECK_NAME = "check.merge"


class Contributions(RunHook):
    """What agents wrote, and what becomes of it. `worker`: None where this engine makes no PRs."""

    def __init__(
        self, core: Core, launcher: Launcher, ownership: OwnershipFeature, worker: PullRequestWorker | None
    ) -> None:
        self._core, self._ledger, self._launcher = core, core.ledger, launcher
        self._ownership, self._authors, self._worker = ownership, ownership.authors, worker
        self._share = FairShare()
        #: Called inside the transaction: with a PR that is being made and its action's id; with what is told of one, which may be changed.
        self.opening: list[Callable[[act.OpenPr, int], None]] = []
        self.changes: list[Callable[[Fact, int], Fact]] = []

    @property
    def _config(self) -> Config:
        return self._core.config()

    # -- runs that end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """What an engine before has not come to: runs whose end it did not follow up, checks of merges that still run."""
        if self._worker is None:
            return
        for row in self._ledger.all("unsealed"):
            self._worker.seal(row["id"], row["finished"], self._authors.last_of(row["id"]), late=True)
        merges = self._core.layout.merges
        for path in merges.iterdir() if merges.is_dir() else ():
            if path.name.isdecimal() and read_exit(path) is None:
                self._launcher.stop(
                    MERGES + int(path.name), "cancelled", "the engine that asked for it is gone"
                )

    def over(self, step: Step, run: Row, finished: float) -> None:
        """Note what it wrote, as it is now."""
        if self._worker is not None:
            wrote = self._authors.last_of(run["id"])
            step.effects.append(partial(self._worker.seal, run["id"], finished, wrote))

    def sealed(self, step: Step, item: Sealed) -> None:
        """What a run had written is known."""
        del step
        row = self._ledger.one("run", {"id": item.run})
        if row is None:
            return
        about = {"run": row["id"], "agent": row["agent"], "dispatch": row["dispatch"]}
        # Who wrote last is known of runs that this engine has followed; of others a later run's word is the better one.
        statement = "put_late_work" if item.late else "put_work"
        for path, seal in item.seals.items():
            self._ledger.run(statement, {"path": os.fsencode(path), "seal": seal, **about})
        self._ledger.run("run_sealed", {"id": row["id"]})

    # -- what is asked for -----------------------------------------------------------------------------------------

    def open(self, step: Step, event: Event, action: act.OpenPr) -> Applied:
        """Line up a PR, or a commit on the agent's own branch."""
        del step, event
        if (refused := self._refused(action.request)) is not None:
            return refused

        def recorded(number: int) -> None:
            for opening in self.opening:
                opening(action, number)

        return Applied("to be made", effect=Effect("git.open", asdict(action)), recorded=recorded)

    def make(self, pending: Pending) -> None:
        """After the commit: have it made, of what is known now. What came of it is a report."""
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
        is_much = action.run is not None and taken > CLAIMS_SHARE_S
        wish = PrRequest(
            str(self._core.layout.root),
            # A ledger that begins anew counts from the beginning.
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
            f"to find out what {action.agent} has written took {taken:.0f} s within a minute, and others wait; ask again in a minute, for all of it at once"
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
        """Line up a merge."""
        del step
        if (refused := self._refused(action.request)) is not None:
            return refused
        if event.by is not None and not any(layers.active(self._config)):
            text = "neither fence nor wall is active here, so nobody can say which agent asks: a person must merge"
            answer(self._ledger, action.request, EXIT_REFUSED, text)
            return Applied(text, failed=True)
        return Applied("lined up", effect=Effect("git.merge", asdict(action)))

    def close(self, step: Step, event: Event, action: act.ClosePr) -> Applied:
        """Line up the end of a PR."""
        del step, event
        if (refused := self._refused(action.request)) is not None:
            return refused
        return Applied("lined up", effect=Effect("git.close", asdict(action)))

    def ask(self, do: str, pending: Pending) -> None:
        """After the commit: have PRs merged or closed."""
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

    # -- what came of it -------------------------------------------------------------------------------------------

    def take(self, step: Step, done: GitDone) -> None:
        """Record what came of a request, and tell it."""
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
        """Whether a merge was told before: one that is asked for again, after a crash or by a person, is found done."""
        if fact.kind != "pr.merged":
            return False
        self._ledger.flush()
        return self._ledger.one("events_about", {"kind": fact.kind, "ref": fact.ref}) is not None

    def check(self, step: Step, asked: CheckAsked) -> None:
        """Have the checks of a merge run, on a checkout of what it would come to; nothing else of the tree is theirs to write."""
        start = partial(self._launcher.start_command, asked.run, CHECK_NAME, asked.commands)
        timeout_s = self._config.pr.check_timeout
        step.effects.append(partial(start, folder=asked.folder, timeout_s=timeout_s))

    def adopt(self) -> None:
        """What became of the check that a merge waits for."""
        if self._worker is not None and (run := self._worker.checking()) is not None:
            self._launcher.adopt(run, CHECK_NAME)

    def take_check(self, step: Step, message: dict[str, Any]) -> None:
        """What a supervisor said of such a check."""
        del step
        if self._worker is not None:
            self._worker.took(message)

    # -- who wrote what --------------------------------------------------------------------------------------------

    def _claims(self, action: act.OpenPr, dispatch: int | None) -> dict[str, WrittenPath]:
        """What an agent was the last to write, by its runs that ended and the one that lives."""
        found: dict[str, WrittenPath] = {}
        sealed = {}
        works = {dispatch}
        if action.plan is not None:
            # An earlier attempt at the phase counts as well.
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
                found.pop(path, None)  # it is another's work by now
            elif sealed.get(path) != run:
                now = dispatch is None or about["dispatch"] in works
                at = touched(self._core.layout.root / path)
                found[path] = WrittenPath(None, self._authors.by(path) != run, now, at)
        if action.plan is not None or (action.run is None and action.dispatch is not None):
            found = {path: claim for path, claim in found.items() if claim.now}
        return found

    def _owned(self, action: act.OpenPr) -> Callable[[str], bool]:
        """Without a fence nobody knows who wrote what: which paths are the agent's to write."""
        territory = Territory.of(self._ownership.table())

        def owned(path: str) -> bool:
            owner = territory.owner(path)
            # What is nobody's is an agent's where it is named.
            return action.agent in owner.agents or (owner.kind is Kind.FREE and bool(action.paths))

        return owned
