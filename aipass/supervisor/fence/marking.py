"""Performed calls that change mode, owner, times or attributes; they act on the object that was checked, not on its name."""

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

# XATTR_SIZE_MAX of linux/limits.h.
MAX_XATTR = 65536
#: UTIME_OMIT, as the eight bytes of a tv_nsec.
_OMIT = struct.pack("=q", (1 << 30) - 2)


def _marked(work: PermitCall, place: ResolvedPath) -> str:
    """Request permission for the change; returns the /proc path of the held object. Raises PermissionError."""
    work.permit((Operation.MARK_FOLDER if place.is_folder() else Operation.MARK, place))()
    # chmod(2) and setxattr(2) do not accept an O_PATH descriptor, but they follow this link to the object.
    return f"/proc/thread-self/fd/{place.handle}"


def chmod(work: PermitCall, place: ResolvedPath, mode: int) -> Answer:
    """Perform chmod, fchmod, fchmodat."""
    _keep_passable(work, place, mode)
    os.chmod(_marked(work, place), mode & 0o7777)
    return 0


def chown(work: PermitCall, place: ResolvedPath, uid: int, gid: int) -> Answer:
    """Perform chown, lchown, fchown, fchownat."""
    # A new owner can lose access to the folder, as after a chmod.
    _keep_passable(work, place, 0)
    _marked(work, place)
    assert place.handle is not None
    kernel.chown(place.handle, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF)
    return 0


def times(work: PermitCall, place: ResolvedPath, times: bytes | None) -> Answer:
    """Perform utime, utimes, futimesat, utimensat; `times` are two struct timespec, None for now."""
    # Both times UTIME_OMIT: utimensat(2) changes nothing, so no permission is needed.
    if times is not None and _OMIT == times[8:16] == times[24:32]:
        return 0
    _marked(work, place)
    assert place.handle is not None
    kernel.set_times(place.handle, times)
    return 0


def timespecs(work: PermitCall, address: int) -> bytes | None:
    """Read two struct timespec from the caller's memory; None where the pointer is null (now)."""
    return work.caller.memory(address, 32, exactly=True) if address else None


def timevals(work: PermitCall, address: int) -> bytes | None:
    """Read two struct timeval from the caller's memory, converted to timespecs; None where the pointer is null."""
    if not address:
        return None
    parts = struct.unpack("=4q", work.caller.memory(address, 32, exactly=True))
    if not (0 <= parts[1] < 1_000_000 and 0 <= parts[3] < 1_000_000):
        raise OSError(errno.EINVAL, "microseconds")
    return struct.pack("=4q", parts[0], parts[1] * 1000, parts[2], parts[3] * 1000)


def utimbuf(work: PermitCall, address: int) -> bytes | None:
    """Read a struct utimbuf from the caller's memory, converted to timespecs; None where the pointer is null."""
    if not address:
        return None
    access, change = struct.unpack("=2q", work.caller.memory(address, 16, exactly=True))
    return struct.pack("=4q", access, 0, change, 0)


def setxattr(work: PermitCall, place: ResolvedPath, name: int, value: int, size: int, flags: int) -> Answer:
    """Perform setxattr, lsetxattr, fsetxattr."""
    if flags & ~3:
        raise OSError(errno.EINVAL, "flags")
    attribute = _attribute(work, name)
    # An ACL can take access away from the owner, as a mode can.
    if attribute.startswith(b"system.posix_acl"):
        _keep_passable(work, place, 0)
    if size > MAX_XATTR:
        raise OSError(errno.E2BIG, "size")
    data = bytearray()
    while len(data) < size:
        # read_memory returns at most 4,096 bytes per call.
        part = work.caller.memory(value + len(data), min(4096, size - len(data)))
        data += part
    os.setxattr(_marked(work, place), attribute, bytes(data), flags)
    return 0


def removexattr(work: PermitCall, place: ResolvedPath, name: int) -> Answer:
    """Perform removexattr, lremovexattr, fremovexattr."""
    attribute = _attribute(work, name)
    if attribute.startswith(b"system.posix_acl"):
        _keep_passable(work, place, 0)
    os.removexattr(_marked(work, place), attribute)
    return 0


def _attribute(work: PermitCall, address: int) -> bytes:
    name = work.caller.text(address)
    if not name or len(name) > 255:
        raise OSError(errno.ERANGE, "attribute")
    # They need CAP_SYS_ADMIN, which a supervisor of root's has and a run never has.
    if name.startswith(b"trusted."):
        raise OSError(errno.EPERM, "trusted attributes belong to the system")
    return name


def _keep_passable(work: PermitCall, place: ResolvedPath, mode: int) -> None:
    """Raise EACCES where the change would block the way to a path of another owner.

    `mode`: what the folder's owner can do there afterwards; 0 where this is unknown.
    """
    if place.is_folder() and mode & 0o700 != 0o700:
        relative = work.run.relative(place.path)
        if relative is not None and (other := leads_to_another(work.run.grant, relative)) is not None:
            raise work.refuse(
                Refused(place.path, f"it contains paths that {other} can write", other), "change a folder"
            )
