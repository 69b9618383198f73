"""The event: a recorded fact with its time, place, author and cause."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

#: Every kind of event that aipass itself emits, with its meaning. Plugins add theirs through `register_kinds`.
KINDS: dict[str, str] = {
    "file.created": "a new file appeared; it can still be incomplete",
    "file.changed": "a file that was known before has new content",
    "file.closed": "a file is complete: closed after writing, or renamed into place",
    "file.moved": "a file has a new name; `detail.from` is the old one",
    "file.deleted": "a file is gone",
    "git.commit": "a commit was made, reported once even if several branches have it; `detail` has `sha branch author subject paths amend`",
    "git.merge": "a merge or pull brought commits to a branch; `detail.old` and `detail.sha` are the range",
    "git.checkout": "another branch is checked out; `detail.from` and `detail.branch`",
    "git.push": "a branch was pushed to a remote of this repository; `detail.remote` and `detail.branch`",
    "git.ref": "a ref was moved in another way (rebase, reset, fetch, a new tag); `ref` names it, `detail.reason` says how",
    "pr.opened": "a PR was opened; `ref` is its id, `detail` has `pr agent title sha base branch paths dispatch`",
    "pr.updated": "an agent added changes to an open PR",
    "pr.merged": "a PR was merged; `detail.sha` is the commit that holds it",
    "pr.closed": "a PR was closed without being merged; `detail.reason`",
    "pr.failed": "a PR could not be opened, merged or closed; `detail.reason` says why",
    "state.saved": "an agent saved one of its state files; `ref` is the agent, `detail` has `file added changed removed`",
    "state.rejected": "a state file was invalid, and the last valid version was restored; `detail` has `file line field reason kept`; with `detail.fields` only those fields were restored",
    "message.received": "a message was sent; `ref` is its id, `detail.from` and `detail.to` are the sender and the recipient",
    "question.asked": "an agent or a person was asked a question and must answer; `ref` is the question's id",
    "question.answered": "a question was answered; `detail.by` and `detail.answer`",
    "message.read": "the recipient of a message read it",
    "lease.taken": "the git lease (repository-wide lock) was taken; `detail.holder` and `detail.reason`",
    "lease.released": "the git lease was released",
    "request.flood": "a run exceeded the rate limit for requests; its further requests are refused",
    "request.received": "a request came through the spool (request queue); `detail.verb` names it",
    "request.rejected": "a spool file was invalid and was moved to quarantine; `detail.reason` says why",
    "run.started": "an attempt at a dispatch began; `by` is the run",
    "run.finished": "a run's whole process tree is gone; `detail.outcome` and `detail.state` say how it ended",
    "run.stalled": "a run has produced no output and no write for the time of `stall`; it is not stopped",
    "run.lost": "the supervisor of a run died, so that the run's end was not seen; it is retried as a new run",
    "plan.started": "a plan was started; `ref` is its id",
    "plan.changed": "the file of a running plan was changed; the changes apply to phases that had not begun",
    "plan.finished": "a plan is done, failed or stopped; `detail.state` says which",
    "phase.ready": "everything that a phase waits for is done; `detail.plan` and `detail.phase` name the phase",
    "phase.started": "a phase's run has begun",
    "phase.written": "the run of a phase has finished writing a file that the phase delivers, according to the run's journal",
    "phase.delivered": "all files that a phase delivers are written and stable; `detail.paths` names them",
    "phase.done": "a phase is delivered and its checks passed",
    "phase.failed": "a phase's run ended before the phase was done; `detail.reason` says why",
    "check.finished": "the checks of a phase ended; `detail.exit` is 0 if all passed, `detail.output` names the file with their output",
    "write.denied": "the fence (per-file sandbox) refused a run's write: `detail.owner` and `detail.reason` say why, `detail.count` how often in a row; `detail.habit` is set if the CLI always tries it",
    "write.foreign": "without a fence: a file was changed while runs were live that must not write it; `detail.runs` names these runs, `detail.kept` is a copy of the new content",
    "run.lingering": "an agent ended and left processes behind; `detail.processes` names them",
    "dispatch.finished": "a dispatch (job) reached its final state; emitted once",
    "rule.paused": "a rule fired more often than its `per_hour` and stays paused until `aipass resume`",
    "agent.paused": "dispatches of an agent failed repeatedly for the same reason, which is `detail.reason`",
    "driver.paused": "a rate or usage limit is reached; `ref` is the driver, `detail.until` the time of the next attempt",
    "driver.resumed": "the rate or usage limit of a driver has ended",
    "handler.failed": "a handler raised, returned an object that is not an action, or was slow",
    "handler.disabled": "a handler failed 5 times in a row and is skipped from now on",
    "clock.tick": "a timer that a handler set with `Wake` is due; `ref` is its key",
    "clock.cron": "the time of a rule's `cron` has come; `ref` is the rule's name",
    "config.changed": "aipass.toml changed and was reloaded; `detail.waiting` names the changes that wait for `reload`",
    "config.rejected": "aipass.toml changed and is not valid; the previous configuration stays in force",
    "ledger.locked": "a process of a run held a lock on the ledger and was ended",
    "watch.hidden": "watched files are ignored from now on; `detail.files` is their number, `path` the first; their changes are reported when they are watched again",
    "watch.unused": "a .gitignore is not used because it is too large, not a regular file, or too slow to match; git itself may use it",
    "watch.limited": "the kernel's limit on watches was reached; the rest of the tree is polled",
    "watch.overflow": "the kernel's event queue overflowed; the tree was scanned and compared instead",
    "engine.started": "the engine started",
    "engine.stopped": "the engine was stopped in an orderly way",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """An observation that is not recorded yet. Once the ledger has recorded it, it is an `Event`."""

    kind: str
    source: str
    path: str | None = None
    ref: str | None = None
    by: int | None = None
    cause: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """A recorded fact. Immutable; its `id` is never used for another event.

    `time`: seconds since the epoch. `path`: relative to the root. `by`: the id of the run that caused it, None if the
    author is unknown or a person. `cause`: the id of the event that led to this one.
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
    r"""A path for display and JSON: bytes that are not UTF-8 become `\xff`."""
    if path is None or path.isascii():
        return path
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    # Not a name that Linux gave us: half of a surrogate pair, from the JSON of a request. It must not raise here.
    except UnicodeEncodeError:
        return path.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


_NOT_ASCII = re.compile(r"[^ -~]")


#: Escape sequences for colours. They are removed; escaped, they would fill the lines of an agent's output.
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_ENDS = re.compile(r"\r?\n")


def inert(text: str) -> str:
    """Several lines of foreign text, safe for a terminal: lines and tabs stay, colours go, control characters are escaped."""
    lines = _ENDS.split(_COLOUR.sub("", text))
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in lines)


def plain(text: str) -> str:
    """`text` in one line, with control characters escaped."""
    # An agent chooses names of files and texts of messages. Escape sequences in them could hide or forge lines, or make
    # the terminal of a person send input.
    return text if text.isprintable() else _NOT_ASCII.sub(lambda one: _escaped(one[0]), text)


def one_line(text: str) -> str:
    """`text` in one line, for lists: each run of white space is one space, control characters are escaped."""
    return plain(" ".join(text.split()))


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]
