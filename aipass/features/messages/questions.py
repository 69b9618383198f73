"""Questions in the ledger: asking, answering, and continuing the dispatches that wait for an answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aipass import action as act
from aipass.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE
from aipass.event import Fact, iso, one_line, plain
from aipass.features.memory.sessions import summary
from aipass.features.messages.deadlock import WaitCycle
from aipass.features.messages.mailbox import HUMAN, Asks
from aipass.features.messages.render import quoted
from aipass.text.units import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from aipass.core.step import Step
    from aipass.event import Event
    from aipass.features.messages.mailbox import Mailbox
    from aipass.ledger import Ledger, Row

#: The sender of the dispatch that continues a blocked one with its answers.
CONTINUES = "aipass answer"
#: An exit code and a message for the asker.
Said = tuple[int, str]


class Questions:
    """The open and answered questions. Every method runs in the engine's thread, inside its transaction.

    `carry` executes an action immediately, in the same transaction.
    """

    def __init__(self, ledger: Ledger, mail: Mailbox) -> None:
        self._ledger, self._mail = ledger, mail

    # -- asking ----------------------------------------------------------------------------------------------------

    def ask(self, step: Step, event: Event, action: act.Ask, carry: Callable[[act.Action], None]) -> Said:
        """Record a question, then notify the person or dispatch the asked agent. Returns the question's id as the message."""
        run = None if action.run is None else self._ledger.one("run", {"id": action.run})
        if action.run is not None and (why := self.endless(step, action, action.run)) is not None:
            return EXIT_REFUSED, why
        until = wait_until(step.now.wall, action.waits)
        number = self._put(step, action.sender, action.to, action.text, action.options, run, event.id, until)
        if action.to == HUMAN:
            self._notify(step, f"{action.sender} asks", number, action.text, event.id)
            return 0, str(number)
        key = f"question {number}"
        words = f"{action.sender} asks you (question {number}):\n\n{quoted(action.text)}\n"
        words += "".join(f"\n> - {plain(option)[:200]}" for option in action.options) + (
            "\n" if action.options else ""
        )
        words += f'\nAnswer it: `aipass answer {number} "…"`. If you end without this command, your final answer counts as the answer.\n'
        carry(act.Dispatch(action.to, words, key, key, sender=action.sender, stem=f"question-{number}"))
        work = self._ledger.one("open_of_key", {"agent": action.to, "key": key})
        if work is None:
            self._close(step, number, "no run could be started for it")
            return (
                EXIT_REFUSED,
                f"{action.to} cannot be started to answer this question; `aipass why` shows the reason",
            )
        self._ledger.run("question_work", {"id": number, "work": work["id"]})
        return 0, str(number)

    def unasked(self, step: Step, run: Row, text: str) -> None:
        """Record the question that a run ended with, and notify the person."""
        number = self._put(step, run["agent"], HUMAN, text, [], run, None)
        self._notify(step, f"dispatch {run['dispatch']} of {run['agent']} waits for you", number, text, None)

    def _put(
        self,
        step: Step,
        sender: str,
        to: str,
        text: str,
        options: list[str],
        run: Row | None,
        cause: int | None,
        waits: float | None = None,
    ) -> int:
        detail = {"from": sender, "to": to, "text": text[:200]}
        asks = Asks(options, waits)
        number = self._mail.put(step, to, text, sender=sender, run=run, cause=cause, asks=asks)
        by = None if run is None else run["id"]
        step.facts.append(Fact("question.asked", "mail", ref=str(number), by=by, cause=cause, detail=detail))
        return number

    def _notify(self, step: Step, who: str, number: int, text: str, cause: int | None) -> None:
        begin = one_line(text)[:200]
        row = self._ledger.one("message", {"id": number})
        assert row is not None
        step.notify(
            self._ledger,
            f'{who}: {begin}; `aipass answer {number} "…"` answers it (question {number})',
            cause,
            f"question {number}",
            agent=row["sender"],
            dispatch=row["dispatch"],
            options=tuple(json.loads(row["options"] or "[]")),
        )

    def endless(self, step: Step, action: act.Ask | act.Dispatch, run: int) -> str | None:
        """Return why a question or a waiting dispatch of a run would deadlock; None where it would not."""
        to = action.to if isinstance(action, act.Ask) else action.agent
        row = self._ledger.one("run", {"id": run})
        if row is None or to == HUMAN or (isinstance(action, act.Dispatch) and action.waits is None):
            return None
        busy = None if action.waits is None else row["agent"]
        if busy == to:
            return f"{to} would wait for itself; send without --wait, and end this run"
        circle = WaitCycle(self._ledger, busy, row["dispatch"], step.now.wall).of(to)
        if not circle:
            return None
        chain = " waits for ".join(circle)
        if busy is None:
            return (
                f"{chain}: {to} cannot answer before you do; `aipass questions` shows its question, and "
                f"`aipass answer` can ask back in the answer"
            )
        return f"{chain}: waiting for {to} would deadlock; ask without --wait, and end this run"

    # -- answering -------------------------------------------------------------------------------------------------

    def answer(
        self, step: Step, event: Event, action: act.Answer, carry: Callable[[act.Action], None]
    ) -> Said:
        """Record an answer, and continue the dispatch that asked if it has no other open question.

        A wrong answerer is refused and reported to the person; an answer to a closed question is refused.
        """
        row = self._ledger.one("message", {"id": action.question})
        if row is None or not row["asks"]:
            return (
                EXIT_FAILED,
                f"there is no question {action.question}; `aipass questions` lists those that are open",
            )
        if action.sender not in {row["recipient"], HUMAN}:
            step.notify(
                self._ledger,
                f"{action.sender} tried to answer question {row['id']}, which is for {row['recipient']}; it was refused",
                event.id,
            )
            return (
                EXIT_REFUSED,
                f"question {row['id']} is for {row['recipient']}: only {row['recipient']} or a person can answer it",
            )
        if row["answered"] is not None:
            when = f"{iso(row['answered'])}: {summary(row['answer'])}"
            return EXIT_REFUSED, f"question {row['id']} was answered already by {row['answerer']}, {when}"
        if row["closed"] is not None:
            return EXIT_REFUSED, f"question {row['id']} needs no answer any more: {row['closed']}"
        if not action.text.strip():
            return EXIT_USAGE, "there is nothing to say; give an answer"
        text = action.text
        options = [] if action.other else json.loads(row["options"] or "[]")
        if options:
            chosen = [one for one in options if one.strip().casefold() == text.strip().casefold()]
            if not chosen:
                named = ", ".join(plain(one)[:100] for one in options)
                return (
                    EXIT_USAGE,
                    f"question {row['id']} takes one of: {named}; `--other` gives another answer",
                )
            text = chosen[0]
        self._take(step, row, text, action.sender, event.id)
        # The dispatch existed only for this answer. If its own agent answered while it runs, it ends by itself.
        if row["work"] is not None and action.sender != row["recipient"]:
            carry(act.Cancel(row["work"], f"question {row['id']} was answered by {action.sender}"))
        elif row["work"] is not None and self._is_queued(row["work"]):
            carry(act.Cancel(row["work"], f"question {row['id']} was answered before this started"))
        return self._go_on(step, row, event.id, carry)

    def _is_queued(self, dispatch: int) -> bool:
        row = self._ledger.one("dispatch", {"id": dispatch})
        return row is not None and row["state"] == "queued"

    def _take(
        self, step: Step, row: Row, text: str, by: str, cause: int | None, *, is_told: bool = False
    ) -> None:
        """Record an answer, and send it to the asker as a message, unless `is_told`: then the asker has it in its prompt."""
        text = self._mail.clean(text)
        self._ledger.run(
            "question_answered", {"id": row["id"], "answer": text, "now": step.now.wall, "by": by}
        )
        step.withdraw(self._ledger, f"question {row['id']}")
        detail = {"from": row["sender"], "to": row["recipient"], "by": by, "answer": text[:200]}
        step.facts.append(Fact("question.answered", "mail", ref=str(row["id"]), cause=cause, detail=detail))
        if not is_told:
            self._mail.post(step, row["sender"], text, sender=by, reply_to=row["id"], cause=cause)

    def _go_on(self, step: Step, row: Row, cause: int, carry: Callable[[act.Action], None]) -> Said:
        """Continue the dispatch that asked, unless it has other open questions. Returns a message about it."""
        said = f"question {row['id']} is answered"
        asks = None if row["dispatch"] is None else self._ledger.one("dispatch", {"id": row["dispatch"]})
        # A running dispatch finds the answer in its mail.
        if asks is None or asks["state"] == "running":
            return 0, said
        if asks["state"] != "blocked":
            return (
                0,
                f"{said}; dispatch {asks['id']}, which asked, is {asks['state']} and does not continue",
            )
        others = self._ledger.all("open_questions", {"dispatch": asks["id"]})
        if others:
            numbers = ", ".join(str(other["id"]) for other in others)
            return 0, f"{said}; dispatch {asks['id']} waits for an answer to {numbers} as well"
        if not self._continue(step, asks, cause, carry):
            return 0, f"{said}; {self._stays(asks)}"
        return 0, f"{said}; dispatch {asks['id']} of {asks['agent']} goes on"

    def _continue(self, step: Step, asks: Row, cause: int, carry: Callable[[act.Action], None]) -> bool:
        """Continue a blocked dispatch with its answers; returns whether it continues. Notifies the person where it does not."""
        told = self._ledger.all("unheard_answers", {"agent": asks["agent"], "dispatch": asks["id"]})
        carry(self._continued(asks))
        after = self._ledger.one("dispatch", {"id": asks["id"]})
        if after is None or after["state"] != "blocked":
            # The prompt has these answers: as unread mail they would be shown twice.
            self._mail.seen(step, asks["agent"], [row["reply"] for row in told])
            return True
        step.notify(self._ledger, self._stays(asks), cause)
        return False

    @staticmethod
    def _stays(asks: Row) -> str:
        number = asks["id"]
        return f"dispatch {number} of {asks['agent']} has its answer and cannot go on now; `aipass why {number}` shows the reason, `aipass retry {number}` tries again"

    def unheard(self, run: Row, read: Collection[int] = ()) -> list[Row]:
        """Return the questions of a dispatch whose answers came while it ran, and that its run has not read.

        `read`: messages that the run reported as read just before it ended.
        """
        about = {"agent": run["agent"], "dispatch": run["dispatch"]}
        return [row for row in self._ledger.all("unheard_answers", about) if row["reply"] not in read]

    def blocked(self, step: Step, event: Event, carry: Callable[[act.Action], None]) -> None:
        """Continue the blocked dispatch of an ended run, if it waits only for answers that are there already."""
        run = self._ledger.one("run", {"id": event.by})
        asks = self._ledger.one("dispatch", {"id": event.detail.get("dispatch")})
        if run is None or asks is None or asks["state"] != "blocked" or self.open_of(asks["id"]):
            return
        if self.unheard(run):
            self._continue(step, asks, event.id, carry)

    def _continued(self, asks: Row) -> act.Dispatch:
        """Return the dispatch that continues a blocked one: its text has all answers to its last run."""
        told = []
        for row in self._ledger.all("answers_for", {"dispatch": asks["id"]}):
            # Only a person gives orders; the words of an agent are quoted.
            text = row["answer"] if row["answerer"] == HUMAN else quoted(row["answer"])
            told.append(
                f"You asked (question {row['id']}): {summary(row['text'])}\n\n{row['answerer']} answers:\n\n{text}\n"
            )
        first = self._ledger.all("senders", {"dispatch": asks["id"]})[0]
        return act.Dispatch(
            asks["agent"], "\n".join(told), sender=CONTINUES, stem=first["stem"], reply_to=asks["id"]
        )

    # -- ends ------------------------------------------------------------------------------------------------------

    def open_of(self, dispatch: int) -> list[Row]:
        """Return the open questions of a dispatch."""
        return self._ledger.all("open_questions", {"dispatch": dispatch})

    def replied(self, step: Step, dispatch: int, action: act.Dispatch, event: Event) -> None:
        """Take a reply to a dispatch as the answer to its questions for the sender; a person answers all of them."""
        if action.sender == CONTINUES:
            return
        for row in self.open_of(dispatch):
            if event.by is None or row["recipient"] == action.sender:
                self._take(step, row, action.text, action.sender, event.id, is_told=True)

    def refuses(self, action: act.Dispatch) -> str | None:
        """Return why an agent's reply must not continue a dispatch: it waits for answers of others. None where it can."""
        if action.reply_to is None or action.sender == CONTINUES:
            return None
        others = [row for row in self.open_of(action.reply_to) if row["recipient"] != action.sender]
        if not others:
            return None
        return f"dispatch {action.reply_to} waits for an answer of {others[0]['recipient']}; use `aipass message` to reach its agent"

    def retried(self, step: Step, dispatch: int) -> None:
        """Close the open questions of a dispatch that was retried."""
        for row in self.open_of(dispatch):
            self._close(step, row["id"], f"dispatch {dispatch} was tried again without an answer")

    def finished(
        self, step: Step, event: Event, said: Callable[[], str], carry: Callable[[act.Action], None]
    ) -> None:
        """Close the questions that an ended dispatch asked, and answer those that it was started for.

        `said` returns its final answer; it is called only where needed, because it reads files.
        """
        dispatch, state = event.detail["dispatch"], event.detail["state"]
        for row in self.open_of(dispatch):
            self._close(step, row["id"], f"dispatch {dispatch}, which asked, is {state}")
        for row in self._ledger.all("questions_of_work", {"work": dispatch}):
            text = said() if state == "succeeded" else ""
            text = (
                text
                or f"{row['recipient']} ended without an answer ({state}: {event.detail['reason'] or 'no reason given'})"
            )
            self._take(step, row, text, row["recipient"], event.id)
            self._go_on(step, row, event.id, carry)

    def _close(self, step: Step, number: int, reason: str) -> None:
        # A notice would ask the person for an answer that is refused now.
        step.withdraw(self._ledger, f"question {number}")
        self._ledger.run("question_closed", {"id": number, "reason": reason, "now": step.now.wall})
