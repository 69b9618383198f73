"""Whether somebody still writes a file: asked of the kernel, for files that were found rather than seen to be closed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time

from aipass.supervisor import held

# Where the kernel cannot tell, a file that nobody has touched for this long counts as complete.
SETTLED_S = 1.0


def is_complete(path: str | bytes | os.PathLike[str], mtime_ns: int) -> bool:
    """True where nobody has the file open for writing.

    A read lease is refused as long as anybody has the file open for writing, shared mappings included; it is given
    back at once. Where leases do not exist (macOS, network filesystems, another user's file) the file's age decides.
    """
    verdict = has_writer(path)
    if verdict is not None:
        return not verdict
    return time.time_ns() - mtime_ns > SETTLED_S * 1e9


def has_writer(path: str | bytes | os.PathLike[str]) -> bool | None:
    """Whether anybody has the file open for writing; None where nobody can say."""
    try:
        handle = held.open_at(os.fsdecode(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return is_written(handle)
    finally:
        os.close(handle)


def is_written(handle: int) -> bool | None:
    """Whether anybody has the file open for writing that `handle` has open for reading; None where nobody can say."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        # Whoever opens the file in these microseconds makes the kernel signal us: with one that is ignored by default.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return True if exc.errno == errno.EAGAIN else None
    return False
