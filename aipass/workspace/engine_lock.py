"""The engine's hold on its root: one engine for a root, and who it is."""

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
# A killed process is taken apart by the kernel, which takes longer the more memory it has.
DYING_S = 10.0
PF_EXITING = 0x4  # the kernel's include/linux/sched.h; field 9 of /proc/PID/stat, proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Holder:
    """The engine that runs. `started` is seconds since the epoch; `elsewhere`: in another container, by ids that mean nothing here."""

    pid: int
    version: str
    started: float
    elsewhere: bool = False


def take(layout: Layout, started: float) -> hold.ProcessLock:
    """Hold the root until it is released, or this process ends. Raises RefusedError naming the engine that has it."""
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
            f"an engine runs here already: {who}; `aipass status` shows it, `aipass down` ends it"
        )
    return taken


def holder(layout: Layout) -> Holder | None:
    """The engine that runs here; None where none does."""
    found = hold.holder(layout.engine_lock)
    if found is None:
        return None
    try:
        elsewhere = "space" in found and found["space"] != hold.identity()["space"]
        return Holder(int(found["pid"]), str(found["version"]), float(found["started"]), elsewhere)
    except (ValueError, KeyError, TypeError):
        return Holder(0, "?", 0.0)  # it is just writing who it is


def living(layout: Layout) -> Holder | None:
    """The engine that runs here and will go on: one that was killed a moment ago is waited for, up to DYING_S."""
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
