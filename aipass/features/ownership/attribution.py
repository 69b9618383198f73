"""Finds the run that wrote a file last, from the journals in which the fence records each run's writes.

The fence writes a journal line before it allows the write, so the line exists when the change of the file is observed. A
journal does not record when a file is closed. For that the kernel is asked whether a process still writes the file; a change
after the close is by another author.
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

#: The interval at which files that runs have opened are checked for their close.
SWEEP_S = 0.5
#: The largest number of known files. Beyond it the run with the most files loses that many, the oldest first.
MAX_KNOWN, FORGOTTEN_AT_ONCE = 100_000, 1_000
#: The number of files that one sweep asks the kernel about; one takes 10 us, so a sweep takes 10 ms of the engine's thread.
MOST_SWEPT = 1000
#: An age in seconds that no file reaches, so that only the kernel's answer decides.
_WAIT_FOR_AGE = 1 << 62
_CONTENT = frozenset((Operation.WRITE.value, Operation.CREATE.value))


@dataclass(slots=True)
class _Write:
    run: int
    what: str
    #: How often runs wrote, created or removed the path, according to their journals.
    count: int = 1
    #: The earliest time at which the run certainly did not write the file any more, in seconds; None while it may still
    #: write.
    closed: float | None = None
    #: When this run first opened the file for writing, in nanoseconds of the clock of file times; None if the journal
    #: has no time. An open is not a write yet: if the file has not changed since, its author is the one before.
    opened: int | None = None
    before: _Write | None = None
    #: Whether the file has certainly changed since it was opened.
    sure: bool = False
    #: The inode of the file at the write. A program that saves by rename replaces it by another inode.
    ino: int | None = None


class Attribution:
    """The last write of each path by a run, with paths relative to the root. Used by the engine's thread only."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last: dict[str, _Write] = {}
        #: By run: the paths whose last writer it is, in the order of the writes.
        self._paths: dict[int, dict[str, None]] = {}
        #: By live run: how many bytes of its journal were read.
        self._read: dict[int, int] = {}
        #: By run: the paths that it may still have open for writing, in the order in which the next sweeps check them.
        self._open: dict[int, dict[str, None]] = {}

    def follow(self, run: int) -> None:
        """Read this run's journal from now on; idempotent."""
        self._read.setdefault(run, 0)

    def ended(self, run: int, finished: float) -> list[str]:
        """Read the rest of an ended run's journal and close its files; returns the paths that were open until now.

        `finished`: the end of its last process, in seconds since the epoch; a later change is by another author. A second call
        returns nothing.
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
        """The length of a live run's journal in bytes.

        It grows with each write, so two equal lengths mean no write between.
        """
        if run in self._read:
            self._tail(run)
        return self._read.get(run, 0)

    def refresh(self) -> None:
        """Read the new lines of all followed journals."""
        for run in self._read:
            self._tail(run)

    def by(self, path: str) -> int | None:
        """The run that wrote the present version of `path`, or removed it; None if no known run did.

        Journals are not read here.
        """
        last = self._author(path)
        if last is None:
            return None
        try:
            found = os.lstat(self._layout.root / path)
        except OSError:
            return last.run if last.what == Operation.REMOVE.value else None
        if stat.S_ISDIR(found.st_mode):
            # A folder's time changes with its entries, so it says nothing about the author. A journal line that removed
            # a file here, or created the folder, does.
            return last.run if last.what != Operation.WRITE.value else None
        # By the change time: a program can set the modification time.
        changed = found.st_ctime
        if last.what == Operation.REMOVE.value or (last.ino is not None and last.ino != found.st_ino):
            return None
        if last.closed is None:
            self._look(path)
        if last.closed is not None and changed > last.closed:
            return None
        # From now on another inode under this name means another author.
        last.ino = found.st_ino
        return last.run

    def last(self, path: str) -> int | None:
        """The live run with the last journal line about `path`, even if the file has changed since.

        None if the last run has ended.
        """
        last = self._last.get(path)
        return last.run if last is not None and last.run in self._read else None

    def held(self) -> list[tuple[str, int]]:
        """The paths that live runs wrote last, each with the run: their holds (write locks)."""
        return [(path, run) for run in self._read for path in self._paths.get(run, ())]

    def count(self, path: str) -> int:
        """How often runs have written, created or removed a path, according to the journals that this engine has read."""
        self.refresh()
        last = self._last.get(path)
        return 0 if last is None else last.count

    def written(self, run: int) -> list[str]:
        """The files of which a live run is the last author; empty for a run that is not followed."""
        if run not in self._read:
            return []
        self._tail(run)
        return self.written_by(run)

    def writing(self, run: int, wanted: Callable[[str], bool], within: float) -> list[str]:
        """The wanted files that a live run is writing now, according to the kernel.

        The run has them open for writing, and they are empty or have changed within `within` seconds. A program may keep a file
        open without writing it, and nothing should wait for that.
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
        # By the change time: a program can set the modification time, also to one in the past.
        moves = found.st_size == 0 or abs(time.time() - found.st_ctime) < within
        return moves and not writers.is_complete(self._layout.root / path, 0)

    def written_by(self, run: int) -> list[str]:
        """The files of which a run is the last author, live or ended, in the order of the writes, without removed ones."""
        mine = (path for path in self._paths.get(run, ()) if self._last[path].what in _CONTENT)
        return [path for path in mine if self._is_of(path, run)]

    def last_of(self, run: int) -> list[str]:
        """The paths that a run wrote, marked or removed, live or ended, and no known run after it."""
        if run in self._read:
            self._tail(run)
        return [path for path in self._paths.get(run, ()) if self._is_of(path, run)]

    def known(self) -> list[tuple[str, int]]:
        """Every path with a known author, with that run."""
        self.refresh()
        found = ((path, self._author(path)) for path in self._last)
        return [(path, last.run) for path, last in found if last is not None]

    def has_open(self) -> bool:
        """Whether a run may have a file open, so that a sweep is needed."""
        return bool(self._open)

    def sweep(self) -> list[tuple[int, str]]:
        """Find the files that have been closed since the last sweep; returns each with its run."""
        # Runs may have more files open than one sweep checks: the files take turns, and each run has the same share, so
        # that one run with many files does not delay the others.
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
        """The last write that really changed a path: one whose file was only opened is skipped."""
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
        # A filesystem with times in whole seconds, or every second one (FAT), can show a time up to two seconds too early.
        last.sure = changed >= last.opened - (2_000_000_000 if changed % 1_000_000_000 == 0 else 0)
        return not last.sure

    def _look(self, path: str) -> None:
        now = time.time()
        # If the kernel cannot answer, the file counts as open until the run ends: too long is safe, too short names a
        # wrong author.
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
                # The fence may be writing the last line at this moment: only complete lines are read.
                whole = data.rfind(b"\n") + 1
                if not whole:
                    return
                self._read[run] += whole
                for line in data[:whole].splitlines():
                    # Supervisors of an earlier version write no time.
                    what, _, path, *when = json.loads(line)
                    self._note(run, what, path, int(when[0]) if when else None)
        finally:
            os.close(handle)

    def _note(self, run: int, what: str, path: str, when: int | None) -> None:
        # Removed and added again, so that the dict stays in the order of writes and the oldest can be forgotten first.
        before = self._last.pop(path, None)
        if what == Operation.MARK.value and before is not None and before.run == run:
            # A change of mode or times, and not of the content.
            self._last[path] = before
            if before.closed is not None:
                # It changes the change time, which must not look like a later author: open until the next sweep.
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
                # Only one earlier author is kept, else the chain would grow with each write.
                last.before.before = None
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
        """Forget the oldest writes of the run with the most known paths.

        A run that renames large folders repeatedly thus pushes out its own entries, and not those of other runs.
        """
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
    """The paths that live runs have written, each with a sentence that names the run.

    For threads other than the engine's.
    """
    from aipass.ledger import Ledger

    # A connection of its own: one of SQLite's belongs to the thread that opened it.
    ledger = Ledger.read(layout.ledger)
    try:
        live = [(row["id"], row["agent"]) for row in ledger.all("live_runs")]
    finally:
        ledger.close()
    found = holders(layout, live)
    return {path: f"run {run} of {agent} is writing it" for path, (run, agent) in found.items()}


def holders(layout: Layout, live: Iterable[tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """The paths that live runs have written, each with the run and its agent. `live`: runs with their agents."""
    found = {}
    for run, agent in live:
        try:
            with held.open_regular(layout.run(run) / JOURNAL) as journal:
                for line in journal:
                    found[str(json.loads(line)[2])] = run, agent
        except (OSError, ValueError):
            continue  # there is no journal yet, or its last line is incomplete at this moment
    return found
