"""The fence's state of one run: its grant, its folders outside the repository, the objects it made, and its write journal."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from aipass.supervisor.fence.decide import Grant, Refused
    from aipass.supervisor.fence.fast import FastRun
    from aipass.supervisor.fence.kernel import Status

#: Files in the run's folder: its writes in the repository (one JSON array per line), and its refusals as text for the agent.
JOURNAL, DENIED = "writes.jsonl", "denied.md"
#: Millions of writes. The limit keeps an endless loop from filling the disk of the ledger.
MAX_JOURNAL_BYTES = 500_000_000
#: CLOCK_REALTIME_COARSE of Linux's time.h, which Python does not define.
_FILE_CLOCK = 5 if os.uname().sysname == "Linux" else time.CLOCK_REALTIME
#: Beyond this size, refusals are only reported as events.
MAX_DENIED_BYTES = 1_000_000


class ObjectId(NamedTuple):
    """Identifies a file object; the birth time distinguishes it from a later one that reuses its inode number."""

    dev: int
    ino: int
    born: int

    @classmethod
    def of(cls, status: Status) -> ObjectId:
        """The identity in a status."""
        return cls(status.dev, status.ino, status.born)


#: Limit of removed files per run that the run can still change by its descriptors.
MAX_UNNAMED = 10_000


class PathSet(Protocol):
    """A set of paths."""

    def add(self, path: str, /) -> None:
        """Add a path."""

    def difference_update(self, paths: Iterable[str], /) -> None:
        """Remove paths."""

    def __iter__(self) -> Iterator[str]:
        """All paths."""


class ObjectSet(Protocol):
    """A set of file objects that forgets when there are too many."""

    def add(self, found: ObjectId, /) -> None:
        """Add an object."""

    def discard(self, found: ObjectId, /) -> None:
        """Remove an object, if it is there."""

    def __contains__(self, found: object, /) -> bool:
        """Whether the object is there."""


class RecentObjects(set[ObjectId]):
    """Up to MAX_UNNAMED objects; one more, and all earlier ones are forgotten."""

    def add(self, found: ObjectId) -> None:
        """Add an object."""
        if len(self) >= MAX_UNNAMED:
            self.clear()
        super().add(found)


#: Beyond this number, a run can use further terminals by its descriptors, but not open them by name.
MOST_TERMINALS = 64


@dataclass(slots=True)
class Fenced:
    """One run behind the fence. Only the fence's serving thread uses it."""

    grant: Grant
    folder: Path
    root: str
    #: Folders that belong to the run alone: exactly those that the wall (Landlock) allows.
    own: tuple[str, ...]
    #: Further writable folders outside the repository, from `[sandbox] write`.
    outside: tuple[str, ...] = ()
    #: Patterns of other programs' sockets that it can connect to, from `[sandbox] sockets`.
    sockets: tuple[str, ...] = ()
    #: Whether the kernel can perform calls inside `own`: the wall limits them, even if their path changes after the decision.
    walled: bool = False
    listener: int = -1
    leader: int = 0
    #: Names (hard links) that this run gave to a file, by device and inode.
    links: dict[tuple[int, int], set[str]] = field(default_factory=dict)
    #: Sockets that it bound, by object or abstract name. The value is a descriptor that keeps the inode number in use where the
    #: filesystem has no birth times, else -1.
    bound: dict[ObjectId | bytes, int] = field(default_factory=dict)
    #: Files without a name that it created, or whose last name it removed.
    unnamed: ObjectSet = field(default_factory=lambda: RecentObjects())
    #: The objects of its temporary files: another process can put something else under the name.
    temporary: dict[str, ObjectId] = field(default_factory=dict)
    #: Terminals that it opened, by number. The O_PATH handle shows whether that terminal still exists or its number was reused.
    terminals: dict[int, int] = field(default_factory=dict)
    #: System V objects that it created: kind and number.
    objects: set[tuple[str, int]] = field(default_factory=set)
    #: Files that it opened for writing, by path: those that a withdrawal must check.
    opened: PathSet = field(default_factory=lambda: set[str]())
    #: Its stdout and stderr, which it can open by name (/dev/stderr).
    outputs: frozenset[str] = frozenset()
    #: Files outside the repository of which it can change only the content: the user's sign-ins.
    files: frozenset[str] = frozenset()
    #: Its thread of the fast path; None where Python answers all its calls.
    fast: FastRun | None = None
    #: Whether all its processes have the supervisor's user and capabilities; None: not yet checked.
    is_ourselves: bool | None = None
    #: Time of its last journalled write, on the monotonic clock.
    moved: float = 0.0
    _journal: int = -1
    _written: int = 0

    def remember_terminal(self, number: int, handle: int) -> None:
        """Keep an O_PATH handle of a terminal that the run opened; closes the handles of terminals that no longer exist."""
        for known, kept in list(self.terminals.items()):
            if known == number or os.fstat(kept).st_nlink == 0:
                os.close(self.terminals.pop(known))
        if len(self.terminals) >= MOST_TERMINALS:
            os.close(handle)  # the run can use the terminal, but not open it by name
        else:
            self.terminals[number] = handle

    def is_own_terminal(self, number: int, handle: int) -> bool:
        """Whether `handle` is the terminal that the run opened under this number, and not a later one that reuses it."""
        known = self.terminals.get(number)
        if known is None:
            return False
        mine, found = os.fstat(known), os.fstat(handle)
        # A later terminal reuses the number and the inode number, and can have the same times within a clock tick. But only the
        # living one has a name.
        return mine.st_nlink > 0 and (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)

    def relative(self, path: str) -> str | None:
        """The path relative to the root, "" for the root itself; None where it is outside."""
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None

    def is_own(self, path: str) -> bool:
        """Whether the path is inside a folder that belongs to the run alone. Excludes that folder itself."""
        return any(path.startswith(own + "/") for own in self.own)

    def is_own_ground(self, path: str) -> bool:
        """Whether the path is such a folder itself: the run can change its mode and times, but not rename or remove it."""
        return path in self.own

    def is_granted_outside(self, path: str) -> bool:
        """Whether the path is inside a folder of `[sandbox] write`."""
        return any(path == entry or path.startswith(entry + "/") for entry in self.outside)

    def wrote(self, pid: int, what: str, path: str) -> None:
        """Append a write to the journal, before the write happens: the author is known when others see the change.

        Raises OSError; PermissionError where the journal has reached its limit. The write must not happen
        then.
        """
        self.moved = time.monotonic()
        if self._journal < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self.folder / JOURNAL, flags, 0o600)
        # The kernel stamps files with this clock, so both times compare: a file that has not changed since was only opened.
        now = time.clock_gettime_ns(_FILE_CLOCK)
        line = b'["%b",%d,%b,%d]\n' % (what.encode(), pid, encode_basestring_ascii(path).encode(), now)
        if self._written > MAX_JOURNAL_BYTES:
            raise PermissionError(
                errno.EACCES, "the write journal of this run is full; start a new run", path
            )
        self._written += len(line)
        try:
            os.write(self._journal, line)
        except OSError as exc:
            if exc.errno != errno.EBADF:
                raise
            # Other code in this thread closed the wrong descriptor number; reopen, because the journal must stay complete.
            self._journal = -1
            self.wrote(pid, what, path)

    def explain(self, refused: Refused, operation: str) -> None:
        """Append a refusal to `$AIPASS_DENIED`, for the agent. Beyond MAX_DENIED_BYTES nothing is written. Raises OSError."""
        # The path is the agent's own text; `_printable` keeps it from forging further lines.
        text = f"- {time.strftime('%H:%M:%S')} `{_printable(refused.path)}` ({operation}): {refused.reason}"
        text += (
            f'. It belongs to {refused.owner}; ask: aipass send {refused.owner} "…"\n'
            if refused.owner
            else "\n"
        )
        handle = os.open(
            self.folder / DENIED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            if os.fstat(handle).st_size < MAX_DENIED_BYTES:
                os.write(handle, text.encode("utf-8", "backslashreplace"))
        finally:
            os.close(handle)

    def close(self) -> None:
        """Close all descriptors of the run. Idempotent."""
        for handle in (self.listener, self._journal, *self.bound.values(), *self.terminals.values()):
            if handle >= 0:
                os.close(handle)
        self.listener = self._journal = -1
        self.bound.clear()
        self.terminals.clear()


def _printable(path: str) -> str:
    text = path.encode("utf-8", "backslashreplace").decode().replace("`", "'")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


__all__ = ["DENIED", "JOURNAL", "Fenced", "ObjectId"]
