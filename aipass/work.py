"""The engine's side of what agents have written, and of the PRs that are made of it. Git itself is asked at the desk."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from aipass import ground, guarded
from aipass.errors import EXIT_FAILED, EXIT_REFUSED
from aipass.git.desk import CheckAsked, GitDone, Job, Sealed
from aipass.git.pulls import Claim, Wish, touched
from aipass.layout import MERGES
from aipass.patterns import Patterns
from aipass.plan.reserved import reserved
from aipass.request import answer
from aipass.share import Share
from aipass.supervisor.fence.territory import Kind, Territory
from aipass.supervisor.wire import read_exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass import action as act
    from aipass.authors import Authors
    from aipass.config import Config
    from aipass.dispatch.dispatcher import Dispatcher
    from aipass.event import Event, Fact
    from aipass.git.desk import Desk
    from aipass.ledger import Ledger, Row
    from aipass.plans import Plans
    from aipass.step import Step
    from aipass.world import World

#: Seconds of a minute that one agent's runs may have the engine look for what it has written.
CLAIMS_SHARE_S = 1.0
CHECK_NAME = "check.merge"
Outcome = tuple[str, bool, "Callable[[int], None] | None"]


class Work:
    """What agents wrote, and what becomes of it."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        world: World,
        authors: Authors,
        plans: Plans,
        desk: Desk | None,
    ) -> None:
        self._ledger, self._dispatcher, self._world = ledger, dispatcher, world
        self._authors, self._plans, self._desk = authors, plans, desk
        self._share = Share()

    @property
    def _config(self) -> Config:
        return self._dispatcher.config

    # -- runs that end ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """What an engine before has not come to: runs whose end it did not follow up, checks of merges that still run."""
        if self._desk is None:
            return
        for row in self._ledger.all("unsealed"):
            self._desk.seal(row["id"], row["finished"], self._authors.last_of(row["id"]), late=True)
        merges = self._world.layout.merges
        for path in merges.iterdir() if merges.is_dir() else ():
            if path.name.isdecimal() and read_exit(path) is None:
                self._world.stop(MERGES + int(path.name), "cancelled", "the engine that asked for it is gone")

    def ended(self, step: Step, run: int, finished: float) -> None:
        """A run is over since `finished` (seconds): note what it wrote, as it is now."""
        if self._desk is not None:
            step.effects.append(partial(self._desk.seal, run, finished, self._authors.last_of(run)))

    def sealed(self, item: Sealed) -> None:
        """What a run had written is known."""
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

    def open(self, event: Event, action: act.OpenPr) -> Outcome:
        """Line up a PR, or a commit on the agent's own branch."""
        if (refused := self._refused(action.request)) is not None:
            return refused
        return "to be made", False, partial(self.make, event.id, action)

    def make(self, event: int, action: act.OpenPr, number: int) -> None:
        """After the commit: have it made, of what is known now."""
        assert self._desk is not None
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
        fenced = ground.active(self._config).fence
        allowed = Patterns(self._config.pr.allow_secrets)
        begun = time.monotonic()
        taken = self._share.taken(action.agent, begun)
        is_much = action.run is not None and taken > CLAIMS_SHARE_S
        wish = Wish(
            str(self._world.layout.root),
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
        self._desk.ask(Job("open", number, action.request, *about, self._config.pr, wish, refused=refused))

    def merge(self, event: Event, action: act.MergePr) -> Outcome:
        """Line up a merge."""
        if (refused := self._refused(action.request)) is not None:
            return refused
        if event.by is not None and not any(ground.active(self._config)):
            text = "neither fence nor wall is active here, so nobody can say which agent asks: a person must merge"
            answer(self._ledger, action.request, EXIT_REFUSED, text)
            return text, True, None
        return "lined up", False, partial(self.ask, "merge", event.id, event.by, action)

    def close(self, event: Event, action: act.ClosePr) -> Outcome:
        """Line up the end of a PR."""
        if (refused := self._refused(action.request)) is not None:
            return refused
        return "lined up", False, partial(self.ask, "close", event.id, event.by, action)

    def ask(
        self, do: str, event: int, by: int | None, action: act.MergePr | act.ClosePr, number: int
    ) -> None:
        """After the commit: have PRs merged or closed."""
        assert self._desk is not None
        row = None if by is None else self._ledger.one("run", {"id": by})
        who = "a person" if row is None else row["agent"]
        method = getattr(action, "method", "") or self._config.pr.method
        reason = getattr(action, "reason", "") or f"closed by {who}"
        job = Job(
            do,
            number,
            action.request,
            who,
            by,
            event,
            self._config.pr,
            None,
            tuple(action.prs),
            method,
            reason,
        )
        self._desk.ask(job)

    def _refused(self, request: str | None) -> Outcome | None:
        if self._desk is not None:
            return None
        text = "this engine has no git desk"
        answer(self._ledger, request, EXIT_FAILED, text)
        return text, True, None

    # -- what came of it -------------------------------------------------------------------------------------------

    def take(self, step: Step, done: GitDone) -> None:
        """Record what came of a request, and tell it."""
        state = "failed" if done.code else "done"
        self._ledger.run("settle_action", {"id": done.action, "state": state, "outcome": done.text})
        answer(self._ledger, done.request, done.code, done.text)
        for fact in done.facts:
            if not self._is_told(fact):
                step.facts.append(self._of_phase(fact, done.action) if fact.detail.get("phase") else fact)

    def _is_told(self, fact: Fact) -> bool:
        """Whether a merge was told before: one that is asked for again, after a crash or by a person, is found done."""
        if fact.kind != "pr.merged":
            return False
        self._ledger.flush()
        return self._ledger.one("events_about", {"kind": fact.kind, "ref": fact.ref}) is not None

    def _of_phase(self, fact: Fact, action: int) -> Fact:
        """The PR that a plan's phase waits for: whether what it is of was changed meanwhile. Any other of its work is none."""
        phase = self._ledger.one("phase", {"plan": fact.detail["plan"], "id": fact.detail["phase"]})
        if phase is None or phase["opening"] != action:
            return fact
        changed = phase["seal"] != self._plans.seal(phase["plan"], phase["id"])
        about = {"plan": phase["plan"], "id": phase["id"]}
        self._plans.change("phase_opening", **about, opening=None, seal=None)
        if fact.kind in {"pr.opened", "pr.updated"}:
            self._plans.change("phase_pr", **about, pr=fact.detail["pr"])
        return replace(fact, detail={**fact.detail, "ends_phase": True, "changed": changed})

    def check(self, asked: CheckAsked) -> None:
        """After the commit: have the checks of a merge run."""
        self._world.start_merge_check(asked, CHECK_NAME, self._config)

    def adopt(self) -> None:
        """After the commit: have the supervisors say what became of the check that a merge waits for."""
        if self._desk is not None and (run := self._desk.checking()) is not None:
            self._world.adopt(run, CHECK_NAME)

    def take_check(self, message: dict[str, object]) -> None:
        """What a supervisor said of such a check."""
        if self._desk is not None:
            self._desk.took(message)

    # -- who wrote what --------------------------------------------------------------------------------------------

    def _claims(self, action: act.OpenPr, dispatch: int | None) -> dict[str, Claim]:
        """What an agent was the last to write, by its runs that ended and the one that lives."""
        found: dict[str, Claim] = {}
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
            found[path] = Claim(row["seal"], row["seal"] is None, now)
        runs: dict[int, Row | None] = {}
        for path, run in self._authors.known():
            if run not in runs:
                runs[run] = self._ledger.one("run", {"id": run})
            about = runs[run]
            if about is None or about["agent"] != action.agent:
                found.pop(path, None)  # it is another's work by now
            elif sealed.get(path) != run:
                now = dispatch is None or about["dispatch"] in works
                at = touched(self._world.layout.root / path)
                found[path] = Claim(None, self._authors.by(path) != run, now, at)
        if action.plan is not None or (action.run is None and action.dispatch is not None):
            found = {path: claim for path, claim in found.items() if claim.now}
        return found

    def _owned(self, action: act.OpenPr) -> Callable[[str], bool]:
        """Without a fence nobody knows who wrote what: which paths are the agent's to write."""
        nested = [os.fsdecode(row["dir"]) for row in self._ledger.all("nested_roots")]
        territory = Territory.of(
            ground.table(
                self._world.layout,
                self._config,
                reserved(self._ledger)[0],
                nested,
                guarded.inner(self._ledger),
            )
        )

        def owned(path: str) -> bool:
            owner = territory.owner(path)
            # What is nobody's is an agent's where it is named.
            return action.agent in owner.agents or (owner.kind is Kind.FREE and bool(action.paths))

        return owned
