"""The ownership rules: who owns a path of the repository now. Pure; the engine and the fence use the same code.

Paths are relative to the root, with `/`; folders have no closing `/`.
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

#: Names that no agent can write, regardless of any `owns`: at the root, and at any depth. The values are the reasons in refusals.
ROOT_NEVER = {
    "aipass.toml": "aipass.toml is edited by people; the engine only reads it",
    "plans": "plans are changed by people and the orchestrator, with `aipass plan`",
    "inbox": "the inbox is for people; ask another agent with `aipass send`",
    "outbox": "only the engine writes answers",
    ".aipass": "this is the engine's own folder",
}
ANYWHERE_NEVER = {
    ".git": "git's own files; commit your changes with `aipass git commit`, submit them with `aipass pr open`",
    "aipass.toml": "agents must not create or change a nested aipass root",
}
STATE, TRINITY = ".aipass", ".trinity"
#: Limits of the cache: number of paths (beyond it the cache is cleared), and length of a path.
REMEMBERED, LONGEST_REMEMBERED = 20_000, 512


class Kind(Enum):
    """The rule by which a path is owned."""

    #: No agent can write it.
    NEVER = "never"
    #: An agent's own state, regardless of all other rules.
    OWN = "own"
    #: Scratch space: no owner; the first run that writes a file holds it.
    SCRATCH = "scratch"
    #: A running phase of a plan owns it.
    PHASE = "phase"
    #: A running plan reserves it for a phase that is not running.
    RESERVED = "reserved"
    #: The `owns` of one or more agents matches it.
    AGENTS = "agents"
    #: No owner; the first run that writes it holds it.
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a path, and the rule. `agents` is empty where no agent can write it, or every agent can."""

    kind: Kind
    why: str
    agents: tuple[str, ...] = ()
    run: int | None = None
    plan: str | None = None
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseOwns:
    """A phase of a running plan. `run` is the run that works on it; None while the phase only reserves its paths."""

    plan: str
    id: str
    agent: str
    owns: Globs
    run: int | None = None


@dataclass(frozen=True, slots=True)
class AgentOwns:
    """An agent's home and its `owns` outside of plans. `owns` None: all paths that no other agent owns."""

    home: str
    owns: Globs | None


@dataclass(frozen=True, slots=True)
class Guard:
    """A name whose files other programs run: a path below the root, or a name at any depth. `why` is a whole clause."""

    name: str
    why: str

    def is_named_by(self, pattern: str) -> bool:
        """Whether a pattern contains the name literally: the name itself, or a path inside it."""
        wanted, there = self.name.split("/"), pattern.lstrip("!").strip("/").split("/")
        width = len(wanted)
        return any(there[at : at + width] == wanted for at in range(len(there) - width + 1))


def runs_code(parts: list[str], folder: bool) -> Guard | None:
    """The guard of the first name in a path that makes other programs run code; None where there is none."""
    found = listed.guarded(parts, folder=folder)
    if found is None:
        return None
    why = f"`{found.name}` makes other programs run code ({found.entry.what})"
    return Guard(found.name, f"{why}; only an `owns` that names it literally gives access")


#: SQLite's companion files (https://sqlite.org/tempfiles.html): journal, write-ahead log, its index, super-journal. They contain
#: committed data, so they belong to the owner of the database and are never temporary.
_OF_DATABASE = re.compile(r"-(?:journal|wal|shm|mj[0-9A-F]{8,9})$")


