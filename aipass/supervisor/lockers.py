"""Who has a lock on a file, and the end of those that are in a run: nothing of ours waits for an agent.

SQLite's locks are on files that agents may read, and reading is enough to take them (fcntl(2), F_RDLCK).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aipass.supervisor import process, wire

if TYPE_CHECKING:
    from collections.abc import Iterator


class Locker(NamedTuple):
    """A process that has a lock on a file. `run` is what its environment says, empty where it says nothing."""

    pid: int
    run: str
    command: str


def end_of_runs(*paths: Path) -> list[Locker]:
    """End every process of a run that has a lock on one of these files; those that were ended.

    A process is a run's that has more system call filters than we have: the fence's is on all of them, and nobody takes one off. Or that
    carries a run's mark, where there is no fence.
    """
    wanted = set()
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        wanted.add(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}")
    ended = []
    for pid in sorted(_having(wanted) - {os.getpid()}):
        known = process.look(pid)
        run = process.environment(pid).get(wire.MARK_RUN, "")
        if known is None or not (run or _filters(pid) > _filters(os.getpid())):
            continue
        locker = Locker(pid, run, process.command_line(pid))
        if process.send(known, signal.SIGKILL):
            ended.append(locker)
    return ended


def _having(wanted: set[str]) -> set[int]:
    """Processes with a lock on one of these files, named as /proc/locks names them."""
    found: set[int] = set()
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return found
    nameless = False
    for line in lines:
        fields = line.replace("-> ", "").split()
        if len(fields) > 5 and fields[5] in wanted:
            if int(fields[4]) > 0:
                found.add(int(fields[4]))
            # One of an open file belongs to no process by name, and a process that has it from its parent is not named.
            nameless = nameless or fields[1] in {"OFDLCK", "FLOCK"} or int(fields[4]) <= 0
    return found | set(_by_descriptor(wanted)) if nameless else found


def _by_descriptor(wanted: set[str]) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for number in os.listdir(f"/proc/{name}/fdinfo"):
                text = Path(f"/proc/{name}/fdinfo/{number}").read_text()
                if "lock:" in text and any(one in text for one in wanted):
                    yield int(name)
                    break
        except OSError:
            continue  # another user's, or just gone


def _filters(pid: int) -> int:
    """How many system call filters a process has; 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Seccomp_filters:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
