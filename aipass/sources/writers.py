"""The check whether a program still writes to a file, for files whose close the engine did not see."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time

from aipass.supervisor import held

# Where the kernel gives no answer, a file without a change for this long counts as complete.
SETTLED_S = 1.0


def is_complete(path: str | bytes | os.PathLike[str], mtime_ns: int) -> bool:
    """Return True where no program has the file open for writing.

    Where the kernel gives no answer (macOS, network filesystems, another user's file) the file's age decides.
    """
    verdict = has_writer(path)
    if verdict is not None:
        return not verdict
    return time.time_ns() - mtime_ns > SETTLED_S * 1e9


def has_writer(path: str | bytes | os.PathLike[str]) -> bool | None:
    """Return whether any program has the file open for writing; None where the kernel gives no answer, or there is no such file."""
    try:
        # O_NONBLOCK: opening a FIFO would wait for its other end.
        handle = held.open_at(os.fsdecode(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return is_written(handle)
    finally:
        os.close(handle)


def is_written(handle: int) -> bool | None:
    """The same for a file that `handle` has open for reading; raises nothing."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        # The kernel refuses a read lease while any program has the file open for writing, shared mappings included.
        # If a program opens the file during these microseconds, the kernel signals us: with a signal that is ignored by default.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return True if exc.errno == errno.EAGAIN else None
    return False
