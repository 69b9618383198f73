"""Find the processes that hold a lock on a file, and kill those that belong to a run.

SQLite's locks are on files that agents can read, and read access is enough to take them (fcntl(2), F_RDLCK).
The engine must not wait for an agent.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aipass.supervisor import mark, process, wire

if TYPE_CHECKING:
    from collections.abc import Iterator


class Locker(NamedTuple):
    """A process that holds a lock on a file. `run` is the run id in its environment; empty where there is none."""

    pid: int
    run: str
    command: str


def end_of_runs(*paths: Path) -> list[Locker]:
    """Kill every process of a run that holds a lock on one of these files; returns the killed processes.

    A process belongs to a run if it has a run's mark (a resource limit that fenced processes cannot change)
    or, where there is no mark, if its environment names a run. Other processes, such as a user's database
    browser, are left alone.
    """
    wanted: dict[int, set[tuple[int, int]]] = {}
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        wanted.setdefault(found.st_ino, set()).add((found.st_dev, found.st_ino))
    ended = []
    for pid in sorted(_having(wanted) - {os.getpid()}):
        known = process.look(pid)
        run = process.environment(pid).get(wire.MARK_RUN, "")
        if known is None or not (run or mark.read(pid) is not None):
            continue
        locker = Locker(pid, run, process.command_line(pid))
        if process.send(known, signal.SIGKILL):
            ended.append(locker)
    return ended


def _having(wanted: dict[int, set[tuple[int, int]]]) -> set[int]:
    """Ids of processes with a lock on one of these files, found by inode number.

    Descriptors of the candidates then confirm the match.
    """
    found: set[int] = set()
    try:
        # /proc/locks names a file by the device of its filesystem; on btrfs stat(2) reports another one.
        # So only inode numbers are compared here.
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return found
    nameless = False
    for line in lines:
        fields = line.replace("-> ", "").split()
        if len(fields) > 5 and int(fields[5].rpartition(":")[2]) in wanted:
            if int(fields[4]) > 0:
                found.add(int(fields[4]))
            # A lock of an open file (flock, OFD) has no owning process: /proc/locks does not name a child that inherited it.
            nameless = nameless or fields[1] in {"OFDLCK", "FLOCK"} or int(fields[4]) <= 0
    places = set().union(*wanted.values())
    return {pid for pid in found if _has_open(pid, places)} | (
        set(_by_descriptor(wanted, places)) if nameless else set()
    )


def _has_open(pid: int, places: set[tuple[int, int]]) -> bool:
    try:
        return any(_is_one(pid, number, places) for number in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False  # another user's process, or it has just ended


def _is_one(pid: int, number: str, places: set[tuple[int, int]]) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/fd/{number}")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) in places


def _by_descriptor(wanted: dict[int, set[tuple[int, int]]], places: set[tuple[int, int]]) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for number in os.listdir(f"/proc/{name}/fdinfo"):
                text = Path(f"/proc/{name}/fdinfo/{number}").read_text()
                locks = [line.split() for line in text.splitlines() if line.startswith("lock:")]
                if any(_inode_of(lock) in wanted for lock in locks) and _is_one(int(name), number, places):
                    yield int(name)
                    break
        except OSError:
            continue  # another user's process, or it has just ended


def _inode_of(lock: list[str]) -> int:
    """The inode number of a line of fdinfo: `lock: 1: POSIX ADVISORY READ 123 08:01:456 0 EOF`."""
    return next((int(word.rpartition(":")[2]) for word in lock if word.count(":") == 2), -1)
