"""May this run do this to these paths? One pure function, and the grant that it reads. Nothing here looks at a disk.

What it finds comes back as data: which paths the run holds from now on, which become its temporary files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from aipass.supervisor.fence import runs_code
from aipass.supervisor.fence.glob import Globs
from aipass.supervisor.fence.territory import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aipass.supervisor.fence.territory import Owner, Territory


class Operation(Enum):
    """What is done to a path."""

    #: The content of something that is there.
    WRITE = "write"
    #: Its mode, owner, times, attributes.
    MARK = "change"
    #: Something new, no folder.
    CREATE = "create"
    #: Something that is there goes away, no folder.
    REMOVE = "remove"
    #: A new folder.
    MAKE_FOLDER = "make a folder"
    #: An empty folder goes away.
    REMOVE_FOLDER = "remove a folder"
    #: Mode, owner, times, attributes of a folder.
    MARK_FOLDER = "change a folder"


class Hold(NamedTuple):
    """A run that wrote a path first. `since` in seconds of the wall clock."""

    run: int
    agent: str
    since: float


@dataclass(slots=True)
class Grant:
    """What one run may write: who it is, and what is known of the ground it stands on.

    `holds` is shared by all runs; `temps` and `made` are this run's temporary files and the folders it made;
    `withdrawn` are patterns of phases that were handed over.
    """

    run: int
    agent: str
    territory: Territory
    holds: Mapping[str, Hold]
    plan: str | None = None
    phase: str | None = None
    withdrawn: list[Globs] = field(default_factory=list)
    temps: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    #: What it may write beyond, where it is nobody's: build output, for checks.
    extra: Globs = field(default_factory=lambda: Globs(()))


@dataclass(frozen=True, slots=True)
class Allowed:
    """It may. `hold` and `temps`: paths that are the run's from now on; `folders` it then made."""

    hold: tuple[str, ...] = ()
    temps: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """It may not: which path, why, and whose it is."""

    path: str
    reason: str
    owner: str | None = None
    since: float | None = None


Verdict = Allowed | Refused
_YES = Allowed()
#: What editors and tools put before and behind the name of a file that they save.
PREFIXES, SUFFIXES = ("", ".", "#", ".#", ".~", "~", "~$", "._"), ".~#_-"
#: A name that a program made up: `tmp` or `temp` in it, a digit, or capitals in the middle, at the end of a name without an ending of its own.
_MADE_UP = re.compile(
    r"[._#~]*[A-Za-z0-9_-]{6,48}(?:\.te?mp)?|\.goutputstream-[A-Z0-9]{6}|\.subl[0-9a-f]+\.tmp", re.ASCII
)
_BY_WHAT = re.compile(r"te?mp|[0-9]|[a-z][A-Z]", re.ASCII)


def decide(grant: Grant, operation: Operation, paths: Sequence[str]) -> Verdict:
    """The verdict on one operation on paths relative to the root: all of them must be allowed. Never raises."""
    hold: list[str] = []
    temps: list[str] = []
    folders: list[str] = []
    for path in paths:
        verdict = _one(grant, operation, path or ".")
        if isinstance(verdict, Refused):
            return verdict
        hold += verdict.hold
        temps += verdict.temps
        folders += verdict.folders
    return Allowed(tuple(hold), tuple(temps), tuple(folders))


def _one(grant: Grant, operation: Operation, path: str) -> Verdict:
    folder = operation in {Operation.MAKE_FOLDER, Operation.REMOVE_FOLDER, Operation.MARK_FOLDER}
    owner = grant.territory.owner(path, folder)
    spelled = path + "/" if folder else path
    back = owner.kind is Kind.PHASE and owner.run == grant.run
    if not back and any(globs.match(spelled) for globs in grant.withdrawn):
        return Refused(path, "it was handed over when your phase was delivered", _told(owner))
    if path in grant.temps and owner.kind in _LOOSE:
        return _held(grant, path, folder)
    verdict = _by_owner(grant, owner, path, folder)
    if isinstance(verdict, Allowed):
        return verdict
    if folder:
        return _on_the_way(grant, operation, owner, path) or verdict
    if operation is Operation.CREATE and owner.kind in _LOOSE and is_temporary(grant, path):
        held = _held(grant, path, folder)
        return held if isinstance(held, Refused) else Allowed(hold=(path,), temps=(path,))
    return verdict


#: Ground on which a temporary file, or a folder on the way to an owned file, may stand: no one else's.
_LOOSE = frozenset((Kind.FREE, Kind.RESERVED, Kind.SCRATCH))


