"""How a plan goes on: what follows from an event, given where the plan stands. Pure.

waiting ─ all before it done ─> ready ─ its run starts ─> running ─ all is written and has settled ─> delivered
delivered ─ its checks pass, and its PR is open where it ends with one ─> done; it fails when its run ends without that
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from aipass.action import Advance, Check, Dispatch, Ignore, Notify, OpenPr, Wake, Written
from aipass.features.dispatch.results import INTERRUPTED
from aipass.supervisor.fence.glob import Globs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from aipass.action import Action
    from aipass.event import Event
    from aipass.features.plans.model import Phase, Plan

SETTLE = "settle:"
#: States in which a phase does something, or will without anybody's help.
ACTIVE = frozenset(("ready", "running", "delivered"))
#: States in which a phase has nothing that it could lose: its part of the plan's file may be changed.
NOT_BEGUN = frozenset(("waiting", "failed", "stopped"))


@dataclass(frozen=True, slots=True)
class PhaseView:
    """A phase of a plan that has begun. `run` is its live run; `over`: its dispatch has reached its end.

    What costs something to find out is asked for only where it matters.
    """

    spec: Phase
    state: str
    handoff: str
    dispatch: int | None = None
    run: int | None = None
    over: bool = False
    #: Its newest run, alive or not.
    last_run: int | None = None
    #: A check is running.
    checking: bool = False
    #: Its PR is being opened.
    opening: bool = False
    #: Paths that its run wrote since it began, of those that it delivers, and that are there.
    written: Callable[[], Collection[str]] = tuple
    #: Those of what it delivers that its run is writing at this moment.
    writing: Callable[[], Collection[str]] = tuple
    #: Runs outside the plan that hold a path of it, in words.
    held: Callable[[], str | None] = lambda: None

    @property
    def id(self) -> str:
        """Its name within the plan."""
        return self.spec.id

    def missing(self) -> list[str]:
        """What it delivers and has not written yet."""
        written = self.written()
        return [
            one.path for one in self.spec.delivers if sum(map(_globs(one.path).match, written)) < one.least
        ]

    def delivers(self, path: str) -> bool:
        """Whether a path is one of those that it delivers."""
        return any(_globs(deliverable.path).match(path) for deliverable in self.spec.delivers)


@lru_cache(maxsize=1024)
def _globs(pattern: str) -> Globs:
    return Globs((pattern,))


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan that runs, or is paused. `fenced`: who wrote a file is known."""

    plan: Plan
    state: str
    phases: tuple[PhaseView, ...]
    fenced: bool = True

    @property
    def id(self) -> str:
        """Its number."""
        return self.plan.id

    def phase(self, name: str) -> PhaseView:
        """One phase; raises KeyError where there is none."""
        for phase in self.phases:
            if phase.id == name:
                return phase
        raise KeyError(name)


def follow(plan: PlanView, event: Event) -> Iterator[Action]:
    """What is to be done now that this has happened."""
    kind = event.kind
    if kind in {"plan.started", "plan.changed", "engine.started", "run.finished"}:
        yield from _go_on(plan)
    if kind in {"phase.done", "phase.failed"} and _concerns(plan, event):
        yield from _go_on(plan)
    if kind == "engine.started":
        yield from (
            Check(plan.id, p.id) for p in plan.phases if p.state == "delivered" and _may_be_checked(p)
        )
    for phase in plan.phases:
        yield from _of_phase(plan, phase, event)


def _concerns(plan: PlanView, event: Event, phase: PhaseView | None = None) -> bool:
    about = event.detail.get("plan") == plan.id
    return about and (phase is None or event.detail.get("phase") == phase.id)


