"""Messages and questions: what agents and people say to each other, and what waits for an answer."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from aipass.action import Answer, Ask, Dispatch, MarkRead, Message
from aipass.core.requests import MAX_REQUEST_BYTES, answer
from aipass.core.run_hook import RunHook
from aipass.core.step import Applied
from aipass.errors import EXIT_FAILED
from aipass.features.dispatch import results
from aipass.features.dispatch.feature import DispatchFeature
from aipass.features.dispatch.hook import DispatchHook
from aipass.features.memory.feature import MemoryFeature
from aipass.features.messages import status
from aipass.features.messages.mail_files import MailFiles
from aipass.features.messages.mailbox import Mailbox
from aipass.features.messages.prompt_part import prompt
from aipass.features.messages.questions import Questions
from aipass.features.messages.read_receipts import MAIL, MailOpened, ReadReceipts
from aipass.features.messages.render import MOST_WAITING, quoted
from aipass.features.messages.requests import VERBS
from aipass.features.secrets.feature import SecretsFeature
from aipass.supervisor import held
from aipass.text.secret import Secrets
from aipass.text.units import count

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aipass.core.registry import Core
    from aipass.core.run_hook import RunEnd
    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.features.dispatch.driver import Outcome
    from aipass.ledger import Row

#: At a run's end so many of its requests, and so many bytes of them, are looked through at once.
AT_LAST_FILES, AT_LAST_BYTES = 1000, 20_000_000
#: And ends after which nobody can say that a model has read its prompt.
UNSEEN = frozenset(("start-failed", "lost", "limit", "overload", "afresh"))
#: Who asks for what follows from an answer.
HANDLER = "messages"


class MessagesFeature(RunHook, DispatchHook):
    """The feature."""

    name = "messages"
    verbs = VERBS

    def setup(self, core: Core) -> None:
        """All of it."""
        self._core, self._ledger, self._mask = core, core.ledger, core.need(Secrets).mask
        memory = self._memory = core.need(MemoryFeature)
        self._files = MailFiles(core.layout, core.ledger)
        self._receipts = ReadReceipts(core.layout) if core.works else None
        self.mail = Mailbox(core, self._files, memory.store)
        self.questions = Questions(core.ledger, self.mail)
        memory.tell = core.need(SecretsFeature).tell = self.mail.post
        memory.store.forgets_message = self._files.remove
        core.add_action(Message, self._say)
        core.add_action(Ask, self._ask)
        core.add_action(Answer, self._take_answer)
        core.add_action(MarkRead, self._mark_read)
        for verb in self.verbs:
            core.add_verb(verb)
        core.add_report(MailOpened, self._opened)
        core.add_listener(("dispatch.finished",), self._finished)
        core.add_listener(("run.finished",), self._blocked)
        core.add_listener(("question.answered",), self._remember)
        core.add_run_hook(self)
        core.add_prompt_part(20, partial(prompt, core))
        core.need(DispatchFeature).add_hook(self)
        core.add_start(start=lambda step: step.effects.append(self.mail.redeliver))
        if self._receipts is not None:
            core.add_source(self._receipts)

        # -- what is asked for -----------------------------------------------------------------------------------------
        core.add_status("messages", partial(status.gather, core.layout), status.show)

    def _say(self, step: Step, event: Event, action: Message) -> Applied:
        code, text = self._sent(step, event, action)
        return self._answered(action.request, code, text)

    def _ask(self, step: Step, event: Event, action: Ask) -> Applied:
        carry = partial(self._core.execute, step, event)
        return self._answered(action.request, *self.questions.ask(step, event, action, carry))

    def _take_answer(self, step: Step, event: Event, action: Answer) -> Applied:
        carry = partial(self._core.execute, step, event)
        return self._answered(action.request, *self.questions.answer(step, event, action, carry))

    def _mark_read(self, step: Step, event: Event, action: MarkRead) -> Applied:
        del event
        news = self.mail.seen(step, action.reader, action.messages, action.run)
        return self._answered(action.request, 0, f"{count(news, 'message')} read")

    def _answered(self, request: str | None, code: int, text: str) -> Applied:
        answer(self._ledger, request, code, text)
        return Applied(text, bool(code))

    def _sent(self, step: Step, event: Event, action: Message) -> tuple[int, str]:
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

    # -- runs ------------------------------------------------------------------------------------------------------

    def before_start(self, step: Step, run: Row) -> None:
        """What its prompt has room for goes with it."""
        del step
        self.mail.enclose(run["id"], run["agent"], run["dispatch"])

    def begins(self, run: int) -> None:
        """Its mail is watched before anybody can look into it."""
        if self._receipts is not None:
            self._receipts.watch(run)

    def furnish(self, run: Row, folder: Path) -> Mapping[str, str]:
        """The rest of what is unread lies in its mail."""
        (folder / MAIL).mkdir(exist_ok=True, mode=0o700)
        for row in self._ledger.all("unread", {"recipient": run["agent"], "limit": MOST_WAITING}):
            if row["shown"] != run["id"]:
                self._files.put(run["id"], row["id"])
        return {"AIPASS_MAIL": str(folder / MAIL)}

    def started(self, step: Step, run: Row) -> None:
        """It has what its prompt holds."""
        self.mail.opened(step, run["id"], run["agent"])

    def judge(self, step: Step, run: Row, outcome: Outcome) -> Outcome:
        """Work that waits for an answer is not done, whatever its run says."""
        del step
        if outcome.state in UNSEEN or outcome.fault is not None:
            self.mail.unopened(run["id"])
        asked = self.questions.open_of(run["dispatch"])
        unheard = [] if asked else self.questions.unheard(run, self._read_at_last(run["id"]))
        if outcome.state != "succeeded" or not (asked or unheard):
            return outcome
        numbers = ", ".join(str(one["id"]) for one in asked or unheard)
        reason = f"it waits for an answer to question {numbers}"
        if unheard:
            reason = f"it goes on with the answer to question {numbers}, which came while it worked"
        return replace(outcome, state="blocked", reason=reason)

    def ended(self, step: Step, end: RunEnd) -> None:
        """What a CLI ends with may be a question of its own, which nobody has heard."""
        if end.state == "blocked" and end.verdict.state == "blocked":
            self.questions.unasked(step, end.run, end.reason or "it does not say why it cannot go on")
        if self._receipts is not None:
            step.effects.append(partial(self._receipts.watch, end.run["id"], lives=False))

    def _opened(self, step: Step, report: MailOpened) -> None:
        run = self._ledger.one("run", {"id": report.run})
        if run is not None:
            self.mail.seen(step, run["agent"], [report.message], report.run)

    def _read_at_last(self, run: int) -> set[int]:
        """Messages that a run says to have read, in requests that lie in its spool folder still; of so many that somebody waits."""
        found: set[int] = set()
        left = AT_LAST_BYTES
        try:
            with held.folder(self._core.layout.run_spool(run)) as folder:
                names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))[:AT_LAST_FILES]
                for name in names:
                    try:
                        data = held.read_in(folder, name, min(left, MAX_REQUEST_BYTES))
                        left -= len(data)
                        asked = json.loads(data)
                        if asked["verb"] == "read":
                            found.update(one for one in asked["ids"] if isinstance(one, int))
                    except (OSError, ValueError, TypeError, KeyError, RecursionError):
                        continue  # whoever takes the requests says what is wrong with it
        except OSError:
            pass  # it is gone, or the agent has put something else in its place
        return found

    # -- dispatches ------------------------------------------------------------------------------------------------

    def refuses(self, step: Step, event: Event, wish: Dispatch) -> str | None:
        """An agent's, where what it goes on with waits for others, or where all would wait for one another."""
        if event.by is None:
            return None
        why = self.questions.refuses(wish)
        return why if why is not None else self.questions.endless(step, wish, event.by)

    def submitted(self, step: Step, event: Event, wish: Dispatch, dispatch: int) -> None:
        """A reply may be the answer that something waits for."""
        if wish.reply_to is not None and wish.reply_to == dispatch:
            self.questions.replied(step, dispatch, wish, event)

    def retried(self, step: Step, dispatch: int) -> None:
        """It goes on without an answer."""
        self.questions.retried(step, dispatch)

    # -- what happens ----------------------------------------------------------------------------------------------

    def _blocked(self, step: Step, event: Event) -> None:
        """A run has ended, and its work waits: where for nothing that is still to come, it goes on."""
        if event.detail.get("state") == "blocked":
            carry = partial(self._core.execute, step, event, handler=HANDLER)
            self.questions.blocked(step, event, carry)

    def _finished(self, step: Step, event: Event) -> None:
        """A dispatch has ended: see to the questions that it asked or was to answer, and to agents that wait for it."""
        dispatch = event.detail["dispatch"]
        carry = partial(self._core.execute, step, event, handler=HANDLER)
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
            carry(Dispatch(asks["agent"], text, **about, reply_to=asks["id"]))

    def _said(self, dispatch: int) -> str:
        """What a dispatch's last run said at its end, as others may hear it."""
        return self._mask(results.said(self._core.layout, self._ledger, dispatch))[0]

    def _remember(self, step: Step, event: Event) -> None:
        """Answers to questions."""
        if (row := self._ledger.one("message", {"id": int(event.ref or 0)})) is not None:
            said = f"{row['text']}\n{row['answerer']} answers: {row['answer']}"
            about = {"dispatch": row["dispatch"], "detail": {"question": row["id"]}}
            self._memory.store.remember("answer", row["answerer"], said, step.now.wall, **about)
