"""The messages feature: messages and questions between agents and people, and dispatches that wait for an answer."""

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

#: Limits for reading the spool of an ended run: the engine's thread reads it, and an agent can fill it.
AT_LAST_FILES, AT_LAST_BYTES = 1000, 20_000_000
#: Outcomes after which it is not known whether a model has read the prompt: its messages are shown again.
UNSEEN = frozenset(("start-failed", "lost", "limit", "overload", "afresh"))
#: The handler name of actions that this feature executes by itself, as `aipass why` shows it.
HANDLER = "messages"


class MessagesFeature(RunHook, DispatchHook):
    """The feature. Others use `mail` to send messages and `questions` to see what waits."""

    name = "messages"
    verbs = VERBS

    def setup(self, core: Core) -> None:
        """Add actions, verbs, listeners, hooks, the prompt part and the mail source.

        Needs memory, secrets and dispatch. Gives memory and secrets their way to send messages to agents.
        """
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
        # A kill between commit and effect leaves a message that is recorded as delivered, and no file.
        core.add_start(start=lambda step: step.effects.append(self.mail.redeliver))
        if self._receipts is not None:
            core.add_source(self._receipts)

        core.add_status("messages", partial(status.gather, core.layout), status.show)
        core.add_prune(partial(core.remover.prune, core.layout.mail, depth=2))

    # -- actions ---------------------------------------------------------------------------------------------------

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
            return EXIT_FAILED, "no agent receives this message; aipass.toml must configure one first"
        return 0, " ".join(map(str, numbers))

    # -- runs ------------------------------------------------------------------------------------------------------

    def before_start(self, step: Step, run: Row) -> None:
        """Choose the messages that the run's prompt shows."""
        del step
        self.mail.enclose(run["id"], run["agent"], run["dispatch"])

    def begins(self, run: int) -> None:
        """Watch the run's mail folder before the run can open a file in it: an earlier open would not be seen."""
        if self._receipts is not None:
            self._receipts.watch(run)

    def furnish(self, run: Row, folder: Path) -> Mapping[str, str]:
        """Write the unread messages that are not in the prompt to the run's mail folder. Returns the variable that names the folder."""
        (folder / MAIL).mkdir(exist_ok=True, mode=0o700)
        for row in self._ledger.all("unread", {"recipient": run["agent"], "limit": MOST_WAITING}):
            # The prompt has the others: as files they would be handed to the model a second time.
            if row["shown"] != run["id"]:
                self._files.put(run["id"], row["id"])
        return {"AIPASS_MAIL": str(folder / MAIL)}

    def started(self, step: Step, run: Row) -> None:
        """Mark the messages in the run's prompt as read: its program has started."""
        self.mail.opened(step, run["id"], run["agent"])

    def judge(self, step: Step, run: Row, outcome: Outcome) -> Outcome:
        """Turn `succeeded` into `blocked` while the dispatch has an open question, or an answer that its run has not read."""
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
        """Put the question that a CLI ended with to the person, and stop watching the run's mail."""
        # The verdict of the driver was `blocked`: no `aipass ask` recorded this question.
        if end.state == "blocked" and end.verdict.state == "blocked":
            self.questions.unasked(step, end.run, end.reason or "it does not say why it cannot go on")
        if self._receipts is not None:
            step.effects.append(partial(self._receipts.watch, end.run["id"], lives=False))

    def _opened(self, step: Step, report: MailOpened) -> None:
        run = self._ledger.one("run", {"id": report.run})
        if run is not None:
            self.mail.seen(step, run["agent"], [report.message], report.run)

    def _read_at_last(self, run: int) -> set[int]:
        """Return the messages that unprocessed `read` requests of an ended run name; within AT_LAST_FILES and AT_LAST_BYTES."""
        # Race: the run ended before the engine took these requests. Without them an answer that was read would start it again.
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
                        continue  # the request source reports what is wrong with it
        except OSError:
            pass  # the folder is gone, or the agent replaced it
        return found

    # -- dispatches ------------------------------------------------------------------------------------------------

    def refuses(self, step: Step, event: Event, wish: Dispatch) -> str | None:
        """Return why an agent's dispatch is refused: its reply would replace the answers of others, or it would deadlock."""
        # A person waits for no run, and can answer for everyone.
        if event.by is None:
            return None
        why = self.questions.refuses(wish)
        return why if why is not None else self.questions.endless(step, wish, event.by)

    def submitted(self, step: Step, event: Event, wish: Dispatch, dispatch: int) -> None:
        """Take a reply to a blocked dispatch as the answer to its open questions."""
        if wish.reply_to is not None and wish.reply_to == dispatch:
            self.questions.replied(step, dispatch, wish, event)

    def retried(self, step: Step, dispatch: int) -> None:
        """Close the open questions of a dispatch that was retried."""
        self.questions.retried(step, dispatch)

    # -- events ----------------------------------------------------------------------------------------------------

    def _blocked(self, step: Step, event: Event) -> None:
        """Continue a blocked dispatch whose answers all came while its run was ending."""
        if event.detail.get("state") == "blocked":
            carry = partial(self._core.execute, step, event, handler=HANDLER)
            self.questions.blocked(step, event, carry)

    def _finished(self, step: Step, event: Event) -> None:
        """Settle the questions of an ended dispatch, and wake the agents that sent it with `--wake`."""
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
                # A reply would count as the answer to its open question, so it gets a message.
                self.mail.post(step, asks["agent"], text, sender=agent, cause=event.id)
                continue
            about = {"key": f"woken by {dispatch}", "sender": agent, "stem": f"woken-{dispatch}"}
            carry(Dispatch(asks["agent"], text, **about, reply_to=asks["id"]))

    def _said(self, dispatch: int) -> str:
        """Return the answer of a dispatch's last run with its secrets masked."""
        return self._mask(results.said(self._core.layout, self._ledger, dispatch))[0]

    def _remember(self, step: Step, event: Event) -> None:
        """Store an answered question in memory."""
        if (row := self._ledger.one("message", {"id": int(event.ref or 0)})) is not None:
            said = f"{row['text']}\n{row['answerer']} answers: {row['answer']}"
            about = {"dispatch": row["dispatch"], "detail": {"question": row["id"]}}
            self._memory.store.remember("answer", row["answerer"], said, step.now.wall, **about)
