"""One call of one caller: what it names, whether it is permitted, and what follows for the run; carried out next door.

A call is resolved first, then decided, then done on what is held. Errors that the kernel would give anyway (ENOENT,
EEXIST, ENOTDIR …) come before a refusal: programs rely on them. A refusal is EACCES.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from aipass.supervisor.fence import gitfolder, kernel, runs_code, wall
from aipass.supervisor.fence.decide import Allowed, Hold, Operation, Refused, decide
from aipass.supervisor.fence.fenced import Fenced, ObjectId
from aipass.supervisor.fence.resolve import Caller, InDoubtError, ResolvedPath, resolve, where
from aipass.supervisor.fence.territory import ANYWHERE_NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aipass.supervisor.fence.kernel import Status

#: Names by which a folder is a repository, or a root of ours.
_TAKEN_FROM_ABOVE = frozenset(("HEAD", "aipass.toml", ".git"))
#: Where everybody keeps temporary files: a run may make some, and change what runs of this repository made.
SHARED_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
#: Removed files that a run is remembered to have had the name of.
MAX_UNNAMED = 10_000
#: What was made in /tmp is remembered up to this many; whose the oldest was is forgotten then, and nobody may change it.
MAX_MADE_OUTSIDE = 200_000
#: What SQLite tries to open for writing and reads when it may not: no news for anybody.
QUIET = frozenset((".aipass/ledger.db-wal", ".aipass/ledger.db-shm"))
#: What reaches the object itself, whatever name it was come by.
_INSIDE = frozenset((Operation.WRITE, Operation.MARK))
#: What may put a new name into a folder.
_MAKES = frozenset((Operation.CREATE, Operation.MAKE_FOLDER, Operation.WRITE))
_FOLDERS = frozenset((Operation.MARK_FOLDER, Operation.MAKE_FOLDER, Operation.REMOVE_FOLDER))


#: A blank and the like in a path of /proc/*/mountinfo.
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Later(Exception):  # noqa: N818 - not an error: an answer that comes later
    """The call waits for something: `again()` is asked from time to time, and returns what to answer, or None.

    Without it the call begins anew each time, from what its arguments mean then.
    """

    def __init__(self, again: Callable[[], Answer | None] | None = None) -> None:
        self.again = again


@dataclass(frozen=True, slots=True)
class DescriptorReply:
    """Answer with a descriptor, which is closed here afterwards."""

    handle: int
    cloexec: bool
    #: Done when the caller has the descriptor: what must not happen where it can have no more.
    then: Callable[[], None] | None = None
    #: Done when it could not have it.
    undo: Callable[[], None] | None = None
    #: A further descriptor to close afterwards.
    folder: int = -1


class Plain(Enum):
    """Answers without a value of their own."""

    #: The kernel shall do what was asked. Only ever for what the wall mediates, inside the wall: see `PermitCall.goes_on`.
    CONTINUE = "continue"


Answer = int | DescriptorReply | Plain


class Withdrawing:
    """Paths that are just being taken from whoever has them open; each as often as that is done."""

    def __init__(self) -> None:
        self._paths: Counter[str] = Counter()

    def add(self, paths: Iterable[str]) -> None:
        """It begins."""
        self._paths.update(above for path in paths for above in _with_parents(path))

    def drop(self, paths: Iterable[str]) -> None:
        """It is done."""
        for path in paths:
            for above in _with_parents(path):
                self._paths[above] -= 1
                if not self._paths[above]:
                    del self._paths[above]

    def holds(self, path: str) -> bool:
        """Whether that is done with a path, or with something in that folder."""
        return path in self._paths


def _with_parents(path: str) -> Iterator[str]:
    yield path
    while path := path.rpartition("/")[0]:
        yield path


@dataclass(slots=True)
class Common:
    """What all runs of one supervisor share. `report` is told each refusal."""

    root: str
    report: Callable[[Fenced, Refused, str, int], None]
    holds: dict[str, Hold]
    #: In the order in which it was made.
    made_outside: dict[ObjectId, None]
    #: Temporary files in the tree, by path: whose they are.
    temporary: dict[str, Fenced] = field(default_factory=dict)
    withdrawing: Withdrawing = field(default_factory=Withdrawing)
    root_mount: int = 0
    root_device: int = 0

    def look(self) -> None:
        """Which mount the root lies on."""
        handle = os.open(self.root, os.O_PATH | os.O_CLOEXEC)
        try:
            status = kernel.status(handle)
        finally:
            os.close(handle)
        self.root_mount, self.root_device = status.mount, status.dev


class PermitCall:
    """One call of one caller, from its arguments to its answer."""

    def __init__(self, common: Common, run: Fenced, caller: Caller, own: dict[str, int]) -> None:
        self.common, self.run, self.caller = common, run, caller
        self._own_handles = own

    # -- what is allowed --------------------------------------------------------------------------------------------

    def permit(self, *asked: tuple[Operation, ResolvedPath]) -> Callable[[], None]:
        """Journal it where all of it is allowed, else report it and raise EACCES.

        What follows from it (holds, temporary names, made folders) is taken by calling what is returned, when it is done.
        """
        granted = self.check(*asked)
        self.caller.confirm()
        if any(self.common.withdrawing.holds(relative) for _, relative, _ in granted):
            # Its copy is about to stand there: what was opened, moved or named now would be the old writers' still.
            raise Later
        for operation, relative, _ in granted:
            if operation not in _FOLDERS:
                with self.caller.ourselves():
                    self.run.wrote(self.caller.tid, operation.value, relative)
        return lambda: self._take(granted)

    def would(self, operation: Operation, place: ResolvedPath) -> bool:
        """Whether it would be allowed; nobody is told where not."""
        told, self.common = self.common, replace(self.common, report=lambda *_: None)
        try:
            self.check((operation, place))
        except OSError:
            return False
        finally:
            self.common = told
        return True

    def may_make_below(self, place: ResolvedPath) -> bool:
        """Whether something further down in a folder may be the run's."""
        relative = self.run.relative(place.path)
        grant = self.run.grant
        return relative is not None and grant.territory.may_own_below(
            grant.agent, grant.plan, grant.phase, relative
        )

    def check(self, *asked: tuple[Operation, ResolvedPath]) -> list[tuple[Operation, str, Allowed]]:
        """What is allowed in the repository of all that is asked; reports the first that is not, and raises EACCES."""
        granted: list[tuple[Operation, str, Allowed]] = []
        coming = self._pieces(asked)
        for operation, place in asked:
            relative = self.run.relative(place.path)
            try:
                if self.run.is_own_ground(place.path) and operation is Operation.MARK_FOLDER:
                    refused = None
                elif relative is None or self.run.is_own(place.path) or self._is_nameless(place):
                    refused = self._outside(operation, place)
                else:
                    self._forget_replaced(relative, place)
                    refused = self._in_doubt(place, operation) or self._of_git(relative, place, coming)
                    verdict = refused or decide(self.run.grant, operation, (relative,))
                    if isinstance(verdict, Allowed):
                        granted.append((operation, relative, verdict))
                    else:
                        refused = verdict
            except InDoubtError as exc:
                refused = Refused(place.path, str(exc))
            if refused is not None:
                raise self.refuse(refused, operation.value)
        return granted

    def _pieces(self, asked: Iterable[tuple[Operation, ResolvedPath]]) -> dict[str, set[str]]:
        """What of a git folder is about to be made, by the folder that it is made in: a move makes all of it at once."""
        found: dict[str, set[str]] = {}
        for operation, place in asked:
            if operation in _MAKES and place.name:
                name = os.fsdecode(place.name)
                if name.casefold() in gitfolder.PIECES:
                    found.setdefault(place.at, set()).add(name)
        return found

    def _of_git(self, relative: str, place: ResolvedPath, coming: dict[str, set[str]]) -> Refused | None:
        """What reaches into a git folder, whatever its name, or would make one."""
        if gitfolder.around(self.run.root, relative) is not None:
            return Refused(place.path, gitfolder.WHY)
        pieces = coming.get(place.at)
        if pieces is not None and gitfolder.is_one(place.at, pieces):
            return Refused(place.path, f"with it {place.at} would be a git folder; {gitfolder.WHY}")
        return None

    def _forget_replaced(self, relative: str, place: ResolvedPath) -> None:
        """A temporary file of ours that somebody has put something else in the place of is ours no more."""
        if relative not in self.run.grant.temps or place.status is None:
            return
        if self.run.temporary.get(relative) != ObjectId.of(place.status):
            self.run.grant.temps.discard(relative)
            self.run.temporary.pop(relative, None)

    def refuse(self, refused: Refused, operation: str) -> OSError:
        """Report a refusal; the error to raise."""
        if self.run.relative(refused.path) in QUIET or refused.path in QUIET:
            return OSError(errno.EACCES, refused.reason)
        with self.caller.ourselves():
            self.common.report(self.run, refused, operation, self.caller.tid)
        return OSError(errno.EACCES, refused.reason)

    def _take(self, granted: list[tuple[Operation, str, Allowed]]) -> None:
        grant = self.run.grant
        now = time.time()
        for operation, path, allowed in granted:
            for held in allowed.hold:
                self.common.holds[held] = Hold(grant.run, grant.agent, now)
            other = self.common.temporary.get(path)
            if other is not None and other is not self.run:
                # What another run began as a temporary file is this one's work now.
                del self.common.temporary[path]
                other.grant.temps.discard(path)
                other.temporary.pop(path, None)
            for temporary in allowed.temps:
                if (identity := identity_at(f"{self.run.root}/{temporary}")) is not None:
                    grant.temps.add(temporary)
                    self.run.temporary[temporary] = identity
                    self.common.temporary[temporary] = self.run
            grant.made.update(allowed.folders)
            if operation in (Operation.WRITE, Operation.CREATE):
                self.run.opened.add(path)

    def _is_nameless(self, place: ResolvedPath) -> bool:
        """Whether nothing leads there, and it is the run's: pipes, sockets, memory, files that it removed itself."""
        if place.name or place.status is None or place.is_folder():
            return False
        if not place.path.startswith("/"):
            return True
        if place.status.links:
            return False
        path = place.path.removesuffix(" (deleted)")
        return (
            path.startswith("/memfd:")
            or self.run.is_own(path)
            or ObjectId.of(place.status) in self.run.unnamed
        )

    def _in_doubt(self, place: ResolvedPath, operation: Operation) -> Refused | None:
        """What makes a path mean more than it says: a mount of the same disk, a file of several names."""
        status = place.status or kernel.status(place.folder)
        if status.mount != self.common.root_mount and status.dev == self.common.root_device:
            return Refused(place.path, "another place of the same disk is mounted there")
        if status.dev != self.common.root_device and self._is_mounted_twice(status.dev):
            return Refused(place.path, "its disk is mounted at another place of the repository as well")
        if operation in _INSIDE and (refused := self._many_names(place, status)) is not None:
            return refused
        if not place.name and place.path.endswith(" (deleted)"):
            return Refused(place.path, "it was removed, and nobody can tell where else it is known")
        return None

    def _is_mounted_twice(self, device: int) -> bool:
        """Whether a disk is at two places of the repository: a file there has two names, and two owners perhaps."""
        wanted = f"{os.major(device)}:{os.minor(device)}"
        places = 0
        try:
            with open("/proc/thread-self/mountinfo", "rb") as mounts:
                for line in mounts:
                    fields = line.split()
                    where = os.fsdecode(_ESCAPED.sub(lambda found: bytes((int(found[1], 8),)), fields[4]))
                    inside = where == self.run.root or where.startswith(self.run.root + "/")
                    places += fields[2] == wanted.encode() and inside
        except OSError:
            return True  # nobody can say where else it is known
        return places > 1

    def _many_names(self, place: ResolvedPath, status: Status) -> Refused | None:
        """A file of several names, of which the run has not given every one, or may not write every one any more."""
        if not stat.S_ISREG(status.mode) or status.links < 2:
            return None
        names = [
            name
            for name in self.run.links.get((status.dev, status.ino), ())
            if _leads(name, status) and self._is_writable(name)
        ]
        if len(names) >= status.links:
            return None
        return Refused(
            place.path, f"it has {status.links} names (hard links), and the others may be another's"
        )

    def _is_writable(self, path: str) -> bool:
        relative = self.run.relative(path)
        if relative is None:
            return True
        return isinstance(decide(self.run.grant, Operation.WRITE, (relative,)), Allowed)

    def _outside(self, operation: Operation, place: ResolvedPath) -> Refused | None:
        """Outside the repository, and things without a name: pipes, sockets, memory, removed files."""
        path, status = place.path, place.status
        if self._is_nameless(place):
            return None
        if not place.name and path.endswith(" (deleted)"):
            return Refused(path, "it was removed, and another program may still have it open")
        if path.startswith(("/proc/", "/sys/")):
            return Refused(path, "it is the kernel's")
        run = self.run
        if run.is_own(path):
            return None
        if any(path == frozen or path.startswith(frozen + "/") for frozen in run.grant.territory.frozen):
            return Refused(path, "programs that aipass starts are taken from there")
        if path in run.files and operation in _INSIDE and status is not None and stat.S_ISREG(status.mode):
            return self._many_names(place, status)
        if run.is_granted_outside(path):
            return None if status is None or operation not in _INSIDE else self._many_names(place, status)
        if status is not None and stat.S_ISCHR(status.mode):
            own = path.startswith("/dev/pts/") and self.is_own_terminal(place)
            if own or (path in wall.DEVICES and operation is Operation.WRITE):
                return None
            return Refused(path, "it is a device; `[sandbox] write` may name it")
        if any(path.startswith(shared + "/") for shared in SHARED_TEMPORARY):
            if status is not None:
                if operation in _INSIDE and stat.S_ISREG(status.mode) and status.links > 1:
                    return Refused(
                        path, f"it has {status.links} names (hard links), and others may be another's"
                    )
                made = ObjectId.of(status) in self.common.made_outside
                return None if made else Refused(path, "it was there before, and belongs to another program")
            if place.at in SHARED_TEMPORARY and (why := _reaches_below(os.fsdecode(place.name))):
                return Refused(path, why)
            if place.at in SHARED_TEMPORARY and (why := _reaches_below(os.fsdecode(place.name))):
                return Refused(path, why)
            folder = kernel.status(place.folder)
            if place.at in SHARED_TEMPORARY or ObjectId.of(folder) in self.common.made_outside:
                return None
            return Refused(path, "its folder belongs to another program")
        return Refused(path, "it lies outside the repository; `[sandbox] write` may name its folder")

    def is_own_terminal(self, place: ResolvedPath) -> bool:
        """Whether a terminal is one that the run opened, and not the next one of its number."""
        if place.handle is None or place.status is None:
            return False
        return self.run.is_own_terminal(os.minor(place.status.rdev), place.handle)

    def made(self, place: ResolvedPath) -> None:
        """Remember what was made outside the repository: runs of this repository may change it."""
        if self.run.relative(place.path) is not None or self.run.is_own(place.path):
            return
        if not any(place.path.startswith(shared + "/") for shared in SHARED_TEMPORARY):
            return
        try:
            handle = kernel.open_path(place.name, place.folder, os.O_NOFOLLOW)
        except OSError:
            return
        try:
            if len(self.common.made_outside) >= MAX_MADE_OUTSIDE:
                del self.common.made_outside[next(iter(self.common.made_outside))]
            self.common.made_outside[ObjectId.of(kernel.status(handle))] = None
        finally:
            os.close(handle)

    def change_identity(self) -> Answer:
        """A process may be somebody else from here on, which is never forgotten; the kernel sees whether it may."""
        self.run.is_ourselves = False
        return Plain.CONTINUE

    def goes_on(self, *places: ResolvedPath) -> bool:
        """Whether the kernel may do the call itself, reading the paths a second time.

        The caller may have changed them by then to anything. That is harmless for exactly the calls that Landlock
        mediates (open, create, rename, link, symlink, remove, make, truncate), when the run has a Landlock domain:
        whatever the path means by then, the domain holds it to folders that are wholly the run's own, which is all
        that the decision here would have allowed as well. It is never asked for modes, owners, times or attributes,
        which Landlock does not mediate, nor for anything outside those folders.
        """
        return self.run.walled and all(self.run.is_own(place.path) for place in places)

    def goes_on_unseen(self, path: bytes) -> bool:
        """The same, told from the path itself: no link in it, and beneath a folder of the run's own."""
        if not self.run.walled or not path.startswith(b"/"):
            return False
        if path in _QUICK_DEVICES:
            return True
        spelled = os.fsdecode(path)
        for own, handle in self._own_handles.items():
            if spelled.startswith(own + "/"):
                rest = path[len(os.fsencode(own)) + 1 :]
                resolve_only = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS
                for attempt in (rest, rest.rpartition(b"/")[0] or b"."):
                    try:
                        os.close(kernel.open_path(attempt, handle, 0, resolve_only))
                    except FileNotFoundError:
                        continue
                    except OSError:
                        return False
                    return True
        return False

    # -- what a call names -----------------------------------------------------------------------------------------------

    def remember_unnamed(self, status: Status) -> None:
        """The run has, or had, the only name of a file: it may change it by its descriptors."""
        if len(self.run.unnamed) >= MAX_UNNAMED:
            self.run.unnamed.clear()
        self.run.unnamed.add(ObjectId.of(status))

    def existing(self, dirfd: int, path: bytes, follow: bool) -> ResolvedPath:
        """What stands at a path; raises OSError ENOENT where nothing does."""
        place = resolve(self.caller, dirfd, path, follow or path.endswith(b"/"))
        if place.handle is None:
            raise OSError(errno.ENOENT, "nothing there")
        if place.slash and not place.is_folder():
            raise OSError(errno.ENOTDIR, "no folder")
        return place

    def by_open_descriptor(self, number: int) -> ResolvedPath:
        """The object behind a descriptor that is more than a path: an O_PATH one is EBADF to the f… calls."""
        place = self.by_descriptor(number)
        if self.caller.is_path_only(number):
            raise OSError(errno.EBADF, "an O_PATH descriptor")
        return place

    def by_descriptor(self, number: int) -> ResolvedPath:
        """The object behind a descriptor."""
        handle = self.caller.descriptor(number)
        return ResolvedPath(handle, where(handle), b"", handle, kernel.status(handle), False)

    def at(self, dirfd: int, address: int, flags: int = 0) -> ResolvedPath:
        """The object of a …at call: by path, or by descriptor with AT_EMPTY_PATH."""
        path = self.caller.text(address)
        if not path and flags & kernel.AT_EMPTY_PATH:
            return self.by_descriptor(dirfd) if dirfd != kernel.AT_FDCWD else self.existing(dirfd, b".", True)
        return self.existing(dirfd, path, not flags & kernel.AT_SYMLINK_NOFOLLOW)

    def of_own_process(self, target: int) -> Answer:
        """A call on another thread's priority goes on where that is one of the caller's own process: numbers, no paths."""
        target &= 0xFFFFFFFF
        if target in (0, self.caller.tid) or Caller(target).group() == self.caller.group():
            return Plain.CONTINUE
        raise OSError(errno.EPERM, "another process")

    def by_path(self, address: int, follow: bool) -> ResolvedPath:
        """The object at a path from the current folder."""
        return self.existing(kernel.AT_FDCWD, self.caller.text(address), follow)


