"""A thin wrapper of Linux inotify through libc: watches, and the kernel's events in their order."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

IN_ATTRIB = 0x4
IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_Q_OVERFLOW, IN_IGNORED = 0x400, 0x800, 0x4000, 0x8000
IN_ONLYDIR, IN_DONT_FOLLOW, IN_EXCL_UNLINK, IN_ISDIR = 0x1000000, 0x2000000, 0x4000000, 0x40000000
# IN_EXCL_UNLINK: no events for files that have no name any more. IN_DONT_FOLLOW: never watch what a symbolic link names.
MASK = (
    IN_CLOSE_WRITE
    | IN_ATTRIB
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_ONLYDIR
    | IN_DONT_FOLLOW
    | IN_EXCL_UNLINK
)
# Several thousand events per read; the kernel's own queue holds 16,384 by default.
READ_BYTES = 1 << 18
_HEAD = struct.Struct("iIII")


class Raw(NamedTuple):
    """One event of the kernel. `cookie` connects the two halves of a rename; `name` is empty for the watched folder itself."""

    watch: int
    mask: int
    cookie: int
    name: bytes


class WatchLimitError(OSError):
    """This user has as many watches as the kernel allows (fs.inotify.max_user_watches)."""


class Inotify:
    """One inotify instance. Raises OSError where this user may have no more instances, AttributeError where libc has no inotify."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        # O_CLOEXEC: a program that the engine starts must not inherit the descriptor.
        self.descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise _error()

    def add(self, path: bytes, mask: int = MASK) -> int:
        """Watch one folder and return the watch's number; the same folder again gives the same number. Raises WatchLimitError, OSError."""
        watch: int = self._libc.inotify_add_watch(self.descriptor, path, mask)
        if watch < 0:
            error = _error()
            raise WatchLimitError(*error.args) if error.errno == errno.ENOSPC else error
        return watch

    def remove(self, watch: int) -> None:
        """End a watch. Does nothing for a watch whose folder is gone already."""
        self._libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[Raw]:
        """Return the events that wait now, oldest first; an empty list where there are none. Never blocks."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return []
        events, position = [], 0
        while position < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, position)
            position += _HEAD.size
            # The kernel pads each name with NUL bytes.
            events.append(Raw(watch, mask, cookie, data[position : position + length].rstrip(b"\0")))
            position += length
        return events

    def close(self) -> None:
        """Close the instance; the kernel ends all its watches."""
        os.close(self.descriptor)


def by_descriptor(handle: int) -> bytes:
    """Return a path to a folder that is held open, which `IN_DONT_FOLLOW` accepts."""
    # The `/.` at the end: without it the path is itself a symbolic link, which IN_DONT_FOLLOW refuses.
    return b"/proc/self/fd/%d/." % handle


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
