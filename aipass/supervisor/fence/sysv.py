"""Performed System V IPC calls (shared memory, semaphores, queues): a run can only use objects that it created.

All programs of a user share the kernel's object numbers, and every program with a number can write. So the
supervisor creates the objects for the run, and refuses calls on other numbers. Numbers are in registers,
which no other thread can change: an allowed call is let through.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from aipass.supervisor.fence.decide import Refused
from aipass.supervisor.fence.permit import Plain

if TYPE_CHECKING:
    from aipass.supervisor.fence.permit import Answer, PermitCall

_libc = ctypes.CDLL(None, use_errno=True)
_IPC_CREAT, _IPC_EXCL, _IPC_PRIVATE, _IPC_RMID = 0o1000, 0o2000, 0, 0
#: The default limit of one user's objects (SHMMNI).
MOST_OBJECTS = 4096
#: Commands that only read, by kind: the same number means another thing for another kind (11 is GETPID of semctl, and
#: SHM_LOCK of shmctl, which pins memory). IPC_STAT and IPC_INFO are common. Numbers from <linux/{ipc,shm,sem,msg}.h>.
_READS = {
    "shm": frozenset((2, 3, 13, 14, 15)),  # SHM_STAT, SHM_INFO, SHM_STAT_ANY
    "sem": frozenset(
        (2, 3, 11, 12, 13, 14, 15, 18, 19, 20)
    ),  # GETPID to GETZCNT, SEM_STAT, SEM_INFO, SEM_STAT_ANY
    "msg": frozenset((2, 3, 11, 12, 13)),  # MSG_STAT, MSG_INFO, MSG_STAT_ANY
}


def get(work: PermitCall, kind: str, key: int, flags: int, size: int = 0) -> Answer:
    """Perform shmget, semget, msgget; records a new object as the run's own."""
    if len(work.run.objects) >= MOST_OBJECTS:
        raise OSError(errno.ENOSPC, "too many of one run")
    # IPC_EXCL shows whether the object is new, and so the run's own.
    made = _get(kind, key, size, flags | (_IPC_EXCL if flags & _IPC_CREAT else 0))
    if made >= 0:
        if key == _IPC_PRIVATE or flags & _IPC_CREAT:
            work.run.objects.add((kind, made))
        return made
    error = ctypes.get_errno()
    if error != errno.EEXIST or flags & _IPC_EXCL:
        raise OSError(error, os.strerror(error))
    there = _get(kind, key, size, flags & ~_IPC_CREAT)
    if there < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return there


def _get(kind: str, key: int, size: int, flags: int) -> int:
    number = ctypes.c_int(key)
    if kind == "shm":
        return int(_libc.shmget(number, ctypes.c_size_t(size), ctypes.c_int(flags)))
    if kind == "sem":
        return int(_libc.semget(number, ctypes.c_int(size), ctypes.c_int(flags)))
    return int(_libc.msgget(number, ctypes.c_int(flags)))


def use(work: PermitCall, kind: str, number: int) -> Answer:
    """Decide shmat, semop, semtimedop, msgsnd, msgrcv: allowed on own objects only."""
    if (kind, number) in work.run.objects:
        return Plain.CONTINUE
    raise _foreign(work, kind, number)


def control(work: PermitCall, kind: str, number: int, command: int) -> Answer:
    """Decide shmctl, semctl, msgctl: reading is allowed, changes on own objects only."""
    # The upper bits hold IPC_64, which libc sets on some architectures.
    bare = command & 0xFF
    if (kind, number) in work.run.objects:
        if bare == _IPC_RMID:
            work.run.objects.discard((kind, number))
        return Plain.CONTINUE
    if bare in _READS[kind]:
        return Plain.CONTINUE
    raise _foreign(work, kind, number)


def _foreign(work: PermitCall, kind: str, number: int) -> OSError:
    names = {"shm": "shared memory", "sem": "a set of semaphores", "msg": "a message queue"}
    return work.refuse(Refused(f"{names[kind]} {number}", "another program has made it"), "use")


def remove(objects: set[tuple[str, int]]) -> None:
    """Remove the objects of a run that has ended; they would stay until the next boot."""
    for kind, number in objects:
        if kind == "shm":
            _libc.shmctl(number, 0, None)
        elif kind == "sem":
            _libc.semctl(number, 0, 0)
        else:
            _libc.msgctl(number, 0, None)
