"""Taking a file away from who has it open: descriptors and mappings from before reach only what is nobody's any more."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from functools import partial
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

_ONCE = 1 << 30
#: The path leads to nothing any more, or through a link, by which no run has written.
_NOT_THERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV))


def cut_off(root: str, path: str) -> bool:
    """Make sure that nobody who has `path` (relative to the root) open for writing now can change it any more.

    A read lease is refused as long as anybody has the file open for writing: descriptors, mappings and descriptors on
    their way through a socket alike. Then the file is replaced by its copy, with its mode, owner, times and attributes;
    the old writers keep the old one, which has no name. Returns whether it was replaced. What is gone, or is no plain
    file, is left. Raises OSError where it cannot be replaced.
    """
    folder_path, _, name = path.rpartition("/")
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        within = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS
        folder = kernel.open_path(os.fsencode(folder_path) or b".", top, os.O_DIRECTORY, within)
    except OSError as exc:
        if exc.errno in _NOT_THERE:
            return False
        raise  # what cannot be looked at may be written all the same
    finally:
        os.close(top)
    try:
        return _cut_off(root, folder, name)
    finally:
        os.close(folder)


def _cut_off(root: str, folder: int, name: str) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(name, flags, dir_fd=folder)
    except OSError as exc:
        # ENXIO: a socket, which nobody opens.
        if exc.errno in _NOT_THERE or exc.errno == errno.ENXIO:
            return False
        raise
    try:
        found = os.fstat(handle)
        # A second name reaches the file as a descriptor does.
        if not stat.S_ISREG(found.st_mode) or (found.st_nlink == 1 and not has_writer(handle)):
            return False
        return _replace(root, folder, name, handle)
    finally:
        os.close(handle)


def has_writer(handle: int) -> bool:
    """Whether anybody may still write the file behind a read-only descriptor; true where the kernel does not tell."""
    try:
        # Whoever opens the file in these microseconds makes the kernel signal us: with one that is ignored by default.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


def _replace(root: str, folder: int, name: str, handle: int) -> bool:
    before = os.fstat(handle)
    # Where no agent can write: a name that could be guessed would be made a folder, or another's file.
    aside = os.path.join(root, ".aipass", "handover")
    os.makedirs(aside, mode=0o700, exist_ok=True)
    copy = os.path.join(aside, os.urandom(8).hex())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(copy, flags, 0o600)
    try:
        _copy(handle, target, before.st_size)
        try:
            os.fchown(target, before.st_uid, before.st_gid)
        except PermissionError:
            pass  # a group that is not ours
        os.fchmod(target, stat.S_IMODE(before.st_mode))
        for attribute in _attributes(handle):
            try:
                os.setxattr(target, attribute, os.getxattr(handle, attribute))
            except OSError:
                pass  # the system's own
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        return _exchange(root, copy, folder, name, before, handle)
    except BaseException:
        os.unlink(copy)
        raise
    finally:
        os.close(target)


def _exchange(root: str, copy: str, folder: int, name: str, before: os.stat_result, handle: int) -> bool:
    """Put the copy in the file's place. What somebody else has put there meanwhile, or written, is not lost.

    Raises OSError with the copy still where it was made.
    """
    top = os.open(os.path.dirname(copy), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    aside, there = os.path.basename(copy).encode(), os.fsencode(name)
    try:
        try:
            kernel.rename(top, aside, folder, there, kernel.RENAME_EXCHANGE)
        except FileNotFoundError:
            os.unlink(copy)
            return False  # it was removed meanwhile
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # A filesystem that cannot exchange: looked at once more, as late as can be.
            there_now = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if (there_now.st_dev, there_now.st_ino) != (before.st_dev, before.st_ino):
                os.unlink(copy)
                return False
            os.rename(copy, name, dst_dir_fd=folder)
            return True
        # From here on what stands where the copy was made is somebody's: it is never removed for an error.
        return _after_exchange(root, copy, partial(kernel.rename, top, aside, folder, there), before, handle)
    finally:
        os.close(top)


def _after_exchange(
    root: str, copy: str, rename: Callable[[int], None], before: os.stat_result, handle: int
) -> bool:
    kept = os.path.join(root, ".aipass", "quarantine", "handover")
    old, now = os.lstat(copy), os.fstat(handle)
    try:
        if (old.st_dev, old.st_ino) != (before.st_dev, before.st_ino):
            # Somebody has saved anew by a rename: that is the file now, and no old descriptor reaches it.
            rename(kernel.RENAME_EXCHANGE)
            os.unlink(copy)
            return False
        if (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            os.unlink(copy)
        else:
            # Written while it was copied, by nobody knows whom: kept.
            os.makedirs(kept, mode=0o700, exist_ok=True)
            os.rename(copy, os.path.join(kept, os.path.basename(copy)))
    except OSError:
        pass  # it stays in `.aipass/handover`
    return True


def _attributes(handle: int) -> list[str]:
    try:
        return os.listxattr(handle)
    except OSError:
        return []  # a filesystem that has none


def _copy(source: int, target: int, size: int) -> None:
    """The content, holes left as they are."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return  # nothing but a hole is left
            raise
        os.lseek(source, at, os.SEEK_SET)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            done = _copy_some(source, target, min(_ONCE, end - at))
            if not done:
                return
            at += done


def _copy_some(source: int, target: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return os.sendfile(target, source, None, length)
