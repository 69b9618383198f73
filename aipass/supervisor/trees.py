"""Which processes belong to a run, and signals that reach all of them."""

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

# What forked since is found by the next signal's look.
AGE_S = 0.05
# On a machine of thousands of processes a look takes longer than AGE_S, and a thousand runs that are stopped together would each take
# one of their own. It is good for so many times what it took: no more than a tenth of the time is spent looking.
AGES = 10
# So many rounds of looking and stopping are enough for all but what forks without end; that is chased then, for so long at a time.
MOST_ROUNDS, CHASE_S = 10, 0.1
# Whoever forks and ends at once lives for less than a look at all processes takes; the newest process is looked at so often.
PROBES = 20
# Beside it others are started.
NEWEST = 6

T = TypeVar("T")


class Recent(Generic[T]):
    """What `look` returns, as of a moment ago at most: runs that are stopped together share one look."""

    def __init__(self, look: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._began = self._until = float("-inf")
        self._found: T | None = None

    def get(self, since: float = float("-inf")) -> T:
        """The last look, or a new one; none that began before `since`."""
        began = self._clock()
        if self._found is None or began > self._until or self._began < since:
            self._began = began
            self._found = self._look()
            ended = self._clock()
            self._until = ended + max(AGE_S, AGES * (ended - began))
        return self._found

    def forget(self) -> None:
        """Look anew next time."""
        self._found = None


class Trees:
    """The processes of runs."""

    def __init__(self) -> None:
        self._table, self._marks = Recent(process.table), Recent(_bearers)
        self._frozen: set[int] = set()

    def remains(self, run: Run) -> set[int]:
        """Living processes that bear the mark of a run whose first process has ended, as of a moment after that."""
        found = {pid for pid in self._marks.get(run.over_since).get(run.mark, ()) if _bears(pid, run.mark)}
        for _ in range(0 if found else PROBES):
            for pid in _newest():
                if _bears(pid, run.mark):
                    return {pid}
        return found

    def signal(self, run: Run, number: signal.Signals, together: Iterable[Run]) -> list[int]:
        """Signal all processes of a run; returns those that were there.

        Before KILL it is frozen, with all runs of `together`, which are due for the same: what is stopped cannot fork away from the next
        look.
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
            if members <= seen:
                break
            for pid in members - seen:
                process.send(table[pid], signal.SIGSTOP)
            seen |= members
        self._frozen = {run.id for run in runs}

    def _members(self, run: Run, table: Mapping[int, process.Process]) -> set[int]:
        bearers = self._marks.get().get(run.mark, set())
        # Its id may be another's by now.
        own = {pid for pid in bearers & table.keys() if _bears(pid, run.mark, table[pid].start)}
        return process.tree(table, run.roots() | own)


def _bears(pid: int, number: int, start: int | None = None) -> bool:
    """Whether a living process bears a mark; with `start`, that very one."""
    found = process.look(pid)
    is_it = found is not None and found.state not in "ZX" and start in (None, found.start)
    return is_it and mark.read(pid) == number


def _newest() -> range:
    """Ids of what was started last, the newest first; empty where nobody tells."""
    try:
        last = int(Path("/proc/loadavg").read_bytes().rpartition(b" ")[2])
    except (OSError, ValueError):
        return range(0)
    return range(last, max(0, last - NEWEST), -1)


def _chase(number: int) -> list[int]:
    """Kill whoever bears a mark and was started last, again and again: what forks and ends at once is gone before any look at all is over."""
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
    """Processes by the mark that they bear."""
    found: dict[int, set[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and (number := mark.read(int(name))) is not None:
            found.setdefault(number, set()).add(int(name))
    return found
