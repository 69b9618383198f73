"""The buffer of files that were just written: it reports them after a short rest (debouncing), so that temporary files cause no events."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The buffer reports the files of a tree after this time without a write, and at the latest after `LAST_WAIT_S`. Most tools save by a new
# file that replaces the old one immediately: a file that is renamed or removed by then was only temporary. And programs with their own
# implementation of git (libgit2) lock the index only after they have written all files. Files in the inbox never wait.
REST_S, LAST_WAIT_S = 0.05, 0.5
# After git locked the index, the buffer waits this long for the log entry that names the operation.
LOG_WAIT_S = 0.1


class Rested(NamedTuple):
    """The changes to report now, in this order. Each flag `git` says whether git made the change.

    `back`: files that have their first name again: path, the other name, `git`, whether it was written. `moved`: first name, new name,
    `git`; in an order in which each name is free before another file gets it. `exchanged`: names that were exchanged in a circle, and
    `git`: each has another file now, no file was added or removed. `left`: paths without a file now, and `git`. `written`: by path.
    """

    back: list[tuple[str, str, bool, bool]]
    moved: list[tuple[str, str, bool]]
    exchanged: list[tuple[str, bool]]
    left: list[tuple[str, bool]]
    written: dict[str, UnsettledFile]


@dataclass(slots=True)
class UnsettledFile:
    """A written file that is not reported yet. `new`: its creation is not reported either; `closed`: a program has closed it; `git`: git wrote it last."""

    new: bool
    closed: bool
    git: bool


class UnsettledFiles:
    """Collects changes of files until they rest, in the order of writing. Used by one thread; times are those of the monotonic clock."""

    def __init__(self) -> None:
        self._waiting: dict[str, UnsettledFile] = {}
        #: Paths whose file was moved away or removed, and whether git did it.
        self._leaving: dict[str, bool] = {}
        #: By new name: the first name of a moved file, and whether git moved it.
        self._moved: dict[str, tuple[str, bool]] = {}
        #: Files that have their first name again: the name that they had in between, whether git did it, whether they were written.
        self._back: dict[str, tuple[str, bool, bool]] = {}
        #: Files that a program other than git wrote, even where git changed them later: that write must be reported as well.
        self._by_hand: set[str] = set()
        self._due, self._last_due = 0.0, 0.0
        #: By path: when to report that only a time or a mode was set, unless a close comes first.
        self._touches: dict[str, float] = {}

    def __contains__(self, path: str) -> bool:
        """Return whether a change of an existing file waits here."""
        return path in self._waiting or path in self._moved

    def __len__(self) -> int:
        """Return how many changes wait; set times and modes do not count."""
        return len(self._waiting) + len(self._leaving) + len(self._moved) + len(self._back)

    def write(self, path: str, *, new: bool, closed: bool, git: bool) -> None:
        """Note a write at `path`; it starts the rest of all changes again."""
        self._go_on()
        waiting = self._waiting.setdefault(path, UnsettledFile(new, closed=False, git=git))
        waiting.closed = waiting.closed or closed
        # The last writer counts; a write by another program before stays in `_by_hand`.
        waiting.git = git
        if not git:
            self._by_hand.add(path)
        self._leaving.pop(path, None)

    def leave(self, path: str, *, git: bool) -> None:
        """Note that the file at `path` is gone; a write at the same path before the rest cancels that."""
        self._go_on()
        self._waiting.pop(path, None)
        self._leaving[path] = git
        if path in self._moved:
            # Consumers know only the first name, so that one is reported as gone too.
            self._leaving[self._moved.pop(path)[0]] = git

    def move(self, old: str, new: str, *, git: bool) -> None:
        """Note a rename; several renames of one file become one, from the first name to the last."""
        self._go_on()
        written = self._waiting.pop(old, None)
        self._waiting.pop(new, None)
        self._leaving.pop(new, None)
        if old in self._by_hand:
            self._by_hand.discard(old)
            self._by_hand.add(new)
        first, _ = self._moved.pop(old, (old, git))
        if first != old:
            self._leaving[old] = git  # this file overwrote another one there
        if new in self._moved:
            self._leaving[self._moved.pop(new)[0]] = git
        if first == new:
            # Moved there and back, or two files were exchanged: only a look at both names says which.
            self._back[new] = old, git, written is not None
        else:
            self._moved[new] = first, git

    def _go_on(self) -> None:
        now = time.monotonic()
        if not len(self):
            self._last_due = now + LAST_WAIT_S
        self._due = min(now + REST_S, self._last_due)

    def hurry(self) -> None:
        """Make every waiting change due immediately."""
        self._due = 0.0

    def touch(self, path: str) -> None:
        """Note that a time or a mode was set; `touched` yields the path after the rest, unless `is_written` removes it first."""
        # The wait: `cp -p` sets the time before it closes, and then the close is the event.
        self._touches.setdefault(path, time.monotonic() + REST_S)

    def is_written(self, path: str) -> None:
        """Drop what `touch` noted: a write of the same file is reported anyway."""
        self._touches.pop(path, None)

    def wait_for_log(self) -> None:
        """Wait up to LOG_WAIT_S longer after a lock of the index: git's log may follow and say who wrote the waiting files."""
        if len(self):
            self._due = min(time.monotonic() + LOG_WAIT_S, self._last_due + LOG_WAIT_S)

    def are_by_git(self, which: Callable[[str], bool], gone: set[str]) -> None:
        """Mark waiting changes as made by git: those for whose path `which` is true, and the removed paths in `gone`."""
        for path, waiting in self._waiting.items():
            # Under git's lock the writers are known already, and `_by_hand` must stay for them.
            if not waiting.git and which(path):
                waiting.git = True
                self._by_hand.discard(path)
        for path, (first, git) in self._moved.items():
            if not git and which(path):
                # JGit writes every file under a temporary name and renames it.
                self._moved[path] = first, True
                self._by_hand.discard(path)
        self._leaving |= dict.fromkeys(gone & self._leaving.keys(), True)

    def due(self) -> list[float]:
        """Return the times at which the caller must look here again."""
        # The first touch is the earliest one: all wait equally long, and dicts keep their order.
        return [*([self._due] if len(self) else []), *islice(self._touches.values(), 1)]

    def take(self) -> Rested | None:
        """Return all waiting changes and empty the buffer; None while they do not rest yet."""
        if not len(self) or self._due > time.monotonic():
            return None
        moves = {first: (new, git and new not in self._by_hand) for new, (first, git) in self._moved.items()}
        moved = _in_order(moves)
        rested = Rested(
            back=[(path, *about) for path, about in self._back.items()],
            moved=moved,
            exchanged=[moves[first] for first in moves.keys() - {first for first, _, _ in moved}],
            left=list(self._leaving.items()),
            written=self._waiting,
        )
        for path in self._by_hand & rested.written.keys():
            rested.written[path].git = False
        self._waiting, self._leaving, self._moved, self._back, self._by_hand = {}, {}, {}, {}, set()
        return rested

    def touched(self) -> Iterator[str]:
        """Yield, and forget, each path whose set time or mode is due to be reported."""
        now = time.monotonic()
        while self._touches and next(iter(self._touches.values())) <= now:
            path = next(iter(self._touches))
            del self._touches[path]
            yield path


def _in_order(moves: dict[str, tuple[str, bool]]) -> list[tuple[str, str, bool]]:
    """Order moves so that each name is free before another file gets it; moves that form a circle have no such order and are left out."""
    told: list[tuple[str, str, bool]] = []
    left = dict(moves)
    taken = {new: first for first, (new, _) in moves.items()}
    free = [first for first, (new, _) in moves.items() if new not in moves]
    for first in free:
        at: str | None = first
        while at is not None and at in left:
            told.append((at, *left.pop(at)))
            at = taken.get(at)
    return told
