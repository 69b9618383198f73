"""An observed fact: what happened, when, where, who did it and what caused it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

#: Every kind of event that aipass itself tells, and what it means. Plugins add theirs through `register_kinds`.
KINDS: dict[str, str] = {
    "file.created": "a new file appeared; it may not be complete yet",
    "file.changed": "a file that was known before has new content",
    "file.closed": "a file is complete: closed after writing, or renamed into place",
    "file.moved": "a file has a new name; `detail.from` is the old one",
    "file.deleted": "a file is gone",
    "git.commit": "a commit was made, told once whatever branch it is on; `detail` has `sha branch author subject paths amend`",
    "git.merge": "commits of others came to a branch, by merge or pull; `detail.old` and `detail.sha` are the range",
    "git.checkout": "another branch is checked out; `detail.from` and `detail.branch`",
    "git.push": "a branch was pushed to a remote that is known here; `detail.remote` and `detail.branch`",
    "git.ref": "a ref was moved in another way (rebase, reset, fetch, a new tag); `ref` names it, `detail.reason` says how",
    "pr.opened": "a PR was opened; `ref` is its id, `detail` has `pr agent title sha base branch paths dispatch`",
    "pr.updated": "more was handed in to an open PR",
    "pr.merged": "a PR was merged; `detail.sha` is the commit that holds it",
    "pr.closed": "a PR was closed without being merged; `detail.reason`",
    "pr.failed": "a PR could not be opened, merged or closed; `detail.reason` says why",
    "state.saved": "an agent saved one of its state files; `ref` is the agent, `detail` has `file added changed removed`",
    "state.rejected": "a state file could not be used and the last good one was put back; `detail` has `file line field reason kept`; with `detail.fields` only those were put back",
    "message.received": "somebody was sent a message; `ref` is its id, `detail.from` and `detail.to` say whose",
    "question.asked": "somebody was asked something and must answer; `ref` is the question's id",
    "question.answered": "a question has its answer; `detail.by` and `detail.answer`",
    "message.read": "a message was read by whom it was for",
    "lease.taken": "the repo-wide git lease is held; `detail.holder` and `detail.reason`",
    "lease.released": "the git lease was given back",
    "request.flood": "a run asks for more than is taken from one within a minute; the rest is refused",
    "request.received": "somebody asked for something through the spool: `detail.verb` says what",
    "request.rejected": "a spool file could not be used and was set aside; `detail.reason` says why",
    "run.started": "an attempt at a dispatch began; `by` is the run",
    "run.finished": "a run's whole process tree is gone; `detail.outcome` and `detail.state` say how it ended",
    "run.stalled": "a run has neither written nor said anything for as long as `stall` allows",
    "run.lost": "a run's end was never seen, because its supervisor died; it is retried as a new run",
    "plan.started": "a plan runs; `ref` is its id",
    "plan.changed": "a running plan's file was changed, and what had not begun was taken over",
    "plan.finished": "a plan is done, failed or stopped; `detail.state` says which",
    "phase.ready": "all that a phase waits for is done; `detail.plan` and `detail.phase` name it",
    "phase.started": "a phase's run has begun",
    "phase.written": "a file that a phase delivers is written no more, by its run, as was found in its journal",
    "phase.delivered": "all that a phase delivers is written and has settled; `detail.paths` names it",
    "phase.done": "a phase is delivered and its checks passed",
    "phase.failed": "a phase's run ended without that; `detail.reason` says why",
    "check.finished": "the checks of a phase ended; `detail.exit` is 0 where all passed, `detail.output` says where their words are",
    "write.denied": "the fence refused a run's write: `detail.owner` and `detail.reason` say why, `detail.count` how often in a row; `detail.habit` where the CLI always tries it",
    "write.foreign": "where there is no fence: a file was changed while runs lived of which none may write it; `detail.runs` are those, `detail.kept` is a copy of what came",
    "run.lingering": "an agent ended and left processes behind; `detail.processes` names them",
    "dispatch.finished": "a dispatch reached its final state, told once",
    "rule.paused": "a rule fired more often than its `per_hour` and stays paused until `aipass resume`",
    "agent.paused": "an agent's dispatches failed again and again of the same; `detail.reason` says of what",
    "driver.paused": "a rate or usage limit is reached; `ref` is the driver, `detail.until` when it is tried again",
    "driver.resumed": "a driver's limit is over",
    "handler.failed": "a handler raised, returned something that is no action, or was slow",
    "handler.disabled": "a handler failed 5 times in a row and is skipped from now on",
    "clock.tick": "a timer that a handler asked for with `Wake` came due; `ref` is its key",
    "clock.cron": "the time of a rule's `cron` has come; `ref` is the rule's name",
    "config.changed": "aipass.toml changed and was taken over; `detail.waiting` names what waits for `reload`",
    "config.rejected": "aipass.toml changed and is not valid; the old one stays in force",
    "ledger.locked": "a process of a run had a lock on the ledger and was ended",
    "watch.hidden": "files that were watched are ignored from now on, `detail.files` of them, the first at `path`; changes to them are told once they are watched again",
    "watch.unused": "a .gitignore is not used: it is too large, no plain file, or its patterns take too long; git itself may read it",
    "watch.limited": "the kernel's limit on watches was reached; the rest of the tree is polled",
    "watch.overflow": "the kernel's event queue overflowed; the tree was scanned and compared instead",
    "engine.started": "the engine runs",
    "engine.stopped": "the engine was stopped in good order",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something observed that the ledger does not know yet; recorded, it is an `Event`."""

    kind: str
    source: str
    path: str | None = None
    ref: str | None = None
    by: int | None = None
    cause: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """A recorded fact. Immutable, and known by `id` for good.

    `time` is seconds since the epoch; `path` is relative to the root; `by` is a run's id, or None where nobody
    known did it; `cause` is the id of the event that led to this one.
    """

    id: int
    time: float
    kind: str
    source: str
    path: str | None = None
    ref: str | None = None
    by: int | None = None
    cause: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The event as `aipass events --json` prints it."""
        return {
            "id": self.id,
            "time": iso(self.time),
            "kind": self.kind,
            "path": printable(self.path),
            "ref": self.ref,
            "source": self.source,
            "by": self.by,
            "cause": self.cause,
            "detail": self.detail,
        }


def iso(seconds: float | None) -> str | None:
    """ISO 8601 in UTC with milliseconds and a `Z`; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(path: str | None) -> str | None:
    r"""A path for eyes and JSON: bytes that are not UTF-8 become `\xff`."""
    if path is None or path.isascii():
        return path
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which is no name of a file
        return path.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


_NOT_ASCII = re.compile(r"[^ -~]")


#: Colours; what an agent's program makes bold is not worth showing as signs.
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_ENDS = re.compile(r"\r?\n")


def inert(text: str) -> str:
    """Several lines of somebody's text for a terminal: lines and tabs stay, colours go, all else that a terminal would obey is escaped."""
    lines = _ENDS.split(_COLOUR.sub("", text))
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in lines)


def plain(text: str) -> str:
    """`text` without control characters, which would speak to the terminal instead of to its reader."""
    return text if text.isprintable() else _NOT_ASCII.sub(lambda one: _escaped(one[0]), text)


def one_line(text: str) -> str:
    """`text` in one line, for lists: blanks and line ends are one space each, and nothing speaks to the terminal."""
    return plain(" ".join(text.split()))


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]
