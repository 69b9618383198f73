"""The decision whether a run can perform an operation on paths. Pure: no disk access.

The verdict also returns consequences as data: paths that the run holds from now on, and its new temporary
files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aipass.supervisor.fence import runs_code
from aipass.supervisor.fence.glob import Globs
from aipass.supervisor.fence.territory import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aipass.supervisor.fence.territory import Owner, Territory


class Operation(Enum):
    """The kind of change to a path."""

    #: Change the content of an existing file.
    WRITE = "write"
    #: Change mode, owner, times or attributes of a file.
    MARK = "change"
    #: Create anything but a folder.
    CREATE = "create"
    #: Remove anything but a folder.
    REMOVE = "remove"
    #: Create a folder.
    MAKE_FOLDER = "make a folder"
    #: Remove an empty folder.
    REMOVE_FOLDER = "remove a folder"
    #: Change mode, owner, times or attributes of a folder.
    MARK_FOLDER = "change a folder"


class Hold(NamedTuple):
    """A hold (write lock): the run that wrote a path first. `since` in seconds of the wall clock."""

    run: int
    agent: str
    since: float


class HeldPaths(Protocol):
    """The holds of all runs, by path: a `dict`, or `holds.Holds`."""

    def get(self, path: str, /) -> Hold | None:
        """The hold on a path."""

    def items(self) -> Iterable[tuple[str, Hold]]:
        """All holds."""


@dataclass(slots=True)
class Grant:
    """The rights of one run: its identity, and the ownership rules.

    `holds` is shared by all runs; `temps` and `made` are this run's temporary files and the folders that it
    created; `withdrawn` are patterns of phases that were handed over.
    """

    run: int
    agent: str
    territory: Territory
    holds: HeldPaths
    plan: str | None = None
    phase: str | None = None
    withdrawn: list[Globs] = field(default_factory=list)
    temps: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    #: Unowned paths that it can write in addition: build output, for checks.
    extra: Globs = field(default_factory=lambda: Globs(()))


@dataclass(frozen=True, slots=True)
class Allowed:
    """The operation is allowed. `hold`, `temps`, `folders`: paths that become the run's holds, temporary files, created folders."""

    hold: tuple[str, ...] = ()
    temps: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The operation is refused: the path, the reason, and the owner of the path where there is one."""

    path: str
    reason: str
    owner: str | None = None
    since: float | None = None


Verdict = Allowed | Refused
_YES = Allowed()
#: Prefixes and separators of temporary names, as editors and tools derive them from the name of a file that they save.
PREFIXES, SUFFIXES = ("", ".", "#", ".#", ".~", "~", "~$", "._"), ".~#_-"
#: A generated name: no extension of its own, and (`_BY_WHAT`) `tmp` or `temp`, a digit, or a capital after a small letter.
_MADE_UP = re.compile(
    r"[._#~]*[A-Za-z0-9_-]{6,48}(?:\.te?mp)?|\.goutputstream-[A-Z0-9]{6}|\.subl[0-9a-f]+\.tmp", re.ASCII
)
_BY_WHAT = re.compile(r"te?mp|[0-9]|[a-z][A-Z]", re.ASCII)


def decide(grant: Grant, operation: Operation, paths: Sequence[str]) -> Verdict:
    """Decide one operation on all of `paths`, relative to the root: it is allowed only if every path is.

    Returns the first refusal, else the combined Allowed. Never raises. Changes nothing: the caller records
    the consequences.
    """
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
    # A phase that is given to this run again is writable again.
    back = owner.kind is Kind.PHASE and owner.run == grant.run
    if not back and any(globs.match(spelled) for globs in grant.withdrawn):
        return Refused(path, "it was handed over when your phase was delivered", _told(owner))
    # An own temporary file stays writable, unless a rule gives its path to another owner since.
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


#: Rules under which temporary files, and folders that lead to an owned file, are allowed: the path has no other owner.
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
            # A run that held the path before the plan began keeps it; the phase waits for its end.
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
                    path,
                    f"no phase owns it; you can write the files of phase {grant.phase} of plan {grant.plan}",
                )
            if ground is None or ground.owns is not None:
                return Refused(path, f"the `owns` of {grant.agent} does not match it")
            return _held(grant, path, folder)


def whole(grant: Grant, folder: str) -> Kind | None:
    """The rule by which the run can write every plain name directly in `folder`; None where that depends on the name.

    See Territory.whole. Does not look at temporary files, and not at folders that the run made.
    """
    owner = grant.territory.whole(folder)
    if owner is None:
        return None
    if owner.kind is Kind.PHASE:
        return owner.kind if owner.run == grant.run else None
    if any(globs.may_match_below(folder) for globs in grant.withdrawn):
        return None
    # `extra` gives more than the rules: then it is asked for each name.
    if owner.kind is Kind.FREE and grant.extra:
        return None
    return owner.kind if isinstance(_by_owner(grant, owner, folder, True), Allowed) else None


def _held(grant: Grant, path: str, folder: bool) -> Verdict:
    # Folders have no holds: runs create files in one folder side by side.
    if folder:
        return _YES
    hold = grant.holds.get(path)
    if hold is None:
        return Allowed(hold=(path,))
    if hold.run == grant.run:
        return _YES
    return Refused(
        path,
        f"run {hold.run} of {hold.agent} holds it (write lock), because it wrote it first",
        hold.agent,
        hold.since,
    )


def _on_the_way(grant: Grant, operation: Operation, owner: Owner, path: str) -> Verdict | None:
    """The verdict on an unowned folder that leads to an owned path; None where it leads to none."""
    if owner.kind not in _LOOSE:
        return None
    if operation is Operation.MAKE_FOLDER:
        leads = grant.territory.may_own_below(grant.agent, grant.plan, grant.phase, path)
        return Allowed(folders=(path,)) if leads else None
    return _YES if path in grant.made else None


def leads_to_another(grant: Grant, folder: str) -> str | None:
    """The name of another agent that owns, or whose run holds, a path inside `folder`; None where there is none.

    A folder that this run created is its own as long as no other run has written inside it.
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
    """Whether `path` is a temporary name beside a file that this run owns, or a generated name in a folder with such files."""
    folder, _, name = path.rpartition("/")
    beside = folder + "/" if folder else ""
    if any(_owns(grant, beside + base) for base in _bases(name)):
        return True
    if not grant.territory.may_own_below(grant.agent, grant.plan, grant.phase, folder):
        return False
    if grant.territory.temp.match(name):
        return True
    # Any generated name is safe: only this run can change the file, it can only become an owned file, and no tool reads such a
    # name by convention.
    return is_made_up(name) and runs_code.listed(path) is None


def is_made_up(name: str) -> bool:
    """Whether a name looks generated, as by mkstemp(3); False for names that people or tools look for."""
    return bool(_MADE_UP.fullmatch(name)) and bool(_BY_WHAT.search(name))


def _bases(name: str) -> set[str]:
    """The names of which `name` can be a temporary form."""
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
