"""Calls that open: the file is opened here, on what was checked, and its descriptor given to the caller."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from functools import partial
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel
from aipass.supervisor.fence.decide import Operation, Refused, decide
from aipass.supervisor.fence.permit import SHARED_TEMPORARY, DescriptorReply, Later, Plain
from aipass.supervisor.fence.resolve import ResolvedPath, resolve, where

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.fence.permit import Answer, PermitCall

O_TMPFILE = 0o20000000 | os.O_DIRECTORY
TIOCGPTN = 0x80045430
_NOT_FOR_REOPEN = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def open_file(work: PermitCall, dirfd: int, address: int, flags: int, mode: int) -> Answer:
    """open, openat, creat."""
    flags &= 0x7FFFFFFF  # the highest bit means nothing, and does not fit
    if flags & os.O_CREAT and flags & os.O_DIRECTORY:
        _ask(work, dirfd, address)
        raise OSError(errno.EINVAL, "flags")
    path = work.caller.text(address)
    if work.goes_on_unseen(path):
        return Plain.CONTINUE
    if flags & O_TMPFILE == O_TMPFILE:
        return _open_temporary(work, dirfd, path, flags, mode)
    if flags & os.O_CREAT and path.endswith(b"/"):
        resolve(work.caller, dirfd, path, False)  # what is wrong on the way comes first
        raise OSError(errno.EISDIR, "a file cannot be made as a folder")
    exclusive = flags & os.O_CREAT and flags & os.O_EXCL
    follow = path.endswith(b"/") or not (flags & os.O_NOFOLLOW or exclusive)
    for _ in range(10):
        place = resolve(work.caller, dirfd, path, follow)
        if place.handle is not None:
            if exclusive:
                raise OSError(errno.EEXIST, "exists")
            return _open_existing(work, place, flags)
        if not flags & os.O_CREAT:
            raise OSError(errno.ENOENT, "nothing there")
        if work.goes_on(place):
            return Plain.CONTINUE
        try:
            return _create(work, place, flags, mode)
        except FileExistsError:
            if exclusive:
                raise
    raise OSError(errno.EAGAIN, "it comes and goes")


def _ask(work: PermitCall, dirfd: int, address: int) -> None:
    """A file that must be made and must be a folder can never be opened; so that is how a pre-write hook asks.

    Raises EACCES, and explains it as always, where a write there would be refused; nothing is changed, held or noted.
    """
    try:
        path = work.caller.text(address)
        if work.goes_on_unseen(path):
            return
        place = resolve(work.caller, dirfd, path, True)
    except OSError:
        return  # it leads nowhere, and the kernel would not have looked
    work.check((Operation.CREATE if place.handle is None else Operation.WRITE, place))


def _create(work: PermitCall, place: ResolvedPath, flags: int, mode: int) -> Answer:
    if not kernel.status(place.folder).links:
        raise OSError(errno.ENOENT, "the folder was removed")
    took = work.permit((Operation.CREATE, place))
    os.umask(work.caller.umask())
    new = flags & ~os.O_DIRECTORY | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY
    handle = os.open(place.name, new, mode & 0o7777, dir_fd=place.folder)
    took()
    work.made(place)
    folder = os.dup(place.folder)
    # The kernel looks for a free descriptor before it makes the file; where there is none, there is no file.
    undo = partial(_unmake, work, place, folder, os.fstat(handle).st_ino)
    return DescriptorReply(handle, bool(flags & os.O_CLOEXEC), undo=undo, folder=folder)


def _unmake(work: PermitCall, place: ResolvedPath, folder: int, ino: int) -> None:
    """Remove a file that was made for nothing, if it is still that, and the run's: it may have taken a while."""
    relative = work.run.relative(place.path)
    if relative is not None:
        verdict = decide(work.run.grant, Operation.REMOVE, (relative,))
        if isinstance(verdict, Refused):
            return
    found = os.stat(place.name, dir_fd=folder, follow_symlinks=False)
    if found.st_ino == ino and not found.st_size:
        os.unlink(place.name, dir_fd=folder)


def _open_existing(work: PermitCall, place: ResolvedPath, flags: int) -> Answer:
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
        return _reopen(place.handle, kind, flags)
    if work.goes_on(place):
        return Plain.CONTINUE
    if kind == stat.S_IFCHR:
        return _open_device(work, place, flags)
    if place.path in work.run.outputs:
        # /dev/stderr and the like: `echo x > /dev/stderr` adds a line to what was said, and does not empty it.
        return _reopen(place.handle, kind, flags & ~os.O_TRUNC | os.O_APPEND)
    took = work.permit((Operation.WRITE, place))
    return _reopen(place.handle, kind, flags, took, lambda: _still(work, place))