_QUICK_DEVICES = frozenset(os.fsencode(path) for path in wall.DEVICES if path != "/dev/ptmx")


def identity_at(path: str) -> ObjectId | None:
    """What stands at an absolute path, links not followed; None for nothing."""
    return identity_in(-1, path)


def identity_in(folder: int, name: str) -> ObjectId | None:
    """The same, by a name in a folder that is held."""
    try:
        handle = kernel.open_path(os.fsencode(name), folder, os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return ObjectId.of(kernel.status(handle))
    finally:
        os.close(handle)


def _leads(name: str, status: Status) -> bool:
    """Whether a name still leads to an object, and through no link: two ways to one name are not two names."""
    try:
        handle = kernel.open_path(os.fsencode(name), -1, os.O_NOFOLLOW, kernel.RESOLVE_NO_SYMLINKS)
    except OSError:
        return False
    try:
        found = kernel.status(handle)
    finally:
        os.close(handle)
    return (found.dev, found.ino, found.mount) == (status.dev, status.ino, status.mount)


def _reaches_below(name: str) -> str | None:
    """Why a name is not made at the top of a folder that all share: in every folder below, programs take orders from it."""
    if name in _TAKEN_FROM_ABOVE or name in ANYWHERE_NEVER or runs_code.listed(name) is not None:
        return "your programs in every folder below would take it for theirs, and run what it says"
    return None
