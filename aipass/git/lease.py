"""The repo-wide git lease: one at a time builds or merges, whoever asks in the order of asking, and nobody who died holds it.

Everyone who wants it leaves a ticket, a file that is locked as long as its process lives; the kernel frees the lock of one
that was killed. The first ticket that is still locked holds the lease. Tickets lie in `<git common dir>/aipass/lease`, where
no commit can take them along.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from aipass.errors import RefusedError
from aipass.event import iso
from aipass.supervisor import process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER, ORDER = "lease", ".order"
PAUSE_S, WAIT_S = 0.01, 60.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who has the lease or waits for it. `since` and `born` (of the process) in seconds since the epoch and since boot."""

    holder: str
    reason: str
    since: float
    pid: int
    born: int

    def told(self) -> str:
        """Who, what and since when, for people."""
        return f"{self.holder} (process {self.pid}), since {iso(self.since)}: {self.reason}"


class Held:
    """The lease, as its holder has it."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle

    def check(self) -> None:
        """Raise RefusedError where a person has broken the lease meanwhile: asked before anything is changed."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or there.st_ino != os.fstat(self._handle).st_ino:
            raise RefusedError(
                "the git lease was broken by a person meanwhile; nothing was changed; ask again"
            )


class Lease:
    """The lease of one repository, shared by all its worktrees."""

    def __init__(self, common: Path) -> None:
        self._folder = common / FOLDER

    @contextmanager
    def hold(self, holder: str, reason: str, wait_s: float = WAIT_S) -> Iterator[Held]:
        """Have it for the time of a block, in the order of asking.

        Raises RefusedError, naming who has it, where it does not come free within `wait_s`; OSError where its folder cannot
        be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path, handle = self._queue(Ticket(holder, reason, time.time(), os.getpid(), _born(os.getpid())))
        held = Held(path, handle)
        try:
            self._wait(path, time.monotonic() + wait_s)
            yield held
        finally:
            _remove(path, handle)
            os.close(handle)

    def tickets(self) -> list[Ticket]:
        """Who has it, first, and who waits, in their order."""
        return [ticket for _, ticket in self._alive()]

    def break_(self) -> Ticket | None:
        """Take it from whoever has it, who finds out before changing anything; the one it was taken from."""
        for path, ticket in self._alive():
            path.unlink(missing_ok=True)
            return ticket
        return None

    def _queue(self, ticket: Ticket) -> tuple[Path, int]:
        """Get in line: the ticket is locked before anybody can see it."""
        order = os.open(self._folder / ORDER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(order, fcntl.LOCK_EX)
            # A number is used once, also where all before it are gone: who looks at an old list must not meet a new ticket.
            number = int(os.pread(order, 20, 0) or b"0") + 1
            os.pwrite(order, b"%020d" % number, 0)
            path = self._folder / f"{number:020d}"
            half = self._folder / f".{number:020d}"
            half.unlink(missing_ok=True)
            handle = os.open(half, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.write(handle, json.dumps(asdict(ticket)).encode())
            os.rename(half, path)
        finally:
            os.close(order)
        return path, handle

    def _wait(self, mine: Path, deadline: float) -> None:
        while (first := next(self._alive(), None)) is not None and first[0].name < mine.name:
            if time.monotonic() >= deadline:
                raise RefusedError(
                    f"the git lease is held by {first[1].told()}; ask again, or look with `aipass lock`"
                )
            time.sleep(PAUSE_S)

    def _alive(self) -> Iterator[tuple[Path, Ticket]]:
        """Tickets whose processes live, oldest first; the others are cleared away."""
        try:
            names = sorted(name for name in os.listdir(self._folder) if not name.startswith("."))
        except FileNotFoundError:
            return
        for name in names:
            path = self._folder / name
            try:
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue  # just given back
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                _remove(path, handle)
            except BlockingIOError:
                try:
                    yield path, Ticket(**json.loads(os.pread(handle, 4096, 0)))
                except (ValueError, TypeError):
                    yield path, Ticket("?", "its ticket cannot be read", os.fstat(handle).st_mtime, 0, 0)
            finally:
                os.close(handle)


def _remove(path: Path, handle: int) -> None:
    try:
        if os.stat(path).st_ino == os.fstat(handle).st_ino:
            path.unlink()
    except FileNotFoundError:
        pass  # it was broken


def _born(pid: int) -> int:
    found = process.look(pid)
    return 0 if found is None else found.start
