"""Plan commands of a person or the orchestrator: start, pause, resume, stop, and the update from a plan's changed file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from aipass import action as act
from aipass.core.requests import answer
from aipass.core.step import Applied, Done, Effect
from aipass.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE, ConfigError
from aipass.event import Fact
from aipass.features.plans import check, model
from aipass.features.plans.lifecycle import SOURCE
from aipass.features.plans.progress import NOT_BEGUN
from aipass.text.units import count

if TYPE_CHECKING:
    from aipass.core.registry import Core
    from aipass.core.step import Pending, Step
    from aipass.event import Event
    from aipass.features.dispatch.feature import DispatchFeature
    from aipass.features.ownership.feature import OwnershipFeature
    from aipass.features.plans.lifecycle import Plans
    from aipass.ledger import Row

#: The states of a plan in which a verb is allowed; None: it was never started. A start of an ended plan runs it again.
FITTING: dict[str, set[str | None]] = {
    "start": {None, "done", "failed", "stopped"},
    "change": {"running", "paused"},
    "pause": {"running"},
    "resume": {"running", "paused", "failed", "stopped"},
    "stop": {"running", "paused"},
}


@dataclass(frozen=True, slots=True)
class PlanRead:
    """A report: a plan's file was read for `start`, `resume` or `change`. `plan` is None where it is unusable, `error` says why."""

    action: int
    request: str | None
    verb: str
    id: str
    file: str = ""
    text: str = ""
    plan: model.Plan | None = None
    error: str | None = None
    again: bool = False


