"""System V memory, semaphores and queues: a run makes its own, and uses those; what another program has made is not its to change.

The kernel's numbers are one for all programs of a user, and whoever has a number may write. So they are made here, in the run's name,
and a call on a number that was not is refused. Numbers lie in registers, which no second thread changes: what is allowed goes on.
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
#: As many as the system lets one user have, by default (SHMMNI).
MOST_OBJECTS = 4096
#: *ctl commands that only tell: IPC_STAT, IPC_INFO and those of each kind. GETVAL and the like read one's own.
_TELLS = frozenset((2, 3, 11, 12, 13, 14, 15, 16, 18, 19, 20))


def get(work: PermitCall, kind: str, key: int, flags: int, size: int = 0) -> Answer:
    """shmget, semget, msgget."""
    if len(work.run.objects) >= MOST_OBJECTS:
        raise OSError(errno.ENOSPC, "too many of one run")
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
    """shmat, semop, semtimedop, msgsnd, msgrcv."""
    if (kind, number) in work.run.objects:
        return Plain.CONTINUE
    raise _foreign(work, kind, number)


def control(work: PermitCall, kind: str, number: int, command: int) -> Answer:
    """shmctl, semctl, msgctl."""
    if command & 0xFF in _TELLS and (kind, number) not in work.run.objects:
        # The kinds of semctl that change have numbers of their own: 16 and 17.
        if not (kind == "sem" and command & 0xFF == 16):
            return Plain.CONTINUE
    elif (kind, number) in work.run.objects:
        if command & 0xFF == _IPC_RMID:
            work.run.objects.discard((kind, number))
        return Plain.CONTINUE
    raise _foreign(work, kind, number)


def _foreign(work: PermitCall, kind: str, number: int) -> OSError:
    names = {"shm": "shared memory", "sem": "a set of semaphores", "msg": "a message queue"}
    return work.refuse(Refused(f"{names[kind]} {number}", "another program has made it"), "use")


def remove(objects: set[tuple[str, int]]) -> None:
    """What a run has made ends with it."""
    for kind, number in objects:
        if kind == "shm":
            _libc.shmctl(number, 0, None)
        elif kind == "sem":
            _libc.semctl(number, 0, 0)
        else:
            _libc.msgctl(number, 0, None)
