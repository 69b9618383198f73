"""The engine lock: at most one engine runs for each root, and the lock file identifies it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass import __version__
from aipass.errors import RefusedError
from aipass.event import iso
from aipass.supervisor import hold

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout

PAUSE_S = 0.02
# After SIGKILL the kernel frees the process, which takes longer the more memory it has. Until then the lock is held.
DYING_S = 10.0
PF_EXITING = 0x4  # the kernel's include/linux/sched.h; field 9 of /proc/PID/stat, proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Holder:
    """The engine that runs. `started`: seconds since the epoch. `elsewhere`: in another container, so `pid` is not valid here."""

    pid: int
    version: str
    started: float
    elsewhere: bool = False


def take(layout: Layout, started: float) -> hold.ProcessLock:
    """Lock the root until `release` or the end of this process. Waits for an engine that was just killed.

    Raises RefusedError, which names the engine that holds the lock.
    """
    # `aipass up` directly after a killed engine must not be refused because the kernel still frees it.
    living(layout)
    taken = hold.take(layout.engine_lock, version=__version__, started=started)
    if taken is None:
        other = holder(layout)
        who = (
            f"process {other.pid}, version {other.version}, since {iso(other.started)}"
            if other
            else "another process"
        )
        raise RefusedError(
            f"an engine runs here already: {who}; `aipass status` shows it, `aipass down` stops it"
        )
    return taken


def holder(layout: Layout) -> Holder | None:
    """The engine that runs for this root; None if there is none."""
    found = hold.holder(layout.engine_lock)
    if found is None:
        return None
    try:
        elsewhere = "space" in found and found["space"] != hold.identity()["space"]
        return Holder(int(found["pid"]), str(found["version"]), float(found["started"]), elsewhere)
    except (ValueError, KeyError, TypeError):
        # Another version wrote the file in another format. The lock is held all the same.
        return Holder(0, "?", 0.0)


def living(layout: Layout) -> Holder | None:
    """The engine that runs for this root and is not being killed. Waits up to DYING_S for the end of one that is."""
    until = time.monotonic() + DYING_S
    while (
        (found := holder(layout)) is not None
        and not found.elsewhere
        and is_dying(found.pid)
        and time.monotonic() < until
    ):
        time.sleep(PAUSE_S)
    return found


def is_dying(pid: int) -> bool:
    """Whether a process is gone, or was killed and is being freed by the kernel. False on a system without /proc."""
    if pid <= 0 or not os.path.isdir("/proc/self"):
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name in parentheses can contain every character, also parentheses; flags is the seventh field after it.
            flags = int(stat.read().rpartition(b")")[2].split()[6])
        with open(f"/proc/{pid}/status", "rb") as status:
            # A process in an uninterruptible sleep (disk) does not exit until it wakes, but its SIGKILL is pending here.
            waiting = [line.split()[1] for line in status if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    except (OSError, ValueError, IndexError):
        return True
    return bool(flags & PF_EXITING) or any(int(mask, 16) & 1 << (signal.SIGKILL - 1) for mask in waiting)