class PlanControl:
    """Runs plan commands in the order of the requests. Two steps: `read` reads the file after the commit, `take` decides.

    Every command takes this way, also those without a file: otherwise a `stop` could overtake a `start`.
    """

    def __init__(
        self, core: Core, dispatching: DispatchFeature, ownership: OwnershipFeature, plans: Plans
    ) -> None:
        self._core, self._ledger, self._plans = core, core.ledger, plans
        self._dispatching, self._ownership = dispatching, ownership

    def steer(self, step: Step, event: Event, action: act.Steer) -> Applied:
        """Queue a plan command. The plan's file is read after the commit."""
        del step, event
        if action.verb not in FITTING:
            text = f"`{action.verb}` is none of {', '.join(FITTING)}"
            answer(self._ledger, action.request, EXIT_USAGE, text)
            return Applied(text, failed=True)
        return Applied("queued", effect=Effect("plans.read", asdict(action)))

    def _pause(self, step: Step, cause: int | None, row: Row) -> str:
        """Start no more phases. Cancel queued work, also a retry; it is dispatched again when the plan resumes."""
        self._plans.set_plan(step, row, "paused")
        for phase in self._ledger.all("phases_of", {"plan": row["id"]}):
            if phase["dispatch_state"] in {"queued", "blocked"}:
                self._plans.hold_back(step, phase["dispatch"], cause)
        return f"plan {row['id']} is paused"

    def _go_on(self, step: Step, cause: int | None, row: Row) -> str:
        """Set the plan to running, and its failed and stopped phases to waiting."""
        self._plans.set_plan(step, row, "running")
        for phase in self._ledger.all("phases_of", {"plan": row["id"]}):
            if phase["state"] in {"failed", "stopped"}:
                self._plans.set_phase(step, phase, "waiting")
        detail = {"plan": row["id"], "title": row["title"], "state": "running"}
        step.facts.append(Fact("plan.started", SOURCE, ref=row["id"], cause=cause, detail=detail))
        return f"plan {row['id']} is running"

    def _stop(self, step: Step, cause: int | None, row: Row) -> str:
        """Stop the plan, and cancel all its dispatches, including runs that live on after a hand-over."""
        reason = f"plan {row['id']} was stopped"
        self._plans.set_plan(step, row, "stopped")
        for phase in self._ledger.all("phases_of", {"plan": row["id"]}):
            if phase["state"] not in {"done", "failed"}:
                self._plans.set_phase(step, phase, "stopped")
            self._end_work(step, cause, phase, reason)
        detail = {"plan": row["id"], "title": row["title"], "state": "stopped"}
        step.facts.append(Fact("plan.finished", SOURCE, ref=row["id"], cause=cause, detail=detail))
        return f"plan {row['id']} is stopped"

    def _end_work(self, step: Step, cause: int | None, phase: Row, reason: str) -> None:
        if phase["dispatch"] is not None and phase["dispatch_state"] in {"queued", "running", "blocked"}:
            self._dispatching.cancel(step, phase["dispatch"], reason, cause)

    # -- with the plan's file --------------------------------------------------------------------------------------

    def read(self, pending: Pending) -> None:
        """After the commit: read the plan's file if the verb needs it, and post a `PlanRead` report. Idempotent."""
        # Outside the transaction, because a file may be on a slow disk and its size is a person's choice.
        action = act.Steer(**pending.arguments)
        read = partial(PlanRead, pending.action, action.request, action.verb, action.plan, again=action.again)
        if action.verb in {"pause", "stop"}:
            self._core.post(read())
            return
        try:
            path, text, plan = model.of_id(self._core.layout.plans, action.plan)
            self._core.post(read(f"plans/{path.name}", text, plan))
        except (ConfigError, OSError) as exc:
            self._core.post(read(error=str(exc)))

    def take(self, step: Step, read: PlanRead) -> None:
        """Run the command if the plan's state and file allow it, settle its action, and answer the asking command."""
        asked = self._ledger.one("asked_by", {"action": read.action})
        by, cause = (None, None) if asked is None else (asked["run"], asked["id"])
        row = self._ledger.one("plan", {"id": read.id})
        code, text = self._take(step, read, row, by, cause)
        self._core.settle(step, read.action, Done(text, failed=bool(code), request=read.request))
        answer(self._ledger, read.request, code, text)

    def _take(
        self, step: Step, read: PlanRead, row: Row | None, by: int | None, cause: int | None
    ) -> tuple[int, str]:
        state = None if row is None else row["state"]
        if read.verb == "start" and state == "done" and not read.again:
            return (
                EXIT_REFUSED,
                f"plan {read.id} is done; `aipass plan start {read.id} --again` runs all phases again",
            )
        if state not in FITTING[read.verb]:
            code = EXIT_REFUSED if read.verb == "start" else EXIT_FAILED
            return code, f"plan {read.id} {_standing(read.id, state)}"
        if row is not None and read.verb in {"pause", "stop"}:
            return 0, (self._pause if read.verb == "pause" else self._stop)(step, cause, row)
        if row is not None and read.verb == "resume":
            # A handler could resume its own plan at every failure: the chain of causes has a limit here as well.
            if far := self._too_far(by):
                return EXIT_REFUSED, f"plan {read.id} cannot resume: {far}"
            self._plans.change(
                "plan_hops", id=row["id"], hops=max(row["hops"], self._dispatching.dispatcher.hops(by))
            )
        if row is not None and read.verb == "resume" and state in {"running", "paused"}:
            return self._go_on_with(step, read, row, cause)
        if read.plan is None:
            goes_on = f"plan {read.id} continues unchanged: " if read.verb == "change" else ""
            return EXIT_USAGE, f"{goes_on}{read.error}"
        if row is None or read.verb == "start":
            return self._begin(step, read, read.plan, by, cause)
        return self._take_over(step, read, read.plan, row, cause)

    def _begin(
        self, step: Step, read: PlanRead, plan: model.Plan, by: int | None, cause: int | None
    ) -> tuple[int, str]:
        # The rows of the old phases are replaced below; a run that still writes would belong to no phase.
        if live := self._alive(plan.id):
            return (
                EXIT_REFUSED,
                f"plan {plan.id} cannot start again: {live}; wait until it ends, or cancel it",
            )
        if far := self._too_far(by):
            return EXIT_REFUSED, f"plan {plan.id} cannot start: {far}"
        code, wrong = self._wrong(plan)
        if wrong:
            return code, f"plan {plan.id} cannot start: {wrong}"
        for statement in ("drop_phases", "drop_plan"):
            self._plans.change(statement, id=plan.id)
        self._plans.change("drop_written", plan=plan.id, phase=None)
        about = {"id": plan.id, "title": plan.title, "file": read.file, "body": read.text}
        self._plans.change(
            "insert_plan", **about, now=step.now.wall, hops=self._dispatching.dispatcher.hops(by)
        )
        self._plans.forget()
        for place, phase in enumerate(plan.phases):
            self._plans.change("insert_phase", plan=plan.id, id=phase.id, place=place, agent=phase.agent)
        detail = {"plan": plan.id, "title": plan.title, "phases": len(plan.phases)}
        step.facts.append(
            Fact("plan.started", SOURCE, path=read.file, ref=plan.id, cause=cause, detail=detail)
        )
        self._ownership.changed(step)
        step.withdraw(self._ledger, f"plan {plan.id}")
        return 0, f"plan {plan.id} is running: {count(len(plan.phases), 'phase')}"

    def _go_on_with(self, step: Step, read: PlanRead, row: Row, cause: int | None) -> tuple[int, str]:
        """Resume a plan that has not ended. An unusable or refused change of its file does not prevent that; the answer says so."""
        told = ""
        if read.plan is None:
            told = f", with its file unchanged: {read.error}"
        elif read.text != row["body"]:
            about = replace(read, verb="change")
            told = "; " + self._take_over(step, about, read.plan, row, cause)[1]
        return 0, self._go_on(step, cause, row) + told

    def _too_far(self, by: int | None) -> str | None:
        """The reason why the asking run is too deep in a chain of agents to start a plan; None where it is not."""
        hops, limit = self._dispatching.dispatcher.hops(by), self._core.config().limits.hops
        return (
            None if hops <= limit else f"a chain of {hops} agents waking agents, but limits.hops is {limit}"
        )

    def _alive(self, plan: str) -> str | None:
        """A description of a live run of the plan; None without one."""
        for phase in self._ledger.all("phases_of", {"plan": plan}):
            if phase["run"] is not None:
                return f"run {phase['run']} of its phase {phase['id']} is still alive (dispatch {phase['dispatch']})"
        return None

    def _wrong(self, plan: model.Plan) -> tuple[int, str]:
        """The exit code and the reasons why a plan cannot run; the text is empty for a plan that can."""
        if wrong := check.problems(plan, list(self._core.config().agents)):
            told = (f"{problem.kind}: {' and '.join(problem.phases)}: {problem.message}" for problem in wrong)
            return EXIT_FAILED, "\n".join(told)
        others = [
            model.taken_over(row["body"], row["file"])
            for row in self._ledger.all("open_plans")
            if row["id"] != plan.id
        ]
        return EXIT_REFUSED, "; ".join(problem.message for problem in check.between(plan, others))

    def _take_over(
        self, step: Step, read: PlanRead, plan: model.Plan, row: Row, cause: int | None
    ) -> tuple[int, str]:
        """Update a plan from its changed file, and resume it for that verb. Refuses a change of a phase that has begun."""
        if read.verb == "change" and read.text == row["body"]:
            return 0, f"plan {read.id} is unchanged"
        code, wrong = EXIT_REFUSED, self._begun(row, plan)
        if not wrong:
            code, wrong = self._wrong(plan)
        if wrong:
            done = "continues unchanged" if read.verb == "change" else "cannot resume"
            return code, f"plan {read.id} {done}: {wrong}"
        changed = read.text != row["body"]
        if changed:
            self._put(step, read, plan, cause)
        if read.verb == "resume":
            return 0, self._go_on(step, cause, row)
        return 0, f"the change of plan {read.id} is applied"

    def _begun(self, row: Row, plan: model.Plan) -> str | None:
        """A message about a phase that has begun and differs in the changed plan; None without one."""
        # Its run has the old task and the old paths, and its result would be judged by the new ones.
        old = model.taken_over(row["body"], row["file"])
        new = {phase.id: phase for phase in plan.phases}
        for phase in self._ledger.all("phases_of", {"plan": row["id"]}):
            if phase["state"] not in NOT_BEGUN and new.get(phase["id"]) != old.phase(phase["id"]):
                return f"phase {phase['id']} is {phase['state']} already; undo its change"
        return None

    def _put(self, step: Step, read: PlanRead, plan: model.Plan, cause: int | None) -> None:
        known = {phase["id"] for phase in self._ledger.all("phases_of", {"plan": plan.id})}
        self._plans.change("plan_body", id=plan.id, title=plan.title, file=read.file, body=read.text)
        for name in known - {phase.id for phase in plan.phases}:
            self._plans.change("drop_phase", plan=plan.id, id=name)
        for place, phase in enumerate(plan.phases):
            statement = "phase_place" if phase.id in known else "insert_phase"
            self._plans.change(statement, plan=plan.id, id=phase.id, place=place, agent=phase.agent)
        detail = {"plan": plan.id, "phases": len(plan.phases)}
        step.facts.append(
            Fact("plan.changed", SOURCE, path=read.file, ref=plan.id, cause=cause, detail=detail)
        )
        self._ownership.changed(step)


def _standing(plan: str, state: str | None) -> str:
    """The state of a plan as half a sentence, with the command that is possible in it."""
    match state:
        case None:
            return f"has not been started; start it with `aipass plan start {plan}`"
        case "running":
            return f"is running already; `aipass plan status {plan}` shows its progress"
        case "done":
            return f"is done; `aipass plan start {plan} --again` runs all phases again"
        case _:
            return f"is {state}; `aipass plan resume {plan}` continues it"
