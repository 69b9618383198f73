"""The actions that a handler can return. They are data: the engine records an action with its event, then applies it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from aipass.errors import PluginError

# A dispatch with a larger priority runs first; 0 is the default.
MIN_PRIORITY, MAX_PRIORITY = -100, 100

#: Types of fields that JSON can hold. An action is stored as JSON, so that the next engine can redo it after a crash.
_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "dict": dict,
    "list": list,
}


@dataclass(frozen=True, slots=True)
class Action:
    """Base of every action that a handler can return."""

    def payload(self) -> str:
        """The fields of the action as JSON text.

        Raises TypeError if a value does not have the declared type of its field, or cannot be written as JSON.
        """
        found = {}
        for name, wanted, kind in _fields(type(self)):
            found[name] = value = getattr(self, name)
            # In Python a bool is an int. `dispatch=True` would be recorded as dispatch 1.
            is_right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
            if not is_right and not (value is None and wanted.endswith("| None")):
                raise TypeError(f"{type(self).__name__}.{name} is {value!r}; it must be {wanted}")
        # Not `asdict`: it copies every value deeply first, which was half the time of a request.
        return json.dumps(found, separators=(",", ":"))


#: The fields of each class, kept because every action of every handler is checked.
_KNOWN: dict[type, list[tuple[str, str, Any]]] = {}


def _fields(kind: type[Action]) -> list[tuple[str, str, Any]]:
    """The fields of a class of actions: name, declared type, accepted Python types.

    Raises TypeError for a field whose type JSON cannot hold.
    """
    if kind in _KNOWN:
        return _KNOWN[kind]
    found = []
    for one in fields(kind):
        # A string if the module of the class postpones annotations, as ours do; otherwise the type itself.
        wanted = one.type if isinstance(one.type, str) else getattr(one.type, "__name__", str(one.type))
        fitting = _TYPES.get(wanted.partition("[")[0].partition(" | ")[0])
        if fitting is None:
            raise TypeError(
                f"{kind.__name__}.{one.name} is a {wanted}; an action's fields are {', '.join(_TYPES)}, or one of these and None"
            )
        found.append((one.name, wanted, fitting))
    _KNOWN[kind] = found
    return found


def check_fields(kind: type[Action]) -> None:
    """Raise PluginError if a class of actions has a field that the ledger cannot record."""
    try:
        _fields(kind)
    except TypeError as exc:
        raise PluginError(str(exc)) from None


@dataclass(frozen=True, slots=True)
class Dispatch(Action):
    """Create one dispatch (job) for one agent, or join an existing one (deduplication).

    A request with the key of a queued dispatch joins it. If that dispatch is running, the same text joins it, and
    different texts are collected in one follow-up dispatch. The key is `key`, else `subject`, else the text.
    """

    agent: str
    text: str
    subject: str | None = None
    key: str | None = None
    priority: int = 0
    #: The name of the sender in the answer: a file, `send`, or the name of a rule.
    sender: str = "send"
    #: First part of the answer's file name.
    stem: str = "send"
    #: A file in the inbox to move into the dispatch's own folder, relative to the root.
    file: str | None = None
    #: The identity that `file` had when it was seen. A file that changed since then is left for its own event.
    identity: str | None = None
    #: The spool request that waits for the dispatch's id.
    request: str | None = None
    #: The dispatch of the sender that continues when the answer arrives.
    wake: int | None = None
    #: The dispatch of this agent whose conversation the new one continues.
    reply_to: int | None = None
    #: For how many seconds the run of the sender waits for the answer; 0: without a limit.
    waits: float | None = None
    #: The plan and the phase that this work belongs to.
    plan: str | None = None
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class Deliver(Action):
    """Write the answer of a finished dispatch to the outbox, one file for each sender."""

    dispatch: int


@dataclass(frozen=True, slots=True)
class Reject(Action):
    """Record why a file was not used: writes `<path>.rejected.json` beside it. The file itself stays."""

    path: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Refuse(Action):
    """Answer a spool request with a refusal: the command that waits exits with `exit_code` and prints `reason`."""

    request: str
    reason: str
    exit_code: int = 3


@dataclass(frozen=True, slots=True)
class Reply(Action):
    """Answer a spool request: the command that waits exits with 0 and prints `text`."""

    request: str
    text: str


@dataclass(frozen=True, slots=True)
class Cancel(Action):
    """Cancel a dispatch: a queued one immediately, a running one by the signals INT, TERM and KILL."""

    dispatch: int
    reason: str = "cancelled"
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Retry(Action):
    """Queue a finished dispatch again. All its senders get the new answer."""

    dispatch: int
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Pause(Action):
    """Keep an agent, a rule or a driver from starting work until it is resumed. `kind` is one of these three words."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resume(Action):
    """End a pause, or enable a handler that was disabled after repeated failures."""

    name: str
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Wake(Action):
    """Ask for a `clock.tick` event with `ref` = `key` after `after_s` seconds.

    A second request for a key that is not due yet restarts the wait and replaces `detail`. `detail.count` of the tick is
    the number of requests. The timer survives a restart of the engine.
    """

    key: str
    after_s: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notify(Action):
    """Record a notice (notification) for a person; plugins deliver it through `after_notice`.

    `about`: the subject of the notice as `kind name` (`rule review`). The notice is withdrawn when the subject is resumed.
    """

    text: str
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Reload(Action):
    """Reload aipass.toml. `trusted`: a person asked for it, so that changes which need approval take effect as well."""

    trusted: bool = False
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Advance(Action):
    """Set the state of a phase of a plan, or of the plan itself if `phase` is None.

    `handoff`: how the phase hands its files over from now on.
    """

    plan: str
    phase: str | None
    state: str
    reason: str | None = None
    handoff: str | None = None