def _by_owner(grant: Grant, owner: Owner, path: str, folder: bool) -> Verdict:
    match owner.kind:
        case Kind.NEVER:
            return Refused(path, owner.why)
        case Kind.OWN:
            return _YES if grant.agent in owner.agents else Refused(path, owner.why, owner.agents[0])
        case Kind.PHASE:
            return _YES if owner.run == grant.run else Refused(path, owner.why, owner.agents[0])
        case Kind.RESERVED:
            # Who held it before the plan began goes on holding it; the phase waits for that.
            hold = grant.holds.get(path)
            return _YES if hold is not None and hold.run == grant.run else Refused(path, owner.why)
        case Kind.SCRATCH:
            return _held(grant, path, folder)
        case Kind.AGENTS:
            if grant.agent not in owner.agents:
                return Refused(path, owner.why, " and ".join(owner.agents))
            return _held(grant, path, folder)
        case Kind.FREE:
            if grant.extra and grant.extra.match(path + "/" if folder else path):
                return _held(grant, path, folder)
            ground = grant.territory.agents.get(grant.agent)
            if grant.phase is not None:
                return Refused(
                    path, f"it belongs to no phase; phase {grant.phase} of plan {grant.plan} is yours"
                )
            if ground is None or ground.owns is not None:
                return Refused(path, f"the `owns` of {grant.agent} does not name it")
            return _held(grant, path, folder)


def _held(grant: Grant, path: str, folder: bool) -> Verdict:
    if folder:
        return _YES
    hold = grant.holds.get(path)
    if hold is None:
        return Allowed(hold=(path,))
    if hold.run == grant.run:
        return _YES
    return Refused(
        path, f"run {hold.run} of {hold.agent} holds it, having written it first", hold.agent, hold.since
    )


def _on_the_way(grant: Grant, operation: Operation, owner: Owner, path: str) -> Verdict | None:
    """A folder that is not owned itself, but leads to something that is."""
    if owner.kind not in _LOOSE:
        return None
    if operation is Operation.MAKE_FOLDER:
        leads = grant.territory.may_own_below(grant.agent, grant.plan, grant.phase, path)
        return Allowed(folders=(path,)) if leads else None
    return _YES if path in grant.made else None


def leads_to_another(grant: Grant, folder: str) -> str | None:
    """Another agent that may own, or a run of it that holds, something in a folder; None where nobody does. A folder that the run made
    itself is its own, as long as nobody else has written in it.
    """
    inside = folder + "/" if folder else ""
    for path, hold in grant.holds.items():
        if hold.run != grant.run and path.startswith(inside):
            return hold.agent
    if folder in grant.made:
        return None
    for name, ground in grant.territory.agents.items():
        if name != grant.agent and ground.owns is not None and ground.owns.may_match_below(folder):
            return name
    for phase in grant.territory.phases:
        if phase.agent != grant.agent and phase.owns.may_match_below(folder):
            return phase.agent
    return None


def is_temporary(grant: Grant, path: str) -> bool:
    """Whether `path` is named as a temporary file beside a file that this run owns."""
    folder, _, name = path.rpartition("/")
    beside = folder + "/" if folder else ""
    if any(_owns(grant, beside + base) for base in _bases(name)):
        return True
    if not grant.territory.may_own_below(grant.agent, grant.plan, grant.phase, folder):
        return False
    if grant.territory.temp.match(name):
        return True
    # Under any name that looks made up: it is the run's alone, becomes an owned file or nothing, and what others read by convention it is not.
    return is_made_up(name) and runs_code.listed(path) is None


def is_made_up(name: str) -> bool:
    """Whether a program may have made up a name, as mkstemp(3) and its like do; not a name that people or tools look for."""
    return bool(_MADE_UP.fullmatch(name)) and bool(_BY_WHAT.search(name))


def _bases(name: str) -> set[str]:
    """The names that `name` may be a temporary file of."""
    found = set()
    for prefix in PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            found |= {rest[:at] for at, character in enumerate(rest) if at and character in SUFFIXES}
            if prefix:
                found.add(rest)
    return found - {"", name, ".", ".."}


def _owns(grant: Grant, path: str) -> bool:
    owner = grant.territory.owner(path)
    return (owner.kind is Kind.PHASE and owner.run == grant.run) or (
        owner.kind is Kind.AGENTS and grant.agent in owner.agents
    )


def _told(owner: Owner) -> str | None:
    return owner.agents[0] if owner.agents else None
