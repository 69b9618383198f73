"""What a handler asks for. Data, no code: the engine records an action with its event, then carries it out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from aipass.errors import PluginError

# Priorities are small integers; larger runs first. 0 is what everything has that says nothing.
MIN_PRIORITY, MAX_PRIORITY = -100, 100

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
    """Base of everything a handler may return."""

    def payload(self) -> str:
        """The action's fields as JSON text.

        Raises TypeError where a field has another type than it says, or cannot be written as JSON.
        """
        for name, wanted, kind in _fields(type(self)):
            value = getattr(self, name)
            is_right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
            if not is_right and not (value is None and wanted.endswith("| None")):
                raise TypeError(f"{type(self).__name__}.{name} is {value!r}; it must be {wanted}")
        return json.dumps(asdict(self), separators=(",", ":"))


_KNOWN: dict[type, list[tuple[str, str, Any]]] = {}


def _fields(kind: type[Action]) -> list[tuple[str, str, Any]]:
    """A kind of action's fields: name, type in words, and the types that fit. Raises TypeError for one that JSON cannot hold."""
    if kind in _KNOWN:
        return _KNOWN[kind]
    found = []
    for one in fields(kind):
        # Text where the class's module postpones annotations, as ours do; else the type itself.
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
    """Raise PluginError where a kind of action has a field that cannot be recorded."""
    try:
        _fields(kind)
    except TypeError as exc:
        raise PluginError(str(exc)) from None


@dataclass(frozen=True, slots=True)
class Dispatch(Action):
    """One piece of work for one agent.

    A request with the key of one that is queued joins it; with the key of one that is running, the same text joins
    and a different text gathers in one follow-up. The key is `key`, else `subject`, else the text.
    """

    agent: str
    text: str
    subject: str | None = None
    key: str | None = None
    priority: int = 0
    #: Who asked, as the answer names them: a file, `send`, a rule's name.
    sender: str = "send"
    #: First part of the answer's file name.
    stem: str = "send"
    #: A file in the inbox to take into the dispatch's own folder, relative to the root.
    file: str | None = None
    #: The identity that `file` had when it was seen; a file that changed since is left for its own event.
    identity: str | None = None
    #: The spool request that waits for the dispatch's id.
    request: str | None = None
    #: The dispatch of whoever asks that goes on with the answer.
    wake: int | None = None
    #: The dispatch of this agent whose conversation it goes on with.
    reply_to: int | None = None
    #: For how many seconds the run that asks waits for the answer; 0: for ever.
    waits: float | None = None
    #: The phase whose work this is.
    plan: str | None = None
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class Deliver(Action):
    """Write the answer of a finished dispatch to the outbox, once for each sender."""

    dispatch: int


@dataclass(frozen=True, slots=True)
class Reject(Action):
    """Say beside a file why it was not used: writes `<path>.rejected.json`; the file itself stays."""

    path: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Refuse(Action):
    """Answer a spool request with a refusal: the asking command ends with `exit_code` and says `reason`."""

    request: str
    reason: str
    exit_code: int = 3


@dataclass(frozen=True, slots=True)
class Reply(Action):
    """Answer a spool request: the asking command ends with 0 and says `text`."""

    request: str
    text: str


@dataclass(frozen=True, slots=True)
class Cancel(Action):
    """End a dispatch: a queued one at once, a running one by INT, TERM and KILL."""

    dispatch: int
    reason: str = "cancelled"
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Retry(Action):
    """Queue a finished dispatch again, with all its senders."""

    dispatch: int
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Pause(Action):
    """Stop an agent, a rule or a driver from starting anything until it is resumed."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resume(Action):
    """End a pause, and enable a handler again that was disabled for failing."""

    name: str
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Wake(Action):
    """Ask for a `clock.tick` event with `ref` = `key` after `after_s` seconds.

    Asking again for a key that has not come due starts the wait anew, replaces `detail`, and counts: the tick's
    `detail.count` says how often it was asked for. Survives a restart of the engine.
    """

    key: str
    after_s: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notify(Action):
    """Tell a person something that must not be missed; plugins deliver it through `after_notice`.

    `about`: `kind name` of what it is about (`rule review`); the notice is withdrawn when that is resumed.
    """

    text: str
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Reload(Action):
    """Read aipass.toml again. `trusted`: a person said so, and everything in it is taken over."""

    trusted: bool = False
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Advance(Action):
    """Take a phase of a plan, or with `phase` None the plan itself, to another state.

    `handoff`: how a phase is handed over from now on.
    """

    plan: str
    phase: str | None
    state: str
    reason: str | None = None
    handoff: str | None = None


@dataclass(frozen=True, slots=True)
class Written(Action):
    """Note that a phase's run has written a path of what it delivers. A check that runs is of what was there before."""

    plan: str
    phase: str
    path: str


@dataclass(frozen=True, slots=True)
class Check(Action):
    """Run the checks of a phase; what came of it is told as `check.finished`."""

    plan: str
    phase: str


@dataclass(frozen=True, slots=True)
class OpenPr(Action):
    """Make a PR of what an agent owns and changed, or with `draft` a commit on its own branch.

    `paths`: only these, and what lies below them; empty: all. `include`: take paths as they are now, whoever has changed them.
    `dispatch` is the work that it is of; `run` the live run that asks.
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
    """Merge PRs into the branch that is checked out, by `method` (empty: as aipass.toml says), if their checks pass."""

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
    """Take an entry into an agent's state file: a `todo`, a `learning`, an `observation`, or what it is `doing`.

    A text that is too long is cut, and what came of it says so. `run` is the live run that asks. `added`: when an entry of
    elsewhere was made, in seconds; it is taken once, and may be a `session`, which memory alone keeps.
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
    """Take a todo off an agent's list."""

    agent: str
    todo: int
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Forget(Action):
    """Remove something that is remembered, for good. `agent`: who asks, and may forget its own only; None: a person."""

    memory: int
    agent: str | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Message(Action):
    """Say something to an agent, to `all`, or to `human`; a run of theirs that lives finds it at once. It starts nobody.

    `files`: paths that come with it, relative to the root. `run` is the live run that asks.
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
    """Ask `human`, or another agent, which is started for it. The dispatch that asks is blocked until there is an answer.

    `options`: what may be answered, for eyes. `waits`: the live run `run` waits for the answer, for so many seconds, or for
    ever (0).
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
    """Answer a question. A dispatch that is blocked on it alone goes on with the answer."""

    question: int
    text: str
    sender: str
    run: int | None = None
    request: str | None = None
    #: The text is none of the question's options, and is meant as it is.
    other: bool = False


@dataclass(frozen=True, slots=True)
class MarkRead(Action):
    """Whoever `reader` names has seen these messages; those that are for others stay as they are."""

    messages: list[int]
    reader: str
    run: int | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Steer(Action):
    """`verb` a plan: `start`, `pause`, `resume`, `stop` it, or `change`: take over its changed file."""

    verb: str
    plan: str
    request: str | None = None
    #: Start it though it is done already.
    again: bool = False


@dataclass(frozen=True, slots=True)
class Ignore(Action):
    """Nothing is to be done, and why: what `aipass why` answers for an event that started nothing."""

    reason: str
