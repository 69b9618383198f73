"""One call of one caller: the objects that it names, the permission check, and what is recorded afterwards.

A call is first resolved, then decided, then performed on the held objects (`opening.py`, `naming.py`,
`marking.py`, …). Errors that the kernel would give anyway (ENOENT, EEXIST, ENOTDIR …) come before a refusal:
programs rely on them. A refusal is EACCES.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from aipass.supervisor.fence import gitfolder, kernel, runs_code, wall
from aipass.supervisor.fence.decide import Allowed, Operation, Refused, decide
from aipass.supervisor.fence.fenced import ObjectId
from aipass.supervisor.fence.resolve import Caller, InDoubtError, ResolvedPath, resolve, where
from aipass.supervisor.fence.territory import ANYWHERE_NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aipass.supervisor.fence.fast import FastPath
    from aipass.supervisor.fence.fenced import Fenced
    from aipass.supervisor.fence.holds import Holds
    from aipass.supervisor.fence.kernel import Status

#: Names that make a folder a git repository or an aipass root; programs search for them in every parent folder.
_TAKEN_FROM_ABOVE = frozenset(("HEAD", "aipass.toml", ".git"))
#: Shared temporary folders: a run can create files there, and change files that runs of this repository created.
SHARED_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
#: Limit of recorded objects in shared temporary folders. Beyond it the oldest record is dropped, and no run can change that object.
MAX_MADE_OUTSIDE = 200_000
#: SQLite first tries to open these for writing, and falls back to reading: such a refusal is not reported.
QUIET = frozenset((".aipass/ledger.db-wal", ".aipass/ledger.db-shm"))
#: Operations on the object itself, which all of its names share.
_INSIDE = frozenset((Operation.WRITE, Operation.MARK))
#: Operations that can put a new name into a folder.
_MAKES = frozenset((Operation.CREATE, Operation.MAKE_FOLDER, Operation.WRITE))
_FOLDERS = frozenset((Operation.MARK_FOLDER, Operation.MAKE_FOLDER, Operation.REMOVE_FOLDER))


#: An escaped character, such as a space, in a path of /proc/*/mountinfo.
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Later(Exception):  # noqa: N818 - not an error: an answer that comes later
    """The call must wait. `again()` is called from time to time; it returns the answer, or None to wait further.

    Without `again` the whole call begins again each time, and its arguments are read again.
    """

    def __init__(self, again: Callable[[], Answer | None] | None = None) -> None:
        self.again = again


@dataclass(frozen=True, slots=True)
class DescriptorReply:
    """The answer is a descriptor for the caller. Our copy is closed afterwards."""

    handle: int
    cloexec: bool
    #: Called when the caller has the descriptor, for effects that must not happen without one (truncation).
    then: Callable[[], None] | None = None
    #: Called when the caller has no free descriptor (EMFILE).
    undo: Callable[[], None] | None = None
    #: A further descriptor to close afterwards.
    folder: int = -1


class Plain(Enum):
    """Answers without a value."""

    #: The kernel performs the call. Only for calls that the wall (Landlock) limits, inside the wall: see `PermitCall.goes_on`.
    CONTINUE = "continue"


Answer = int | DescriptorReply | Plain


class Withdrawing:
    """Paths that are being withdrawn from runs that have them open, counted: one path can be withdrawn several times."""

    def __init__(self) -> None:
        self._paths: Counter[str] = Counter()

    def add(self, paths: Iterable[str]) -> None:
        """Begin the withdrawal of these paths."""
        self._paths.update(above for path in paths for above in _with_parents(path))

    def drop(self, paths: Iterable[str]) -> None:
        """End one withdrawal of each of these paths."""
        for path in paths:
            for above in _with_parents(path):
                self._paths[above] -= 1
                if not self._paths[above]:
                    del self._paths[above]

    def holds(self, path: str) -> bool:
        """Whether the path, or any path inside that folder, is being withdrawn."""
        return path in self._paths


def _with_parents(path: str) -> Iterator[str]:
    yield path
    while path := path.rpartition("/")[0]:
        yield path


@dataclass(slots=True)
class Common:
    """State that all runs of one supervisor share. `report` is called for each refusal."""

    root: str
    report: Callable[[Fenced, Refused, str, int], None]
    holds: Holds
    #: Objects that runs created in shared temporary folders, oldest first.
    made_outside: dict[ObjectId, None]
    #: The runs of temporary files in the tree, by path.
    temporary: dict[str, Fenced] = field(default_factory=dict)
    withdrawing: Withdrawing = field(default_factory=Withdrawing)
    #: The compiled fast path; None where Python answers every call.
    fast: FastPath | None = None
    root_mount: int = 0
    root_device: int = 0

    def look(self) -> None:
        """Determine the mount and the device of the root. Raises OSError."""
        handle = os.open(self.root, os.O_PATH | os.O_CLOEXEC)
        try:
            status = kernel.status(handle)
        finally:
            os.close(handle)
        self.root_mount, self.root_device = status.mount, status.dev


class PermitCall:
    """One call of one caller, from its arguments to its answer. Used by the serving thread only."""

    def __init__(self, common: Common, run: Fenced, caller: Caller, own: dict[str, int]) -> None:
        self.common, self.run, self.caller = common, run, caller
        self._own_handles = own
        #: Paths that are held from this call on, until its effect is recorded: then for good.
        self._claimed: list[str] = []

    # -- what is allowed --------------------------------------------------------------------------------------------

    def permit(self, *asked: tuple[Operation, ResolvedPath]) -> Callable[[], None]:
        """Check all operations and journal them, or report the first refusal and raise EACCES.

        Raises Later during a withdrawal of one of the paths. Returns a function that records the consequences
        (holds, temporary names, created folders); the caller must call it after the operation has succeeded.
        """
        granted = self.check(*asked)
        self._claim(granted)
        # The paths were read from the caller's memory: only a living caller proves that they were its own.
        self.caller.confirm()
        if any(self.common.withdrawing.holds(relative) for _, relative, _ in granted):
            # A copy is about to replace the file: an object that is opened, moved or linked now would still be open in the old run.
            raise Later
        for operation, relative, _ in granted:
            if operation not in _FOLDERS:
                with self.caller.ourselves():
                    self.run.wrote(self.caller.tid, operation.value, relative)
        return lambda: self._take(granted)

    def _claim(self, granted: list[tuple[Operation, str, Allowed]]) -> None:
        """Hold the paths before the change, so that no thread of the fast path changes one meanwhile. Reports a refusal."""
        grant = self.run.grant
        for operation, relative, allowed in granted:
            for path in allowed.hold:
                if path in self._claimed:
                    continue  # an exchange asks twice for each
                taken = self.common.holds.claim(path, grant.run, grant.agent)
                if taken:
                    self._claimed.append(path)
                elif taken is False:
                    verdict = decide(grant, operation, (relative,))
                    refused = (
                        verdict
                        if isinstance(verdict, Refused)
                        else Refused(relative, "another run writes it at this moment")
                    )
                    raise self.refuse(refused, operation.value)

    @contextmanager
    def unmoved(self, *places: ResolvedPath) -> Iterator[None]:
        """A context for a rename, in which the fast path changes nothing, and what was resolved is still there.

        It judges by the paths of folders, and could put another object under a name meanwhile. Raises Later where a call that
        it carries out takes long, or has changed one of the places.
        """
        # Outside the repository it carries out nothing but by descriptor.
        if self.common.fast is None or all(self.run.relative(place.path) is None for place in places):
            yield
            return
        with self.common.fast.frozen() as idle:
            if not idle or not all(_is_unchanged(place) for place in places):
                raise Later
            yield

    def close(self) -> None:
        """Drop the holds of a change that did not happen. Idempotent."""
        for path in self._claimed:
            self.common.holds.let_go(path, self.run.grant.run)
        self._claimed.clear()

    def would(self, operation: Operation, place: ResolvedPath) -> bool:
        """Whether an operation would be allowed. Reports and records nothing."""
        told, self.common = self.common, replace(self.common, report=lambda *_: None)
        try:
            self.check((operation, place))
        except OSError:
            return False
        finally:
            self.common = told
        return True

    def may_make_below(self, place: ResolvedPath) -> bool:
        """Whether the run can own a path further down in a folder."""
        relative = self.run.relative(place.path)
        grant = self.run.grant
        return relative is not None and grant.territory.may_own_below(
            grant.agent, grant.plan, grant.phase, relative
        )

    def check(self, *asked: tuple[Operation, ResolvedPath]) -> list[tuple[Operation, str, Allowed]]:
        """Check all operations; returns the allowed ones inside the repository. Reports the first refusal and raises EACCES."""
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
        """New names that are parts of a git folder, by their folder: one move can complete a git folder."""
        found: dict[str, set[str]] = {}
        for operation, place in asked:
            if operation in _MAKES and place.name:
                name = os.fsdecode(place.name)
                if name.casefold() in gitfolder.PIECES:
                    found.setdefault(place.at, set()).add(name)
        return found

    def _of_git(self, relative: str, place: ResolvedPath, coming: dict[str, set[str]]) -> Refused | None:
        """A refusal where an operation changes a git folder under any name, or would create one."""
        if gitfolder.around(self.run.root, relative) is not None:
            return Refused(place.path, gitfolder.WHY)
        pieces = coming.get(place.at)
        if pieces is not None and gitfolder.is_one(place.at, pieces):
            return Refused(place.path, f"it would make {place.at} a git folder; {gitfolder.WHY}")
        return None

    def _forget_replaced(self, relative: str, place: ResolvedPath) -> None:
        """Drop the record of a temporary file if another process has put another object under its name."""
        if relative not in self.run.grant.temps or place.status is None:
            return
        if self.run.temporary.get(relative) != ObjectId.of(place.status):
            self.run.grant.temps.discard(relative)
            self.run.temporary.pop(relative, None)

    def refuse(self, refused: Refused, operation: str) -> OSError:
        """Report a refusal; returns the error to raise."""
        if self.run.relative(refused.path) in QUIET or refused.path in QUIET:
            return OSError(errno.EACCES, refused.reason)
        with self.caller.ourselves():
            self.common.report(self.run, refused, operation, self.caller.tid)
        return OSError(errno.EACCES, refused.reason)

    def _take(self, granted: list[tuple[Operation, str, Allowed]]) -> None:
        grant = self.run.grant
        # Again: a call that waited has dropped its holds.
        self._claim(granted)
        self._claimed.clear()
        for operation, path, allowed in granted:
            other = self.common.temporary.get(path)
            if other is not None and other is not self.run:
                # Begun by another run as its temporary file, now written by this run.
                del self.common.temporary[path]
                other.grant.temps.discard(path)
                other.temporary.pop(path, None)
            for temporary in allowed.temps:
                # The object is recorded with the name: a later object of that name is not this run's.
                if (identity := identity_at(f"{self.run.root}/{temporary}")) is not None:
                    grant.temps.add(temporary)
                    self.run.temporary[temporary] = identity
                    self.common.temporary[temporary] = self.run
            grant.made.update(allowed.folders)
            if operation in (Operation.WRITE, Operation.CREATE):
                self.run.opened.add(path)
        self._teach(granted)

    def _teach(self, granted: list[tuple[Operation, str, Allowed]]) -> None:
        """Tell the fast path what was decided, so that it carries out the next calls like this one."""
        if self.common.fast is not None and any(allowed.temps for _, _, allowed in granted):
            # A verdict of another run about the whole folder does not know the temporary file.
            self.common.fast.renew()
        if self.run.fast is not None:
            for operation, path, _ in granted:
                self.run.fast.learn(path, is_file=operation not in _FOLDERS)

    def _is_nameless(self, place: ResolvedPath) -> bool:
        """Whether the object has no name and belongs to the run: pipes, sockets, memory files, files that it removed itself."""
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
        """A refusal where a path can reach more than it names: a bind mount, or a file with several names."""
        status = place.status or kernel.status(place.folder)
        if status.mount != self.common.root_mount and status.dev == self.common.root_device:
            return Refused(place.path, "another folder of the same disk is mounted there (bind mount)")
        if status.dev != self.common.root_device and self._is_mounted_twice(status.dev):
            return Refused(place.path, "its disk is mounted at another place of the repository as well")
        if operation in _INSIDE and (refused := self._many_names(place, status)) is not None:
            return refused
        if not place.name and place.path.endswith(" (deleted)"):
            return Refused(place.path, "it was removed, and its other names cannot be determined")
        return None

    def _is_mounted_twice(self, device: int) -> bool:
        """Whether a disk is mounted twice in the repository: a file there has two paths, perhaps with two owners."""
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
            return True  # unknown counts as twice
        return places > 1

    def _many_names(self, place: ResolvedPath, status: Status) -> Refused | None:
        """A refusal where a file has hard links that the run did not create, or can no longer write."""
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
            place.path,
            f"it has {status.links} names (hard links), and the others may belong to another owner",
        )

    def _is_writable(self, path: str) -> bool:
        relative = self.run.relative(path)
        if relative is None:
            return True
        return isinstance(decide(self.run.grant, Operation.WRITE, (relative,)), Allowed)

    def _outside(self, operation: Operation, place: ResolvedPath) -> Refused | None:
        """A refusal for an object outside the repository or without a name; None where it is allowed."""
        path, status = place.path, place.status
        if self._is_nameless(place):
            return None
        if not place.name and path.endswith(" (deleted)"):
            return Refused(path, "it was removed, and another program may still have it open")
        if path.startswith(("/proc/", "/sys/")):
            return Refused(path, "it belongs to the kernel")
        run = self.run
        if run.is_own(path):
            return None
        # Before `[sandbox] write`: a run must not replace a program that runs outside the fence.
        if any(path == frozen or path.startswith(frozen + "/") for frozen in run.grant.territory.frozen):
            return Refused(path, "aipass runs programs from this folder")
        if path in run.files and operation in _INSIDE and status is not None and stat.S_ISREG(status.mode):
            return self._many_names(place, status)
        if run.is_granted_outside(path):
            return None if status is None or operation not in _INSIDE else self._many_names(place, status)
        if status is not None and stat.S_ISCHR(status.mode):
            own = path.startswith("/dev/pts/") and self.is_own_terminal(place)
            if own or (path in wall.DEVICES and operation is Operation.WRITE):
                return None
            return Refused(path, "it is a device; the user can allow it in `[sandbox] write`")
        if any(path.startswith(shared + "/") for shared in SHARED_TEMPORARY):
            if status is not None:
                if operation in _INSIDE and stat.S_ISREG(status.mode) and status.links > 1:
                    return Refused(
                        path,
                        f"it has {status.links} names (hard links), and the others may belong to another program",
                    )
                made = ObjectId.of(status) in self.common.made_outside
                return None if made else Refused(path, "it existed before, and belongs to another program")
            if place.at in SHARED_TEMPORARY and (why := _reaches_below(os.fsdecode(place.name))):
                return Refused(path, why)
            folder = kernel.status(place.folder)
            if place.at in SHARED_TEMPORARY or ObjectId.of(folder) in self.common.made_outside:
                return None
            return Refused(path, "its folder belongs to another program")
        return Refused(
            path, "it is outside the repository; the user can allow its folder in `[sandbox] write`"
        )

    def is_own_terminal(self, place: ResolvedPath) -> bool:
        """Whether the run opened this terminal, and not an earlier one with the same number."""
        if place.handle is None or place.status is None:
            return False
        return self.run.is_own_terminal(os.minor(place.status.rdev), place.handle)

    def made(self, place: ResolvedPath) -> None:
        """Record an object that was created in a shared temporary folder: runs of this repository can change it."""
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
        """Record that processes of the run can have another identity from here on. The kernel checks and performs the call."""
        self.run.is_ourselves = False
        if self.run.fast is not None:
            self.run.fast.serve(False)
            if not self.run.fast.is_idle():
                raise Later
        return Plain.CONTINUE

    def goes_on(self, *places: ResolvedPath) -> bool:
        """Whether the kernel can perform the call itself, and read the paths a second time.

        True only for a run with a Landlock domain, and only for paths in the run's own folders. Callers must
        ask only for calls that Landlock limits (open, create, rename, link, symlink, remove, make, truncate),
        never for modes, owners, times or attributes.
        """
        # TOCTOU: the caller can change the paths after this decision. That is harmless here, because the Landlock domain
        # limits the call to the run's own folders even then; the decision would allow the same.
        return self.run.walled and all(self.run.is_own(place.path) for place in places)

    def goes_on_unseen(self, path: bytes) -> bool:
        """`goes_on` from the path alone: an absolute path without links, below a folder of the run. Saves the full resolution."""
        if not self.run.walled or not path.startswith(b"/"):
            return False
        if path in QUICK_DEVICES:
            return True
        spelled = os.fsdecode(path)
        for own, handle in self._own_handles.items():
            if spelled.startswith(own + "/"):
                rest = path[len(os.fsencode(own)) + 1 :]
                resolve_only = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS
                # The file need not exist yet; then its folder must.
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
        """Record that the run has, or had, the only name of a file: it can change the file by its descriptors."""
        self.run.unnamed.add(ObjectId.of(status))

    def existing(self, dirfd: int, path: bytes, follow: bool) -> ResolvedPath:
        """The existing object at a path. Raises OSError: ENOENT where there is none."""
        place = resolve(self.caller, dirfd, path, follow or path.endswith(b"/"))
        if place.handle is None:
            raise OSError(errno.ENOENT, "nothing there")
        if place.slash and not place.is_folder():
            raise OSError(errno.ENOTDIR, "no folder")
        return place

    def by_open_descriptor(self, number: int) -> ResolvedPath:
        """The object of a descriptor for the f… calls. Raises EBADF for an O_PATH descriptor, as the kernel does."""
        place = self.by_descriptor(number)
        if self.caller.is_path_only(number):
            raise OSError(errno.EBADF, "an O_PATH descriptor")
        return place

    def by_descriptor(self, number: int) -> ResolvedPath:
        """The object of a descriptor, O_PATH included. Raises OSError EBADF."""
        handle = self.caller.descriptor(number)
        return ResolvedPath(handle, where(handle), b"", handle, kernel.status(handle), False)

    def at(self, dirfd: int, address: int, flags: int = 0) -> ResolvedPath:
        """The object of an …at call: by path, or by descriptor with AT_EMPTY_PATH. Raises OSError."""
        path = self.caller.text(address)
        if not path and flags & kernel.AT_EMPTY_PATH:
            return self.by_descriptor(dirfd) if dirfd != kernel.AT_FDCWD else self.existing(dirfd, b".", True)
        return self.existing(dirfd, path, not flags & kernel.AT_SYMLINK_NOFOLLOW)

    def of_own_process(self, target: int) -> Answer:
        """Let a call on the priority of a thread through if it is a thread of the caller's process, else EPERM."""
        target &= 0xFFFFFFFF
        if target in (0, self.caller.tid) or Caller(target).group() == self.caller.group():
            return Plain.CONTINUE
        raise OSError(errno.EPERM, "another process")

    def by_path(self, address: int, follow: bool) -> ResolvedPath:
        """The object at a path, relative to the caller's current folder. Raises OSError."""
        return self.existing(kernel.AT_FDCWD, self.caller.text(address), follow)


