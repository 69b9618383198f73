"""Performed calls that open: the supervisor opens the checked object and passes the descriptor to the caller."""

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
    """Perform open, openat, creat."""
    flags &= 0x7FFFFFFF  # the highest bit has no meaning, and does not fit os.open
    if flags & os.O_CREAT and flags & os.O_DIRECTORY:
        _ask(work, dirfd, address)
        raise OSError(errno.EINVAL, "flags")
    path = work.caller.text(address)
    if work.goes_on_unseen(path):
        return Plain.CONTINUE
    if flags & O_TMPFILE == O_TMPFILE:
        return _open_temporary(work, dirfd, path, flags, mode)
    if flags & os.O_CREAT and path.endswith(b"/"):
        resolve(work.caller, dirfd, path, False)  # errors in the path come first, as in the kernel
        raise OSError(errno.EISDIR, "a file cannot be made as a folder")
    exclusive = flags & os.O_CREAT and flags & os.O_EXCL
    follow = path.endswith(b"/") or not (flags & os.O_NOFOLLOW or exclusive)
    # The name can appear or vanish between look-up and open; a bounded number of attempts.
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
    raise OSError(errno.EAGAIN, "it was created and removed repeatedly during the call")


def _ask(work: PermitCall, dirfd: int, address: int) -> None:
    """Answer a pre-write hook, which asks by an open with O_CREAT and O_DIRECTORY.

    Raises EACCES, with the usual explanation, where a write would be refused. Changes, holds and journals
    nothing.
    """
    try:
        path = work.caller.text(address)
        if work.goes_on_unseen(path):
            return
        place = resolve(work.caller, dirfd, path, True)
    except OSError:
        return  # not a valid path: EINVAL, as the kernel answers these flags before it looks at the path
    work.check((Operation.CREATE if place.handle is None else Operation.WRITE, place))


def _create(work: PermitCall, place: ResolvedPath, flags: int, mode: int) -> Answer:
    if not kernel.status(place.folder).links:
        raise OSError(errno.ENOENT, "the folder was removed")
    took = work.permit((Operation.CREATE, place))
    os.umask(work.caller.umask())
    # O_EXCL: an object that another process just put there was not checked. O_NOCTTY: it would become our terminal.
    new = flags & ~os.O_DIRECTORY | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY
    handle = os.open(place.name, new, mode & 0o7777, dir_fd=place.folder)
    took()
    work.made(place)
    folder = os.dup(place.folder)
    # The kernel reserves a descriptor before it creates the file. If the caller has none left, no file must remain.
    undo = partial(_unmake, work, place, folder, os.fstat(handle).st_ino)
    return DescriptorReply(handle, bool(flags & os.O_CLOEXEC), undo=undo, folder=folder)


def _unmake(work: PermitCall, place: ResolvedPath, folder: int, ino: int) -> None:
    """Remove a file that was created in vain, if it is still empty, the same object, and writable for the run."""
    # The caller may have taken long to run; the path may have been handed over since.
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
        # O_CREAT on an existing file without write access is only a read, and reads are not limited.
        return _reopen(place.handle, kind, flags)
    if work.goes_on(place):
        return Plain.CONTINUE
    if kind == stat.S_IFCHR:
        return _open_device(work, place, flags)
    if place.path in work.run.outputs:
        # `echo x > /dev/stderr` must append to the log and must not truncate it.
        return _reopen(place.handle, kind, flags & ~os.O_TRUNC | os.O_APPEND)
    took = work.permit((Operation.WRITE, place))
    return _reopen(place.handle, kind, flags, took, lambda: _still(work, place))


def access(work: PermitCall, dirfd: int, address: int, flags: int = 0) -> Answer:
    """Perform access, faccessat and faccessat2 with W_OK: EACCES where a write would be refused.

    For a folder: whether a file can be created in it. Where a write would be allowed, the kernel answers.
    Reports no refusal, as nothing was written.
    """
    try:
        path = work.caller.text(address)
        if work.goes_on_unseen(path):
            return Plain.CONTINUE
        place = work.at(dirfd, address, flags)
    except OSError:
        return Plain.CONTINUE  # not a valid path: the kernel gives the exact error
    if place.is_folder():
        assert place.handle is not None
        inside = ResolvedPath(place.handle, place.path, b"aipass-asks", None, None, False)
        allowed = work.would(Operation.CREATE, inside) or work.may_make_below(place)
    else:
        allowed = work.would(Operation.WRITE, place)
    if not allowed:
        raise OSError(errno.EACCES, "it is not writable")
    return Plain.CONTINUE


def _open_device(work: PermitCall, place: ResolvedPath, flags: int) -> Answer:
    assert place.handle is not None
    work.permit((Operation.WRITE, place))()
    if place.path == "/dev/tty":
        # It is the controlling terminal of the process that opens it, so the supervisor cannot open it for the run.
        if work.run.walled:
            return Plain.CONTINUE
        raise OSError(errno.ENXIO, "no terminal")
    opened = _reopen(place.handle, stat.S_IFCHR, flags)
    if place.path in ("/dev/ptmx", "/dev/pts/ptmx") and isinstance(opened, DescriptorReply):
        number = bytearray(4)
        fcntl.ioctl(opened.handle, TIOCGPTN, number)
        terminal = struct.unpack("I", number)[0]
        try:
            # The other end is open, so the number cannot be reused at this moment.
            work.run.remember_terminal(terminal, os.open(f"/dev/pts/{terminal}", os.O_PATH | os.O_CLOEXEC))
        except OSError:
            pass  # another mount of /dev/pts: no run can open it by name then
    return opened


def _still(work: PermitCall, place: ResolvedPath) -> None:
    """Check again before a waiting open is attempted again: the file may have been handed over or moved since.

    Raises EACCES, or Later where the call must begin again.
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
    """Open a held object without blocking. Raises Later where a pipe has no reader yet, or a file has a lease."""
    cloexec = bool(flags & os.O_CLOEXEC)
    # Truncate only after the caller has the descriptor: at its descriptor limit the open fails and must keep the content.
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
            try:
                took()
            except BaseException:
                os.close(handle)
                raise
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
    """Perform open with O_TMPFILE: a file without a name on the filesystem of a folder; linkat can name it later."""
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
    """Perform truncate."""
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
