"""Performed connect and bind, on a copy of the caller's socket: another program could act on behalf of the run."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel
from aipass.supervisor.fence.decide import Operation, Refused
from aipass.supervisor.fence.fenced import ObjectId
from aipass.supervisor.fence.permit import Later, Plain
from aipass.supervisor.fence.resolve import resolve

if TYPE_CHECKING:
    from aipass.supervisor.fence.fenced import Fenced
    from aipass.supervisor.fence.permit import Answer, PermitCall

#: Size of struct sockaddr_storage; the kernel answers EINVAL for a longer address.
LONGEST_ADDRESS = 128
SO_DOMAIN = 39
#: Limit of recorded sockets per run.
MAX_BOUND = 1024
#: Services for host and user names: every program needs them, and they write no files for it.
NAME_SERVICES = (
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/userdb/*",
    "/var/lib/sss/pipes/*",
)
_libc = ctypes.CDLL(None, use_errno=True)


def connect(work: PermitCall, number: int, address: int, length: int) -> Answer:
    """Perform connect.

    UNIX sockets: only those that the run bound itself, name services, and sockets in `[sandbox] sockets`.
    """
    raw = _read(work, address, length)
    held = _copy(work, number)
    if _option(held, SO_DOMAIN) == socket.AF_UNIX and raw[:2] == struct.pack("=H", socket.AF_UNIX):
        raw = _unix_target(work, raw)
    return _connect(held, raw)


def _connect(held: int, raw: bytes) -> Answer:
    """Connect without blocking the thread: a blocking socket is made non-blocking for the call, and Later waits for the result."""
    blocking = os.get_blocking(held)
    if blocking:
        os.set_blocking(held, False)
    try:
        _call(_libc.connect, held, raw)
    except OSError as exc:
        if blocking and exc.errno == errno.EINPROGRESS:
            raise Later(lambda: _connected(held)) from None
        if blocking and exc.errno == errno.EAGAIN:
            raise Later(lambda: _try_again(held, raw)) from None
        raise
    finally:
        if blocking:
            os.set_blocking(held, True)
    return 0


def _connected(held: int) -> Answer | None:
    poll = select.poll()
    poll.register(held, select.POLLOUT)
    if not poll.poll(0):
        return None
    if number := _option(held, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
    return 0


def _try_again(held: int, raw: bytes) -> Answer | None:
    """Connect again to a UNIX socket whose listener has a full queue; None where it is still full."""
    os.set_blocking(held, False)
    try:
        _call(_libc.connect, held, raw)
    except BlockingIOError:
        return None
    finally:
        os.set_blocking(held, True)
    return 0


def _unix_target(work: PermitCall, raw: bytes) -> bytes:
    """The address to connect to, by the object that was checked. Raises EACCES where it is not allowed."""
    name = raw[2:]
    if name[:1] == b"\0":
        if name in work.run.bound:
            return raw
        raise work.refuse(Refused("@" + os.fsdecode(name[1:]), "it is another program's socket"), "connect")
    path = name.split(b"\0", 1)[0]
    if not path:
        return raw
    place = resolve(work.caller, kernel.AT_FDCWD, path, True)
    if place.handle is None or place.status is None:
        raise OSError(errno.ENOENT, "nothing there")
    # Every object in its own folders was created by the run: moves from elsewhere are refused (naming._keep_apart).
    own = ObjectId.of(place.status) in work.run.bound or work.run.is_own(place.path)
    if not own and not any(
        fnmatchcase(place.path, pattern) for pattern in (*NAME_SERVICES, *work.run.sockets)
    ):
        reason = "it is another program's socket, and that program could act on behalf of the run; the user can allow it in `[sandbox] sockets`"
        raise work.refuse(Refused(place.path, reason), "connect")
    return raw[:2] + f"/proc/thread-self/fd/{place.handle}".encode() + b"\0"


def bind(work: PermitCall, number: int, address: int, length: int) -> Answer:
    """Perform bind. A UNIX socket with a path is a new file; a bound socket is recorded as the run's own."""
    raw = _read(work, address, length)
    held = _copy(work, number)
    if _option(held, SO_DOMAIN) != socket.AF_UNIX or raw[:2] != struct.pack("=H", socket.AF_UNIX):
        _call(_libc.bind, held, raw)
        return 0
    path = raw[2:].split(b"\0", 1)[0]
    if not path:
        _call(_libc.bind, held, raw)
        work.run.bound[_own_name(held)] = -1
        return 0
    place = resolve(work.caller, kernel.AT_FDCWD, path, False)
    if place.handle is not None:
        raise OSError(errno.EADDRINUSE, "exists")
    if work.goes_on(place):
        # The kernel uses the caller's spelling of the path, which getsockname(2) then returns.
        return Plain.CONTINUE
    _make_room(work.run)
    took = work.permit((Operation.CREATE, place))
    os.umask(work.caller.umask())
    # bind(2) takes no folder descriptor: by the current folder (unshared in this thread) and the bare name, no path is
    # resolved again.
    os.fchdir(place.folder)
    try:
        _call(_libc.bind, held, raw[:2] + place.name + b"\0")
    finally:
        os.chdir("/")
    took()
    work.made(place)
    bound = kernel.open_path(place.name, place.folder, os.O_NOFOLLOW)
    identity = ObjectId.of(kernel.status(bound))
    if identity.born:
        os.close(bound)
        bound = -1
    # Without birth times, held open: the inode number of a removed socket can immediately be reused by another file.
    work.run.bound[identity] = bound
    return 0


def _make_room(run: Fenced) -> None:
    """Forget the oldest sockets beyond the limit; programs bind one or two."""
    while len(run.bound) >= MAX_BOUND:
        handle = run.bound.pop(next(iter(run.bound)))
        if handle >= 0:
            os.close(handle)


def _copy(work: PermitCall, number: int) -> int:
    """Copy the caller's socket: copied with the supervisor's identity, used with the caller's."""
    with work.caller.ourselves():
        return work.caller.keep(kernel.copy_descriptor(work.caller.tid, number))


def _read(work: PermitCall, address: int, length: int) -> bytes:
    if not 0 < length <= LONGEST_ADDRESS:
        raise OSError(errno.EINVAL, "length")
    return work.caller.memory(address, length, exactly=True)


def _option(held: int, name: int) -> int:
    value = ctypes.c_int()
    size = ctypes.c_uint(ctypes.sizeof(value))
    if _libc.getsockopt(held, socket.SOL_SOCKET, name, ctypes.byref(value), ctypes.byref(size)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value.value


def _own_name(held: int) -> bytes:
    buffer = ctypes.create_string_buffer(LONGEST_ADDRESS)
    size = ctypes.c_uint(LONGEST_ADDRESS)
    _libc.getsockname(held, buffer, ctypes.byref(size))
    return buffer.raw[2 : size.value]


def _call(function: ctypes._FuncPointer, held: int, raw: bytes) -> None:
    if function(held, raw, len(raw)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