def access(work: PermitCall, dirfd: int, address: int, flags: int = 0) -> Answer:
    """access, faccessat and faccessat2 with W_OK: EACCES where a write would be refused. Nothing is told: nobody has written.

    Of a folder it is asked whether something can be made in it. Whatever would be allowed here, the kernel says what it says.
    """
    try:
        path = work.caller.text(address)
        if work.goes_on_unseen(path):
            return Plain.CONTINUE
        place = work.at(dirfd, address, flags)
    except OSError:
        return Plain.CONTINUE  # it leads nowhere, and the kernel tells that better
    if place.is_folder():
        assert place.handle is not None
        inside = ResolvedPath(place.handle, place.path, b"aipass-asks", None, None, False)
        allowed = work.would(Operation.CREATE, inside) or work.may_make_below(place)
    else:
        allowed = work.would(Operation.WRITE, place)
    if not allowed:
        raise OSError(errno.EACCES, "it could not be written")
    return Plain.CONTINUE


def _open_device(work: PermitCall, place: ResolvedPath, flags: int) -> Answer:
    assert place.handle is not None
    work.permit((Operation.WRITE, place))()
    if place.path == "/dev/tty":
        # Whose terminal that is depends on who opens it.
        if work.run.walled:
            return Plain.CONTINUE
        raise OSError(errno.ENXIO, "no terminal")
    opened = _reopen(place.handle, stat.S_IFCHR, flags)
    if place.path in ("/dev/ptmx", "/dev/pts/ptmx") and isinstance(opened, DescriptorReply):
        number = bytearray(4)
        fcntl.ioctl(opened.handle, TIOCGPTN, number)
        terminal = struct.unpack("I", number)[0]
        try:
            # Held open by its other end: nobody else's can have the number now.
            work.run.remember_terminal(terminal, os.open(f"/dev/pts/{terminal}", os.O_PATH | os.O_CLOEXEC))
        except OSError:
            pass  # another /dev/pts than ours: then it is nobody's to open by name
    return opened


def _still(work: PermitCall, place: ResolvedPath) -> None:
    """What was allowed when a call began to wait may have been handed over meanwhile, or lie elsewhere.

    Raises EACCES, or Later where the call must begin anew.
    """
    assert place.handle is not None
    if where(place.handle) != place.path:
        raise Later
    relative = work.run.relative(place.path)
    if relative is None:
        return
    if work.common.withdrawing.holds(relative):
        raise Later
    verdict = decide(work.run.grant, Operation.WRITE, (relative,))
    if isinstance(verdict, Refused):
        raise work.refuse(verdict, Operation.WRITE.value)


def _reopen(
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
        return DescriptorReply(handle, cloexec, then)

    def again() -> Answer | None:
        if still is not None:
            still()
        return attempt()

    opened = attempt()
    if opened is None:
        raise Later(again)
    return opened


def _open_temporary(work: PermitCall, dirfd: int, path: bytes, flags: int, mode: int) -> Answer:
    """O_TMPFILE: a file without a name, in a folder whose filesystem it then uses. linkat may name it later."""
    place = resolve(work.caller, dirfd, path, True)
    if place.handle is None:
        raise OSError(errno.ENOENT, "no folder")
    if not place.is_folder():
        raise OSError(errno.ENOTDIR, "no folder")
    if work.goes_on(place):
        return Plain.CONTINUE
    if work.run.relative(place.path) is None and place.path not in SHARED_TEMPORARY:
        work.permit((Operation.MARK_FOLDER, place))
    os.umask(work.caller.umask())
    handle = os.open(f"/proc/thread-self/fd/{place.handle}", flags | os.O_CLOEXEC, mode & 0o7777)
    work.remember_unnamed(kernel.status(handle))
    return DescriptorReply(handle, bool(flags & os.O_CLOEXEC))


def truncate(work: PermitCall, address: int, length: int) -> Answer:
    """truncate."""
    place = work.existing(kernel.AT_FDCWD, work.caller.text(address), True)
    if length < 0:
        raise OSError(errno.EINVAL, "length")
    if place.is_folder():
        raise OSError(errno.EISDIR, "a folder")
    if place.status is not None and not stat.S_ISREG(place.status.mode):
        raise OSError(errno.EINVAL, "no file")
    if work.goes_on(place):
        return Plain.CONTINUE
    took = work.permit((Operation.WRITE, place))
    os.truncate(f"/proc/thread-self/fd/{place.handle}", length)
    took()
    return 0
