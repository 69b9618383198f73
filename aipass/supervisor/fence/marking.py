"""Calls that change modes, owners, times and attributes, of exactly the object that was looked at."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel
from aipass.supervisor.fence.decide import Operation, Refused, leads_to_another

if TYPE_CHECKING:
    from aipass.supervisor.fence.permit import Answer, PermitCall
    from aipass.supervisor.fence.resolve import ResolvedPath

MAX_XATTR = 65536
#: UTIME_OMIT, as the eight bytes of a tv_nsec.
_OMIT = struct.pack("=q", (1 << 30) - 2)


def _marked(work: PermitCall, place: ResolvedPath) -> str:
    """Ask for a change of what is held; the name by which it is done."""
    work.permit((Operation.MARK_FOLDER if place.is_folder() else Operation.MARK, place))()
    return f"/proc/thread-self/fd/{place.handle}"


def chmod(work: PermitCall, place: ResolvedPath, mode: int) -> Answer:
    """chmod, fchmod, fchmodat."""
    _keep_passable(work, place, mode)
    os.chmod(_marked(work, place), mode & 0o7777)
    return 0


def chown(work: PermitCall, place: ResolvedPath, uid: int, gid: int) -> Answer:
    """chown, lchown, fchown, fchownat."""
    _keep_passable(work, place, 0)
    _marked(work, place)
    assert place.handle is not None
    kernel.chown(place.handle, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF)
    return 0


def times(work: PermitCall, place: ResolvedPath, times: bytes | None) -> Answer:
    """utime, utimes, futimesat, utimensat; `times` are two struct timespec."""
    if times is not None and _OMIT == times[8:16] == times[24:32]:
        return 0
    _marked(work, place)
    assert place.handle is not None
    kernel.set_times(place.handle, times)
    return 0


def timespecs(work: PermitCall, address: int) -> bytes | None:
    """Two struct timespec from memory; None for now."""
    return work.caller.memory(address, 32, exactly=True) if address else None


def timevals(work: PermitCall, address: int) -> bytes | None:
    """Two struct timeval from memory, as timespecs."""
    if not address:
        return None
    parts = struct.unpack("=4q", work.caller.memory(address, 32, exactly=True))
    if not (0 <= parts[1] < 1_000_000 and 0 <= parts[3] < 1_000_000):
        raise OSError(errno.EINVAL, "microseconds")
    return struct.pack("=4q", parts[0], parts[1] * 1000, parts[2], parts[3] * 1000)


def utimbuf(work: PermitCall, address: int) -> bytes | None:
    """A struct utimbuf from memory, as timespecs."""
    if not address:
        return None
    access, change = struct.unpack("=2q", work.caller.memory(address, 16, exactly=True))
    return struct.pack("=4q", access, 0, change, 0)


def setxattr(work: PermitCall, place: ResolvedPath, name: int, value: int, size: int, flags: int) -> Answer:
    """setxattr, lsetxattr, fsetxattr."""
    if flags & ~3:
        raise OSError(errno.EINVAL, "flags")
    attribute = _attribute(work, name)
    if attribute.startswith(b"system.posix_acl"):
        _keep_passable(work, place, 0)
    if size > MAX_XATTR:
        raise OSError(errno.E2BIG, "size")
    data = bytearray()
    while len(data) < size:
        part = work.caller.memory(value + len(data), min(4096, size - len(data)))
        data += part
    os.setxattr(_marked(work, place), attribute, bytes(data), flags)
    return 0


def removexattr(work: PermitCall, place: ResolvedPath, name: int) -> Answer:
    """removexattr, lremovexattr, fremovexattr."""
    attribute = _attribute(work, name)
    if attribute.startswith(b"system.posix_acl"):
        _keep_passable(work, place, 0)
    os.removexattr(_marked(work, place), attribute)
    return 0


def _attribute(work: PermitCall, address: int) -> bytes:
    name = work.caller.text(address)
    if not name or len(name) > 255:
        raise OSError(errno.ERANGE, "attribute")
    if name.startswith(b"trusted."):
        raise OSError(errno.EPERM, "trusted attributes are the system's")
    return name


def _keep_passable(work: PermitCall, place: ResolvedPath, mode: int) -> None:
    """Raise EACCES where a folder that leads to what is another's would be closed to its owner.

    `mode`: what its owner may do there from then on; 0 where that cannot be told.
    """
    if place.is_folder() and mode & 0o700 != 0o700:
        relative = work.run.relative(place.path)
        if relative is not None and (other := leads_to_another(work.run.grant, relative)) is not None:
            raise work.refuse(
                Refused(place.path, f"it leads to what {other} may write", other), "change a folder"
            )
