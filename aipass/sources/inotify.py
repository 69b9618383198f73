"""Linux inotify through libc: watches, and the kernel's events as they come."""

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
# Several thousand events a read; the kernel's own queue holds 16,384 by default.
READ_BYTES = 1 << 18
_HEAD = struct.Struct("iIII")


class Raw(NamedTuple):
    """One event of the kernel."""

    watch: int
    mask: int
    cookie: int
    name: bytes


class WatchLimitError(OSError):
    """The kernel gives no more watches to this user."""


class Inotify:
    """One inotify instance. Raises OSError where the system has none, or no more."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise _error()

    def add(self, path: bytes, mask: int = MASK) -> int:
        """Watch one folder; the same folder again gives the same number. Raises WatchLimitError and OSError."""
        watch: int = self._libc.inotify_add_watch(self.descriptor, path, mask)
        if watch < 0:
            error = _error()
            raise WatchLimitError(*error.args) if error.errno == errno.ENOSPC else error
        return watch

    def remove(self, watch: int) -> None:
        """Watch a folder no more; one that is gone already is fine."""
        self._libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[Raw]:
        """Whatever the kernel has for us now."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return []
        events, position = [], 0
        while position < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, position)
            position += _HEAD.size
            events.append(Raw(watch, mask, cookie, data[position : position + length].rstrip(b"\0")))
            position += length
        return events

    def close(self) -> None:
        """Give it back to the kernel, with all its watches."""
        os.close(self.descriptor)


def by_descriptor(handle: int) -> bytes:
    """A path to a folder that is held, which `IN_DONT_FOLLOW` takes."""
    return b"/proc/self/fd/%d/." % handle


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