def _of_phase(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    match event.kind:
        case "phase.ready" if _concerns(plan, event, phase) and phase.state == "ready":
            yield _dispatch(plan, phase, event)
        case "run.started" if phase.dispatch is not None and event.detail.get("dispatch") == phase.dispatch:
            if phase.state == "ready":
                yield Advance(plan.id, phase.id, "running")
                if phase.written():
                    yield _wait(plan, phase)  # it was quicker than the news of its start
        case "file.closed" | "phase.written" if event.path is not None and phase.state in ACTIVE:
            yield from _written(plan, phase, event)
        case "clock.tick" if event.ref == f"{SETTLE}{plan.id}/{phase.id}":
            yield from _settled(plan, phase)
        case "phase.delivered" if _concerns(plan, event, phase) and phase.state == "delivered":
            yield from _after_delivery(plan, phase)
        case "check.finished" if _concerns(plan, event, phase) and phase.state == "delivered":
            yield from _checked(plan, phase, event)
        case "pr.opened" | "pr.updated" | "pr.failed" if (
            _concerns(plan, event, phase) and phase.state == "delivered" and event.detail.get("ends_phase")
        ):
            yield from _handed_in(plan, phase, event)
        case "dispatch.finished" if (
            phase.dispatch is not None and event.detail.get("dispatch") == phase.dispatch
        ):
            yield from _ended(plan, phase, event)


def _go_on(plan: PlanView) -> Iterator[Action]:
    """Whatever may begin begins; when nothing can any more, the plan is over."""
    done = {phase.id for phase in plan.phases if phase.state == "done"}
    if len(done) == len(plan.phases):
        yield Advance(plan.id, None, "done")
        return
    if plan.state != "running":
        return
    begun = False
    for phase in plan.phases:
        if phase.state != "waiting" or not done.issuperset(phase.spec.after):
            continue
        if (held := phase.held()) is not None:
            yield Ignore(f"phase {phase.id} of plan {plan.id} waits: {held}")
        else:
            yield Advance(plan.id, phase.id, "ready")
        begun = True
    if begun or any(phase.state in ACTIVE for phase in plan.phases):
        return
    failed = [phase.id for phase in plan.phases if phase.state == "failed"]
    if failed:
        yield Advance(
            plan.id,
            None,
            "failed",
            f"phase {', '.join(failed)} failed; `aipass plan resume {plan.id}` tries again",
        )


def _dispatch(plan: PlanView, phase: PhaseView, ready: Event) -> Dispatch:
    return Dispatch(
        phase.spec.agent,
        phase.spec.task,
        subject=f"{plan.plan.title}: {phase.id}",
        key=f"plan {plan.id} {phase.id} {ready.id}",
        sender=f"plan {plan.id}",
        stem=phase.id,
        plan=plan.id,
        phase=phase.id,
    )


def _written(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    own = event.by == phase.last_run if plan.fenced else event.by in {None, phase.last_run}
    if not own or phase.last_run is None or event.path is None or not phase.delivers(event.path):
        return
    if phase.checking and not plan.fenced:
        # A check may write what the phase delivers as well, and nobody can tell them apart.
        yield Ignore(f"{event.path} was written while phase {phase.id} is checked, by nobody knows whom")
        return
    yield Written(plan.id, phase.id, event.path)
    yield _wait(plan, phase)


def _wait(plan: PlanView, phase: PhaseView) -> Wake:
    return Wake(f"{SETTLE}{plan.id}/{phase.id}", phase.spec.settle)


def _settled(plan: PlanView, phase: PhaseView) -> Iterator[Action]:
    if phase.state not in {"running", "delivered"}:
        return
    if phase.writing():
        yield _wait(plan, phase)
    elif (missing := phase.missing()) and phase.state == "delivered":
        yield from _not_yet(plan, phase, f"what it had delivered is gone: {', '.join(missing)}")
    elif missing:
        yield Ignore(f"phase {phase.id} has not delivered {', '.join(missing)} yet")
    elif phase.state == "delivered":
        if _may_be_checked(phase):
            yield Check(plan.id, phase.id)
        elif phase.spec.pr and not phase.spec.checks and (phase.handoff == "write" or phase.over):
            yield from _finish(plan, phase)
    else:
        yield Advance(plan.id, phase.id, "delivered")


def _may_be_checked(phase: PhaseView) -> bool:
    idle = not phase.checking and not phase.opening
    return bool(phase.spec.checks) and idle and (phase.handoff == "write" or phase.over)


def _check(plan: PlanView, phase: PhaseView) -> Iterator[Action]:
    """Have it checked, if it is to be."""
    if phase.spec.checks:
        yield Check(plan.id, phase.id)
    else:
        yield from _finish(plan, phase)


def _finish(plan: PlanView, phase: PhaseView) -> Iterator[Action]:
    """It is done, once its PR is open where it ends with one."""
    if not phase.spec.pr:
        yield Advance(plan.id, phase.id, "done")
    elif not phase.opening:
        title = f"{plan.plan.title}: {phase.id}"
        yield OpenPr(
            phase.spec.agent, title, phase.spec.task, phase.dispatch, phase.run, plan=plan.id, phase=phase.id
        )


def _handed_in(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    """What came of the PR that it ends with."""
    if event.detail.get("changed") or phase.writing():
        yield _wait(plan, phase)  # what is in the PR is not what is there
    elif event.kind != "pr.failed" or event.detail.get("nothing"):
        yield Advance(plan.id, phase.id, "done")
    else:
        yield from _not_yet(plan, phase, f"its PR could not be opened: {event.detail.get('reason')}")


def _after_delivery(plan: PlanView, phase: PhaseView) -> Iterator[Action]:
    if phase.handoff == "exit" and not phase.over:
        yield Ignore(f"phase {phase.id} hands over when its run ends")
    else:
        yield from _check(plan, phase)


def deliver(plan: PlanView, phase: PhaseView) -> Iterator[Action]:
    """What follows when its agent says that a phase is delivered: whatever its `handoff`, it is handed over now."""
    yield Advance(plan.id, phase.id, "delivered", handoff="write")
    # One that was delivered already waited for its run's end.
    if phase.state == "delivered" and not phase.checking:
        yield from _check(plan, phase)


def _checked(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    outcome = event.detail.get("outcome")
    if outcome in INTERRUPTED:
        yield Check(plan.id, phase.id)
    elif missing := phase.missing():
        yield from _not_yet(plan, phase, f"what it had delivered is gone: {', '.join(missing)}")
    elif event.detail.get("changed") or phase.writing():
        yield _wait(plan, phase)  # what it checked is not what is there
    elif event.detail.get("exit") == 0:
        yield from _finish(plan, phase)
    else:
        why = event.detail.get("reason") or f"{event.detail.get('output')} says what"
        yield from _not_yet(plan, phase, f"a check failed; {why}")


def _not_yet(plan: PlanView, phase: PhaseView, reason: str) -> Iterator[Action]:
    """It is not done: its run may mend that while it lives."""
    if phase.over:
        yield from _fail(plan, phase, reason)
    else:
        yield Advance(plan.id, phase.id, "delivered", f"{reason}; it is checked again after the next write")


def _ended(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    if phase.state not in ACTIVE:
        return
    if event.detail.get("state") != "succeeded":
        if phase.state == "delivered" and phase.handoff == "write" and (phase.spec.checks or phase.spec.pr):
            # It was handed in before: the check decides.
            if not phase.checking and not phase.opening:
                yield from _check(plan, phase)
            return
        yield from _fail(
            plan, phase, str(event.detail.get("reason") or f"its run was {event.detail.get('state')}")
        )
    elif phase.state == "delivered":
        if missing := phase.missing():
            yield from _fail(plan, phase, f"what it had delivered is gone: {', '.join(missing)}")
        elif not phase.checking and not phase.opening:
            yield from _check(plan, phase)
    elif missing := phase.missing():
        yield from _fail(plan, phase, f"its run ended without delivering {', '.join(missing)}")
    else:
        yield Advance(plan.id, phase.id, "delivered")


def _fail(plan: PlanView, phase: PhaseView, reason: str) -> Iterator[Action]:
    yield Advance(plan.id, phase.id, "failed", reason)
    yield Notify(
        f"phase {phase.id} of plan {plan.id} ({plan.plan.title}) failed: {reason}; `aipass plan resume {plan.id}` tries again",
        about=f"plan {plan.id}",
    )
