"""The state machine of plans: the actions that follow from an event and the present state of a plan. Pure.

waiting ─ all phases before it are done ─> ready ─ its run starts ─> running ─ deliverables written and settled ─> delivered
delivered ─ its checks pass, and its PR is open if it has one ─> done; failed if the run ends before that
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

#: Prefix of the timer that fires when a phase's deliverables were not written for `settle`.
SETTLE = "settle:"
#: States in which a phase works, or continues without a command of a person.
ACTIVE = frozenset(("ready", "running", "delivered"))
#: States in which a phase has no work in progress: its part of the plan's file may be changed.
NOT_BEGUN = frozenset(("waiting", "failed", "stopped"))


@dataclass(frozen=True, slots=True)
class PhaseView:
    """A phase of a started plan, as decisions see it. `run` is its live run; `over`: its dispatch has ended."""

    # The last three are functions, because they read files and the ledger, and most events do not need them.

    spec: Phase
    state: str
    handoff: str
    dispatch: int | None = None
    run: int | None = None
    over: bool = False
    #: Its newest run, alive or not.
    last_run: int | None = None
    #: A check of it is running.
    checking: bool = False
    #: The PR that ends it is being opened.
    opening: bool = False
    #: Its deliverables that its run has written and that exist.
    written: Callable[[], Collection[str]] = tuple
    #: Its deliverables that its run is writing now, or has open for writing.
    writing: Callable[[], Collection[str]] = tuple
    #: A description of a run outside the plan that holds one of its paths.
    held: Callable[[], str | None] = lambda: None

    @property
    def id(self) -> str:
        """The phase's id within its plan."""
        return self.spec.id

    def missing(self) -> list[str]:
        """The patterns of its deliverables for which too few files were written."""
        written = self.written()
        return [
            one.path for one in self.spec.delivers if sum(map(_globs(one.path).match, written)) < one.least
        ]

    def delivers(self, path: str) -> bool:
        """Whether a path matches one of its deliverables."""
        return any(_globs(deliverable.path).match(path) for deliverable in self.spec.delivers)


@lru_cache(maxsize=1024)
def _globs(pattern: str) -> Globs:
    return Globs((pattern,))


@dataclass(frozen=True, slots=True)
class PlanView:
    """A running or paused plan, as decisions see it. `fenced`: a fence is active, so the author of each write is known."""

    plan: Plan
    state: str
    phases: tuple[PhaseView, ...]
    fenced: bool = True

    @property
    def id(self) -> str:
        """The plan's id."""
        return self.plan.id

    def phase(self, name: str) -> PhaseView:
        """The phase with this id. Raises KeyError where there is none."""
        for phase in self.phases:
            if phase.id == name:
                return phase
        raise KeyError(name)


def follow(plan: PlanView, event: Event) -> Iterator[Action]:
    """The actions that follow from an event. Each is safe to repeat, because a restart sends some events again."""
    kind = event.kind
    # `run.finished`: a run outside the plan may have held a path for which a phase waits.
    if kind in {"plan.started", "plan.changed", "engine.started", "run.finished"}:
        yield from _go_on(plan)
    if kind in {"phase.done", "phase.failed"} and _concerns(plan, event):
        yield from _go_on(plan)
    # A check may have been due when the previous engine ended, and no later event would ask for it.
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
                    # Race: the run wrote its deliverables before the event of its start arrived.
                    yield _wait(plan, phase)
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
    """Make phases ready whose predecessors are done; end the plan where all phases are done, or none can begin any more."""
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
            f"phase {', '.join(failed)} failed; run `aipass plan resume {plan.id}` to try again",
        )


