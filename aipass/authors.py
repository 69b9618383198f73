"""Who wrote a file last: the journals that the fence keeps of each run's writes, read along with what the tree tells.

A journal has its line before the write happens, so whoever sees the file change finds the line there. What it cannot
tell is when a descriptor was closed; the kernel says that nobody writes the file any more, and what changes it later
was somebody else.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass.sources import writers
from aipass.supervisor.fence.decide import Operation
from aipass.supervisor.fence.fenced import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aipass.layout import Layout

#: How often files that a run opened are looked at: whether it still writes them.
SWEEP_S = 0.5
#: Files that a run of long ago wrote are forgotten, oldest first, beyond this many.
MAX_KNOWN = 100_000
_WAIT_FOR_AGE = 1 << 62
_CONTENT = frozenset((Operation.WRITE.value, Operation.CREATE.value))


@dataclass(slots=True)
class _Write:
    run: int
    what: str
    #: How often it was written, made or removed by runs, as their journals have it.
    count: int = 1
    #: When it was first certain that the run does not write it any more, in seconds; None while it may.
    closed: float | None = None


class Authors:
    """The last write of each path by a run. Used by the engine's thread only."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last: dict[str, _Write] = {}
        self._read: dict[int, int] = {}
        self._open: set[str] = set()

    def follow(self, run: int) -> None:
        """Read this run's journal from now on."""
        self._read.setdefault(run, 0)

    def ended(self, run: int, finished: float) -> list[str]:
        """A run is over: what it left in its journal is read, and nothing of it is open. Returns what was until now.

        finished: when the last of its processes was gone, in seconds; what changed later was somebody else.
        """
        if run not in self._read:
            return []
        self._tail(run)
        del self._read[run]
        mine = [path for path in self._open if self._last[path].run == run]
        for path in mine:
            self._close(path, finished)
        return mine

    def length(self, run: int) -> int:
        """How much a live run has written, as the length of its journal in bytes."""
        if run in self._read:
            self._tail(run)
        return self._read.get(run, 0)

    def refresh(self) -> None:
        """Read what the journals have gained."""
        for run in self._read:
            self._tail(run)

    def by(self, path: str) -> int | None:
        """The run that made `path` what it is now, or took it away; None where nobody known did."""
        last = self._last.get(path)
        if last is None:
            return None
        try:
            changed = os.lstat(self._layout.root / path).st_ctime
        except OSError:
            return last.run if last.what == Operation.REMOVE.value else None
        if last.what == Operation.REMOVE.value:
            return None
        if last.closed is None:
            self._look(path)
        return last.run if last.closed is None or changed <= last.closed else None

    def held(self) -> list[tuple[str, int]]:
        """Paths that live runs have written, with the run."""
        return [(path, last.run) for path, last in self._last.items() if last.run in self._read]

    def count(self, path: str) -> int:
        """How often runs have written, made or removed a path, as far as is known."""
        self.refresh()
        last = self._last.get(path)
        return 0 if last is None else last.count

    def written(self, run: int) -> list[str]:
        """What a live run has written last, and nobody after it."""
        if run not in self._read:
            return []
        self._tail(run)
        return [path for path, last in self._last.items() if last.run == run and last.what in _CONTENT]

    def writing(self, run: int, wanted: Callable[[str], bool], within: float) -> list[str]:
        """Those of the wanted files that a live run is writing now, as far as the kernel tells.

        It has them open for writing, and they are empty, or have changed within so many seconds: a descriptor that is
        only kept is no reason to wait.
        """
        if run not in self._read:
            return []
        self._tail(run)
        mine = sorted(path for path in self._open if self._last[path].run == run and wanted(path))
        return [path for path in mine if self._is_moving(path, within)]

    def _is_moving(self, path: str, within: float) -> bool:
        try:
            found = os.lstat(self._layout.root / path)
        except OSError:
            return False
        # Not by the time of its content, which a program can set.
        moves = found.st_size == 0 or abs(time.time() - found.st_ctime) < within
        return moves and not writers.is_complete(self._layout.root / path, 0)

    def written_by(self, run: int) -> list[str]:
        """What a run has written last, alive or not, in the order of writing, without what is gone."""
        return [path for path, last in self._last.items() if last.run == run and last.what in _CONTENT]

    def last_of(self, run: int) -> list[str]:
        """What a run has written, marked or removed last, alive or not, and nobody known after it."""
        if run in self._read:
            self._tail(run)
        return [path for path, last in self._last.items() if last.run == run]

    def known(self) -> list[tuple[str, int]]:
        """Every path that is known to have been written by a run, with the last that did."""
        self.refresh()
        return [(path, last.run) for path, last in self._last.items()]

    def has_open(self) -> bool:
        """Whether there is anything to sweep."""
        return bool(self._open)

    def sweep(self) -> list[tuple[int, str]]:
        """Find out which files are not written any more; those, each with the run that wrote it."""
        before = list(self._open)
        for path in before:
            self._look(path)
        return [(self._last[path].run, path) for path in before if path not in self._open]

    def _look(self, path: str) -> None:
        now = time.time()
        # An age that nothing has: where the kernel cannot tell, it counts as open until the run ends.
        if writers.is_complete(self._layout.root / path, _WAIT_FOR_AGE):
            self._close(path, max(now, time.time()))

    def _close(self, path: str, now: float) -> None:
        self._open.discard(path)
        self._last[path].closed = now

    def _tail(self, run: int) -> None:
        try:
            handle = os.open(self._layout.run(run) / JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            while data := os.pread(handle, 1 << 20, self._read[run]):
                whole = data.rfind(b"\n") + 1
                if not whole:
                    return
                self._read[run] += whole
                for line in data[:whole].splitlines():
                    what, _, path = json.loads(line)
                    self._note(run, what, path)
        finally:
            os.close(handle)

    def _note(self, run: int, what: str, path: str) -> None:
        # Again at the end: the first are those that were written longest ago.
        before = self._last.pop(path, None)
        if what == Operation.MARK.value and before is not None and before.run == run:
            self._last[path] = before  # a mode, a time: the content is what it was
            if before.closed is not None:
                before.closed = None
                self._open.add(path)
            return
        self._last[path] = _Write(run, what, 1 if before is None else before.count + 1)
        if what in _CONTENT:
            self._open.add(path)
        else:
            self._open.discard(path)
        if len(self._last) > MAX_KNOWN:
            oldest = next(iter(self._last))
            del self._last[oldest]
            self._open.discard(oldest)


def writers_of(layout: Layout) -> dict[str, str]:
    """Which paths runs that live have written, and which run that is in words; for threads beside the engine's."""
    from aipass.ledger import Ledger

    ledger = Ledger.read(layout.ledger)
    try:
        live = [(row["id"], row["agent"]) for row in ledger.all("live_runs")]
    finally:
        ledger.close()
    found = holders(layout, live)
    return {path: f"run {run} of {agent} is writing it" for path, (run, agent) in found.items()}


def holders(layout: Layout, live: Iterable[tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Which paths live runs have written: path to run and agent. `live`: runs with their agents."""
    found = {}
    for run, agent in live:
        try:
            lines = (layout.run(run) / JOURNAL).read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                found[str(json.loads(line)[2])] = run, agent
            except ValueError:
                continue  # the last one is being written
    return found
