"""Carries actions into the ledger, inside the step's transaction, and lines up what they want of the world.

An action with a part in the world is recorded as pending and settled when that part is done; a new engine does again
what is pending.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass import action as act
from aipass.cancel import cancel
from aipass.errors import EXIT_REFUSED, AipassError
from aipass.event import Fact
from aipass.request import answer
from aipass.step import Done
from aipass.units import show_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.clock import Clock
    from aipass.dispatch.dispatcher import Dispatcher
    from aipass.dispatch.rate import Hourly
    from aipass.event import Event
    from aipass.ledger import Ledger, Row
    from aipass.plans import Plans
    from aipass.sources.clock import Timers
    from aipass.steering import Steering
    from aipass.step import Effect, Step
    from aipass.talk.talk import Talk
    from aipass.work import Work
    from aipass.world import World

logger = structlog.get_logger("aipass")

#: Timers in the engine's heap: those that handlers asked for, and answers that could not be written.
WAKE, DELIVER = "wake:", "deliver:"
DELIVER_AGAIN_S = 5.0


class Carrier:
    """Knows every action. `back` takes what came of it in the world; `reload` is the engine's way to read aipass.toml."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        world: World,
        timers: Timers,
        fired: Hourly,
        back: Callable[[Done], None],
        reload: Callable[[int, act.Reload], None],
        look_again: Callable[[Step], None],
        clock: Clock,
        plans: Plans,
        steering: Steering,
        work: Work,
        talk: Talk,
    ) -> None:
        self._ledger, self._dispatcher, self._world = ledger, dispatcher, world
        self._timers, self._fired, self._back, self._reload = timers, fired, back, reload
        self._look_again, self._clock, self._plans = look_again, clock, plans
        self._steering, self._work, self._talk = steering, work, talk

    def carry(self, step: Step, handler: str, event: Event, action: act.Action) -> None:
        """Record an action with its event; what is to be done in the world waits for the commit."""
        outcome, failed, later = self._carry(step, handler, event, action)
        state = "pending" if later else "failed" if failed else "done"
        number = self._ledger.add_action(event.id, handler, action, state, outcome)
        if isinstance(action, act.Check):
            self._plans.start_check(step, action, number)
        elif isinstance(action, act.OpenPr) and later is not None:
            self._plans.start_pr(action, number)
        if later is not None:
            # A run that starts now reads a handed-over file by its path; a prompt stands in the ledger already.
            by_path = isinstance(action, act.Dispatch) and "text" not in event.detail
            (step.before if by_path else step.effects).append(partial(later, number))

    def redo(self, row: Row) -> Effect | None:
        """What a recorded action still wants of the world, after a crash."""
        payload, number = json.loads(row["payload"]), int(row["id"])
        match row["type"]:
            case "Deliver":
                return partial(self._deliver, payload["dispatch"], number)
            case "Reject":
                return partial(self._reject, act.Reject(**payload), number)
            case "Steer":
                return partial(self._steering.read, number, act.Steer(**payload))
            case "OpenPr":
                return partial(self._work.make, row["event"], act.OpenPr(**payload), number)
            case "MergePr":
                return partial(
                    self._work.ask, "merge", row["event"], row["run"], act.MergePr(**payload), number
                )
            case "ClosePr":
                return partial(
                    self._work.ask, "close", row["event"], row["run"], act.ClosePr(**payload), number
                )
            case "Reload":
                return partial(self._reload, number, act.Reload(**payload))
            case "Dispatch":
                wish = act.Dispatch(**payload)
                asked = {"event": row["event"], "sender": wish.sender, "stem": wish.stem}
                if (found := self._ledger.one("dispatch_of_sender", asked)) is None:
                    return None
                return partial(self._take, row["event"], found["dispatch"], wish, row["outcome"], number)
        return None

    def due(self, step: Step, key: str) -> bool:
        """A timer came due; whether it was one of ours."""
        if not key.startswith(DELIVER):
            return False
        number, dispatch = map(int, key.removeprefix(DELIVER).split(":"))
        step.effects.append(partial(self._deliver, dispatch, number))
        return True

    def settle(self, step: Step, done: Done) -> None:
        """Record what came of an action in the world."""
        state = "failed" if done.failed else "done"
        self._ledger.run("settle_action", {"id": done.action, "state": state, "outcome": done.outcome})
        if done.answer is not None:
            self._ledger.run("dispatch_answer", {"id": done.dispatch, "answer": done.answer})
            row, said = (
                self._ledger.one("dispatch", {"id": done.dispatch}),
                self._world.said(done.dispatch or 0),
            )
            if row is not None and said.strip():
                self._talk.keeper.remember(
                    "answer", row["agent"], said, step.now.wall, dispatch=row["id"], path=done.answer
                )
        if done.taken is not None:
            # It is not there any more: whatever comes under its name is news, the same file once more included.
            self._known_gone(*done.taken)
        if done.failed and done.request is None:
            step.notify(self._ledger, done.outcome, about=done.about)

    def _known_gone(self, path: str, identity: str | None) -> None:
        folder, _, name = os.fsencode(path).rpartition(b"/")
        row = self._ledger.one("file", (folder, name))
        if row is not None and f"{row['ino']}:{row['size']}:{row['mtime']}" == identity:
            self._ledger.run("drop_file", (folder, name))

    # -- one by one ------------------------------------------------------------------------------------------------

    def _carry(
        self, step: Step, handler: str, event: Event, action: act.Action
    ) -> tuple[str, bool, Callable[[int], None] | None]:
        """Outcome, whether it failed, and what is to be done in the world with the action's id."""
        match action:
            case act.Ignore():
                return action.reason, False, None
            case act.Dispatch():
                return self._dispatch(step, handler, event, action)
            case act.Deliver():
                return "to be delivered", False, partial(self._deliver, action.dispatch)
            case act.Reject():
                return action.reason, False, partial(self._reject, action)
            case act.Refuse():
                answer(self._ledger, action.request, action.exit_code, action.reason)
                return f"refused: {action.reason}", False, None
            case act.Reply():
                answer(self._ledger, action.request, 0, action.text)
                return action.text, False, None
            case act.Cancel():
                return (*self._cancel(step, event, action), None)
            case act.Retry():
                done = self._dispatcher.retry(action.dispatch)
                if done.dispatch is not None:
                    self._talk.questions.retried(step, done.dispatch)
                answer(self._ledger, action.request, done.exit_code, done.text, done.dispatch)
                return done.text, bool(done.exit_code), None
            case act.Pause():
                return self._pause(step, event, action), False, None
            case act.Resume():
                return (*self._resume(step, action), None)
            case act.Wake():
                return self._wake(step, event, action), False, None
            case act.Check():
                return f"the checks of {action.phase} run", False, None
            case act.Notify():
                step.notify(self._ledger, action.text, event.id, action.about)
                return "a person is told", False, None
            case act.Advance():
                return (*self._plans.advance(step, event, action), None)
            case act.Written():
                return (*self._plans.note(step, action), None)
            case act.Steer():
                return self._steering.steer(action)
            case act.OpenPr():
                return self._work.open(event, action)
            case act.MergePr():
                return self._work.merge(event, action)
            case act.ClosePr():
                return self._work.close(event, action)
            case (
                act.Note()
                | act.FinishTodo()
                | act.Forget()
                | act.Message()
                | act.Ask()
                | act.Answer()
                | act.MarkRead()
            ):
                return (
                    *self._talk.carry(step, event, action, partial(self.carry, step, handler, event)),
                    None,
                )
            case act.Reload():
                return "to be read", False, lambda number: self._reload(number, action)
        return f"{type(action).__name__} is no action that the engine knows", True, None

    def _dispatch(
        self, step: Step, handler: str, event: Event, action: act.Dispatch
    ) -> tuple[str, bool, Callable[[int], None] | None]:
        if event.by is not None and (why := self._talk.questions.refuses(action)) is not None:
            answer(self._ledger, action.request, EXIT_REFUSED, why)
            return why, True, None
        if event.by is not None and (why := self._talk.questions.endless(step, action, event.by)) is not None:
            answer(self._ledger, action.request, EXIT_REFUSED, why)
            return why, True, None
        hops = self._plans.hops_after(event) if action.plan is None else self._plans.hops(action.plan)
        done = self._dispatcher.submit(event, handler, action, step.now, hops)
        answer(self._ledger, action.request, done.exit_code, done.text, done.dispatch)
        if action.reply_to is not None and action.reply_to == done.dispatch:
            self._talk.questions.replied(step, done.dispatch, action, event)
        if done.dispatch is None:
            self._plans.refused(step, event, action, done.text)
            if action.file is not None:
                reject = act.Reject(action.file, done.text, "`aipass why` shows the chain that led here")
                self.carry(step, handler, event, reject)
            return done.text, True, None
        self._fired.add(handler, step.now.mono)
        self._plans.dispatched(action, done.dispatch)
        if action.file is None:
            return done.text, False, None
        return done.text, False, partial(self._take, event.id, done.dispatch, action, done.text)

    def _cancel(self, step: Step, event: Event, action: act.Cancel) -> tuple[str, bool]:
        done = cancel(step, self._dispatcher, self._world, action.dispatch, action.reason, event.id)
        answer(self._ledger, action.request, done.exit_code, done.text, done.dispatch)
        return done.text, bool(done.exit_code)

    def _pause(self, step: Step, event: Event, action: act.Pause) -> str:
        if (
            self._dispatcher.pauses.add(action.kind, action.name, action.reason, step.now)
            and action.kind == "rule"
        ):
            detail = {"reason": action.reason}
            step.facts.append(Fact("rule.paused", "engine", ref=action.name, cause=event.id, detail=detail))
        return f"paused: {action.reason}"

    def _resume(self, step: Step, action: act.Resume) -> tuple[str, bool]:
        if self._dispatcher.pauses.why("handler", action.name) is not None:
            self._look_again(step)
        found = self._dispatcher.resume(action.name)
        for kind in found:
            step.withdraw(self._ledger, f"{kind} {action.name}")
        if "rule" in found:
            # Whoever resumes it has seen how often it fired.
            self._fired.forget(f"rule {action.name}")
            self._ledger.run("set_meta", {"key": f"resumed.rule {action.name}", "value": str(step.now.wall)})
        if "driver" in found:
            step.facts.append(Fact("driver.resumed", "engine", ref=action.name))
        text = (
            f"{action.name} is resumed"
            if found
            else f"nothing named `{action.name}` is paused; `aipass status` shows what is"
        )
        answer(self._ledger, action.request, 0 if found else 1, text)
        return text, not found

    def _wake(self, step: Step, event: Event, action: act.Wake) -> str:
        timer: dict[str, Any] = {
            "key": action.key,
            "asked": step.now.wall,
            "after": action.after_s,
            "event": event.id,
        }
        self._ledger.run("set_timer", timer | {"detail": json.dumps(action.detail)})
        self._timers.set(WAKE + action.key, step.now.mono + action.after_s)
        return f"a timer for {show_duration(action.after_s)}"

    # -- in the world, after the commit ----------------------------------------------------------------------------

    def _deliver(self, dispatch: int, number: int) -> None:
        try:
            answer = self._world.deliver(dispatch)
        except AipassError as exc:
            self._back(Done(number, str(exc), failed=True))
            return
        except OSError as exc:
            # It stays pending: an outbox that is full or read-only may not stay so.
            logger.error("an answer cannot be written yet", dispatch=dispatch, error=str(exc))
            self._timers.set(f"{DELIVER}{number}:{dispatch}", self._clock.now().mono + DELIVER_AGAIN_S)
            return
        self._back(Done(number, f"answered in {answer}", dispatch=dispatch, answer=answer))

    def _reject(self, action: act.Reject, number: int) -> None:
        try:
            self._back(Done(number, self._world.reject(action.path, action.reason, action.remedy)))
        except OSError as exc:
            outcome = f"{action.path}: {action.reason}; the note beside it cannot be written: {exc}"
            self._back(Done(number, outcome, failed=True))

    def _take(self, event: int, dispatch: int, action: act.Dispatch, outcome: str, number: int) -> None:
        assert action.file is not None
        try:
            kept = self._world.take(event, dispatch, action.file, action.identity)
        except OSError as exc:
            self._back(Done(number, f"{outcome}; {action.file} stays where it is: {exc}", failed=True))
            return
        taken = (action.file, action.identity) if kept == "kept" else None
        self._back(Done(number, outcome if kept == "kept" else f"{outcome}; {kept}", taken=taken))
