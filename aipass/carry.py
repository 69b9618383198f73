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
from aipass.errors import EXIT_FAILED, EXIT_REFUSED, AipassError
from aipass.event import Fact
from aipass.request import answer
from aipass.step import Done
from aipass.talk.letter import quoted
from aipass.units import count, show_duration

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
    from aipass.talk.mail import Mail
    from aipass.talk.questions import Questions
    from aipass.trinity.keeper import Keeper
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
        keeper: Keeper,
        mail: Mail,
        questions: Questions,
    ) -> None:
        self._ledger, self._dispatcher, self._world = ledger, dispatcher, world
        self._timers, self._fired, self._back, self._reload = timers, fired, back, reload
        self._look_again, self._clock, self._plans = look_again, clock, plans
        self._steering, self._work, self._keeper = steering, work, keeper
        self._mail, self._questions = mail, questions

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
                dispatch = int(row["outcome"].split()[1].rstrip(","))
                return partial(
                    self._take, row["event"], dispatch, act.Dispatch(**payload), row["outcome"], number
                )
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
                self._keeper.remember(
                    "answer", row["agent"], said, step.now.wall, dispatch=row["id"], path=done.answer
                )
        if done.taken is not None:
            # It is not there any more: whatever comes under its name is news, the same file once more included.
            self._known_gone(*done.taken)
        if done.failed and done.request is None:
            step.notify(self._ledger, done.outcome)

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
                    self._questions.retried(step, done.dispatch)
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
                step.notify(self._ledger, action.text, event.id)
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
            case act.Forget():
                code, text = self._keeper.forget(action.memory, action.agent)
                answer(self._ledger, action.request, code, text)
                return text, bool(code), None
            case act.Note() | act.FinishTodo():
                return (*self._note(step, event, action), None)
            case act.Message():
                return (*self._say(step, event, action), None)
            case act.Ask():
                code, text = self._questions.ask(
                    step, event, action, partial(self.carry, step, handler, event)
                )
                answer(self._ledger, action.request, code, text)
                return text, bool(code), None
            case act.Answer():
                code, text = self._questions.answer(
                    step, event, action, partial(self.carry, step, handler, event)
                )
                answer(self._ledger, action.request, code, text)
                return text, bool(code), None
            case act.MarkRead():
                news = self._mail.seen(step, action.reader, action.messages, action.run)
                answer(self._ledger, action.request, 0, f"{count(news, 'message')} read")
                return f"{count(news, 'message')} read by {action.reader}", False, None
            case act.Reload():
                return "to be read", False, lambda number: self._reload(number, action)
        return f"{type(action).__name__} is no action that the engine knows", True, None

    def _dispatch(
        self, step: Step, handler: str, event: Event, action: act.Dispatch
    ) -> tuple[str, bool, Callable[[int], None] | None]:
        if event.by is not None and (why := self._questions.refuses(action)) is not None:
            answer(self._ledger, action.request, EXIT_REFUSED, why)
            return why, True, None
        hops = self._plans.hops_after(event) if action.plan is None else self._plans.hops(action.plan)
        done = self._dispatcher.submit(event, handler, action, step.now, hops)
        answer(self._ledger, action.request, done.exit_code, done.text, done.dispatch)
        if action.reply_to is not None and action.reply_to == done.dispatch and event.by is None:
            self._questions.replied(step, done.dispatch, action.text, action.sender, event.id)
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

    def _note(self, step: Step, event: Event, action: act.Note | act.FinishTodo) -> tuple[str, bool]:
        if isinstance(action, act.FinishTodo):
            text, failed = self._keeper.done(step, action.agent, action.todo)
        else:
            run = None if action.run is None else self._ledger.one("run", {"id": action.run})
            entry = (action.agent, action.kind, action.text, action.tags, run, action.added)
            text, failed = self._keeper.note(step, *entry)
        if event.detail.get("masked"):
            text += f"; what looks like a secret was masked: {', '.join(event.detail['masked'])}"
        answer(self._ledger, action.request, EXIT_REFUSED if failed else 0, text)
        return text, failed

    def blocked(self, step: Step, event: Event) -> None:
        """A run has ended and its dispatch waits for an answer, which may be there already."""
        self._questions.blocked(step, event, partial(self.carry, step, "talk", event))

    def ended(self, step: Step, event: Event) -> None:
        """A dispatch has ended: see to the questions that it asked or was to answer, and to agents that wait for it."""
        dispatch = event.detail["dispatch"]
        carry = partial(self.carry, step, "talk", event)
        self._questions.finished(step, event, partial(self._world.said, dispatch), carry)
        for row in self._ledger.all("senders", {"dispatch": dispatch}):
            asks = None if row["wake"] is None else self._ledger.one("dispatch", {"id": row["wake"]})
            if asks is None or asks["state"] == "cancelled":
                continue
            agent, reason = event.detail["agent"], event.detail["reason"]
            said = quoted(self._world.said(dispatch) or reason or "It said nothing.")
            text = f"What you asked of {agent} (dispatch {dispatch}) is {event.detail['state']}. It says:\n\n{said}\n"
            if self._questions.open_of(asks["id"]):
                # It waits for somebody's answer, and this is none.
                self._mail.post(step, asks["agent"], text, sender=agent, cause=event.id)
                continue
            key = f"woken by {dispatch}"
            carry(
                act.Dispatch(
                    asks["agent"], text, key=key, sender=agent, stem=f"woken-{dispatch}", reply_to=asks["id"]
                )
            )

    def remember(self, step: Step, event: Event) -> None:
        """What happened and may be asked for later: PRs, plans, answers to questions."""
        detail, when = event.detail, step.now.wall
        if event.kind == "pr.opened":
            said = f"PR {detail['pr']}: {detail['title']}\n{' '.join(map(str, detail['paths'][:100]))}"
            self._keeper.remember("pr", detail["agent"], said, when, dispatch=detail["dispatch"])
        elif (
            event.kind == "plan.finished" and (row := self._ledger.one("plan", {"id": event.ref})) is not None
        ):
            phases = "\n".join(
                f"{phase['id']} ({phase['agent']}): {phase['task']}"
                for phase in json.loads(row["body"])["phases"]
            )
            said = f"Plan {row['id']}, {row['title']}: {row['state']}\n{phases}"
            self._keeper.remember("plan", "human", said, when, path=row["file"])
        elif (
            event.kind == "check.finished" and (run := self._ledger.one("run", {"id": event.by})) is not None
        ):
            self._keeper.checked(run["agent"], run["id"])
        elif event.kind == "question.answered" and (
            row := self._ledger.one("message", {"id": int(event.ref or 0)})
        ):
            said = f"{row['text']}\n{row['answerer']} answers: {row['answer']}"
            self._keeper.remember(
                "answer",
                row["answerer"],
                said,
                when,
                dispatch=row["dispatch"],
                detail={"question": row["id"]},
            )

    def _say(self, step: Step, event: Event, action: act.Message) -> tuple[str, bool]:
        if action.reply_to is not None and self._ledger.one("message", {"id": action.reply_to}) is None:
            text = f"there is no message {action.reply_to} to reply to; `aipass messages` lists them"
            answer(self._ledger, action.request, EXIT_FAILED, text)
            return text, True
        run = None if action.run is None else self._ledger.one("run", {"id": action.run})
        said = {
            "sender": action.sender,
            "subject": action.subject,
            "files": action.files,
            "reply_to": action.reply_to,
        }
        numbers = [
            self._mail.post(step, one, action.text, **said, run=run, cause=event.id)  # type: ignore[arg-type]
            for one in self._mail.recipients(action.to, action.sender)
        ]
        text = "nobody is there to be told" if not numbers else " ".join(map(str, numbers))
        answer(self._ledger, action.request, 0 if numbers else EXIT_FAILED, text)
        return f"message {text} to {action.to}", not numbers

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