@dataclass(frozen=True, slots=True)
class Written(Action):
    """Record that the run of a phase wrote a path that the phase delivers. A check that runs now saw the older content."""

    plan: str
    phase: str
    path: str


@dataclass(frozen=True, slots=True)
class Check(Action):
    """Run the checks of a phase. The event `check.finished` reports the result."""

    plan: str
    phase: str


@dataclass(frozen=True, slots=True)
class OpenPr(Action):
    """Open a PR with the files that an agent owns and changed, or with `draft` a commit on the agent's own branch.

    `paths`: only these files and folders; empty: all. `include`: take these paths as they are now, regardless of who
    changed them. `dispatch`: the work that the PR belongs to. `run`: the live run that asks.
    """

    agent: str
    title: str
    body: str = ""
    dispatch: int | None = None
    run: int | None = None
    plan: str | None = None
    phase: str | None = None
    paths: list[str] = field(default_factory=list)
    include: bool = False
    draft: bool = False
    request: str | None = None


@dataclass(frozen=True, slots=True)
class MergePr(Action):
    """Merge PRs into the branch that is checked out, if their checks pass. `method`: empty for that of aipass.toml."""

    prs: list[int]
    method: str = ""
    request: str | None = None


@dataclass(frozen=True, slots=True)
class ClosePr(Action):
    """Close PRs without merging them."""

    prs: list[int]
    reason: str = ""
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Note(Action):
    """Add an entry to an agent's state file: a `todo`, a `learning`, an `observation`, or what it is `doing`.

    A text that is too long is cut, and the outcome reports that. `run`: the live run that asks. `added`: only for an
    entry that is imported; when it was made, in seconds since the epoch. The same entry is imported once, and can also
    be a `session`, which only memory keeps.
    """

    agent: str
    kind: str
    text: str
    tags: list[str] = field(default_factory=list)
    run: int | None = None
    request: str | None = None
    added: float | None = None


@dataclass(frozen=True, slots=True)
class FinishTodo(Action):
    """Remove a todo from an agent's list."""

    agent: str
    todo: int
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Forget(Action):
    """Delete a memory permanently. `agent`: the agent that asks, which can delete only its own; None: a person asks."""

    memory: int
    agent: str | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Message(Action):
    """Send a message to an agent, to `all`, or to `human`. A live run finds it immediately; no agent is started.

    `files`: attached paths, relative to the root. `run`: the live run that sends it.
    """

    to: str
    text: str
    sender: str
    subject: str | None = None
    files: list[str] = field(default_factory=list)
    reply_to: int | None = None
    run: int | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Ask(Action):
    """Ask `human`, or another agent, which is started for it. The dispatch that asks is blocked until the answer arrives.

    `options`: the answers to choose from, shown to the reader. `waits`: for how many seconds the live run `run` waits for the
    answer; 0: without a limit.
    """

    to: str
    text: str
    sender: str
    options: list[str] = field(default_factory=list)
    waits: float | None = None
    run: int | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Answer(Action):
    """Answer a question. A dispatch that is blocked only by this question continues with the answer."""

    question: int
    text: str
    sender: str
    run: int | None = None
    request: str | None = None
    #: The text is deliberately none of the question's options.
    other: bool = False


@dataclass(frozen=True, slots=True)
class MarkRead(Action):
    """Mark messages as read by `reader`. Messages to other recipients are left unchanged."""

    messages: list[int]
    reader: str
    run: int | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Steer(Action):
    """Control a plan. `verb`: `start`, `pause`, `resume`, `stop`, or `change`, which applies the plan's changed file."""

    verb: str
    plan: str
    request: str | None = None
    #: Start the plan although it is already done.
    again: bool = False


@dataclass(frozen=True, slots=True)
class Ignore(Action):
    """Do nothing, and record the reason: `aipass why` shows it for an event that started no work."""

    reason: str
