"""The engine's side of plans: their state in the ledger, and the effects of their actions. Decisions are in `progress.py`."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass import action as act
from aipass.core.run_hook import RunHook
from aipass.core.step import Applied
from aipass.errors import AipassError
from aipass.event import Fact
from aipass.features.dispatch.dispatcher import FINAL
from aipass.features.dispatch.hook import DispatchHook
from aipass.features.dispatch.results import INTERRUPTED
from aipass.features.ownership import layers
from aipass.features.plans import model
from aipass.features.plans.preamble import preamble
from aipass.features.plans.progress import ACTIVE, PhaseView, PlanView
from aipass.features.plans.reserved import check_name
from aipass.supervisor.fence.glob import Globs
from aipass.supervisor.held import open_regular
from aipass.workspace.layout import CHECKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aipass.clock import Instant
    from aipass.config.model import Config
    from aipass.core.prompt import PromptWork
    from aipass.core.registry import Core
    from aipass.core.run_hook import RunEnd
    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.features.dispatch.driver import Driver
    from aipass.features.dispatch.feature import DispatchFeature
    from aipass.features.ownership.feature import OwnershipFeature
    from aipass.ledger import Row

logger = structlog.get_logger("aipass")

#: The states in which a plan has ended.
ENDS = frozenset(("done", "failed", "stopped"))
SOURCE = "plans"
#: The name of the timer, and the pause before another attempt to start a check.
CHECK, TRY_AGAIN_S = "check", 0.5
#: The part of a phase's deliverables whose contents the fingerprint includes; of the rest it includes size and ctime.
#: The engine's thread reads them, and agents decide how much they write.
MAX_HASHED_BYTES, MAX_HASHED_FILES = 8_000_000, 500


class Plans(RunHook, DispatchHook):
    """Plans and phases in the ledger, as views for decisions and as the target of actions. Used by the engine's thread only."""

    def __init__(
        self,
        core: Core,
        dispatching: DispatchFeature,
        ownership: OwnershipFeature,
        drivers: Mapping[str, Driver],
    ) -> None:
        self._core, self._ledger, self._timers = core, core.ledger, core.timers
        self._dispatching, self._ownership, self._drivers = dispatching, ownership, drivers
        self._authors = ownership.authors
        self._views: list[PlanView] | None = None
        #: Cache of the last fingerprint, by plan, phase and step: one step may report thousands of files.
        self._sealed: tuple[tuple[str, str, float], str] | None = None
        #: Cache: whether any plan is open; None: unknown. Every event asks, and mostly there is no plan.
        self._any: bool | None = None

    # -- reading ---------------------------------------------------------------------------------------------------

    def views(self) -> list[PlanView]:
        """Every running or paused plan, from a cache that `look_again` clears."""
        if self._views is None:
            self._views = [] if self._any is False else self._look()
            self._any = bool(self._views)
        return self._views

    def begin(self, step: Step) -> None:
        """Clear the cached views: something outside may have changed the ledger or the tree since the last step."""
        del step
        self.look_again()

    def happened(self, step: Step, event: Event) -> None:
        """Clear the cached views after an event that may have changed them."""
        del step
        # Not for files: they come by the thousand, and a view asks for written files only when they are needed.
        if not event.kind.startswith("file."):
            self.look_again()

    def look_again(self) -> None:
        """Clear the cached views; the next caller of `views` reads them again."""
        self._views = None

    def forget(self, now: Instant | None = None) -> None:
        """Clear all caches, for a failed transaction: they may contain what was rolled back."""
        del now
        self._any = self._views = None

    def _look(self) -> list[PlanView]:
        config = self._core.config()
        fenced = layers.active(config).fence
        return [
            PlanView(
                model.taken_over(row["body"], row["file"]),
                row["state"],
                tuple(self._phases(row, config)),
                fenced,
            )
            for row in self._ledger.all("open_plans")
        ]

    def _phases(self, row: Row, config: Config) -> list[PhaseView]:
        plan = model.taken_over(row["body"], row["file"])
        rows = self._ledger.all("phases_of", {"plan": row["id"]})
        # A run of another phase of the plan does not block a phase: the hand-over between them takes the paths from it.
        own = {phase["run"] for phase in rows if phase["run"] is not None}
        found = []
        for phase in rows:
            spec = plan.phase(phase["id"])
            # The agent may have been removed from the configuration since the plan began.
            settings = config.agents.get(spec.agent)
            driver = self._drivers.get(settings.driver) if settings is not None else None
            found.append(
                PhaseView(
                    spec,
                    phase["state"],
                    phase["handoff"] or spec.handoff or str(getattr(driver, "handoff", "exit")),
                    phase["dispatch"],
                    phase["run"],
                    phase["dispatch_state"] in FINAL,
                    phase["last_run"],
                    phase["checking"] is not None,
                    phase["opening"] is not None,
                    partial(self._written, row["id"], phase["id"]),
                    partial(self._writing, spec, phase["last_run"]),
                    partial(self._held, spec, own),
                )
            )
        return found

    def _written(self, plan: str, phase: str) -> list[str]:
        rows = self._ledger.all("written_of", {"plan": plan, "phase": phase})
        return [row["path"] for row in rows if _is_file(self._core.layout.root / row["path"])]

    def _writing(self, spec: model.Phase, run: int | None) -> list[str]:
        delivers = Globs([one.path for one in spec.delivers])
        return [] if run is None else self._authors.writing(run, delivers.match, spec.settle)

    def _held(self, spec: model.Phase, own: set[int]) -> str | None:
        """A description of a live run outside the plan that has written a path of the phase; None without one."""
        owns = Globs(spec.owns)
        # Paths that a run has handed over are no longer its own, though its journal names them.
        lost = [(one["run"], Globs(one["owns"])) for one in self._ownership.reserved()[1]]
        self._authors.refresh()
        for path, run in self._authors.held():
            if run in own or not owns.match(path):
                continue
            if not any(run == other and globs.match(path) for other, globs in lost):
                row = self._ledger.one("run", {"id": run})
                return f"run {run} of {row['agent'] if row else '?'} holds {path} until it ends"
        return None

    def awaits(self) -> bool:
        """Whether a phase is active. Then journals report its writes, also in folders that the file watcher leaves out."""
        return any(phase.state in ACTIVE for plan in self.views() for phase in plan.phases)

    def wants(self, run: int, path: str) -> bool:
        """Whether a path is a deliverable of the active phase of this run."""
        return any(
            phase.last_run == run and phase.state in ACTIVE and phase.delivers(path)
            for plan in self.views()
            for phase in plan.phases
        )

    def is_done(self, dispatch: int) -> bool:
        """Whether a dispatch's phase is done, so that its run needs no retry."""
        row = self._ledger.one("phase_of_dispatch", {"dispatch": dispatch})
        return row is not None and row["state"] == "done"

    def hops(self, event: Event, wish: act.Dispatch) -> int | None:
        """The chain length of a phase's dispatch is its plan's; of a dispatch caused by a plan's event, one more; else None."""
        # Not one more per phase: a plan with many phases would reach the limit of the chain without any loop.
        if wish.plan is not None:
            return self._hops_of(wish.plan)
        if event.source != SOURCE or "plan" not in event.detail:
            return None
        return self._hops_of(event.detail["plan"]) + 1

    def owns(self, dispatch: Row) -> Sequence[str] | None:
        """The patterns that the phase of this dispatch owns; None for any other dispatch."""
        if dispatch["plan"] is None or (row := self._ledger.one("plan", {"id": dispatch["plan"]})) is None:
            return None
        return model.taken_over(row["body"], row["file"]).phase(dispatch["phase"]).owns

    def prompt(self, work: PromptWork) -> str:
        """The plan's part of a prompt; empty for work outside plans."""
        row = work.dispatch
        if row["plan"] is None:
            return ""
        owns = self._core.config().agents[row["agent"]].owns
        return preamble(self._ledger, self._core.layout.root, row["plan"], row["phase"], owns)

    def _hops_of(self, plan: str) -> int:
        """The length of the chain of agents that led to the plan's start; 0 for an unknown plan."""
        row = self._ledger.one("plan", {"id": plan})
        return 0 if row is None else int(row["hops"])

    # -- actions, inside the transaction ---------------------------------------------------------------------------

    def change(self, statement: str, **about: object) -> None:
        """Run a statement of `queries.sql` that changes a plan, and clear the cached views."""
        self._ledger.run(statement, about)
        self.look_again()

    def apply_advance(self, step: Step, event: Event, action: act.Advance) -> Applied:
        """Move a phase or a plan to another state, and record its event."""
        return Applied(*self.advance(step, event, action))

    def apply_written(self, step: Step, event: Event, action: act.Written) -> Applied:
        """Record that a phase's run has written a deliverable."""
        del event
        return Applied(*self.note(step, action))

    def apply_check(self, step: Step, event: Event, action: act.Check) -> Applied:
        """Record a check of a phase, and start it after the commit."""
        del event
        if self._ledger.one("phase", {"plan": action.plan, "id": action.phase}) is None:
            return Applied(f"plan {action.plan} has no phase {action.phase}", failed=True)
        text = f"the checks of phase {action.phase} are running"
        return Applied(text, recorded=partial(self._check_recorded, step, action))

    def advance(self, step: Step, event: Event, action: act.Advance) -> tuple[str, bool]:
        """Move a phase or a plan to another state. Returns the outcome for people, and whether the action failed."""
        row = self._ledger.one("plan", {"id": action.plan})
        if row is None:
            return f"there is no plan {action.plan}", True
        if action.phase is None:
            return self._advance_plan(step, event, row, action), False
        phase = self._ledger.one("phase", {"plan": action.plan, "id": action.phase})
        if phase is None:
            return f"plan {action.plan} has no phase {action.phase}", True
        if action.handoff is not None:
            self.change("phase_handoff", plan=action.plan, id=action.phase, handoff=action.handoff)
        if phase["state"] == action.state:
            if action.reason is not None:
                self.change("phase_reason", plan=action.plan, id=action.phase, reason=action.reason)
            return f"{action.phase} is {action.state} already", False
        self.set_phase(step, phase, action.state, action.reason)
        if action.state == "done" and self._waits(phase["dispatch"]):
            # The run was lost after it had delivered everything, and a retry is queued that has nothing to do.
            self._dispatching.cancel(step, phase["dispatch"], "its phase is done", event.id)
        detail = {name: phase[name] for name in ("plan", "agent", "dispatch")} | {"phase": action.phase}
        if action.state == "delivered":
            detail["paths"] = self._written(action.plan, action.phase)
        if action.reason:
            detail["reason"] = action.reason
        kind = "phase.started" if action.state == "running" else f"phase.{action.state}"
        ref = f"{action.plan}/{action.phase}"
        step.facts.append(Fact(kind, SOURCE, ref=ref, by=event.by, cause=event.id, detail=detail))
        return f"phase {action.phase} is {action.state}", False

    def _waits(self, dispatch: int | None) -> bool:
        row = None if dispatch is None else self._ledger.one("dispatch", {"id": dispatch})
        return row is not None and row["state"] in {"queued", "blocked"}

    def note(self, step: Step, action: act.Written) -> tuple[str, bool]:
        """Record a deliverable of a phase. A running check of the phase is dropped, because it tests the contents before."""
        phase = self._ledger.one("phase", {"plan": action.plan, "id": action.phase})
        if phase is None:
            return f"plan {action.plan} has no phase {action.phase}", True
        # Not by `change`: files come by the thousand, and a view reads written paths only when they are needed.
        about = {"plan": action.plan, "phase": action.phase, "path": action.path}
        self._ledger.run("add_written", about)
        # A new engine reads the journals from the beginning and reports old writes again, so the contents decide.
        if phase["checking"] is not None and phase["seal"] != self._seal_of(step, action):
            self.drop_check(step, phase, f"{action.path} was written during the check")
        return f"{action.phase} has written {action.path}", False

    def _seal_of(self, step: Step, action: act.Written) -> str:
        key = action.plan, action.phase, step.now.mono
        if self._sealed is None or self._sealed[0] != key:
            self._sealed = key, self.seal(action.plan, action.phase)
        return self._sealed[1]

    def seal(self, plan: str, phase: str) -> str:
        """The fingerprint (seal) of a phase's deliverables: changes with their contents and with every recorded write."""
        # No times of small files: a program can set them, and a write through a memory mapping does not change them.
        # The number of writes finds a file that was exchanged during a check and put back: its contents are equal.
        seal, left = hashlib.sha256(), MAX_HASHED_BYTES
        for number, path in enumerate(self._written(plan, phase)):
            most = left if number < MAX_HASHED_FILES else -1
            content, read = _content(self._core.layout.root / path, most)
            left -= read
            seal.update(os.fsencode(path) + b"\0" + content)
            seal.update(str(self._authors.count(path)).encode() + b"\0")
        return seal.hexdigest()

    def requested(self, step: Step, event: Event) -> None:
        """Before a `deliver` request is handled: record the deliverables in the journal whose file events have not arrived yet."""
        del step
        if event.detail.get("verb") != "deliver" or not event.by:
            return
        run = event.by
        for plan in self.views():
            for phase in plan.phases:
                if phase.last_run == run and phase.state in ACTIVE:
                    for path in self._authors.written(run):
                        if phase.delivers(path):
                            about = {"plan": plan.id, "phase": phase.id, "path": path}
                            self._ledger.run("add_written", about)

    def set_phase(self, step: Step, phase: Row, state: str, reason: str | None = None) -> None:
        """Move a phase to another state. Drops its check and its PR; `waiting` and `ready` also forget its deliverables."""
        if phase["checking"] is not None:
            self.drop_check(step, phase, f"phase {phase['id']} is {state}")
        if phase["opening"] is not None:
            self.change("phase_opening", plan=phase["plan"], id=phase["id"], opening=None, seal=None)
        if state in {"waiting", "ready"}:
            self.change("drop_written", plan=phase["plan"], phase=phase["id"])
        about = {"plan": phase["plan"], "id": phase["id"], "state": state}
        self.change("phase_state", **about, reason=reason, now=step.now.wall)
        self._ownership.changed(step)

    def _advance_plan(self, step: Step, event: Event, row: Row, action: act.Advance) -> str:
        if row["state"] == action.state:
            return f"plan {action.plan} is {action.state} already"
        self.set_plan(step, row, action.state, action.reason)
        if action.state in ENDS:
            about = {"plan": action.plan, "title": row["title"], "state": action.state}
            detail = about | {"reason": action.reason}
            step.facts.append(Fact("plan.finished", SOURCE, ref=action.plan, cause=event.id, detail=detail))
            if action.state == "failed":
                text = f"plan {action.plan} ({row['title']}) failed: {action.reason}"
                step.notify(self._ledger, text, event.id, f"plan {action.plan}")
        return f"plan {action.plan} is {action.state}"

    def set_plan(self, step: Step, row: Row, state: str, reason: str | None = None) -> None:
        """Move a plan to another state, and withdraw its notices unless it failed."""
        self.change("plan_state", id=row["id"], state=state, reason=reason, now=step.now.wall)
        if state != "failed":
            # A notice asks a person to act; with the new state that has happened.
            step.withdraw(self._ledger, f"plan {row['id']}")
        self.forget()
        self._ownership.changed(step)

    def before_start(self, step: Step, run: Row) -> None:
        """Before a run of a phase starts: forget what an earlier, lost run wrote, because it may be incomplete."""
        phase = self._ledger.one("phase_of_dispatch", {"dispatch": run["dispatch"]})
        if phase is None:
            return
        if phase["state"] == "running":
            self.change("drop_written", plan=phase["plan"], phase=phase["id"])
        self._ownership.changed(step)
        self._ownership.look_soon(step)

    def may_retry(self, run: Row) -> bool:
        """False for a run whose phase is done already."""
        return not self.is_done(run["dispatch"])

    def stays(self, step: Step, end: RunEnd) -> None:
        """A run of a paused plan is not retried until the plan resumes."""
        self.hold_back(step, end.run["dispatch"], end.cause)

    def hold_back(self, step: Step, dispatch: int, cause: int | None) -> None:
        """Cancel the queued dispatch of a phase whose plan is paused. The phase gets a new one when the plan resumes."""
        phase = self._ledger.one("phase_of_dispatch", {"dispatch": dispatch})
        plan = None if phase is None else self._ledger.one("plan", {"id": phase["plan"]})
        if phase is None or plan is None or plan["state"] != "paused" or phase["state"] not in ACTIVE:
            return
        self.set_phase(step, phase, "waiting")
        self._dispatching.cancel(step, dispatch, f"plan {plan['id']} is paused", cause)

    def submitted(self, step: Step, event: Event, wish: act.Dispatch, dispatch: int) -> None:
        """Link a phase and its new dispatch to each other."""
        del step, event
        if wish.plan is not None:
            self.change("dispatch_phase", plan=wish.plan, phase=wish.phase, dispatch=dispatch)
            self.change("phase_dispatch", plan=wish.plan, id=wish.phase, dispatch=dispatch)

    def refused(self, step: Step, event: Event, wish: act.Dispatch, reason: str) -> None:
        """Fail a phase whose dispatch was refused, and notify a person: no later event would move the phase."""
        if wish.plan is None:
            return
        self.advance(step, event, act.Advance(wish.plan, wish.phase, "failed", reason))
        text = f"phase {wish.phase} of plan {wish.plan} failed: {reason}"
        step.notify(self._ledger, text, event.id, f"plan {wish.plan}")

    def of_phase(self, fact: Fact, action: int) -> Fact:
        """Mark the event of the PR that ends a phase (`ends_phase`), and whether the deliverables changed since its request.

        Returns every other event unchanged.
        """
        # Compared by the action: a PR that the phase's agent opens by itself must not end the phase without its checks.
        if not fact.detail.get("phase"):
            return fact
        phase = self._ledger.one("phase", {"plan": fact.detail["plan"], "id": fact.detail["phase"]})
        if phase is None or phase["opening"] != action:
            return fact
        changed = phase["seal"] != self.seal(phase["plan"], phase["id"])
        about = {"plan": phase["plan"], "id": phase["id"]}
        self.change("phase_opening", **about, opening=None, seal=None)
        if fact.kind in {"pr.opened", "pr.updated"}:
            self.change("phase_pr", **about, pr=fact.detail["pr"])
        return replace(fact, detail={**fact.detail, "ends_phase": True, "changed": changed})

    def wrote(self, step: Step, run: int, path: str) -> None:
        """A journal reports that a run has written a path; a deliverable becomes a `phase.written` event."""
        if self.wants(run, path):
            step.facts.append(Fact("phase.written", "runs", path=path, by=run))

    # -- checks ----------------------------------------------------------------------------------------------------

    def _check_recorded(self, step: Step, action: act.Check, number: int) -> None:
        """Store the number of a new check, and start it after the commit."""
        # The fingerprint of now: if it differs at the end, the check has tested contents that are gone.
        seal = self.seal(action.plan, action.phase)
        self.change("phase_checking", plan=action.plan, id=action.phase, checking=number, seal=seal)
        step.effects.append(partial(self._start_check, number))

    def drop_check(self, step: Step, phase: Row, reason: str) -> None:
        """Stop a check whose result is not needed any more. The ledger forgets it, so a late result is ignored."""
        self.change("phase_checking", plan=phase["plan"], id=phase["id"], checking=None, seal=None)
        stop = self._dispatching.launcher.stop
        step.effects.append(partial(stop, CHECKS + phase["checking"], "cancelled", reason))

    def start_pr(self, action: act.OpenPr, number: int) -> None:
        """Link a new PR action to the phase that ends with it, with the fingerprint of the deliverables."""
        if action.plan is not None and action.phase is not None:
            seal = self.seal(action.plan, action.phase)
            self.change("phase_opening", plan=action.plan, id=action.phase, opening=number, seal=seal)

    def is_idle(self) -> bool:
        """Whether no check is running or waiting to be started."""
        waits = any(key.startswith(f"{CHECK}:") for key in self._timers)
        return not waits and not self._ledger.all("checks")

    def _start_check(self, number: int) -> None:
        """After the commit: start a recorded check. Idempotent; does nothing for a check that was dropped."""
        phase = self._checked_by(number)
        row = None if phase is None else self._ledger.one("plan", {"id": phase["plan"]})
        if phase is None or row is None:
            return
        spec = model.taken_over(row["body"], row["file"]).phase(phase["id"])
        try:
            start = self._dispatching.launcher.start_command
            start(CHECKS + number, check_name(row["id"], spec.id), spec.checks)
        except (OSError, AipassError) as exc:
            # The phase waits for the result of this check, so a failed start is never final.
            logger.error(
                "a check could not be started; aipass tries again",
                phase=phase["id"],
                plan=row["id"],
                error=str(exc),
            )
            self._timers.set(f"{CHECK}:{number}", self._core.clock.now().mono + TRY_AGAIN_S)

    def adopt(self) -> None:
        """Ask a new supervisor for the result of every check that is running according to the ledger."""
        for phase in self._ledger.all("checks"):
            self._dispatching.launcher.adopt(
                CHECKS + phase["checking"], check_name(phase["plan"], phase["id"])
            )

    def due(self, step: Step, rest: str) -> None:
        """The timer of a check that could not be started: try again after the commit."""
        step.effects.append(partial(self._start_check, int(rest)))

    def take_check(self, step: Step, message: dict[str, Any]) -> None:
        """Turn a supervisor's message about a check into a `check.finished` event or another start. Ignores dropped checks."""
        number = message["run"] - CHECKS
        phase = self._checked_by(number)
        if phase is None:
            return
        match message["tell"]:
            case "unknown":
                # The machine or the supervisor stopped before the check began.
                step.effects.append(partial(self._start_check, number))
            case "busy":
                self._timers.set(f"{CHECK}:{number}", step.now.mono + TRY_AGAIN_S)
            case "ended":
                about = {"plan": phase["plan"], "id": phase["id"]}
                self.change("phase_checking", **about, checking=None, seal=None)
                detail = {"plan": phase["plan"], "phase": phase["id"]}
                detail |= {name: message.get(name) for name in ("exit", "outcome", "reason")}
                passed = message["outcome"] == "exited" and message.get("exit") == 0
                if layers.active(self._core.config()).fence:
                    # Only with a fence: without one the check itself may write deliverables, and would repeat without end.
                    detail["changed"] = phase["seal"] != self.seal(phase["plan"], phase["id"])
                detail |= {"output": f".aipass/checks/{number}/stdout.log"}
                cut_off = message["outcome"] in INTERRUPTED
                detail |= {"state": "succeeded" if passed else "lost" if cut_off else "failed"}
                ref = f"{phase['plan']}/{phase['id']}"
                asked = self._ledger.one("asked_by", {"action": number})
                cause, by = (None, None) if asked is None else (asked["id"], asked["run"])
                step.facts.append(Fact("check.finished", SOURCE, ref=ref, by=by, cause=cause, detail=detail))

    def _checked_by(self, number: int) -> Row | None:
        return next((row for row in self._ledger.all("checks") if row["checking"] == number), None)


def _is_file(path: os.PathLike[str]) -> bool:
    """Whether there is a file or a symbolic link; folders, pipes and devices are no deliverables."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _content(path: Path, most: int) -> tuple[bytes, int]:
    """The hash of a file's contents or of a link's target, and the number of bytes read. Never raises.

    For a file larger than `most` bytes: inode, size and ctime instead of the contents.
    """
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            return hashlib.sha256(os.fsencode(os.readlink(path))).digest(), 0
        if found.st_size > most:
            return f"{found.st_ino} {found.st_size} {found.st_ctime_ns}".encode(), 0
        with open_regular(path) as file:
            data = file.read(most)
        return hashlib.sha256(data).digest(), len(data)
    except OSError:
        return b"", 0