def _dispatch(plan: PlanView, phase: PhaseView, ready: Event) -> Dispatch:
    return Dispatch(
        phase.spec.agent,
        phase.spec.task,
        subject=f"{plan.plan.title}: {phase.id}",
        # With the id of the event: another attempt must not be joined (deduplicated) with the run that is being stopped.
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
        # The check may have written the file itself. To check again after each such write would never end.
        yield Ignore(f"{event.path} was written by an unknown author while phase {phase.id} is checked")
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
        yield from _not_yet(plan, phase, f"its deliverables were removed: {', '.join(missing)}")
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
    """Check the phase, or finish it if it has no checks."""
    if phase.spec.checks:
        yield Check(plan.id, phase.id)
    else:
        yield from _finish(plan, phase)


def _finish(plan: PlanView, phase: PhaseView) -> Iterator[Action]:
    """Open the PR that ends the phase; without one the phase is done."""
    if not phase.spec.pr:
        yield Advance(plan.id, phase.id, "done")
    elif not phase.opening:
        title = f"{plan.plan.title}: {phase.id}"
        yield OpenPr(
            phase.spec.agent, title, phase.spec.task, phase.dispatch, phase.run, plan=plan.id, phase=phase.id
        )


def _handed_in(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    """The result of the PR that ends the phase."""
    if event.detail.get("changed") or phase.writing():
        # The deliverables changed since the request, so the PR may contain old contents.
        yield _wait(plan, phase)
    # A phase whose run has changed nothing is done without a PR.
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
    """The actions of `aipass deliver`: the phase hands over now, with every `handoff`."""
    yield Advance(plan.id, phase.id, "delivered", handoff="write")
    # A phase with `handoff = exit` may be delivered already and wait for its run's end; no other event would check it.
    if phase.state == "delivered" and not phase.checking:
        yield from _check(plan, phase)


def _checked(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    outcome = event.detail.get("outcome")
    if outcome in INTERRUPTED:
        yield Check(plan.id, phase.id)
    elif missing := phase.missing():
        yield from _not_yet(plan, phase, f"its deliverables were removed: {', '.join(missing)}")
    elif event.detail.get("changed") or phase.writing():
        # The check has tested old contents, so its result does not count.
        yield _wait(plan, phase)
    elif event.detail.get("exit") == 0:
        yield from _finish(plan, phase)
    else:
        why = event.detail.get("reason") or f"the output is in {event.detail.get('output')}"
        yield from _not_yet(plan, phase, f"a check failed; {why}")


def _not_yet(plan: PlanView, phase: PhaseView, reason: str) -> Iterator[Action]:
    """Keep the phase delivered while its run is alive and can correct the problem; else fail it."""
    if phase.over:
        yield from _fail(plan, phase, reason)
    else:
        yield Advance(plan.id, phase.id, "delivered", f"{reason}; it is checked again after the next write")


def _ended(plan: PlanView, phase: PhaseView, event: Event) -> Iterator[Action]:
    if phase.state not in ACTIVE:
        return
    if event.detail.get("state") != "succeeded":
        if phase.state == "delivered" and phase.handoff == "write" and (phase.spec.checks or phase.spec.pr):
            # Everything was delivered before the run failed, so the checks decide, not the run's outcome.
            if not phase.checking and not phase.opening:
                yield from _check(plan, phase)
            return
        yield from _fail(
            plan, phase, str(event.detail.get("reason") or f"its run was {event.detail.get('state')}")
        )
    elif phase.state == "delivered":
        if missing := phase.missing():
            yield from _fail(plan, phase, f"its deliverables were removed: {', '.join(missing)}")
        elif not phase.checking and not phase.opening:
            yield from _check(plan, phase)
    elif missing := phase.missing():
        yield from _fail(plan, phase, f"its run ended without delivering {', '.join(missing)}")
    else:
        yield Advance(plan.id, phase.id, "delivered")


def _fail(plan: PlanView, phase: PhaseView, reason: str) -> Iterator[Action]:
    yield Advance(plan.id, phase.id, "failed", reason)
    yield Notify(
        f"phase {phase.id} of plan {plan.id} ({plan.plan.title}) failed: {reason}; run `aipass plan resume {plan.id}` to try again",
        about=f"plan {plan.id}",
    )
