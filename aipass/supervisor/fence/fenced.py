"""One run as the fence knows it: its grant, its own ground outside the repository, what it made, and its journal."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.supervisor.fence.decide import Grant, Refused
    from aipass.supervisor.fence.kernel import Status

#: In a run's folder: what it wrote in the repository, and what it was refused. One JSON object a line.
JOURNAL, DENIED = "writes.jsonl", "denied.md"
#: Millions of writes; what goes on for ever must not fill the disk that the ledger lies on.
MAX_JOURNAL_BYTES = 500_000_000
#: CLOCK_REALTIME_COARSE of Linux's time.h, which Python has no name for.
_FILE_CLOCK = 5 if os.uname().sysname == "Linux" else time.CLOCK_REALTIME
#: Nobody reads more of what was refused.
MAX_DENIED_BYTES = 1_000_000


class ObjectId(NamedTuple):
    """What tells an object from every other, also from one that gets its number later."""

    dev: int
    ino: int
    born: int

    @classmethod
    def of(cls, status: Status) -> ObjectId:
        """From its status."""
        return cls(status.dev, status.ino, status.born)


#: A run that has more at once opens the rest by the descriptors that it has.
MOST_TERMINALS = 64


@dataclass(slots=True)
class Fenced:
    """A run behind the fence."""

    grant: Grant
    folder: Path
    root: str
    #: Folders that are wholly the run's own, as the wall holds them.
    own: tuple[str, ...]
    #: Folders outside that it may write as well, by `[sandbox] write`.
    outside: tuple[str, ...] = ()
    #: Patterns of other programs' sockets that it may connect to.
    sockets: tuple[str, ...] = ()
    #: Whether a call inside `own` may simply go on, because the wall holds whatever it turns out to mean.
    walled: bool = False
    listener: int = -1
    leader: int = 0
    #: Names that this run gave to a file of several names.
    links: dict[tuple[int, int], set[str]] = field(default_factory=dict)
    #: Sockets that it bound: what stands at a path, or an abstract name; with a descriptor that holds what has no birth.
    bound: dict[ObjectId | bytes, int] = field(default_factory=dict)
    #: Files without a name that it made, or took the name of.
    unnamed: set[ObjectId] = field(default_factory=set)
    #: Its temporary files, as they were when it made them: the name alone proves nothing.
    temporary: dict[str, ObjectId] = field(default_factory=dict)
    #: Terminals that it opened, by number: a handle that tells whether that one still lives, or only its number goes on.
    terminals: dict[int, int] = field(default_factory=dict)
    #: System V objects that it made: kind and number.
    objects: set[tuple[str, int]] = field(default_factory=set)
    #: Files that it has opened for writing, by path: what a withdrawal must look at.
    opened: set[str] = field(default_factory=set)
    #: Its stdout and stderr, which it may open by name.
    outputs: frozenset[str] = frozenset()
    #: Files outside whose content it may write, and nothing else of them: the user's sign-ins.
    files: frozenset[str] = frozenset()
    #: Whether all its processes are the supervisor's own user with all its capabilities; None: to be asked.
    is_ourselves: bool | None = None
    #: When it last wrote, on the monotonic clock.
    moved: float = 0.0
    _journal: int = -1
    _written: int = 0

    def remember_terminal(self, number: int, handle: int) -> None:
        """Keep a handle (O_PATH) of a terminal that it opened; of those that are gone none is kept."""
        for known, kept in list(self.terminals.items()):
            if known == number or os.fstat(kept).st_nlink == 0:
                os.close(self.terminals.pop(known))
        if len(self.terminals) >= MOST_TERMINALS:
            os.close(handle)  # it goes on to use it, but cannot open it by name
        else:
            self.terminals[number] = handle

    def is_own_terminal(self, number: int, handle: int) -> bool:
        """Whether what `handle` holds is the terminal that the run opened under this number, and not the next one of it."""
        known = self.terminals.get(number)
        if known is None:
            return False
        mine, found = os.fstat(known), os.fstat(handle)
        # The next one has its number, its inode's number, and within a tick of the clock its times; a name only one of them has.
        return mine.st_nlink > 0 and (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)

    def relative(self, path: str) -> str | None:
        """The path below the root, "" for the root itself; None where it lies outside."""
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None

    def is_own(self, path: str) -> bool:
        """Whether the path lies in a folder that is wholly the run's. That folder itself stays where and what it is."""
        return any(path.startswith(own + "/") for own in self.own)

    def is_own_ground(self, path: str) -> bool:
        """Whether the path is such a folder itself: its mode and times are the run's, its name and place are not."""
        return path in self.own

    def is_granted_outside(self, path: str) -> bool:
        """Whether the path lies in a folder of `[sandbox] write`."""
        return any(path == entry or path.startswith(entry + "/") for entry in self.outside)

    def wrote(self, pid: int, what: str, path: str) -> None:
        """Note a write before it happens: whoever sees the file change finds here who did it."""
        self.moved = time.monotonic()
        if self._journal < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self.folder / JOURNAL, flags, 0o600)
        # The clock of files' times, so that both can be compared: what has not changed since was only opened.
        now = time.clock_gettime_ns(_FILE_CLOCK)
        line = b'["%b",%d,%b,%d]\n' % (what.encode(), pid, encode_basestring_ascii(path).encode(), now)
        if self._written > MAX_JOURNAL_BYTES:
            raise PermissionError(
                errno.EACCES, "the run has written too often to note it; start another", path
            )
        self._written += len(line)
        try:
            os.write(self._journal, line)
        except OSError as exc:
            if exc.errno != errno.EBADF:
                raise
            # Somebody in this thread's table closed a number that was not his: the journal must not suffer from it.
            self._journal = -1
            self.wrote(pid, what, path)

    def explain(self, refused: Refused, operation: str) -> None:
        """Say in `$AIPASS_DENIED` what was refused, for the agent to read."""
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
        """Let go of all that is held for the run."""
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
