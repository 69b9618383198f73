"""Who owns a path of the repository now: the rules in their order. Pure; the engine and the fence ask the same code.

Paths are relative to the root, with `/`, folders without a closing one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from aipass.supervisor.fence import runs_code as listed
from aipass.supervisor.fence.glob import Globs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Never an agent's, whatever owns what: at the root, and at any depth.
ROOT_NEVER = {
    "aipass.toml": "people write aipass.toml, the engine only reads it",
    "plans": "plans are changed by people and the orchestrator, with `aipass plan`",
    "inbox": "the inbox is for people; ask another agent with `aipass send`",
    "outbox": "answers are written by the engine",
    ".aipass": "this is the engine's own folder",
}
ANYWHERE_NEVER = {
    ".git": "git's own files; hand in what you have changed with `aipass pr open`, commit it with `aipass git commit`",
    "aipass.toml": "a nested root is not an agent's to make or change",
}
STATE, TRINITY = ".aipass", ".trinity"
#: Verdicts that are kept; beyond, all are forgotten at once.
REMEMBERED, LONGEST_REMEMBERED = 20_000, 512


class Kind(Enum):
    """By which rule a path is owned."""

    #: Never an agent's.
    NEVER = "never"
    #: An agent's own state, whatever else is said.
    OWN = "own"
    #: Nobody's: each file is held by the run that writes it.
    SCRATCH = "scratch"
    #: A running phase owns it.
    PHASE = "phase"
    #: A running plan reserves it for a phase that does not run now.
    RESERVED = "reserved"
    #: The `owns` of one agent or several names it.
    AGENTS = "agents"
    #: Nobody's; the run that writes first holds it.
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a path, and by which rule. `agents` is empty where nobody may write it, or anybody."""

    kind: Kind
    why: str
    agents: tuple[str, ...] = ()
    run: int | None = None
    plan: str | None = None
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseOwns:
    """A phase of a running plan. `run` is the run that it is given to; None while it only reserves."""

    plan: str
    id: str
    agent: str
    owns: Globs
    run: int | None = None


@dataclass(frozen=True, slots=True)
class AgentOwns:
    """What an agent has outside of plans. `owns` None: all that nobody else owns."""

    home: str
    owns: Globs | None


@dataclass(frozen=True, slots=True)
class Guard:
    """What others start: a path below the root, or a name at any depth. `why` is a whole clause."""

    name: str
    why: str

    def is_named_by(self, pattern: str) -> bool:
        """Whether a pattern names it literally: itself, or something that lies in it."""
        wanted, there = self.name.split("/"), pattern.lstrip("!").strip("/").split("/")
        width = len(wanted)
        return any(there[at : at + width] == wanted for at in range(len(there) - width + 1))


def runs_code(parts: list[str], folder: bool) -> Guard | None:
    """The name on the way that makes other programs run code, by the list of those names."""
    found = listed.guarded(parts, folder=folder)
    if found is None:
        return None
    why = f"`{found.name}` makes other programs run code ({found.entry.what})"
    return Guard(found.name, f"{why}; it takes an `owns` that names it literally")


#: SQLite's own (https://sqlite.org/tempfiles.html): journal, write-ahead log, its index, the super-journal. They are the database's, and hold what was
#: committed: never temporary.
_OF_DATABASE = re.compile(r"-(?:journal|wal|shm|mj[0-9A-F]{8,9})$")


def _database(path: str) -> str | None:
    """The database that a file belongs to by its name; None where it belongs to none."""
    found = _OF_DATABASE.search(path)
    return path[: found.start()] if found and not path[: found.start()].endswith("/") else None


