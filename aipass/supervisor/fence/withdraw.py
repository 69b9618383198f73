"""Withdrawal of a file from processes that have it open: the file is replaced by a copy, so they keep an unnamed one."""

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

# sendfile(2) and copy_file_range(2) copy at most 2 GiB per call.
_ONCE = 1 << 30
#: The path no longer exists, or contains a link; runs never write through a link.
_NOT_THERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV))


def cut_off(root: str, path: str) -> bool:
    """Ensure that no process that has `path` (relative to the root) open for writing can change it any more.

    If the file has a writer, it is replaced by its copy, with mode, owner, times and attributes. Old
    descriptors and mappings then refer to the old file, which has no name. Returns whether the file was
    replaced; a missing or non-regular file is left. Raises OSError where it cannot be replaced: then the old
    writers can still change it.
    """
    folder_path, _, name = path.rpartition("/")
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        within = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS
        folder = kernel.open_path(os.fsencode(folder_path) or b".", top, os.O_DIRECTORY, within)
    except OSError as exc:
        if exc.errno in _NOT_THERE:
            return False
        raise  # not readable for us, but an open descriptor can still write it
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
        # ENXIO: a socket, which cannot be opened.
        if exc.errno in _NOT_THERE or exc.errno == errno.ENXIO:
            return False
        raise
    try:
        found = os.fstat(handle)
        # A second name reaches the file as an open descriptor does, so it is replaced too.
        if not stat.S_ISREG(found.st_mode) or (found.st_nlink == 1 and not has_writer(handle)):
            return False
        return _replace(root, folder, name, handle)
    finally:
        os.close(handle)


def has_writer(handle: int) -> bool:
    """Whether any process can still write the file of a read-only descriptor; True where the kernel cannot tell."""
    try:
        # A process that opens the file in these microseconds breaks the lease: use a signal that is ignored by default.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        # The kernel refuses a read lease while the file is open for writing: by a descriptor, a mapping, or a descriptor
        # in transit through a socket.
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


def _replace(root: str, folder: int, name: str, handle: int) -> bool:
    before = os.fstat(handle)
    # In a folder that no agent can write, under a random name: an agent could occupy a name that it can guess.
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
            pass  # only root can set a group of which it is no member
        os.fchmod(target, stat.S_IMODE(before.st_mode))
        for attribute in _attributes(handle):
            try:
                os.setxattr(target, attribute, os.getxattr(handle, attribute))
            except OSError:
                pass  # attributes of the system need privileges
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        return _exchange(root, copy, folder, name, before, handle)
    except BaseException:
        os.unlink(copy)
        raise
    finally:
        os.close(target)


def _exchange(root: str, copy: str, folder: int, name: str, before: os.stat_result, handle: int) -> bool:
    """Put the copy in the file's place; a file that another process put there since, or its writes, are not lost.

    Raises OSError; the copy is then still in its first place.
    """
    top = os.open(os.path.dirname(copy), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    aside, there = os.path.basename(copy).encode(), os.fsencode(name)
    try:
        try:
            kernel.rename(top, aside, folder, there, kernel.RENAME_EXCHANGE)
        except FileNotFoundError:
            os.unlink(copy)
            return False  # the file was removed during the copy
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # A filesystem without RENAME_EXCHANGE: check the object once more, as late as possible. A short race remains.
            there_now = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if (there_now.st_dev, there_now.st_ino) != (before.st_dev, before.st_ino):
                os.unlink(copy)
                return False
            os.rename(copy, name, dst_dir_fd=folder)
            return True
        # From here on the old file is in the place of the copy: an error must not remove it.
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
            # Another process has saved a new file by rename. That one stays: no old descriptor refers to it.
            rename(kernel.RENAME_EXCHANGE)
            os.unlink(copy)
            return False
        if (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            os.unlink(copy)
        else:
            # Written during the copy, by an unknown process: kept for the user.
            os.makedirs(kept, mode=0o700, exist_ok=True)
            os.rename(copy, os.path.join(kept, os.path.basename(copy)))
    except OSError:
        pass  # the old file stays in `.aipass/handover`
    return True


def _attributes(handle: int) -> list[str]:
    try:
        return os.listxattr(handle)
    except OSError:
        return []  # a filesystem without attributes


def _copy(source: int, target: int, size: int) -> None:
    """Copy the content; holes stay holes."""
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
    # copy_file_range(2) fails between filesystems and on some network mounts.
    return os.sendfile(target, source, None, length)
