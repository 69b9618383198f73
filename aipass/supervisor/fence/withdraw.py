"""Taking a file away from who has it open: descriptors and mappings from before reach only what is nobody's any more."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat

from aipass.supervisor.fence import kernel

#: Names of copies that are about to take a file's place; watchers ignore them.
COPY = ".aipass-copy-"
_ONCE = 1 << 30


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
    except OSError:
        return False
    finally:
        os.close(top)
    try:
        return _cut_off(folder, name)
    finally:
        os.close(folder)


def _cut_off(folder: int, name: str) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(name, flags, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return False
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode) or not has_writer(handle):
            return False
        _replace(folder, name, handle)
    finally:
        os.close(handle)
    return True


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


def _replace(folder: int, name: str, handle: int) -> None:
    before = os.fstat(handle)
    copy = f"{COPY}{before.st_ino}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.unlink(copy, dir_fd=folder)  # of a supervisor that was killed in the middle
    except FileNotFoundError:
        pass
    target = os.open(copy, flags, 0o600, dir_fd=folder)
    try:
        _copy(handle, target)
        try:
            os.fchown(target, before.st_uid, before.st_gid)
        except PermissionError:
            pass  # a group that is not ours
        os.fchmod(target, stat.S_IMODE(before.st_mode))
        for attribute in os.listxattr(handle):
            try:
                os.setxattr(target, attribute, os.getxattr(handle, attribute))
            except OSError:
                pass  # the system's own
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.rename(copy, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(copy, dir_fd=folder)
        raise
    finally:
        os.close(target)


def _copy(source: int, target: int) -> None:
    while True:
        try:
            done = os.copy_file_range(source, target, _ONCE)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.sendfile(target, source, None, _ONCE)
        if not done:
            return
