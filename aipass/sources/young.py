"""Files that were just written: told once they rest, so that what only becomes another file is nobody's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A file in the tree is told when nothing was written for so long, or at the latest after `LAST_WAIT_S`: most tools save by a new file
# that becomes the old one at once, and what is renamed or removed by then was never a file of anybody's. And programs with a git of
# their own (libgit2) lock the index only when all files are written. In the inbox nothing waits.
REST_S, LAST_WAIT_S = 0.05, 0.5
# After the index was locked, so long is waited for the log that says what was done.
LOG_WAIT_S = 0.1


@dataclass(slots=True)
class Waiting:
    """A file that is not told yet. `new`: nobody was told that there is one; `closed`: it was complete once; `git`: by git."""

    new: bool
    closed: bool
    git: bool


class Young:
    """The files of a tree that wait to be told, in the order of writing; and those of which only a time or a mode was set."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._due, self._last_due = 0.0, 0.0
        #: When it is told that something was set, unless they are closed before.
        self._touches: dict[str, float] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._waiting

    def write(self, path: str, *, new: bool, closed: bool, git: bool) -> None:
        """Something was written there; nothing that waits is told before it rests."""
        now = time.monotonic()
        if not self._waiting:
            self._last_due = now + LAST_WAIT_S
        self._due = min(now + REST_S, self._last_due)
        waiting = self._waiting.setdefault(path, Waiting(new, closed=False, git=False))
        waiting.closed = waiting.closed or closed
        waiting.git = waiting.git or git

    def touch(self, path: str) -> None:
        """`cp -p` sets the time before it closes: then the close says what there is to say."""
        self._touches[path] = time.monotonic() + REST_S

    def drop(self, path: str) -> None:
        """Nothing of it is to be told any more: it is gone, or became another."""
        self._waiting.pop(path, None)

    def is_written(self, path: str) -> None:
        """That something was set need not be told."""
        self._touches.pop(path, None)

    def wait_for_log(self) -> None:
        """The index was locked: a log that says by whom all this was written may follow."""
        if self._waiting:
            self._due = min(time.monotonic() + LOG_WAIT_S, self._last_due + LOG_WAIT_S)

    def are_by_git(self, which: Callable[[str], bool]) -> None:
        """A git has written what waits, where `which` says so of the path."""
        for path, waiting in self._waiting.items():
            waiting.git = waiting.git or which(path)

    def due(self) -> list[float]:
        """When something is to be told next, in time of the monotonic clock."""
        return [*([self._due] if self._waiting else []), *islice(self._touches.values(), 1)]

    def rested(self) -> Iterator[tuple[str, Waiting]]:
        """What is to be told now, and waits no longer."""
        if self._waiting and self._due <= time.monotonic():
            told, self._waiting = self._waiting, {}
            yield from told.items()

    def touched(self) -> Iterator[str]:
        """Of what it is to be told now that something was set."""
        now = time.monotonic()
        while self._touches and next(iter(self._touches.values())) <= now:
            path = next(iter(self._touches))
            del self._touches[path]
            yield path
