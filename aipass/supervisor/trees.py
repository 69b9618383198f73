"""Which processes belong to a run, and signals that reach all of them."""

from __future__ import annotations

import os
import signal
import time
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

T = TypeVar("T")


class Recent(Generic[T]):
    """What `look` returns, as of a moment ago at most: runs that are stopped together share one look."""

    def __init__(self, look: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._until = float("-inf")
        self._found: T | None = None

    def get(self) -> T:
        """The last look, or a new one."""
        began = self._clock()
        if self._found is None or began > self._until:
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

    def bearers(self, run: Run) -> set[int]:
        """Processes that bear the run's mark."""
        return self._marks.get().get(run.mark, set())

    def signal(self, run: Run, number: signal.Signals, together: Iterable[Run]) -> list[int]:
        """Signal all processes of a run; returns those that were there.

        Before KILL it is frozen, with all runs of `together`, which are due for the same: what is stopped cannot fork away from the next
        look.
        """
        if number == signal.SIGKILL and run.id not in self._frozen:
            self._freeze(together)
        self._frozen.discard(run.id)
        table = self._table.get()
        return [pid for pid in sorted(self._members(run, table)) if process.send(table[pid], number)]

    def _freeze(self, runs: Iterable[Run]) -> None:
        seen: set[int] = set()
        runs = list(runs)
        while True:
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
        return process.tree(table, run.roots() | (self.bearers(run) & table.keys()))


def _bearers() -> dict[int, set[int]]:
    """Processes by the mark that they bear."""
    found: dict[int, set[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and (number := mark.read(int(name))) is not None:
            found.setdefault(number, set()).add(int(name))
    return found
