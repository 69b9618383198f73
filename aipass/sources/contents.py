"""What files held when they were told last: a version that git took away, and that comes back as it was, is no new one."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

from aipass.supervisor import held

if TYPE_CHECKING:
    from collections.abc import Iterable

#: So many files are remembered, the last ones, and none that is larger.
MOST, LARGEST_BYTES = 10_000, 1_000_000
#: Whoever watches reads what was saved for a tenth of the time, and for a second at once; what is beyond is told as somebody's save.
READING, AT_ONCE_S = 0.1, 1.0
#: A hook of a commit may take minutes; what comes back later is somebody's save.
AWAY_S = 600.0
#: Of a file that was removed.
GONE = b"gone"
#: What was changed and not staged before anybody looked is read for so long.
LOOK_S = 0.3


class Contents:
    """Tells a save from what git brings back without a lock.

    The program pre-commit takes away what is not staged (`git checkout`) and brings it back by `git apply`. Used by one thread.
    """

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}
        #: Files that git has written over or taken away since, and when; by the monotonic clock.
        self._away: dict[str, float] = {}
        #: Seconds that may be read for, at a moment of the monotonic clock.
        self._left, self._at = AT_ONCE_S, time.monotonic()

    def note(self, files: Iterable[tuple[str, str]]) -> None:
        """Remember files as they are: of each its path in the tree, and the absolute one."""
        until = time.monotonic() + LOOK_S
        for path, absolute in files:
            if time.monotonic() > until:
                return
            self._remember(path, _digest(absolute))

    def take(self, path: str) -> None:
        """Git itself has just written or removed a file."""
        if path in self._digests:
            self._away[path] = time.monotonic()

    def is_back(self, path: str, absolute: str) -> bool:
        """Whether a file, of which it is to be told that somebody has written or removed it, is as it was told before git changed that."""
        away = self._away.pop(path, None)
        before = self._digests.pop(path, None)
        now = self._read(absolute)
        self._remember(path, now)
        return now is not None and now == before and away is not None and time.monotonic() - away < AWAY_S

    def _read(self, absolute: str) -> bytes | None:
        begun = time.monotonic()
        self._left = min(AT_ONCE_S, self._left + (begun - self._at) * READING)
        self._at = begun
        if self._left <= 0:
            return None
        found = _digest(absolute)
        self._left -= time.monotonic() - begun
        return found

    def _remember(self, path: str, digest: bytes | None) -> None:
        if digest is None:
            return
        self._digests[path] = digest
        if len(self._digests) > MOST:
            first = next(iter(self._digests))
            del self._digests[first]
            self._away.pop(first, None)


def _digest(absolute: str) -> bytes | None:
    if not os.path.lexists(absolute):
        return GONE
    try:
        return hashlib.blake2b(held.read(absolute, LARGEST_BYTES), digest_size=16).digest()
    except OSError:
        return None
