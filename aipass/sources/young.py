"""Files that were just written: told once they rest, so that what only becomes another file is nobody's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A file in the tree is told when nothing was written for so long, or at the latest after `LAST_WAIT_S`: most tools save by a new file
# that becomes the old one at once, and what is renamed or removed by then was never a file of anybody's. And programs with a git of
# their own (libgit2) lock the index only when all files are written. In the inbox nothing waits.
REST_S, LAST_WAIT_S = 0.05, 0.5
# After the index was locked, so long is waited for the log that says what was done.
LOG_WAIT_S = 0.1


class Rested(NamedTuple):
    """What is to be told, in this order.

    `back`: files that have their name again, with the other one, whether by git, whether written. `moved`: first name, new name, whether
    by git; each name is left before another file gets it. `exchanged`: names that went round in a circle, and whether git did it: at each
    is another file now, and none has come or gone. `left`: paths that something has left, and whether git did it. `written`: by path.
    """

    back: list[tuple[str, str, bool, bool]]
    moved: list[tuple[str, str, bool]]
    exchanged: list[tuple[str, bool]]
    left: list[tuple[str, bool]]
    written: dict[str, UnsettledFile]


@dataclass(slots=True)
class UnsettledFile:
    """A file that is not told yet. `new`: nobody was told that there is one; `closed`: it was complete once; `git`: by git."""

    new: bool
    closed: bool
    git: bool


class UnsettledFiles:
    """The files of a tree that wait to be told, in the order of writing; and those of which only a time or a mode was set."""

    def __init__(self) -> None:
        self._waiting: dict[str, UnsettledFile] = {}
        #: Paths that something has left, and whether git did it.
        self._leaving: dict[str, bool] = {}
        #: The name that a file had first, and whether git gave it the new one, by that.
        self._moved: dict[str, tuple[str, bool]] = {}
        #: Files that have their first name again: the one that they had meanwhile, whether by git, whether they were written.
        self._back: dict[str, tuple[str, bool, bool]] = {}
        #: Files that somebody else than git has written, whatever git did to them after: that is told as well.
        self._by_hand: set[str] = set()
        self._due, self._last_due = 0.0, 0.0
        #: When it is told that something was set, unless they are closed before.
        self._touches: dict[str, float] = {}

    def __contains__(self, path: str) -> bool:
        """Whether something is to be told of a file that is there."""
        return path in self._waiting or path in self._moved

    def __len__(self) -> int:
        return len(self._waiting) + len(self._leaving) + len(self._moved) + len(self._back)

    def write(self, path: str, *, new: bool, closed: bool, git: bool) -> None:
        """Something was written there; nothing that waits is told before it rests."""
        self._go_on()
        waiting = self._waiting.setdefault(path, UnsettledFile(new, closed=False, git=git))
        waiting.closed = waiting.closed or closed
        waiting.git = git
        if not git:
            self._by_hand.add(path)
        self._leaving.pop(path, None)

    def leave(self, path: str, *, git: bool) -> None:
        """It is gone from there; that is told when it rests, unless something comes in its place."""
        self._go_on()
        self._waiting.pop(path, None)
        self._leaving[path] = git
        if path in self._moved:
            self._leaving[self._moved.pop(path)[0]] = git

    def move(self, old: str, new: str, *, git: bool) -> None:
        """A file has another name; that is told when it rests: it may be a copy for a moment, or on its way to a third name."""
        self._go_on()
        written = self._waiting.pop(old, None)
        self._waiting.pop(new, None)
        self._leaving.pop(new, None)
        if old in self._by_hand:
            self._by_hand.discard(old)
            self._by_hand.add(new)
        first, _ = self._moved.pop(old, (old, git))
        if first != old:
            self._leaving[old] = git  # what stood there before has been overwritten
        if new in self._moved:
            self._leaving[self._moved.pop(new)[0]] = git
        if first == new:
            # There and back; or two files were exchanged: who looks will see.
            self._back[new] = old, git, written is not None
        else:
            self._moved[new] = first, git

    def _go_on(self) -> None:
        now = time.monotonic()
        if not len(self):
            self._last_due = now + LAST_WAIT_S
        self._due = min(now + REST_S, self._last_due)

    def hurry(self) -> None:
        """All that waits is to be told now."""
        self._due = 0.0

    def touch(self, path: str) -> None:
        """`cp -p` sets the time before it closes: then the close says what there is to say."""
        self._touches.setdefault(path, time.monotonic() + REST_S)

    def is_written(self, path: str) -> None:
        """That something was set need not be told."""
        self._touches.pop(path, None)

    def wait_for_log(self) -> None:
        """The index was locked: a log that says by whom all this was written may follow."""
        if len(self):
            self._due = min(time.monotonic() + LOG_WAIT_S, self._last_due + LOG_WAIT_S)

    def are_by_git(self, which: Callable[[str], bool], gone: set[str]) -> None:
        """A git has written what waits, where `which` says so of the path, and taken away `gone`."""
        for path, waiting in self._waiting.items():
            # Where it had its lock, it is known who wrote before.
            if not waiting.git and which(path):
                waiting.git = True
                self._by_hand.discard(path)
        for path, (first, git) in self._moved.items():
            if not git and which(path):
                # By another name at first: so JGit writes every file.
                self._moved[path] = first, True
                self._by_hand.discard(path)
        self._leaving |= dict.fromkeys(gone & self._leaving.keys(), True)

    def due(self) -> list[float]:
        """When something is to be told next, in time of the monotonic clock."""
        return [*([self._due] if len(self) else []), *islice(self._touches.values(), 1)]

    def take(self) -> Rested | None:
        """What is to be told now, and waits no longer; None while it does not rest."""
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
        """Of what it is to be told now that something was set."""
        now = time.monotonic()
        while self._touches and next(iter(self._touches.values())) <= now:
            path = next(iter(self._touches))
            del self._touches[path]
            yield path


def _in_order(moves: dict[str, tuple[str, bool]]) -> list[tuple[str, str, bool]]:
    """Moves, from first name to new, so that each name is left before another file gets it; without those that go round in a circle."""
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