QUICK_DEVICES = frozenset(os.fsencode(path) for path in wall.DEVICES if path != "/dev/ptmx")


def identity_at(path: str) -> ObjectId | None:
    """The object at an absolute path, links not followed; None where there is none."""
    return identity_in(-1, path)


def identity_in(folder: int, name: str) -> ObjectId | None:
    """`identity_at` for a name in an open folder."""
    try:
        handle = kernel.open_path(os.fsencode(name), folder, os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return ObjectId.of(kernel.status(handle))
    finally:
        os.close(handle)


def _is_unchanged(place: ResolvedPath) -> bool:
    """Whether the name of a place still refers to what was found there."""
    found = identity_in(place.folder, os.fsdecode(place.name))
    return found == (None if place.status is None else ObjectId.of(place.status))


def _leads(name: str, status: Status) -> bool:
    """Whether a name still refers to an object, without any link: a path through a link is not a second name."""
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
    """Why a name is refused at the top of a shared folder; None where it is allowed."""
    # Programs search the parent folders for configuration: in /tmp the name would affect every folder below.
    if name in _TAKEN_FROM_ABOVE or name in ANYWHERE_NEVER or runs_code.listed(name) is not None:
        return "programs of this user in every folder below would read it as their own configuration, and can run code from it"
    return None
