"""The engine's side of plans: what the ledger knows of them, and what their actions change. Decisions are in `plan/progress.py`."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass import ground
from aipass.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE, ConfigError
from aipass.event import Fact
from aipass.plan import check, model
from aipass.plan.progress import PhaseView, PlanView
from aipass.step import Done, PlanRead
from aipass.supervisor.fence.glob import Globs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aipass import action as act
    from aipass.authors import Authors
    from aipass.config import Config
    from aipass.dispatch.dispatcher import Dispatcher
    from aipass.dispatch.driver import Driver
    from aipass.event import Event
    from aipass.ledger import Ledger, Row
    from aipass.step import Step
    from aipass.world import World

FINAL = frozenset(("done", "failed", "stopped"))
#: Checks have numbers of their own among a supervisor's runs.
CHECKS = 1 << 50
SOURCE = "plans"


class Plans:
    """Plans and phases in the ledger; the territory that follows from them."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        world: World,
        drivers: Mapping[str, Driver],
        authors: Authors,
        back: Callable[[object], None],
        answer: Callable[..., None],
    ) -> None:
        self._ledger, self._dispatcher, self._world = ledger, dispatcher, world
        self._drivers, self._authors, self._back, self._answer = drivers, authors, back, answer
        self._parsed: dict[str, tuple[str, model.Plan]] = {}
        #: Whether any plan is open; None: to be asked. Every event asks, and most days there is none.
        self._any: bool | None = None

    # -- reading ---------------------------------------------------------------------------------------------------

    def views(self) -> list[PlanView]:
        """Every plan that runs or is paused."""
        if self._any is False:
            return []
        rows = self._ledger.all("open_plans")
        self._any = bool(rows)
        if not rows:
            return []
        config = self._dispatcher.config
        fenced = ground.active(config).fence
        return [
            PlanView(self._plan(row), row["state"], tuple(self._phases(row, config)), fenced) for row in rows
        ]

    def forget(self) -> None:
        """Ask the ledger again: a plan has begun or ended, or a transaction failed."""
        self._any = None

    def _plan(self, row: Row) -> model.Plan:
        known = self._parsed.get(row["id"])
        if known is None or known[0] != row["body"]:
            known = self._parsed[row["id"]] = row["body"], model.parse(row["body"], row["file"])
        return known[1]

    def _phases(self, row: Row, config: Config) -> list[PhaseView]:
        plan = self._plan(row)
        found = []
        rows = self._ledger.all("phases_of", {"plan": row["id"]})
        own = {phase["run"] for phase in rows if phase["run"] is not None}
        for phase in rows:
            spec = plan.phase(phase["id"])
            settings = config.agents.get(spec.agent)
            driver = self._drivers.get(settings.driver) if settings is not None else None
            held = self._held(spec, own) if phase["state"] == "waiting" else None
            found.append(
                PhaseView(
                    spec,
                    phase["state"],
                    spec.handoff or str(getattr(driver, "handoff", "exit")),
                    phase["dispatch"],
                    phase["run"],
                    phase["dispatch_state"] in {"succeeded", "failed", "cancelled"},
                    phase["last_run"],
                    tuple(json.loads(phase["written"])),
                    phase["checking"] is not None,
                    held,
                )
            )
        return found

    def _held(self, spec: model.Phase, own: set[int]) -> str | None:
        """Who outside the plan holds a path that the phase will own."""
        owns = Globs(spec.owns)
        for path, run in self._authors.held():
            if run not in own and owns.match(path):
                row = self._ledger.one("run", {"id": run})
                return f"run {run} of {row['agent'] if row else '?'} holds {path} until it ends"
        return None

    def awaits(self) -> bool:
        """Whether a phase runs whose deliverables may be where nobody watches."""
        return any(phase.state in {"running", "delivered"} for plan in self.views() for phase in plan.phases)

    def wants(self, run: int, path: str) -> bool:
        """Whether a path is one that the phase of this run delivers."""
        return any(
            phase.last_run == run and phase.state in {"running", "delivered"} and phase.delivers(path)
            for plan in self.views()
            for phase in plan.phases
        )

    # -- carrying out, inside the transaction ----------------------------------------------------------------------

    def advance(self, step: Step, event: Event, action: act.Advance) -> tuple[str, bool]:
        """Another state of a phase or a plan, and the facts that follow."""
        row = self._ledger.one("plan", {"id": action.plan})
        if row is None:
            return f"there is no plan {action.plan}", True
        if action.phase is None:
            return self._advance_plan(step, event, row, action), False
        phase = self._ledger.one("phase", {"plan": action.plan, "id": action.phase})
        if phase is None:
            return f"plan {action.plan} has no phase {action.phase}", True
        if action.path is not None:
            written = json.loads(phase["written"])
            if action.path not in written:
                about = {
                    "plan": action.plan,
                    "id": action.phase,
                    "written": json.dumps([*written, action.path]),
                }
                self._ledger.run("phase_written", about)
            return f"{action.phase} has written {action.path}", False
        if phase["state"] == action.state:
            return f"{action.phase} is {action.state} already", False
        self._ledger.run(
            "phase_state",
            {"plan": action.plan, "id": action.phase, "state": action.state}
            | {"reason": action.reason, "now": step.now.wall},
        )
        kind = "phase.started" if action.state == "running" else f"phase.{action.state}"
        detail = {
            "plan": action.plan,
            "phase": action.phase,
            "agent": phase["agent"],
            "dispatch": phase["dispatch"],
        }
        if action.state == "delivered":
            detail["paths"] = json.loads(phase["written"])
        if action.reason:
            detail["reason"] = action.reason
        if action.state != "stopped":
            step.facts.append(
                Fact(
                    kind,
                    SOURCE,
                    ref=f"{action.plan}/{action.phase}",
                    by=event.by,
                    cause=event.id,
                    detail=detail,
                )
            )
        step.changes_territory = True
        return f"phase {action.phase} is {action.state}", False

    def _advance_plan(self, step: Step, event: Event, row: Row, action: act.Advance) -> str:
        if row["state"] == action.state:
            return f"plan {action.plan} is {action.state} already"
        about = {"id": action.plan, "state": action.state, "reason": action.reason, "now": step.now.wall}
        self._ledger.run("plan_state", about)
        self.forget()
        if action.state in FINAL:
            detail = {
                "plan": action.plan,
                "title": row["title"],
                "state": action.state,
                "reason": action.reason,
            }
            step.facts.append(Fact("plan.finished", SOURCE, ref=action.plan, cause=event.id, detail=detail))
            if action.state == "failed":
                step.notify(
                    self._ledger, f"plan {action.plan} ({row['title']}) failed: {action.reason}", event.id
                )
        step.changes_territory = True
        return f"plan {action.plan} is {action.state}"

    def dispatched(self, action: act.Dispatch, dispatch: int) -> None:
        """A dispatch is the work of a phase."""
        about = {"plan": action.plan, "phase": action.phase, "dispatch": dispatch}
        self._ledger.run("dispatch_phase", about)
        self._ledger.run("phase_dispatch", {"plan": action.plan, "id": action.phase, "dispatch": dispatch})

    def is_done(self, dispatch: int) -> bool:
        """Whether a dispatch's phase is done: its run is not tried again."""
        row = self._ledger.one("phase_of_dispatch", {"dispatch": dispatch})
        return row is not None and row["state"] == "done"

    def start_check(self, step: Step, action: act.Check, number: int) -> None:
        """A check begins; what it says comes back as a report."""
        self._ledger.run("phase_checking", {"plan": action.plan, "id": action.phase, "checking": number})
        row = self._ledger.one("plan", {"id": action.plan})
        assert row is not None
        spec = self._plan(row).phase(action.phase)
        step.effects.append(
            partial(
                self._world.start_check, CHECKS + number, number, action.plan, spec, self._dispatcher.config
            )
        )

    def check_ended(self, step: Step, message: dict[str, Any]) -> None:
        """A check's end, as a fact."""
        number = message["run"] - CHECKS
        for row in self._ledger.all("open_plans"):
            for phase in self._ledger.all("phases_of", {"plan": row["id"]}):
                if phase["checking"] != number:
                    continue
                self._ledger.run("phase_checking", {"plan": row["id"], "id": phase["id"], "checking": None})
                detail = {
                    "plan": row["id"],
                    "phase": phase["id"],
                    "exit": message.get("exit"),
                    "outcome": message["outcome"],
                }
                detail |= {"output": f".aipass/checks/{number}/stdout.log", "reason": message.get("reason")}
                step.facts.append(
                    Fact("check.finished", SOURCE, ref=f"{row['id']}/{phase['id']}", detail=detail)
                )

    # -- starting and steering -------------------------------------------------------------------------------------

    def steer(
        self, step: Step, event: Event, action: act.Steer
    ) -> tuple[str, bool, Callable[[int], None] | None]:
        """What a person or the orchestrator wants of a plan. A start reads the plan's file, after the commit."""
        row = self._ledger.one("plan", {"id": action.plan})
        state = row["state"] if row is not None else None
        if action.verb == "start":
            if state in {"running", "paused"}:
                return self._refuse(action, f"plan {action.plan} is {state} already", EXIT_REFUSED)
            return "to be read", False, lambda number: self.read(number, action)
        if action.verb == "change" and state in {"running", "paused"}:
            return "to be read", False, lambda number: self.read(number, action)
        if row is None:
            return self._refuse(
                action,
                f"plan {action.plan} has not been started; `aipass plan start {action.plan}`",
                EXIT_FAILED,
            )
        fitting = {
            "pause": {"running"},
            "resume": {"paused", "failed", "stopped"},
            "stop": {"running", "paused"},
        }
        if state not in fitting.get(action.verb, ()):
            return self._refuse(action, f"plan {action.plan} is {state}", EXIT_FAILED)
        return self._steer(step, event, row, action), False, None

    def _refuse(self, action: act.Steer, text: str, code: int) -> tuple[str, bool, None]:
        self._answer(action.request, code, text)
        return text, True, None

    def _steer(self, step: Step, event: Event, row: Row, action: act.Steer) -> str:
        now = step.now.wall
        state = {"pause": "paused", "resume": "running", "stop": "stopped"}[action.verb]
        self._ledger.run("plan_state", {"id": row["id"], "state": state, "reason": None, "now": now})
        self.forget()
        for phase in self._ledger.all("phases_of", {"plan": row["id"]}):
            about = {"plan": row["id"], "id": phase["id"], "reason": None, "now": now}
            if action.verb == "resume" and phase["state"] in {"failed", "stopped"}:
                self._ledger.run("phase_state", {**about, "state": "waiting"})
            if action.verb == "stop" and phase["state"] not in {"done", "failed"}:
                self._ledger.run("phase_state", {**about, "state": "stopped"})
                if phase["dispatch"] is not None and phase["dispatch_state"] in {"queued", "running"}:
                    _, run = self._dispatcher.cancel(
                        phase["dispatch"], f"plan {row['id']} was stopped", step.now
                    )
                    if run is not None:
                        step.effects.append(
                            partial(self._world.stop, run, "cancelled", f"plan {row['id']} was stopped")
                        )
        kind = {"resume": "plan.started", "stop": "plan.finished"}.get(action.verb)
        if kind:
            detail = {"plan": row["id"], "title": row["title"], "state": state}
            step.facts.append(Fact(kind, SOURCE, ref=row["id"], cause=event.id, detail=detail))
        step.changes_territory = True
        text = f"plan {row['id']} is {state}"
        self._answer(action.request, 0, text)
        return text

    def read(self, number: int, action: act.Steer) -> None:
        """Read a plan's file; whether it starts is recorded in the next step."""
        try:
            path = model.find(self._world.layout.plans, action.plan)
            text = path.read_text("utf-8-sig")
            plan = model.load(path)
            file, change = f"plans/{path.name}", action.verb == "change"
            self._back(PlanRead(number, action.request, action.plan, file, text, plan, change=change))
        except (ConfigError, OSError, ValueError) as exc:
            change = action.verb == "change"
            self._back(PlanRead(number, action.request, action.plan, error=str(exc), change=change))

    def begin(self, step: Step, read: PlanRead, settle: Callable[[Step, Done], None]) -> None:
        """A plan that was read starts, if nothing keeps it from that."""
        code, text = self._change(step, read) if read.change else self._begin(step, read)
        settle(step, Done(read.action, text, failed=bool(code)))
        self._answer(read.request, code, text)

    def _change(self, step: Step, read: PlanRead) -> tuple[int, str]:
        """Take over what has not begun; a change of anything else is refused, and a person is told."""
        row = self._ledger.one("plan", {"id": read.id})
        if row is None or row["state"] not in {"running", "paused"}:
            return 0, f"plan {read.id} does not run any more"
        if read.plan is not None and read.text == row["body"]:
            return 0, f"plan {read.id} is as it was"
        reason = self._unfit(row, read)
        if reason is not None or read.plan is None:
            return (
                EXIT_REFUSED,
                f"the change of plan {read.id} is not taken over, it goes on as it was: {reason}",
            )
        states = {phase["id"]: phase for phase in self._ledger.all("phases_of", {"plan": read.id})}
        self._ledger.run("plan_body", {"id": read.id, "title": read.plan.title, "body": read.text})
        for name in states.keys() - {phase.id for phase in read.plan.phases}:
            self._ledger.run("drop_phase", {"plan": read.id, "id": name})
        for place, phase in enumerate(read.plan.phases):
            about = {"plan": read.id, "id": phase.id, "place": place, "agent": phase.agent}
            self._ledger.run("phase_place" if phase.id in states else "insert_phase", about)
        step.facts.append(
            Fact(
                "plan.changed",
                SOURCE,
                path=read.file,
                ref=read.id,
                detail={"plan": read.id, "phases": len(read.plan.phases)},
            )
        )
        step.changes_territory = True
        return 0, f"the change of plan {read.id} is taken over"

    def _unfit(self, row: Row, read: PlanRead) -> str | None:
        """Why a changed plan cannot be taken over."""
        if read.plan is None:
            return str(read.error)
        if read.plan.id != read.id:
            return f"its id is {read.plan.id} now"
        old = self._plan(row)
        new = {phase.id: phase for phase in read.plan.phases}
        for phase in self._ledger.all("phases_of", {"plan": read.id}):
            if phase["state"] != "waiting" and new.get(phase["id"]) != old.phase(phase["id"]):
                return f"phase {phase['id']} is {phase['state']} already"
        wrong = check.problems(read.plan, list(self._dispatcher.config.agents))
        others = [self._plan(other) for other in self._ledger.all("open_plans") if other["id"] != read.id]
        wrong += check.between(read.plan, others)
        return "; ".join(problem.message for problem in wrong) or None

    def _begin(self, step: Step, read: PlanRead) -> tuple[int, str]:
        if read.plan is None:
            return EXIT_USAGE, str(read.error)
        plan = read.plan
        wrong = check.problems(plan, list(self._dispatcher.config.agents))
        if wrong:
            told = "; ".join(
                f"{problem.kind}: {' and '.join(problem.phases)}: {problem.message}" for problem in wrong
            )
            return EXIT_FAILED, f"plan {plan.id} cannot start: {told}"
        running = [self._plan(row) for row in self._ledger.all("open_plans")]
        if any(other.id == plan.id for other in running):
            return EXIT_REFUSED, f"plan {plan.id} runs already"
        if clash := check.between(plan, running):
            return EXIT_REFUSED, f"plan {plan.id} cannot start: " + "; ".join(
                problem.message for problem in clash
            )
        self._ledger.run("drop_phases", {"id": plan.id})
        self._ledger.run("drop_plan", {"id": plan.id})
        body = {
            "id": plan.id,
            "title": plan.title,
            "file": read.file,
            "body": read.text,
            "now": step.now.wall,
        }
        self._ledger.run("insert_plan", body)
        self.forget()
        for place, phase in enumerate(plan.phases):
            about = {"plan": plan.id, "id": phase.id, "place": place, "agent": phase.agent}
            self._ledger.run("insert_phase", about)
        detail = {"plan": plan.id, "title": plan.title, "phases": len(plan.phases)}
        step.facts.append(Fact("plan.started", SOURCE, path=read.file, ref=plan.id, detail=detail))
        step.changes_territory = True
        return 0, f"plan {plan.id} runs: {len(plan.phases)} phases"
