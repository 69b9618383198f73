"""The performed calls: decodes the arguments in the registers and dispatches to the function that performs the call."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel, marking, naming, opening, sysv
from aipass.supervisor.fence.permit import Plain
from aipass.supervisor.fence.sockets import bind, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.supervisor.fence.permit import Answer, PermitCall

_AT = kernel.AT_FDCWD
Arguments = tuple[int, int, int, int, int, int]


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    # A register has 64 bits; the kernel uses the low 32 of an int, and a caller can set the others.
    return value - (1 << 32) if value & 0x80000000 else value


def _long(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _u32(value: int) -> int:
    return value & 0xFFFFFFFF


_CREAT = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
_NOFOLLOW = kernel.AT_SYMLINK_NOFOLLOW


def _futimesat(w: PermitCall, a: Arguments) -> Answer:
    place = w.at(_signed(a[0]), a[1]) if a[1] else w.by_open_descriptor(_signed(a[0]))
    return marking.times(w, place, marking.timevals(w, a[2]))


def _utimensat(w: PermitCall, a: Arguments) -> Answer:
    if _u32(a[3]) & ~(_NOFOLLOW | kernel.AT_EMPTY_PATH):
        raise OSError(errno.EINVAL, "flags")
    place = w.at(_signed(a[0]), a[1], _u32(a[3])) if a[1] else w.by_open_descriptor(_signed(a[0]))
    return marking.times(w, place, marking.timespecs(w, a[2]))


def _fchownat(w: PermitCall, a: Arguments) -> Answer:
    if _u32(a[4]) & ~(_NOFOLLOW | kernel.AT_EMPTY_PATH):
        raise OSError(errno.EINVAL, "flags")
    return marking.chown(w, w.at(_signed(a[0]), a[1], _u32(a[4])), a[2], a[3])


#: By name of the system call: from its arguments to its answer. `a` are the raw registers.
CARRIED: dict[str, Callable[[PermitCall, Arguments], Answer]] = {
    "shmget": lambda w, a: sysv.get(w, "shm", _signed(a[0]), _u32(a[2]), a[1]),
    "shmat": lambda w, a: sysv.use(w, "shm", _signed(a[0])),
    "shmctl": lambda w, a: sysv.control(w, "shm", _signed(a[0]), _u32(a[1])),
    "semget": lambda w, a: sysv.get(w, "sem", _signed(a[0]), _u32(a[2]), _signed(a[1])),
    "semop": lambda w, a: sysv.use(w, "sem", _signed(a[0])),
    "semtimedop": lambda w, a: sysv.use(w, "sem", _signed(a[0])),
    "semctl": lambda w, a: sysv.control(w, "sem", _signed(a[0]), _u32(a[2])),
    "msgget": lambda w, a: sysv.get(w, "msg", _signed(a[0]), _u32(a[1])),
    "msgsnd": lambda w, a: sysv.use(w, "msg", _signed(a[0])),
    "msgrcv": lambda w, a: sysv.use(w, "msg", _signed(a[0])),
    "msgctl": lambda w, a: sysv.control(w, "msg", _signed(a[0]), _u32(a[1])),
    # The mode argument is left out: the filter notifies only with W_OK.
    "access": lambda w, a: opening.access(w, _AT, a[0]),
    "faccessat": lambda w, a: opening.access(w, _signed(a[0]), a[1]),
    "faccessat2": lambda w, a: opening.access(w, _signed(a[0]), a[1], _u32(a[3])),
    "umask": lambda _, __: Plain.CONTINUE,
    "open": lambda w, a: opening.open_file(w, _AT, a[0], _u32(a[1]), _u32(a[2])),
    "openat": lambda w, a: opening.open_file(w, _signed(a[0]), a[1], _u32(a[2]), _u32(a[3])),
    "creat": lambda w, a: opening.open_file(w, _AT, a[0], _CREAT, _u32(a[1])),
    "truncate": lambda w, a: opening.truncate(w, a[0], _long(a[1])),
    "rename": lambda w, a: naming.rename(w, _AT, a[0], _AT, a[1], 0),
    "renameat": lambda w, a: naming.rename(w, _signed(a[0]), a[1], _signed(a[2]), a[3], 0),
    "renameat2": lambda w, a: naming.rename(w, _signed(a[0]), a[1], _signed(a[2]), a[3], _u32(a[4])),
    "link": lambda w, a: naming.link(w, _AT, a[0], _AT, a[1], 0),
    "linkat": lambda w, a: naming.link(w, _signed(a[0]), a[1], _signed(a[2]), a[3], _u32(a[4])),
    "symlink": lambda w, a: naming.symlink(w, a[0], _AT, a[1]),
    "symlinkat": lambda w, a: naming.symlink(w, a[0], _signed(a[1]), a[2]),
    "mkdir": lambda w, a: naming.mkdir(w, _AT, a[0], _u32(a[1])),
    "mkdirat": lambda w, a: naming.mkdir(w, _signed(a[0]), a[1], _u32(a[2])),
    "mknod": lambda w, a: naming.mknod(w, _AT, a[0], _u32(a[1])),
    "mknodat": lambda w, a: naming.mknod(w, _signed(a[0]), a[1], _u32(a[2])),
    "unlink": lambda w, a: naming.unlink(w, _AT, a[0], 0),
    "unlinkat": lambda w, a: naming.unlink(w, _signed(a[0]), a[1], _u32(a[2])),
    "rmdir": lambda w, a: naming.unlink(w, _AT, a[0], kernel.AT_REMOVEDIR),
    "chmod": lambda w, a: marking.chmod(w, w.by_path(a[0], True), a[1]),
    "fchmod": lambda w, a: marking.chmod(w, w.by_open_descriptor(_signed(a[0])), a[1]),
    # fchmodat(2) has no flags in the kernel; the C library emulates them.
    "fchmodat": lambda w, a: marking.chmod(w, w.at(_signed(a[0]), a[1]), a[2]),
    "chown": lambda w, a: marking.chown(w, w.by_path(a[0], True), a[1], a[2]),
    "lchown": lambda w, a: marking.chown(w, w.by_path(a[0], False), a[1], a[2]),
    "fchown": lambda w, a: marking.chown(w, w.by_open_descriptor(_signed(a[0])), a[1], a[2]),
    "fchownat": _fchownat,
    "utime": lambda w, a: marking.times(w, w.by_path(a[0], True), marking.utimbuf(w, a[1])),
    "utimes": lambda w, a: marking.times(w, w.by_path(a[0], True), marking.timevals(w, a[1])),
    "futimesat": _futimesat,
    "utimensat": _utimensat,
    "setxattr": lambda w, a: marking.setxattr(w, w.by_path(a[0], True), a[1], a[2], a[3], _u32(a[4])),
    "lsetxattr": lambda w, a: marking.setxattr(w, w.by_path(a[0], False), a[1], a[2], a[3], _u32(a[4])),
    "fsetxattr": lambda w, a: marking.setxattr(
        w, w.by_open_descriptor(_signed(a[0])), a[1], a[2], a[3], _u32(a[4])
    ),
    "removexattr": lambda w, a: marking.removexattr(w, w.by_path(a[0], True), a[1]),
    "lremovexattr": lambda w, a: marking.removexattr(w, w.by_path(a[0], False), a[1]),
    "fremovexattr": lambda w, a: marking.removexattr(w, w.by_open_descriptor(_signed(a[0])), a[1]),
    "sched_setscheduler": lambda w, a: w.of_own_process(a[0]),
    "sched_setparam": lambda w, a: w.of_own_process(a[0]),
    "sched_setattr": lambda w, a: w.of_own_process(a[0]),
    "sched_setaffinity": lambda w, a: w.of_own_process(a[0]),
    "setpriority": lambda w, a: w.of_own_process(a[1]),
    "ioprio_set": lambda w, a: w.of_own_process(a[1]),
    **dict.fromkeys(
        (
            "setuid",
            "setgid",
            "setreuid",
            "setregid",
            "setgroups",
            "setresuid",
            "setresgid",
            "setfsuid",
            "setfsgid",
        ),
        lambda w, _: w.change_identity(),
    ),
    "capset": lambda w, _: w.change_identity(),
    "prctl": lambda w, _: w.change_identity(),
    "connect": lambda w, a: connect(w, _signed(a[0]), a[1], _u32(a[2])),
    "bind": lambda w, a: bind(w, _signed(a[0]), a[1], _u32(a[2])),
}
