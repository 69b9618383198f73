"""Who wrote a file last: the journals that the fence keeps of each run's writes, read along with what the tree tells.

A journal has its line before the write happens, so whoever sees the file change finds the line there. What it cannot
tell is when a descriptor was closed; the kernel says that nobody writes the file any more, and what changes it later
was somebody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from aipass.sources import writers
from aipass.supervisor import held
from aipass.supervisor.fence.decide import Operation
from aipass.supervisor.fence.fenced import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aipass.workspace.layout import Layout

#: How often files that a run opened are looked at: whether it still writes them.
SWEEP_S = 0.5
#: Beyond so many files, of the run that has written most of them so many are forgotten, oldest first.
MAX_KNOWN, FORGOTTEN_AT_ONCE = 100_000, 1_000
#: So many files are asked about at a time whether they are still written; it takes 10 us each.
MOST_SWEPT = 1000
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
    #: When it was first opened for writing by this run, in nanoseconds of the clock that files' times are of; None where the journal
    #: does not say. What is opened is not written: a file that has not changed since is the work of whoever wrote it before.
    opened: int | None = None
    before: _Write | None = None
    #: Whether it is known to have changed since.
    sure: bool = False
    #: The inode that it was written into, where it is one that was there: who saves by renaming puts another in its place.
    ino: int | None = None


class Attribution:
    """The last write of each path by a run. Used by the engine's thread only."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last: dict[str, _Write] = {}
        #: By run: what it has written last, in the order of writing.
        self._paths: dict[int, dict[str, None]] = {}
        self._read: dict[int, int] = {}
        #: By run: which may be open for writing, in the order of their turns to be asked about.
        self._open: dict[int, dict[str, None]] = {}

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
        mine = list(self._open.get(run, ()))
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
        last = self._author(path)
        if last is None:
            return None
        try:
            found = os.lstat(self._layout.root / path)
        except OSError:
            return last.run if last.what == Operation.REMOVE.value else None
        if stat.S_ISDIR(found.st_mode):
            # What comes into a folder and goes changes its time; whoever took the file away that was here, or made the folder, did that.
            return last.run if last.what != Operation.WRITE.value else None
        changed = found.st_ctime
        if last.what == Operation.REMOVE.value or (last.ino is not None and last.ino != found.st_ino):
            return None
        if last.closed is None:
            self._look(path)
        if last.closed is not None and changed > last.closed:
            return None
        last.ino = found.st_ino  # what it made: from here on, another one in its place is somebody else's
        return last.run

    def last(self, path: str) -> int | None:
        """The live run that acted on `path` last, whatever became of that since; None where a run of before did."""
        last = self._last.get(path)
        return last.run if last is not None and last.run in self._read else None

    def held(self) -> list[tuple[str, int]]:
        """Paths that live runs have written, with the run."""
        return [(path, run) for run in self._read for path in self._paths.get(run, ())]

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
        return self.written_by(run)

    def writing(self, run: int, wanted: Callable[[str], bool], within: float) -> list[str]:
        """Those of the wanted files that a live run is writing now, as far as the kernel tells.

        It has them open for writing, and they are empty, or have changed within so many seconds: a descriptor that is
        only kept is no reason to wait.
        """
        if run not in self._read:
            return []
        self._tail(run)
        mine = sorted(path for path in self._open.get(run, ()) if wanted(path))
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
        mine = (path for path in self._paths.get(run, ()) if self._last[path].what in _CONTENT)
        return [path for path in mine if self._is_of(path, run)]

    def last_of(self, run: int) -> list[str]:
        """What a run has written, marked or removed last, alive or not, and nobody known after it."""
        if run in self._read:
            self._tail(run)
        return [path for path in self._paths.get(run, ()) if self._is_of(path, run)]

    def known(self) -> list[tuple[str, int]]:
        """Every path that is known to have been written by a run, with the last that did."""
        self.refresh()
        found = ((path, self._author(path)) for path in self._last)
        return [(path, last.run) for path, last in found if last is not None]

    def has_open(self) -> bool:
        """Whether there is anything to sweep."""
        return bool(self._open)

    def sweep(self) -> list[tuple[int, str]]:
        """Find out which files are not written any more; those, each with the run that wrote it."""
        # A run may keep more open than can be asked about at once: then they take turns, and each run has its share.
        closed = []
        for run, paths in list(self._open.items()):
            for path in list(islice(paths, max(1, MOST_SWEPT // len(self._open)))):
                self._look(path)
                if path in paths:
                    del paths[path]
                    paths[path] = None
                else:
                    closed.append((run, path))
        return closed

    def _author(self, path: str) -> _Write | None:
        """The last write that has changed a path, as far as it can be told."""
        last = self._last.get(path)
        while last is not None and self._is_only_opened(path, last):
            last = last.before
        return last

    def _is_of(self, path: str, run: int) -> bool:
        last = self._author(path)
        return last is not None and last.run == run

    def _is_only_opened(self, path: str, last: _Write) -> bool:
        if last.sure or last.opened is None or last.what != Operation.WRITE.value:
            return False
        try:
            changed = os.lstat(self._layout.root / path).st_ctime_ns
        except OSError:
            return False
        # A filesystem that keeps whole seconds, or every second one, says less.
        last.sure = changed >= last.opened - (2_000_000_000 if changed % 1_000_000_000 == 0 else 0)
        return not last.sure

    def _look(self, path: str) -> None:
        now = time.time()
        # An age that nothing has: where the kernel cannot tell, it counts as open until the run ends.
        if writers.is_complete(self._layout.root / path, _WAIT_FOR_AGE):
            self._close(path, max(now, time.time()))

    def _close(self, path: str, now: float) -> None:
        self._shut(path)
        self._last[path].closed = now

    def _shut(self, path: str) -> None:
        for run, paths in list(self._open.items()):
            paths.pop(path, None)
            if not paths:
                del self._open[run]

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
                    # Supervisors of before do not say when.
                    what, _, path, *when = json.loads(line)
                    self._note(run, what, path, int(when[0]) if when else None)
        finally:
            os.close(handle)

    def _note(self, run: int, what: str, path: str, when: int | None) -> None:
        # Again at the end: the first are those that were written longest ago.
        before = self._last.pop(path, None)
        if what == Operation.MARK.value and before is not None and before.run == run:
            self._last[path] = before  # a mode, a time: the content is what it was
            if before.closed is not None:
                before.closed = None
                self._open.setdefault(run, {})[path] = None
            return
        last = _Write(run, what, 1 if before is None else before.count + 1, opened=when)
        if what == Operation.WRITE.value:
            with contextlib.suppress(OSError):
                last.ino = os.lstat(self._layout.root / path).st_ino
        if before is not None and before.run == run:
            last.before, last.sure = before.before, before.sure
            last.opened = before.opened if before.opened is not None else when
        elif before is not None:
            last.before = before.before if self._is_only_opened(path, before) else before
            if last.before is not None:
                last.before.before = None  # one that is sure needs none
        self._last[path] = last
        if before is not None:
            self._drop(before.run, path)
        self._paths.setdefault(run, {})[path] = None
        self._shut(path)
        if what in _CONTENT:
            self._open.setdefault(run, {})[path] = None
        if len(self._last) > MAX_KNOWN:
            self._forget()

    def _forget(self) -> None:
        """A run that renames large folders to and fro must not take from others that it is known what they wrote."""
        run = max(self._paths, key=lambda run: len(self._paths[run]))
        for path in list(islice(self._paths[run], FORGOTTEN_AT_ONCE)):
            del self._last[path]
            self._drop(run, path)
            self._shut(path)

    def _drop(self, run: int, path: str) -> None:
        del self._paths[run][path]
        if not self._paths[run]:
            del self._paths[run]


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
            with held.open_regular(layout.run(run) / JOURNAL) as journal:
                for line in journal:
                    found[str(json.loads(line)[2])] = run, agent
        except (OSError, ValueError):
            continue  # there is none yet, or its last line is just being written
    return found
