"""The digests of files as last reported: a version that git removed and that comes back unchanged is not a new version."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

from aipass.supervisor import held

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Only the digests of the last MOST files are kept, and none of a larger file.
MOST, LARGEST_BYTES = 10_000, 1_000_000
#: The watching thread reads saved files for at most a tenth of the time, and one second in a burst; an unread file counts as a normal save.
READING, AT_ONCE_S = 0.1, 1.0
#: A hook of a commit may take minutes; a file that comes back later counts as a normal save.
AWAY_S = 600.0
#: Replaces the digest of a removed file; a real digest has 16 bytes.
GONE = b"gone"
#: At the start, unstaged files are read for at most this long.
LOOK_S = 0.3


class Contents:
    """Distinguishes a save from a version that git restores without its lock. Used by one thread.

    The program pre-commit removes unstaged changes by `git checkout` and restores them by `git apply`, which takes no lock.
    """

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}
        #: By path: when git overwrote or removed a remembered file, on the monotonic clock.
        self._away: dict[str, float] = {}
        #: The budget for reading in seconds, and when it was calculated (monotonic clock): a token bucket.
        self._left, self._at = AT_ONCE_S, time.monotonic()

    def note(self, files: Iterable[tuple[str, str]]) -> None:
        """Remember the current content of files, given as pairs of path in the tree and absolute path; stops after LOOK_S."""
        until = time.monotonic() + LOOK_S
        for path, absolute in files:
            if time.monotonic() > until:
                return
            self._remember(path, _digest(absolute))

    def take(self, path: str) -> None:
        """Note that git has just written or removed a file; only remembered files count."""
        if path in self._digests:
            self._away[path] = time.monotonic()

    def is_back(self, path: str, absolute: str) -> bool:
        """Return whether a written or removed file is again as last reported, after git had changed it within AWAY_S.

        Call it once for each change that is to be reported: it also remembers the current content.
        """
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
            # Without a limit, a program that saves large files all the time would delay every event.
            return None
        found = _digest(absolute)
        self._left -= time.monotonic() - begun
        return found

    def _remember(self, path: str, digest: bytes | None) -> None:
        if digest is None:
            return
        self._digests[path] = digest
        if len(self._digests) > MOST:
            # `is_back` removes a path before it is added again, so the first one is the oldest.
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