def _leading(paths: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        above = path.rpartition("/")[0]
        while above and above not in found:
            found[above] = path
            above = above.rpartition("/")[0]
    return found


@dataclass(slots=True)
class Territory:
    """Who owns what, at one moment. `nested` are folders below that are roots of their own."""

    agents: dict[str, AgentOwns] = field(default_factory=dict)
    phases: tuple[PhaseOwns, ...] = ()
    scratch: Globs = field(default_factory=lambda: Globs((), gitignore=True))
    temp: Globs = field(default_factory=lambda: Globs(()))
    nested: tuple[str, ...] = ()
    #: What is started, by path below the root, with the reason: only an `owns` that names it gives it.
    guarded: Mapping[str, str] = field(default_factory=dict)
    #: The folders above what is guarded, with one such: a link there would lead to what is not.
    leading: Mapping[str, str] = field(default_factory=dict)
    #: Absolute folders outside the root that no run may change, whatever else opens them: what aipass and git run from.
    frozen: tuple[str, ...] = ()
    folds_case: bool = False
    _known: dict[tuple[str, bool], Owner] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Territory:
        """From what the engine says; raises KeyError or TypeError where it is something else."""
        fold = str.casefold if message.get("folds_case") else str
        guarded = {fold(path): str(why) for path, why in message.get("guarded", {}).items()}
        globs = {
            name: None if told["owns"] is None else Globs(map(fold, told["owns"]))
            for name, told in message["agents"].items()
        }
        return cls(
            agents={
                name: AgentOwns(str(told["home"]), globs[name]) for name, told in message["agents"].items()
            },
            phases=tuple(
                PhaseOwns(p["plan"], p["id"], p["agent"], Globs(map(fold, p["owns"])), p["run"])
                for p in message.get("phases", ())
            ),
            scratch=Globs(map(fold, message.get("scratch", ())), gitignore=True),
            temp=Globs(map(fold, message.get("temp", ()))),
            nested=tuple(message.get("nested", ())),
            guarded=guarded,
            leading=_leading(guarded),
            frozen=tuple(map(str, message.get("frozen", ()))),
            folds_case=bool(message.get("folds_case")),
        )

    def owner(self, path: str, folder: bool = False) -> Owner:
        """The first rule that names the path."""
        key = path, folder
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._find(path.casefold() if self.folds_case else path, folder)
            if len(path) <= LONGEST_REMEMBERED:
                self._known[key] = found
        return found

    def _find(self, path: str, folder: bool) -> Owner:
        if path in ("", "."):
            return Owner(Kind.NEVER, "the root itself is nobody's")
        parts = path.split("/")
        if (own := self._own_state(parts)) is not None:
            return own
        if (never := self._never(path, parts)) is not None:
            return Owner(Kind.NEVER, never)
        spelled = path + "/" if folder else path
        guarded = self._guard(path, parts, folder)
        if guarded is None and self.scratch.match(spelled):
            return Owner(
                Kind.SCRATCH, "[sandbox] scratch names it; each file is held by the run that writes it"
            )
        if (phase := self._phase(spelled, guarded)) is not None:
            return phase
        named = tuple(
            name
            for name, ground in self.agents.items()
            if ground.owns is not None and _names(ground.owns, spelled, guarded)
        )
        if named:
            return Owner(Kind.AGENTS, f"`owns` of {' and '.join(named)} names it", named)
        if guarded is not None:
            return Owner(Kind.NEVER, guarded.why)
        if (database := _database(path)) is not None:
            owner = self.owner(database)
            if owner.kind in (Kind.AGENTS, Kind.PHASE):
                return replace(owner, why=f"it is part of the database {database}: {owner.why}")
        if self.agents and all(ground.owns is not None for ground in self.agents.values()):
            return Owner(
                Kind.FREE, "nobody's `owns` names it, and every agent has one: none of them may write it"
            )
        return Owner(Kind.FREE, "nobody's `owns` names it; the run that writes it first holds it")

    def _own_state(self, parts: list[str]) -> Owner | None:
        """An agent's home under `.aipass`, and its `.trinity` wherever its home is."""
        # The home itself is not the agent's to move or replace: the wall is built on it.
        if parts[:2] == [STATE, "agents"] and len(parts) > 3:
            ground = self.agents.get(parts[2])
            if ground is not None and ground.home == "/".join(parts[:3]):
                return Owner(Kind.OWN, f"the home of {parts[2]}", (parts[2],))
        if TRINITY in parts:
            at = parts.index(TRINITY)
            home = "/".join(parts[:at])
            for name, ground in self.agents.items():
                if ground.home.strip("/") == home:
                    return Owner(Kind.OWN, f"the state of {name}", (name,))
        return None

    def _never(self, path: str, parts: list[str]) -> str | None:
        if (why := ROOT_NEVER.get(parts[0])) is not None:
            return why
        for part in parts:
            if (why := ANYWHERE_NEVER.get(part)) is not None:
                return why
        if TRINITY in parts:
            return "the state of an agent is its own"
        if any(path == root or path.startswith(root + "/") for root in self.nested):
            return "a nested root is nobody's to write here"
        return None

    def _guard(self, path: str, parts: list[str], folder: bool) -> Guard | None:
        """What makes a path one that only an `owns` that names it literally gives."""
        if self.guarded:
            at = path
            while at:
                if (why := self.guarded.get(at)) is not None:
                    return Guard(at, f"{why}; it takes an `owns` that names `{at}` literally")
                at = at.rpartition("/")[0]
            if not folder and path in self.leading:
                why = f"{self.leading[path]} lies below that name: it may be made a folder, and nothing else"
                return Guard(path, f"{why}; it takes an `owns` that names `{path}` literally")
        return runs_code(parts, folder)

    def _phase(self, spelled: str, guarded: Guard | None) -> Owner | None:
        reserved = None
        for phase in self.phases:
            if not _names(phase.owns, spelled, guarded):
                continue
            if phase.run is not None:
                why = f"phase {phase.id} of plan {phase.plan} owns it"
                return Owner(Kind.PHASE, why, (phase.agent,), phase.run, phase.plan, phase.id)
            reserved = reserved or phase
        if reserved is None:
            return None
        why = f"plan {reserved.plan} reserves it for phase {reserved.id}"
        return Owner(Kind.RESERVED, why, (), None, reserved.plan, reserved.id)

    def may_own_below(self, agent: str, plan: str | None, phase: str | None, folder: str) -> bool:
        """Whether this agent's own patterns, or its phase's, can name something inside the folder."""
        ground = self.agents.get(agent)
        mine = [p.owns for p in self.phases if p.plan == plan and p.id == phase and p.run is not None]
        if ground is not None and ground.owns is not None:
            mine.append(ground.owns)
        return any(owns.may_match_below(folder) for owns in mine)


def _names(owns: Globs, spelled: str, guarded: Guard | None) -> bool:
    rule = owns.decisive(spelled)
    if rule is None or not rule.include:
        return False
    return guarded is None or guarded.is_named_by(rule.text)