def _database(path: str) -> str | None:
    """The database to which a file belongs by its name; None where there is none."""
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
    """The ownership rules at one moment. `nested` are folders below the root that are aipass roots themselves."""

    agents: dict[str, AgentOwns] = field(default_factory=dict)
    phases: tuple[PhaseOwns, ...] = ()
    scratch: Globs = field(default_factory=lambda: Globs((), gitignore=True))
    temp: Globs = field(default_factory=lambda: Globs(()))
    nested: tuple[str, ...] = ()
    #: Paths below the root that other programs run, with the reason: only an `owns` that names one literally gives access.
    guarded: Mapping[str, str] = field(default_factory=dict)
    #: The parent folders of guarded paths, each with one such path: a link in place of the folder would bypass the guard.
    leading: Mapping[str, str] = field(default_factory=dict)
    #: Absolute folders outside the root that no run can change, regardless of other settings: aipass and git run from there.
    frozen: tuple[str, ...] = ()
    folds_case: bool = False
    _known: dict[tuple[str, bool], Owner] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Territory:
        """Build the rules from a message of the engine. Raises KeyError or TypeError where it is malformed."""
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
        """The owner by the first rule that matches the path. Cached."""
        key = path, folder
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._find(path.casefold() if self.folds_case else path, folder)
            # Agents choose the paths, so the cache must not grow with their length.
            if len(path) <= LONGEST_REMEMBERED:
                self._known[key] = found
        return found

    def _find(self, path: str, folder: bool) -> Owner:
        if path in ("", "."):
            return Owner(Kind.NEVER, "no agent owns the root folder itself")
        parts = path.split("/")
        if (own := self._own_state(parts)) is not None:
            return own
        if (never := self._never(path, parts)) is not None:
            return Owner(Kind.NEVER, never)
        spelled = path + "/" if folder else path
        guarded = self._guard(path, parts, folder)
        if guarded is None and self.scratch.match(spelled):
            return Owner(
                Kind.SCRATCH, "`[sandbox] scratch` matches it; the first run that writes a file holds it"
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
        # No pattern names the guarded path literally, so it must not be free for the first writer.
        if guarded is not None:
            return Owner(Kind.NEVER, guarded.why)
        if (database := _database(path)) is not None:
            owner = self.owner(database)
            if owner.kind in (Kind.AGENTS, Kind.PHASE):
                return replace(owner, why=f"it is part of the database {database}: {owner.why}")
        if self.agents and all(ground.owns is not None for ground in self.agents.values()):
            return Owner(
                Kind.FREE,
                "no agent's `owns` matches it, and every agent has an `owns`: no agent can write it",
            )
        return Owner(
            Kind.FREE, "no agent's `owns` matches it; the first run that writes it holds it (write lock)"
        )

    def whole(self, folder: str) -> Owner | None:
        """The owner of every plain name directly in `folder`; None where it depends on the name. No false owner.

        A plain name is none of `named_in(folder)`, and none that has a meaning in any folder (`fast.SpecialNames`).
        """
        parts = folder.split("/")
        if (
            self.folds_case
            or folder in ("", ".")
            or TRINITY in parts
            or self._never(folder, parts) is not None
        ):
            return None
        if self._guard(folder, parts, True) is not None:
            return None
        reserved = False
        for phase in self.phases:
            if not phase.owns.may_match_below(folder):
                continue
            if not phase.owns.is_whole(folder):
                return None
            if phase.run is not None:
                if self.scratch.may_match_below(folder):
                    return None  # a file of scratch is held, one of a phase is not
                why = f"phase {phase.id} of plan {phase.plan} owns it"
                return Owner(Kind.PHASE, why, (phase.agent,), phase.run, phase.plan, phase.id)
            reserved = True
        if reserved:
            return None
        named = []
        for name, ground in self.agents.items():
            if ground.owns is None or not ground.owns.may_match_below(folder):
                continue
            if not ground.owns.is_whole(folder):
                return None
            named.append(name)
        if named:
            return Owner(Kind.AGENTS, f"`owns` of {' and '.join(named)} names it", tuple(named))
        return Owner(
            Kind.FREE, "no agent's `owns` matches it; the first run that writes it holds it (write lock)"
        )

    def named_in(self, folder: str) -> list[str]:
        """The names directly in `folder` that have an owner of their own: nested roots, programs, and the folders above them."""
        return [
            path.rpartition("/")[2]
            for path in (*self.guarded, *self.leading, *self.nested)
            if path.rpartition("/")[0] == folder
        ]

    def _own_state(self, parts: list[str]) -> Owner | None:
        """The owner of a path in an agent's home under `.aipass`, or in its `.trinity`; None for other paths."""
        # Not the home itself: the agent must not move or replace the folder on which its wall is built.
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
            return "only the agent itself writes its `.trinity`"
        if any(path == root or path.startswith(root + "/") for root in self.nested):
            return "it is inside a nested aipass root, which agents of this root must not write"
        return None

    def _guard(self, path: str, parts: list[str], folder: bool) -> Guard | None:
        """The guard of a path that only an `owns` with its literal name gives; None for other paths."""
        if self.guarded:
            at = path
            while at:
                if (why := self.guarded.get(at)) is not None:
                    return Guard(at, f"{why}; only an `owns` that names `{at}` literally gives access")
                at = at.rpartition("/")[0]
            if not folder and path in self.leading:
                why = f"{self.leading[path]} is below that name: it may be made a folder, and nothing else"
                return Guard(path, f"{why}; only an `owns` that names `{path}` literally gives access")
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
        """Whether the agent's own patterns, or those of its running phase, can match a path inside the folder."""
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
