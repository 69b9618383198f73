"""The engine's lock: one engine for a root, and who it is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass import __version__
from aipass.errors import RefusedError
from aipass.event import iso

if TYPE_CHECKING:
    from aipass.layout import Layout

ATTEMPTS, PAUSE_S = 5, 0.02
# A killed process holds its locks until the kernel has taken it apart, which takes longer the more memory it has.
DYING_S = 10.0
PF_EXITING = 0x4  # the kernel's include/linux/sched.h; field 9 of /proc/PID/stat, proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Holder:
    """The engine that runs. `started` is seconds since the epoch."""

    pid: int
    version: str
    started: float


def take(layout: Layout, started: float) -> int:
    """Hold the lock as long as the returned descriptor is open. Raises RefusedError naming the engine that has it."""
    living(layout)
    handle = os.open(layout.engine_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(PAUSE_S)  # whoever only looks lets go within a moment
    else:
        os.close(handle)
        other = holder(layout)
        who = (
            f"process {other.pid}, version {other.version}, since {iso(other.started)}"
            if other
            else "another process"
        )
        raise RefusedError(
            f"an engine runs here already: {who}; `aipass status` shows it, `aipass down` ends it"
        )
    os.ftruncate(handle, 0)
    os.pwrite(
        handle, json.dumps({"pid": os.getpid(), "version": __version__, "started": started}).encode(), 0
    )
    return handle


def holder(layout: Layout) -> Holder | None:
    """The engine that runs here; None where none does. The kernel frees the lock of one that died."""
    try:
        # Read-only: an agent asks as well, and may not write here.
        handle = os.open(layout.engine_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            found = json.loads(os.pread(handle, 4096, 0))
            return Holder(int(found["pid"]), str(found["version"]), float(found["started"]))
        except (ValueError, KeyError, TypeError):
            return Holder(0, "?", 0.0)  # it is just writing who it is
    finally:
        os.close(handle)
    return None


def living(layout: Layout) -> Holder | None:
    """The engine that runs here and will go on: one that was killed a moment ago is waited for, up to DYING_S."""
    until = time.monotonic() + DYING_S
    while (found := holder(layout)) is not None and is_dying(found.pid) and time.monotonic() < until:
        time.sleep(PAUSE_S)
    return found


def is_dying(pid: int) -> bool:
    """Whether a process was killed and only has to be taken apart, or is gone. False where the system does not tell."""
    if pid <= 0 or not os.path.isdir("/proc/self"):
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name in parentheses may hold anything, parentheses too; flags is the seventh field after it.
            flags = int(stat.read().rpartition(b")")[2].split()[6])
        with open(f"/proc/{pid}/status", "rb") as status:
            waiting = [line.split()[1] for line in status if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    except (OSError, ValueError, IndexError):
        return True
    return bool(flags & PF_EXITING) or any(int(mask, 16) & 1 << (signal.SIGKILL - 1) for mask in waiting)
