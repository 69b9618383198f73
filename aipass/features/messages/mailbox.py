"""The mailbox: messages as rows of the ledger, and as files in the mail folder of a live run."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aipass.event import Fact
from aipass.features.messages import prompt_part as preface
from aipass.features.messages.render import MOST_WAITING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.features.memory.store import StateStore
    from aipass.features.messages.mail_files import MailFiles
    from aipass.ledger import Row

#: Recipients besides the agents, and the sender name of the engine. aipass.toml refuses agents with these names.
ALL, HUMAN, ENGINE = "all", "human", "aipass"


class Asks(NamedTuple):
    """What makes a message a question: the allowed answers, and until when the asking run waits (seconds), if it does."""

    options: Sequence[str]
    waits: float | None


class Mailbox:
    """Messages, their recipients, and whether they were read.

    A message is delivered at least once, in order of ids for each recipient, and is identified by its id.
    """

    def __init__(self, core: Core, files: MailFiles, store: StateStore) -> None:
        self._core, self._ledger, self._files, self._keeper = core, core.ledger, files, store

    @property
    def _config(self) -> Config:
        return self._core.config()

    # -- inside the transaction ------------------------------------------------------------------------------------

    def post(
        self,
        step: Step,
        recipient: str,
        text: str,
        *,
        sender: str = ENGINE,
        subject: str | None = None,
        files: Sequence[str] = (),
        reply_to: int | None = None,
        run: Row | None = None,
        cause: int | None = None,
    ) -> int:
        """Send a message, and notify the person where it is for the person. Returns its id.

        Its file appears in the mail folder of the recipient's live run after the commit.
        """
        about = {"subject": subject, "files": files, "reply_to": reply_to}
        number = self.put(step, recipient, text, sender=sender, run=run, cause=cause, **about)  # type: ignore[arg-type]
        if recipient == HUMAN:
            begin = " ".join((subject or text).split())[:200]
            step.notify(
                self._ledger,
                f"{sender} writes to you (message {number}): {begin}; `aipass messages` shows it",
                cause,
            )
        return number

    def put(
        self,
        step: Step,
        recipient: str,
        text: str,
        *,
        sender: str,
        subject: str | None = None,
        files: Sequence[str] = (),
        reply_to: int | None = None,
        run: Row | None = None,
        cause: int | None = None,
        asks: Asks | None = None,
    ) -> int:
        """Send a message without a notice: for questions, whose caller writes a better one. Returns its id."""
        text, subject = self.clean(text), None if subject is None else self.clean(subject)
        about: dict[str, object] = {
            "sender": sender,
            "recipient": recipient,
            "subject": subject,
            "text": text,
        }
        about |= {"reply_to": reply_to, "files": json.dumps(list(files)), "sent": step.now.wall}
        about |= {
            "dispatch": None if run is None else run["dispatch"],
            "run": None if run is None else run["id"],
        }
        about |= {"asks": int(asks is not None), "waits": None if asks is None else asks.waits}
        about |= {"options": json.dumps([] if asks is None else list(map(self.clean, asks.options)))}
        number = self._ledger.run("insert_message", about)
        # The engine's own messages repeat events, so memory does not need them.
        if sender != ENGINE:
            self._keeper.remember(
                "message", sender, text, step.now.wall, run=run, detail={"to": recipient, "message": number}
            )
        detail = {"from": sender, "to": recipient, "subject": subject, "text": text[:200]}
        by = None if run is None else run["id"]
        step.facts.append(
            Fact("message.received", "mail", ref=str(number), by=by, cause=cause, detail=detail)
        )
        step.effects.append(partial(self._files.file, recipient, number))
        # The oldest MOST_WAITING only: a message that was put beyond a gap would be read out of order.
        if recipient != HUMAN:
            limit = {"recipient": recipient, "limit": MOST_WAITING + 1}
            waiting = self._ledger.one("count_waiting", limit)
            if waiting is not None and waiting["number"] <= MOST_WAITING:
                self._deliver(step, recipient, [number])
        return number

    def clean(self, text: str) -> str:
        """Return a text with everything masked that looks like a secret."""
        return self._keeper.clean(text)

    def _deliver(self, step: Step, recipient: str, numbers: Iterable[int]) -> None:
        """Queue the files of messages for the recipient's live run, if there is one."""
        work = self._ledger.one("work_now", {"agent": recipient})
        for number in numbers if work is not None else ():
            self._ledger.run("message_delivered", {"id": number, "now": step.now.wall})
            step.effects.append(partial(self._files.put, work["run"], number))  # type: ignore[index]

    def enclose(self, run: int, agent: str, dispatch: int) -> None:
        """Record which messages the prompt of a starting run shows: those that fit, and the question that it must answer."""
        unread = self._ledger.all("unread", {"recipient": agent, "limit": MOST_WAITING})
        own = [row for row in unread if row["work"] == dispatch]
        others = [row for row in unread if row["work"] != dispatch]
        # The question is the task of this dispatch, so it has no limit and is not repeated in the messages part.
        for row in (*own, *preface.fitting(others, self._config.memory.in_prompt)):
            self._ledger.run("message_shown", {"id": row["id"], "run": run})

    def opened(self, step: Step, run: int, agent: str) -> None:
        """Mark the messages in the prompt of a started run as read, and deliver the next ones."""
        self.seen(step, agent, [row["id"] for row in self._ledger.all("shown_messages", {"run": run})], run)
        self._top_up(step, agent)

    def unopened(self, run: int) -> None:
        """Mark the messages in a run's prompt as unread again: no model can have read it."""
        self._ledger.run("messages_unread", {"run": run})

    def seen(self, step: Step, recipient: str, numbers: Iterable[int], by: int | None = None) -> int:
        """Mark messages of `recipient` as read; returns how many were unread. Ids of others' messages are ignored.

        `by`: the run that read them. Idempotent.
        """
        news = 0
        numbers = set(numbers)
        if len(numbers) > 1:
            # One statement for any number of ids: a request can name thousands, and the engine's thread runs this.
            numbers &= {row["id"] for row in self._ledger.all("unread_ids", {"recipient": recipient})}
        for number in sorted(numbers):
            about = {"id": number, "recipient": recipient, "now": step.now.wall}
            if self._ledger.run("message_read", about):
                news += 1
                step.facts.append(
                    Fact("message.read", "mail", ref=str(number), by=by, detail={"by": recipient})
                )
        if news and recipient != HUMAN:
            self._top_up(step, recipient)
        return news

    def _top_up(self, step: Step, recipient: str) -> None:
        """Deliver the next messages, up to MOST_WAITING unread ones in the mail folder."""
        most = {"recipient": recipient, "limit": MOST_WAITING}
        self._deliver(
            step,
            recipient,
            [row["id"] for row in self._ledger.all("unread", most) if row["delivered"] is None],
        )

    def recipients(self, named: str, sender: str) -> list[str]:
        """Return the recipients for a name; `all` means all agents but the sender. Empty for an unknown name."""
        if named == ALL:
            return [agent for agent in self._config.agents if agent != sender]
        return [named] if named == HUMAN or named in self._config.agents else []

    # -- effects, after the commit ---------------------------------------------------------------------------------

    def redeliver(self) -> None:
        """Write the files of messages that are recorded as delivered to live runs. Idempotent; for the engine's start."""
        for run in self._ledger.all("live_runs"):
            for row in self._ledger.all("unread", {"recipient": run["agent"], "limit": -1}):
                if row["delivered"] is not None and row["shown"] != run["id"]:
                    self._files.put(run["id"], row["id"])
