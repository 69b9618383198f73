"""Each call that is carried out: what it asks of whom, and how the supervisor does it in the caller's place.

A call is resolved first, then decided, then done on what is held. Errors that the kernel would give anyway (ENOENT,
EEXIST, ENOTDIR …) come before a refusal: programs rely on them. A refusal is EACCES.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel, wall
from aipass.supervisor.fence.decide import Allowed, Hold, Operation, Refused, decide
from aipass.supervisor.fence.fenced import Fenced, Identity
from aipass.supervisor.fence.resolve import PATH_MAX, Caller, InDoubtError, Place, resolve, where

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.fence.kernel import Status

#: Where everybody keeps temporary files: a run may make some, and change what runs of this repository made.
SHARED_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
#: Folders of more entries are not moved as one: looking through them would hold up the other runs.
MAX_MOVED = 5000
O_TMPFILE = 0o20000000 | os.O_DIRECTORY
_NOT_FOR_REOPEN = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
TIOCGPTN = 0x80045430
ERESTARTSYS = 512
MAX_XATTR = 65536
#: Removed files that a run is remembered to have had the name of.
MAX_UNNAMED = 10_000
#: What was made in /tmp is remembered up to this many; of older ones it is forgotten whose they are, and nobody may change them.
MAX_MADE_OUTSIDE = 200_000
#: What reaches the object itself, whatever name it was come by.
_INSIDE = frozenset((Operation.WRITE, Operation.MARK))
_NODES = frozenset((0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK))
_FOLDERS = frozenset((Operation.MARK_FOLDER, Operation.MAKE_FOLDER, Operation.REMOVE_FOLDER))


class Later(Exception):  # noqa: N818 - not an error: an answer that comes later
    """The call waits for something: `again()` is asked from time to time, and returns what to answer, or None."""

    def __init__(self, again: Callable[[], Answer | None]) -> None:
        self.again = again


@dataclass(frozen=True, slots=True)
class Opened:
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

    #: The kernel shall do what was asked. Only ever for what the wall mediates, inside the wall: see `Work.goes_on`.
    CONTINUE = "continue"


Answer = int | Opened | Plain


@dataclass(slots=True)
class Common:
    """What all runs of one supervisor share. `report` is told each refusal."""

    root: str
    report: Callable[[Fenced, Refused, str, int], None]
    holds: dict[str, Hold]
    made_outside: set[Identity]
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


class Work:
    """One call of one caller, from its arguments to its answer."""

    def __init__(self, common: Common, run: Fenced, caller: Caller, own: dict[str, int]) -> None:
        self.common, self.run, self.caller = common, run, caller
        self._own_handles = own

    # -- what is allowed --------------------------------------------------------------------------------------------

    def permit(self, *asked: tuple[Operation, Place]) -> Callable[[], None]:
        """Journal it where all of it is allowed, else report it and raise EACCES.

        What follows from it (holds, temporary names, made folders) is taken by calling what is returned, when it is done.
        """
        granted: list[tuple[Operation, str, Allowed]] = []
        for operation, place in asked:
            relative = self.run.relative(place.path)
            try:
                if relative is None or self._is_nameless(place):
                    refused = self._outside(operation, place)
                else:
                    self._forget_replaced(relative, place)
                    refused = self._in_doubt(place, operation)
                    verdict = refused or decide(self.run.grant, operation, (relative,))
                    if isinstance(verdict, Allowed):
                        granted.append((operation, relative, verdict))
                    else:
                        refused = verdict
            except InDoubtError as exc:
                refused = Refused(place.path, str(exc))
            if refused is not None:
                raise self.refuse(refused, operation.value)
        for operation, relative, _ in granted:
            if operation not in _FOLDERS:
                with self.caller.ourselves():
                    self.run.wrote(self.caller.tid, operation.value, relative)
        return lambda: self._take(granted)

    def _forget_replaced(self, relative: str, place: Place) -> None:
        """A temporary file of ours that somebody has put something else in the place of is ours no more."""
        if relative not in self.run.grant.temps or place.status is None:
            return
        if self.run.temporary.get(relative) != Identity.of(place.status):
            self.run.grant.temps.discard(relative)
            self.run.temporary.pop(relative, None)

    def refuse(self, refused: Refused, operation: str) -> OSError:
        """Report a refusal; the error to raise."""
        with self.caller.ourselves():
            self.common.report(self.run, refused, operation, self.caller.tid)
        return OSError(errno.EACCES, refused.reason)

    def _take(self, granted: list[tuple[Operation, str, Allowed]]) -> None:
        grant = self.run.grant
        now = time.time()
        for operation, path, allowed in granted:
            for held in allowed.hold:
                self.common.holds[held] = Hold(grant.run, grant.agent, now)
            for temporary in allowed.temps:
                if (identity := identity_at(f"{self.run.root}/{temporary}")) is not None:
                    grant.temps.add(temporary)
                    self.run.temporary[temporary] = identity
            grant.made.update(allowed.folders)
            if operation in (Operation.WRITE, Operation.CREATE):
                self.run.opened.add(path)

    def _is_nameless(self, place: Place) -> bool:
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
            or Identity.of(place.status) in self.run.unnamed
        )

    def _in_doubt(self, place: Place, operation: Operation) -> Refused | None:
        """What makes a path mean more than it says: a mount of the same disk, a file of several names."""
        status = place.status or kernel.status(place.folder)
        if status.mount != self.common.root_mount and status.dev == self.common.root_device:
            return Refused(place.path, "another place of the same disk is mounted there")
        if operation in _INSIDE and stat.S_ISREG(status.mode) and status.links > 1:
            names = self.run.links.get((status.dev, status.ino), ())
            if sum(_leads(name, status) for name in names) < status.links:
                return Refused(
                    place.path, f"it has {status.links} names (hard links), and the others may be another's"
                )
        if not place.name and place.path.endswith(" (deleted)"):
            return Refused(place.path, "it was removed, and nobody can tell where else it is known")
        return None

    def _outside(self, operation: Operation, place: Place) -> Refused | None:
        """Outside the repository, and things without a name: pipes, sockets, memory, removed files."""
        path, status = place.path, place.status
        if self._is_nameless(place):
            return None
        if not place.name and path.endswith(" (deleted)"):
            return Refused(path, "it was removed, and another program may still have it open")
        if path.startswith(("/proc/", "/sys/")):
            return Refused(path, "it is the kernel's")
        run = self.run
        if run.is_own(path) or run.is_granted_outside(path):
            return None
        if status is not None and stat.S_ISCHR(status.mode):
            own = path.startswith("/dev/pts/") and os.minor(status.rdev) in run.terminals
            if own or (path in wall.DEVICES and operation is Operation.WRITE):
                return None
            return Refused(path, "it is a device; `[sandbox] write` may name it")
        if any(path.startswith(shared + "/") for shared in SHARED_TEMPORARY):
            if status is not None:
                if operation in _INSIDE and stat.S_ISREG(status.mode) and status.links > 1:
                    return Refused(
                        path, f"it has {status.links} names (hard links), and others may be another's"
                    )
                made = Identity.of(status) in self.common.made_outside
                return None if made else Refused(path, "it was there before, and belongs to another program")
            folder = kernel.status(place.folder)
            if place.at in SHARED_TEMPORARY or Identity.of(folder) in self.common.made_outside:
                return None
            return Refused(path, "its folder belongs to another program")
        return Refused(path, "it lies outside the repository; `[sandbox] write` may name its folder")

    def made(self, place: Place) -> None:
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
                self.common.made_outside.clear()
            self.common.made_outside.add(Identity.of(kernel.status(handle)))
        finally:
            os.close(handle)

    def change_identity(self) -> Answer:
        """A process may be somebody else from here on, which is never forgotten; the kernel sees whether it may."""
        self.run.is_ourselves = False
        return Plain.CONTINUE

    def goes_on(self, *places: Place) -> bool:
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

    # -- open -------------------------------------------------------------------------------------------------------

    def open(self, dirfd: int, address: int, flags: int, mode: int) -> Answer:
        """open, openat, creat."""
        flags &= 0x7FFFFFFF  # the highest bit means nothing, and does not fit
        if flags & os.O_CREAT and flags & os.O_DIRECTORY:
            raise OSError(errno.EINVAL, "flags")
        path = self.caller.text(address)
        if self.goes_on_unseen(path):
            return Plain.CONTINUE
        if flags & O_TMPFILE == O_TMPFILE:
            return self._open_temporary(dirfd, path, flags, mode)
        if flags & os.O_CREAT and path.endswith(b"/"):
            resolve(self.caller, dirfd, path, False)  # what is wrong on the way comes first
            raise OSError(errno.EISDIR, "a file cannot be made as a folder")
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        follow = path.endswith(b"/") or not (flags & os.O_NOFOLLOW or exclusive)
        for _ in range(10):
            place = resolve(self.caller, dirfd, path, follow)
            if place.handle is not None:
                if exclusive:
                    raise OSError(errno.EEXIST, "exists")
                return self._open_existing(place, flags)
            if not flags & os.O_CREAT:
                raise OSError(errno.ENOENT, "nothing there")
            if self.goes_on(place):
                return Plain.CONTINUE
            try:
                return self._create(place, flags, mode)
            except FileExistsError:
                if exclusive:
                    raise
        raise OSError(errno.EAGAIN, "it comes and goes")

    def _create(self, place: Place, flags: int, mode: int) -> Answer:
        if not kernel.status(place.folder).links:
            raise OSError(errno.ENOENT, "the folder was removed")
        took = self.permit((Operation.CREATE, place))
        os.umask(self.caller.umask())
        new = flags & ~os.O_DIRECTORY | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY
        handle = os.open(place.name, new, mode & 0o7777, dir_fd=place.folder)
        took()
        self.made(place)
        folder, name = os.dup(place.folder), place.name
        # The kernel looks for a free descriptor before it makes the file; where there is none, there is no file.
        return Opened(
            handle, bool(flags & os.O_CLOEXEC), undo=lambda: os.unlink(name, dir_fd=folder), folder=folder
        )

    def _open_existing(self, place: Place, flags: int) -> Answer:
        assert place.handle is not None
        assert place.status is not None
        kind = stat.S_IFMT(place.status.mode)
        if kind == stat.S_IFLNK:
            raise OSError(errno.ELOOP, "a symbolic link")
        if kind == stat.S_IFDIR:
            raise OSError(errno.EISDIR, "a folder")
        if place.slash or flags & os.O_DIRECTORY:
            raise OSError(errno.ENOTDIR, "no folder")
        if kind == stat.S_IFSOCK:
            raise OSError(errno.ENXIO, "a socket")
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            # It is only read: reads are not limited, and what was to be created is there.
            return self._reopen(place.handle, kind, flags)
        if self.goes_on(place):
            return Plain.CONTINUE
        if kind == stat.S_IFCHR:
            return self._open_device(place, flags)
        if place.path in self.run.outputs:
            return self._reopen(place.handle, kind, flags)  # /dev/stderr and the like
        took = self.permit((Operation.WRITE, place))
        return self._reopen(place.handle, kind, flags, took, lambda: self._still(place))

    def _open_device(self, place: Place, flags: int) -> Answer:
        assert place.handle is not None
        self.permit((Operation.WRITE, place))()
        if place.path == "/dev/tty":
            # Whose terminal that is depends on who opens it.
            if self.run.walled:
                return Plain.CONTINUE
            raise OSError(errno.ENXIO, "no terminal")
        opened = self._reopen(place.handle, stat.S_IFCHR, flags)
        if place.path in ("/dev/ptmx", "/dev/pts/ptmx") and isinstance(opened, Opened):
            import fcntl

            number = bytearray(4)
            fcntl.ioctl(opened.handle, TIOCGPTN, number)
            self.run.terminals.add(struct.unpack("I", number)[0])
        return opened

    def _still(self, place: Place) -> None:
        """What was allowed when a call began to wait may have been handed over meanwhile: raises EACCES then."""
        relative = self.run.relative(place.path)
        if relative is not None:
            verdict = decide(self.run.grant, Operation.WRITE, (relative,))
            if isinstance(verdict, Refused):
                raise self.refuse(verdict, Operation.WRITE.value)

    def _reopen(
        self,
        held: int,
        kind: int,
        flags: int,
        took: Callable[[], None] | None = None,
        still: Callable[[], None] | None = None,
    ) -> Answer:
        """Open what is held, never waiting: a pipe without a reader, or a file with a lease, is asked again later."""
        cloexec = bool(flags & os.O_CLOEXEC)
        # Truncated only when the caller has the descriptor: at its limit it gets none, and keeps the content.
        truncates = kind == stat.S_IFREG and bool(flags & os.O_TRUNC)
        wanted = flags & ~_NOT_FOR_REOPEN & ~(os.O_TRUNC if truncates else 0) | os.O_CLOEXEC | os.O_NOCTTY
        waits = not flags & os.O_NONBLOCK
        name = f"/proc/thread-self/fd/{held}"

        def attempt() -> Answer | None:
            try:
                handle = os.open(name, wanted | (os.O_NONBLOCK if waits else 0))
            except OSError as exc:
                waiting = exc.errno == (errno.ENXIO if kind == stat.S_IFIFO else errno.EAGAIN)
                if waits and waiting:
                    return None
                raise
            if waits:
                os.set_blocking(handle, True)
            if took is not None:
                took()
            then = (lambda: os.truncate(f"/proc/thread-self/fd/{handle}", 0)) if truncates else None
            return Opened(handle, cloexec, then)

        def again() -> Answer | None:
            if still is not None:
                still()
            return attempt()

        opened = attempt()
        if opened is None:
            raise Later(again)
        return opened

    def _open_temporary(self, dirfd: int, path: bytes, flags: int, mode: int) -> Answer:
        """O_TMPFILE: a file without a name, in a folder whose filesystem it then uses. linkat may name it later."""
        place = resolve(self.caller, dirfd, path, True)
        if place.handle is None:
            raise OSError(errno.ENOENT, "no folder")
        if not place.is_folder():
            raise OSError(errno.ENOTDIR, "no folder")
        if self.goes_on(place):
            return Plain.CONTINUE
        if self.run.relative(place.path) is None and place.path not in SHARED_TEMPORARY:
            self.permit((Operation.MARK_FOLDER, place))
        os.umask(self.caller.umask())
        handle = os.open(f"/proc/thread-self/fd/{place.handle}", flags | os.O_CLOEXEC, mode & 0o7777)
        self._remember_unnamed(kernel.status(handle))
        return Opened(handle, bool(flags & os.O_CLOEXEC))

    def _remember_unnamed(self, status: Status) -> None:
        if len(self.run.unnamed) >= MAX_UNNAMED:
            self.run.unnamed.clear()
        self.run.unnamed.add(Identity.of(status))

    def truncate(self, address: int, length: int) -> Answer:
        """truncate."""
        place = self._existing(kernel.AT_FDCWD, self.caller.text(address), True)
        if length < 0:
            raise OSError(errno.EINVAL, "length")
        if place.is_folder():
            raise OSError(errno.EISDIR, "a folder")
        if place.status is not None and not stat.S_ISREG(place.status.mode):
            raise OSError(errno.EINVAL, "no file")
        if self.goes_on(place):
            return Plain.CONTINUE
        took = self.permit((Operation.WRITE, place))
        os.truncate(f"/proc/thread-self/fd/{place.handle}", length)
        took()
        return 0

    def _existing(self, dirfd: int, path: bytes, follow: bool) -> Place:
        place = resolve(self.caller, dirfd, path, follow or path.endswith(b"/"))
        if place.handle is None:
            raise OSError(errno.ENOENT, "nothing there")
        if place.slash and not place.is_folder():
            raise OSError(errno.ENOTDIR, "no folder")
        return place

    # -- names ------------------------------------------------------------------------------------------------------

    def _new(self, dirfd: int, address: int) -> Place:
        place = resolve(self.caller, dirfd, self.caller.text(address), False)
        if place.handle is not None:
            raise OSError(errno.EEXIST, "exists")
        if not kernel.status(place.folder).links:
            raise OSError(errno.ENOENT, "the folder was removed")
        return place

    def mkdir(self, dirfd: int, address: int, mode: int) -> Answer:
        """mkdir, mkdirat."""
        place = self._new(dirfd, address)
        if self.goes_on(place):
            return Plain.CONTINUE
        took = self.permit((Operation.MAKE_FOLDER, place))
        os.umask(self.caller.umask())
        os.mkdir(place.name, mode & 0o7777, dir_fd=place.folder)
        took()
        self.made(place)
        return 0

    def mknod(self, dirfd: int, address: int, mode: int) -> Answer:
        """mknod, mknodat; devices never come this far."""
        place = self._new(dirfd, address)
        if place.slash:
            raise OSError(errno.ENOENT, "no folder")
        if stat.S_IFMT(mode & 0xFFFF) not in _NODES:
            raise OSError(errno.EPERM if stat.S_ISDIR(mode & 0xFFFF) else errno.EINVAL, "no such node")
        if self.goes_on(place):
            return Plain.CONTINUE
        took = self.permit((Operation.CREATE, place))
        os.umask(self.caller.umask())
        os.mknod(place.name, mode & 0xFFFF, dir_fd=place.folder)
        took()
        self.made(place)
        return 0

    def symlink(self, target: int, dirfd: int, address: int) -> Answer:
        """symlink, symlinkat."""
        text = self.caller.text(target)
        if not text:
            raise OSError(errno.ENOENT, "empty target")
        place = self._new(dirfd, address)
        if place.slash:
            raise OSError(errno.ENOENT, "no folder")
        if self.goes_on(place):
            return Plain.CONTINUE
        took = self.permit((Operation.CREATE, place))
        os.symlink(text, place.name, dir_fd=place.folder)
        took()
        self.made(place)
        return 0

    def unlink(self, dirfd: int, address: int, flags: int) -> Answer:
        """unlink, unlinkat, rmdir."""
        if flags & ~kernel.AT_REMOVEDIR:
            raise OSError(errno.EINVAL, "flags")
        path = self.caller.text(address)
        place = resolve(self.caller, dirfd, path, False)
        folder = bool(flags & kernel.AT_REMOVEDIR)
        if not place.name:
            last = path.rstrip(b"/").rpartition(b"/")[2]
            dots = {b".": errno.EINVAL, b"..": errno.ENOTEMPTY}
            raise OSError(dots.get(last, errno.EBUSY) if folder else errno.EISDIR, "no name")
        if place.handle is None:
            raise OSError(errno.ENOENT, "nothing there")
        if not place.is_folder() and (folder or place.slash):
            raise OSError(errno.ENOTDIR, "no folder")
        if place.is_folder() and not folder:
            raise OSError(errno.EISDIR, "a folder")
        if self.goes_on(place):
            return Plain.CONTINUE
        took = self.permit((Operation.REMOVE_FOLDER if folder else Operation.REMOVE, place))
        if folder:
            os.rmdir(place.spelled, dir_fd=place.folder)
        else:
            os.unlink(place.spelled, dir_fd=place.folder)
        took()
        self._gone(place)
        return 0

    def rename(self, olddir: int, old: int, newdir: int, new: int, flags: int) -> Answer:
        """rename, renameat, renameat2."""
        exchange = bool(flags & kernel.RENAME_EXCHANGE)
        if flags & ~(kernel.RENAME_NOREPLACE | kernel.RENAME_EXCHANGE) or flags == 3:
            raise OSError(errno.EINVAL, "flags")
        source = resolve(self.caller, olddir, self.caller.text(old), False)
        target = resolve(self.caller, newdir, self.caller.text(new), False)
        if not source.name or not target.name:
            exists = flags & kernel.RENAME_NOREPLACE and source.name
            raise OSError(errno.EEXIST if exists else errno.EBUSY, "no name")
        if source.handle is None or (exchange and target.handle is None):
            raise OSError(errno.ENOENT, "nothing there")
        if flags & kernel.RENAME_NOREPLACE and target.handle is not None:
            raise OSError(errno.EEXIST, "exists")
        self._check_kinds(source, target, exchange)
        if self.goes_on(source, target):
            return Plain.CONTINUE
        self._keep_apart(source, target)
        took = self.permit(*self._asked_by_rename(source, target, exchange))
        kernel.rename(source.folder, source.spelled, target.folder, target.spelled, flags)
        took()
        if exchange:
            self._exchanged(source, target)
            return 0
        self._unnamed(target)
        self._renamed(source, target)
        self.made(target)
        return 0

    def _keep_apart(self, one: Place, other: Place) -> None:
        """Nothing moves, and no second name leads, between the run's own folders and the rest.

        What lies in those folders the run changes without being asked, also while this is decided; and a file that has
        another name there could be written through it after a hand-over. EXDEV makes programs copy.
        """
        if self.run.is_own(one.path) is not self.run.is_own(other.path):
            raise OSError(errno.EXDEV, "own folders are as a filesystem of their own")

    @staticmethod
    def _check_kinds(source: Place, target: Place, exchange: bool) -> None:
        if source.slash and not source.is_folder():
            raise OSError(errno.ENOTDIR, "no folder")
        if target.slash and not (target.is_folder() if exchange else source.is_folder()):
            raise OSError(errno.ENOTDIR, "no folder")
        if target.handle is not None and not exchange and source.is_folder() is not target.is_folder():
            raise OSError(errno.ENOTDIR if source.is_folder() else errno.EISDIR, "of the other kind")

    def _asked_by_rename(self, source: Place, target: Place, exchange: bool) -> list[tuple[Operation, Place]]:
        there = target.handle is not None
        asked: list[tuple[Operation, Place]] = []
        for place, other in ((source, target), (target, source)) if exchange else ((source, target),):
            if place.is_folder():
                if there and not exchange:
                    asked.append((Operation.REMOVE_FOLDER, other))
                asked += self._tree(place, other)
            else:
                asked.append((Operation.REMOVE, place))
                asked.append(
                    (Operation.WRITE if there and not other.is_folder() else Operation.CREATE, other)
                )
        return asked

    def _tree(self, source: Place, target: Place) -> list[tuple[Operation, Place]]:
        """All that a folder's move moves: every entry must be allowed to go, and to come."""
        assert source.handle is not None
        asked = [(Operation.REMOVE_FOLDER, source), (Operation.MAKE_FOLDER, target)]
        waiting = [("", source.handle)]
        while waiting:
            below, held = waiting.pop()
            handle = os.open(f"/proc/thread-self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with os.scandir(handle) as entries:
                    names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            finally:
                os.close(handle)
            if len(asked) + 2 * len(names) > 2 * MAX_MOVED or len(below) > PATH_MAX:
                raise self.refuse(
                    Refused(
                        source.path,
                        f"it holds more than {MAX_MOVED} files, or too deep; move them one by one",
                    ),
                    "move",
                )
            for name, folder in names:
                inner = self.caller.keep(kernel.open_path(os.fsencode(name), held, os.O_NOFOLLOW))
                status = kernel.status(inner)
                at, to = f"{source.path}{below}", f"{target.path}{below}"
                old = Place(held, at, os.fsencode(name), inner, status, False)
                new = Place(target.folder, to, os.fsencode(name), None, None, False)
                asked.append((Operation.REMOVE_FOLDER if folder else Operation.REMOVE, old))
                asked.append((Operation.MAKE_FOLDER if folder else Operation.CREATE, new))
                if folder:
                    waiting.append((f"{below}/{name}", inner))
        return asked

    def _gone(self, place: Place) -> None:
        """A name is gone: what was known by it is known no more."""
        relative = self.run.relative(place.path)
        if relative is not None:
            self.run.grant.temps.discard(relative)
            self.run.grant.made.discard(relative)
        self._unnamed(place)

    def _unnamed(self, place: Place) -> None:
        """An object has lost a name, perhaps its last one."""
        if place.status is None:
            return
        if place.status.links == 1 and stat.S_ISREG(place.status.mode):
            self._remember_unnamed(place.status)
        if place.status.links > 1:
            self.run.links.get((place.status.dev, place.status.ino), set()).discard(place.path)
        else:
            self.common.made_outside.discard(Identity.of(place.status))

    def _exchanged(self, source: Place, target: Place) -> None:
        """Two objects have each other's names: a temporary file's name stays one, of the other object."""
        for place, other in ((source, target), (target, source)):
            relative, status = self.run.relative(place.path), other.status
            if status is None or relative is None:
                continue
            if relative in self.run.grant.temps:
                self.run.temporary[relative] = Identity.of(status)
            if names := self.run.links.get((status.dev, status.ino)):
                names.discard(other.path)
                names.add(place.path)

    def _renamed(self, source: Place, target: Place) -> None:
        old, new = self.run.relative(source.path), self.run.relative(target.path)
        grant = self.run.grant
        if source.status is not None and (
            names := self.run.links.get((source.status.dev, source.status.ino))
        ):
            names.discard(source.path)
            names.add(target.path)
        if old is None:
            return
        grant.temps.discard(old)
        self.run.temporary.pop(old, None)
        if source.is_folder():
            for known in (grant.made, grant.temps):
                moved = {path for path in known if path == old or path.startswith(old + "/")}
                known -= moved
                if new is not None:
                    known |= {new + path[len(old) :] for path in moved}

    def link(self, olddir: int, old: int, newdir: int, new: int, flags: int) -> Answer:
        """link, linkat. The source is asked about as well: its other name would lead to the same bytes."""
        if flags & ~(kernel.AT_SYMLINK_FOLLOW | kernel.AT_EMPTY_PATH):
            raise OSError(errno.EINVAL, "flags")
        path = self.caller.text(old)
        if not path and flags & kernel.AT_EMPTY_PATH:
            source = self.by_descriptor(olddir)
        else:
            source = self._existing(olddir, path, bool(flags & kernel.AT_SYMLINK_FOLLOW))
        target = self._new(newdir, new)
        if target.slash:
            raise OSError(errno.ENOENT, "no folder")
        if source.is_folder():
            raise OSError(errno.EPERM, "a folder")
        if self.goes_on(source, target):
            return Plain.CONTINUE
        assert source.status is not None
        if source.status.links:
            self._keep_apart(source, target)
        took = self.permit((Operation.WRITE, source), (Operation.CREATE, target))
        os.link(
            f"/proc/thread-self/fd/{source.handle}",
            target.name,
            dst_dir_fd=target.folder,
            follow_symlinks=True,
        )
        took()
        if source.status.links:
            names = self.run.links.setdefault((source.status.dev, source.status.ino), set())
            if source.status.links == 1:
                names.clear()
            names |= {source.path, target.path}
        self.made(target)
        return 0

    # -- modes, owners, times, attributes -----------------------------------------------------------------------------

    def by_open_descriptor(self, number: int) -> Place:
        """The object behind a descriptor that is more than a path: an O_PATH one is EBADF to the f… calls."""
        place = self.by_descriptor(number)
        if self.caller.is_path_only(number):
            raise OSError(errno.EBADF, "an O_PATH descriptor")
        return place

    def by_descriptor(self, number: int) -> Place:
        """The object behind a descriptor."""
        handle = self.caller.descriptor(number)
        return Place(handle, where(handle), b"", handle, kernel.status(handle), False)

    def _marked(self, place: Place) -> str:
        """Ask for a change of what is held; the name by which it is done."""
        self.permit((Operation.MARK_FOLDER if place.is_folder() else Operation.MARK, place))()
        return f"/proc/thread-self/fd/{place.handle}"

    def at(self, dirfd: int, address: int, flags: int = 0) -> Place:
        """The object of a …at call: by path, or by descriptor with AT_EMPTY_PATH."""
        path = self.caller.text(address)
        if not path and flags & kernel.AT_EMPTY_PATH:
            return (
                self.by_descriptor(dirfd) if dirfd != kernel.AT_FDCWD else self._existing(dirfd, b".", True)
            )
        return self._existing(dirfd, path, not flags & kernel.AT_SYMLINK_NOFOLLOW)

    def chmod(self, place: Place, mode: int) -> Answer:
        """chmod, fchmod, fchmodat."""
        os.chmod(self._marked(place), mode & 0o7777)
        return 0

    def chown(self, place: Place, uid: int, gid: int) -> Answer:
        """chown, lchown, fchown, fchownat."""
        self._marked(place)
        assert place.handle is not None
        kernel.chown(place.handle, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF)
        return 0

    def times(self, place: Place, times: bytes | None) -> Answer:
        """utime, utimes, futimesat, utimensat; `times` are two struct timespec."""
        if times is not None and _OMIT == times[8:16] == times[24:32]:
            return 0
        self._marked(place)
        assert place.handle is not None
        kernel.set_times(place.handle, times)
        return 0

    def timespecs(self, address: int) -> bytes | None:
        """Two struct timespec from memory; None for now."""
        return self.caller.memory(address, 32, exactly=True) if address else None

    def timevals(self, address: int) -> bytes | None:
        """Two struct timeval from memory, as timespecs."""
        if not address:
            return None
        parts = struct.unpack("=4q", self.caller.memory(address, 32, exactly=True))
        if not (0 <= parts[1] < 1_000_000 and 0 <= parts[3] < 1_000_000):
            raise OSError(errno.EINVAL, "microseconds")
        return struct.pack("=4q", parts[0], parts[1] * 1000, parts[2], parts[3] * 1000)

    def utimbuf(self, address: int) -> bytes | None:
        """A struct utimbuf from memory, as timespecs."""
        if not address:
            return None
        access, change = struct.unpack("=2q", self.caller.memory(address, 16, exactly=True))
        return struct.pack("=4q", access, 0, change, 0)

    def setxattr(self, place: Place, name: int, value: int, size: int, flags: int) -> Answer:
        """setxattr, lsetxattr, fsetxattr."""
        if flags & ~3:
            raise OSError(errno.EINVAL, "flags")
        attribute = self._attribute(name)
        if size > MAX_XATTR:
            raise OSError(errno.E2BIG, "size")
        data = bytearray()
        while len(data) < size:
            part = self.caller.memory(value + len(data), min(4096, size - len(data)))
            data += part
        os.setxattr(self._marked(place), attribute, bytes(data), flags)
        return 0

    def removexattr(self, place: Place, name: int) -> Answer:
        """removexattr, lremovexattr, fremovexattr."""
        attribute = self._attribute(name)
        os.removexattr(self._marked(place), attribute)
        return 0

    def _attribute(self, address: int) -> bytes:
        name = self.caller.text(address)
        if not name or len(name) > 255:
            raise OSError(errno.ERANGE, "attribute")
        return name

    def of_own_process(self, target: int) -> Answer:
        """A call on another thread's priority goes on where that is one of the caller's own process: numbers, no paths."""
        target &= 0xFFFFFFFF
        if target in (0, self.caller.tid) or Caller(target).group() == self.caller.group():
            return Plain.CONTINUE
        raise OSError(errno.EPERM, "another process")

    def by_path(self, address: int, follow: bool) -> Place:
        """The object at a path from the current folder."""
        return self._existing(kernel.AT_FDCWD, self.caller.text(address), follow)


_QUICK_DEVICES = frozenset(os.fsencode(path) for path in wall.DEVICES if path != "/dev/ptmx")
#: UTIME_OMIT, as the eight bytes of a tv_nsec.
_OMIT = struct.pack("=q", (1 << 30) - 2)


def identity_at(path: str) -> Identity | None:
    """What stands at an absolute path, links not followed; None for nothing."""
    try:
        handle = kernel.open_path(os.fsencode(path), -1, os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return Identity.of(kernel.status(handle))
    finally:
        os.close(handle)


def _leads(name: str, status: Status) -> bool:
    """Whether a name still leads to an object."""
    try:
        found = os.lstat(name)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (status.dev, status.ino)
