"""The process table: look-ups, process trees, and signals that never reach another process by pid reuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LINUX = sys.platform == "linux"


class Process(NamedTuple):
    """A row of the table. `start` (clock ticks since boot) distinguishes processes that reuse one id."""

    pid: int
    ppid: int
    session: int
    start: int
    state: str


def table() -> dict[int, Process]:
    """All processes of this machine by id."""
    if not LINUX:
        return _table_by_ps()
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := look(int(name))):
            found[process.pid] = process
    return found


def look(pid: int) -> Process | None:
    """The process with this id, zombies included; None where there is none."""
    if not LINUX:
        return _table_by_ps().get(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses can contain any character, spaces and parentheses included.
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0].decode())


def tree(processes: Mapping[int, Process], roots: Iterable[int]) -> set[int]:
    """Ids of `roots` and all their descendants, without zombies."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process.pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in processes]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return {pid for pid in found if processes[pid].state not in "ZX"}


def own_children() -> set[int]:
    """Ids of this process's children, adopted orphans included."""
    if not LINUX:
        return {process.pid for process in table().values() if process.ppid == os.getpid()}
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    except FileNotFoundError:
        # A thread ended during the loop, or the kernel has no such file (CONFIG_PROC_CHILDREN).
        return {process.pid for process in table().values() if process.ppid == os.getpid()}
    return found


def environment(pid: int) -> dict[str, str]:
    """The initial environment of a process; empty where it cannot be read."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in data.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, mark, value in pairs if mark}


def command_line(pid: int) -> str:
    """The command line of a process for messages, at most 200 characters; `?` where it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return " ".join(os.fsdecode(b" ".join(words)).split())[:200] or "?"


def send(process: Process, number: int) -> bool:
    """Send a signal to exactly this process, never to one that reuses its id; returns whether it was sent."""
    try:
        handle = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return False
    try:
        # The pidfd fixes the process first; only then the start time proves that it is the right one.
        now = look(process.pid)
        if now is None or now.start != process.start:
            return False
        if handle is not None:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(process.pid, number)
    except OSError:
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def adopt_orphans() -> bool:
    """Become the parent of every orphaned descendant (child subreaper); False where the system cannot."""
    if not LINUX:
        return False
    import ctypes

    # PR_SET_CHILD_SUBREAPER of linux/prctl.h.
    set_child_subreaper = 36
    return bool(ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0) == 0)


def _table_by_ps() -> dict[int, Process]:
    """`table` without /proc."""
    listing = subprocess.run(
        ["/bin/ps", "-axo", "pid=,ppid=,sess=,state=,lstart="], capture_output=True, text=True, check=False
    )
    found = {}
    for line in listing.stdout.splitlines():
        pid, ppid, session, state, started = line.split(None, 4)
        session_id = int(session) if session.isdigit() else 0
        # `ps` gives the start time in seconds; enough to distinguish two processes of one id.
        found[int(pid)] = Process(int(pid), int(ppid), session_id, zlib.crc32(started.encode()), state[0])
    return found
