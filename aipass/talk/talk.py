"""What agents know and say, as the engine deals with it: state and memory, messages, questions, each in its own place.

Everything here happens inside the engine's transaction.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass import action as act
from aipass.errors import EXIT_FAILED, EXIT_REFUSED
from aipass.request import MAX_SAID, answer
from aipass.talk.letter import quoted
from aipass.talk.mail import Mail
from aipass.talk.postbox import MailOpened
from aipass.talk.questions import Questions
from aipass.trinity.keeper import Keeper
from aipass.trinity.shelf import StateRejected, StateSaved
from aipass.units import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.dispatch.dispatcher import Dispatcher
    from aipass.event import Event, Fact
    from aipass.ledger import Ledger
    from aipass.step import Step
    from aipass.trinity.learner import Learner
    from aipass.trinity.shelf import Shelf
    from aipass.world import World

    Carry = Callable[[act.Action], None]
    Mask = Callable[[str], tuple[str, list[str]]]

#: Requests whose words others will read; what a person sends is the person's matter.
SAYING, SENDING = frozenset(("note", "message", "ask", "answer")), "send"
#: A note never fails for its length; what a file has no room for is cut anyway.
LONGEST_NOTE = MAX_SAID // 2
#: What is carried out here.
Said = act.Note | act.FinishTodo | act.Forget | act.Message | act.Ask | act.Answer | act.MarkRead
#: What the threads that watch state files and mail tell.
Seen = StateSaved | StateRejected | MailOpened


class Talk:
    """The three of them, and what goes through more than one."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        world: World,
        mask: Mask,
        shelf: Shelf | None,
        learner: Learner | None,
    ) -> None:
        self._ledger, self._world, self._mask = ledger, world, mask
        self.keeper = Keeper(ledger, dispatcher, shelf, mask, learner, world.unmail)
        self.mail = Mail(ledger, dispatcher, world, self.keeper)
        self.questions = Questions(ledger, dispatcher, self.mail)

    # -- what is asked for -----------------------------------------------------------------------------------------

    def carry(self, step: Step, event: Event, action: Said, carry: Carry) -> tuple[str, bool]:
        """Carry an action out and answer its request; the outcome in words, and whether it failed."""
        match action:
            case act.Note() | act.FinishTodo():
                code, text = self._note(step, event, action)
            case act.Forget():
                code, text = self.keeper.forget(step, action.memory, action.agent)
            case act.Message():
                code, text = self._say(step, event, action)
            case act.Ask():
                code, text = self.questions.ask(step, event, action, carry)
            case act.Answer():
                code, text = self.questions.answer(step, event, action, carry)
            case act.MarkRead():
                news = self.mail.seen(step, action.reader, action.messages, action.run)
                code, text = 0, f"{count(news, 'message')} read"
        answer(self._ledger, action.request, code, text)
        return text, bool(code)

    def _note(self, step: Step, event: Event, action: act.Note | act.FinishTodo) -> tuple[int, str]:
        if isinstance(action, act.FinishTodo):
            text, failed = self.keeper.done(step, action.agent, action.todo)
        else:
            run = None if action.run is None else self._ledger.one("run", {"id": action.run})
            entry = (action.agent, action.kind, action.text, action.tags, run, action.added)
            text, failed = self.keeper.note(step, *entry)
        if event.detail.get("masked"):
            text += f"; what looks like a secret was masked: {', '.join(event.detail['masked'])}"
        return 0 if not failed else EXIT_FAILED if isinstance(action, act.FinishTodo) else EXIT_REFUSED, text

    def _say(self, step: Step, event: Event, action: act.Message) -> tuple[int, str]:
        if action.reply_to is not None and self._ledger.one("message", {"id": action.reply_to}) is None:
            return (
                EXIT_FAILED,
                f"there is no message {action.reply_to} to reply to; `aipass messages` lists them",
            )
        run = None if action.run is None else self._ledger.one("run", {"id": action.run})
        said: dict[str, Any] = {
            "sender": action.sender,
            "subject": action.subject,
            "files": action.files,
            "reply_to": action.reply_to,
        }
        numbers = [
            self.mail.post(step, one, action.text, **said, run=run, cause=event.id)
            for one in self.mail.recipients(action.to, action.sender)
        ]
        if not numbers:
            return EXIT_FAILED, "nobody is there to be told"
        return 0, " ".join(map(str, numbers))

    def without_secrets(self, step: Step, fact: Fact) -> Fact:
        """What is said to others, without what looks like a secret: not even the log has that. Who says it is told."""
        verb = fact.detail.get("verb")
        if verb not in SAYING and (verb != SENDING or fact.by is None):
            return fact
        if verb == "note" and isinstance(fact.detail.get("text"), str):
            fact = replace(fact, detail=fact.detail | {"text": fact.detail["text"][:LONGEST_NOTE]})
        length = sum(len(str(value)) for value in fact.detail.values())
        if length > MAX_SAID:
            # Whoever asked is refused; nobody reads it.
            cut = {name: value if name in {"verb", "spool"} else None for name, value in fact.detail.items()}
            kept = {name: value for name, value in cut.items() if value is not None}
            return replace(fact, detail={**kept, "too_long": length})
        kinds: set[str] = set()

        def clean(value: object) -> object:
            if isinstance(value, list):
                return [clean(one) for one in value]
            if not isinstance(value, str):
                return value
            text, found = self._mask(value)
            kinds.update(found)
            return text

        detail = {name: value if name == "spool" else clean(value) for name, value in fact.detail.items()}
        if not kinds:
            return fact
        run = None if fact.by is None else self._ledger.one("run", {"id": fact.by})
        if run is not None:
            told = f"What looks like a secret was masked in what you said: {', '.join(sorted(kinds))}."
            self.mail.post(step, run["agent"], told)
        return replace(fact, detail={**detail, "masked": sorted(kinds)})

    # -- what is seen ----------------------------------------------------------------------------------------------

    def take(self, step: Step, item: Seen) -> None:
        """Something that an agent has done with its files."""
        match item:
            case StateSaved():
                for text in self.keeper.take(step, item):
                    self.mail.post(step, item.agent, text)
            case StateRejected():
                self.mail.post(step, item.agent, self.keeper.rejected(step, item))
            case MailOpened():
                run = self._ledger.one("run", {"id": item.run})
                if run is not None:
                    self.mail.seen(step, run["agent"], [item.message], item.run)

    # -- what happens ----------------------------------------------------------------------------------------------

    def happened(self, step: Step, event: Event, carry: Carry) -> None:
        """Remember what may be asked for later, and let go on what waited for this."""
        self._remember(step, event)
        if event.kind == "dispatch.finished":
            self._ended(step, event, carry)
        elif event.kind == "run.finished" and event.detail.get("state") == "blocked":
            self.questions.blocked(step, event, carry)

    def _ended(self, step: Step, event: Event, carry: Carry) -> None:
        """A dispatch has ended: see to the questions that it asked or was to answer, and to agents that wait for it."""
        dispatch = event.detail["dispatch"]
        self.questions.finished(step, event, partial(self._said, dispatch), carry)
        for row in self._ledger.all("senders", {"dispatch": dispatch}):
            asks = None if row["wake"] is None else self._ledger.one("dispatch", {"id": row["wake"]})
            if asks is None or asks["state"] == "cancelled":
                continue
            agent, reason = event.detail["agent"], event.detail["reason"]
            said = quoted(self._said(dispatch) or reason or "It said nothing.")
            text = f"What you asked of {agent} (dispatch {dispatch}) is {event.detail['state']}. It says:\n\n{said}\n"
            if self.questions.open_of(asks["id"]):
                # It waits for somebody's answer, and this is none.
                self.mail.post(step, asks["agent"], text, sender=agent, cause=event.id)
                continue
            about = {"key": f"woken by {dispatch}", "sender": agent, "stem": f"woken-{dispatch}"}
            carry(act.Dispatch(asks["agent"], text, **about, reply_to=asks["id"]))

    def _said(self, dispatch: int) -> str:
        """What a dispatch's last run said at its end, as others may hear it."""
        return self._mask(self._world.said(dispatch))[0]

    def _remember(self, step: Step, event: Event) -> None:
        """PRs, plans, answers to questions, and what checks came to."""
        detail, when = event.detail, step.now.wall
        match event.kind:
            case "pr.opened":
                said = f"PR {detail['pr']}: {detail['title']}\n{' '.join(map(str, detail['paths'][:100]))}"
                self.keeper.remember("pr", detail["agent"], said, when, dispatch=detail["dispatch"])
            case "plan.finished":
                if (row := self._ledger.one("plan", {"id": event.ref})) is not None:
                    phases = [
                        f"{one['id']} ({one['agent']}): {one['task']}"
                        for one in json.loads(row["body"])["phases"]
                    ]
                    said = "\n".join([f"Plan {row['id']}, {row['title']}: {row['state']}", *phases])
                    self.keeper.remember("plan", "human", said, when, path=row["file"])
            case "check.finished":
                if (run := self._ledger.one("run", {"id": event.by})) is not None:
                    self.keeper.checked(run["agent"], run["id"])
            case "question.answered":
                if (row := self._ledger.one("message", {"id": int(event.ref or 0)})) is not None:
                    said = f"{row['text']}\n{row['answerer']} answers: {row['answer']}"
                    about = {"dispatch": row["dispatch"], "detail": {"question": row["id"]}}
                    self.keeper.remember("answer", row["answerer"], said, when, **about)
