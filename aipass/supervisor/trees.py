"""The processes of a run (its process tree and all bearers of its mark), and signals that reach all of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from aipass.supervisor import mark, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aipass.supervisor.run import Run

# How long a process table is reused. A process that forked since is found with the next signal.
AGE_S = 0.05
# Reading the table of thousands of processes takes longer than AGE_S, and a thousand runs that are stopped together would each read
# it. So a table is also reused for this many times the duration of its reading: reading takes at most a tenth of the time.
AGES = 10
# This many rounds of reading and SIGSTOP catch everything but an endless fork loop, which is then chased for CHASE_S at a time.
MOST_ROUNDS, CHASE_S = 10, 0.1
# A process that forks and exits immediately lives shorter than one reading of the table: check the newest processes this often.
PROBES = 20
# How many of the newest ids are checked, as other programs start processes at the same time.
NEWEST = 6

T = TypeVar("T")


class Recent(Generic[T]):
    """A cached result of `look`, reused for a short time: runs that are stopped together share one reading."""

    def __init__(self, look: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._began = self._until = float("-inf")
        self._found: T | None = None

    def get(self, since: float = float("-inf")) -> T:
        """The cached result, or a new one if it is too old or was begun before `since` (monotonic clock)."""
        began = self._clock()
        if self._found is None or began > self._until or self._began < since:
            self._began = began
            self._found = self._look()
            ended = self._clock()
            self._until = ended + max(AGE_S, AGES * (ended - began))
        return self._found

    def forget(self) -> None:
        """Discard the cached result."""
        self._found = None


class Trees:
    """Finds and signals the processes of runs. Used by the supervisor's loop only; not thread-safe."""

    def __init__(self) -> None:
        self._table, self._marks = Recent(process.table), Recent(_bearers)
        self._frozen: set[int] = set()

    def remains(self, run: Run) -> set[int]:
        """Living processes with the mark of a run whose first process has ended, read after that moment.

        Best effort for a process that forks and exits in a loop; it is probed for by its id.
        """
        found = {pid for pid in self._marks.get(run.over_since).get(run.mark, ()) if _bears(pid, run.mark)}
        # Empty can mean that the process forked and exited during the reading, under a new id each time.
        for _ in range(0 if found else PROBES):
            for pid in _newest():
                if _bears(pid, run.mark):
                    return {pid}
        return found

    def signal(self, run: Run, number: signal.Signals, together: Iterable[Run]) -> list[int]:
        """Send a signal to all processes of a run; returns the ids of those that existed.

        Before KILL the run is frozen (SIGSTOP), together with the runs of `together`, which are due for the
        same signal. A stopped process cannot fork between the reading of the table and the signal.
        """
        if number == signal.SIGKILL and run.id not in self._frozen:
            self._freeze(together)
        self._frozen.discard(run.id)
        table = self._table.get()
        reached = [pid for pid in sorted(self._members(run, table)) if process.send(table[pid], number)]
        if number == signal.SIGKILL and not reached:
            reached = _chase(run.mark)
        return reached

    def _freeze(self, runs: Iterable[Run]) -> None:
        seen: set[int] = set()
        runs = list(runs)
        for _ in range(MOST_ROUNDS):
            self._table.forget()
            self._marks.forget()
            table = self._table.get()
            members = {pid for run in runs for pid in self._members(run, table)}
            # No new member since the last round: nothing forked between reading and stopping.
            if members <= seen:
                break
            for pid in members - seen:
                process.send(table[pid], signal.SIGSTOP)
            seen |= members
        self._frozen = {run.id for run in runs}

    def _members(self, run: Run, table: Mapping[int, process.Process]) -> set[int]:
        bearers = self._marks.get().get(run.mark, set())
        # The cached marks may be older than the table, and the id reused since.
        own = {pid for pid in bearers & table.keys() if _bears(pid, run.mark, table[pid].start)}
        return process.tree(table, run.roots() | own)


def _bears(pid: int, number: int, start: int | None = None) -> bool:
    """Whether a living process has a mark; with `start`, only the process that was started then."""
    found = process.look(pid)
    is_it = found is not None and found.state not in "ZX" and start in (None, found.start)
    return is_it and mark.read(pid) == number


def _newest() -> range:
    """The newest process ids, newest first; empty where /proc/loadavg, which has the last one, cannot be read."""
    try:
        last = int(Path("/proc/loadavg").read_bytes().rpartition(b" ")[2])
    except (OSError, ValueError):
        return range(0)
    return range(last, max(0, last - NEWEST), -1)


def _chase(number: int) -> list[int]:
    """Kill the newest process with this mark, repeatedly for CHASE_S; returns the ids.

    A process that forks and exits in a loop has a new id before any reading of the whole table is complete.
    """
    reached: list[int] = []
    until = time.monotonic() + CHASE_S
    while time.monotonic() < until:
        newest = _newest()
        if not newest:
            break
        for pid in newest:
            found = process.look(pid)
            if found is None or found.state in "ZX" or mark.read(pid) != number:
                continue
            if process.send(found, signal.SIGKILL):
                reached.append(pid)
            break
    return reached


def _bearers() -> dict[int, set[int]]:
    """Process ids by mark, of all marked processes."""
    found: dict[int, set[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and (number := mark.read(int(name))) is not None:
            found.setdefault(number, set()).add(int(name))
    return found
