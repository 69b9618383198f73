"""connect and bind, carried out on a copy of the caller's socket: what it would be another could ask for it."""

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

#: struct sockaddr_storage; a longer address is EINVAL.
LONGEST_ADDRESS = 128
SO_DOMAIN = 39
#: Sockets of one run that are remembered as its own.
MAX_BOUND = 1024
#: Who turns names into addresses and users: every program asks them, and they write nothing.
NAME_SERVICES = (
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/userdb/*",
    "/var/lib/sss/pipes/*",
)
_libc = ctypes.CDLL(None, use_errno=True)


def connect(work: PermitCall, number: int, address: int, length: int) -> Answer:
    """connect. UNIX sockets: those that the run bound itself, name services, and what `[sandbox] sockets` names."""
    raw = _read(work, address, length)
    held = _copy(work, number)
    if _option(held, SO_DOMAIN) == socket.AF_UNIX and raw[:2] == struct.pack("=H", socket.AF_UNIX):
        raw = _unix_target(work, raw)
    return _connect(held, raw)


def _connect(held: int, raw: bytes) -> Answer:
    """Never waits: a socket that would is made not to for a moment, and asked again until it is connected."""
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
    """A UNIX socket whose listener has a full queue."""
    os.set_blocking(held, False)
    try:
        _call(_libc.connect, held, raw)
    except BlockingIOError:
        return None
    finally:
        os.set_blocking(held, True)
    return 0


def _unix_target(work: PermitCall, raw: bytes) -> bytes:
    """The address to connect to; raises EACCES where it may not."""
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
    # In its own folders nothing stands that the run has not made: nothing moves there from elsewhere.
    own = ObjectId.of(place.status) in work.run.bound or work.run.is_own(place.path)
    if not own and not any(
        fnmatchcase(place.path, pattern) for pattern in (*NAME_SERVICES, *work.run.sockets)
    ):
        reason = "it is another program's socket, which would act for whoever asks; `[sandbox] sockets` may name it"
        raise work.refuse(Refused(place.path, reason), "connect")
    return raw[:2] + f"/proc/thread-self/fd/{place.handle}".encode() + b"\0"


def bind(work: PermitCall, number: int, address: int, length: int) -> Answer:
    """bind. A UNIX socket with a path is a new file; what is bound is remembered as the run's own."""
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
        # By the path as it was written, which the socket then tells to whoever asks for its name.
        return Plain.CONTINUE
    _make_room(work.run)
    took = work.permit((Operation.CREATE, place))
    os.umask(work.caller.umask())
    # By its folder and its bare name: no path is looked up again. The thread's current folder is its own.
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
    # Held open where nothing else tells: the number of a removed socket is given to the next file at once.
    work.run.bound[identity] = bound
    return 0


def _make_room(run: Fenced) -> None:
    """Forget the oldest of too many sockets; programs bind one or two."""
    while len(run.bound) >= MAX_BOUND:
        handle = run.bound.pop(next(iter(run.bound)))
        if handle >= 0:
            os.close(handle)


def _copy(work: PermitCall, number: int) -> int:
    """The caller's socket; taken as ourselves, used as the caller."""
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
