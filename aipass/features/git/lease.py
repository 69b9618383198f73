"""The git lease: a fair, repository-wide lock (mutex), so that one process at a time builds or merges PRs.

Each waiting process writes a ticket: a numbered file with its process id and start time. The lowest ticket of a living process
holds the lease, so a process that dies releases it. Tickets are in `<git common dir>/aipass/lease`, outside every commit.
"""
# Not `flock` or `lockf`: agents may read every file, a read is enough to take such a lock, and an agent that keeps it
# would block every PR of the repository.

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from aipass.errors import RefusedError
from aipass.event import iso
from aipass.supervisor.hold import boot, born

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOLDER = "lease"
#: The ending of a released ticket. The newest of them stays, so that no number is used twice.
DONE = ".done"
#: The poll interval and the limit of a wait. Polled, because the death of a holder changes no file.
PAUSE_S, WAIT_S = 0.01, 60.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """A process that holds the lease or waits for it, and the reason. `since` is in seconds since the epoch.

    `born` and `boot` identify the process together with `pid`: the kernel uses process ids again.
    """

    holder: str
    reason: str
    since: float
    pid: int
    born: int
    boot: str

    @classmethod
    def of(cls, holder: str, reason: str) -> Ticket:
        """A ticket of this process, from now."""
        return cls(holder, reason, time.time(), os.getpid(), born(os.getpid()), boot())

    def is_alive(self) -> bool:
        """Whether the ticket's process still runs."""
        return self.boot == boot() and born(self.pid) == self.born

    def told(self) -> str:
        """One line for people: holder, process id, time and reason."""
        return f"{self.holder} (process {self.pid}), since {iso(self.since)}: {self.reason}"


class Held:
    """Proof that the caller holds the lease; call `check` directly before each change."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> None:
        """Raise RefusedError where a person has broken the lease since it was taken."""
        # `aipass lock break --force` removes the ticket and cannot stop its process. Every change asks here first, so
        # two holders never change the repository at the same time.
        if not self._path.exists():
            raise RefusedError(
                "the git lease was broken by a person during this request; nothing was changed; ask again"
            )


class EndingError(Exception):
    """The engine is stopping, so the wait ended. The request stays pending, and the next engine repeats it."""


class Lease:
    """The lease of one repository, shared by all its worktrees."""

    def __init__(self, common: Path) -> None:
        self._folder = common / FOLDER

    @contextmanager
    def hold(
        self, holder: str, reason: str, wait_s: float = WAIT_S, ending: Callable[[], bool] = lambda: False
    ) -> Iterator[Held]:
        """Hold the lease for the time of a block. Waiting processes get it in the order of their requests.

        Raises RefusedError with the holder's name where the wait takes longer than `wait_s`; EndingError when `ending` returns
        true during the wait; OSError where the folder is not writable.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._queue(Ticket.of(holder, reason))
        try:
            self._wait(path, time.monotonic() + wait_s, ending)
            yield Held(path)
        finally:
            self._give_back(path)

    def tickets(self) -> list[Ticket]:
        """Tickets of living processes: the holder first, then the waiting ones in order."""
        return [ticket for _, ticket in self._alive()]

    def break_(self) -> Ticket | None:
        """Take the lease from its holder. Returns the holder's ticket; None where no living process holds the lease.

        The holder's process goes on and fails at its next `Held.check`, before it changes anything.
        """
        for path, ticket in self._alive():
            self._give_back(path)
            return ticket
        return None

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [int(stem) for name in names if (stem := name.removesuffix(DONE)).isdecimal()]

    def _queue(self, ticket: Ticket) -> Path:
        """Write the ticket under the lowest number that is higher than every number ever used."""
        # Complete before it gets its number: another process would take a half-written ticket for an unusable one.
        half = self._folder / f".{os.getpid()}-{time.monotonic_ns()}"
        half.write_text(json.dumps(asdict(ticket)))
        try:
            while True:
                number = max(self._numbers(), default=0) + 1
                path = self._folder / f"{number:020d}"
                try:
                    os.link(half, path)
                except FileExistsError:
                    continue
                # Race: a process that was suspended between `_numbers` and `link` may take a number that was released in
                # between, ahead of the present holder. Then it takes another number.
                if all(other <= number for other in self._numbers()):
                    return path
                path.unlink(missing_ok=True)
        finally:
            half.unlink(missing_ok=True)

    def _give_back(self, path: Path) -> None:
        try:
            os.rename(path, path.with_name(path.name + DONE))
        except FileNotFoundError:
            return  # a person has broken the lease
        newest = max(self._numbers(), default=0)
        for name in os.listdir(self._folder):
            if name.endswith(DONE) and name != f"{newest:020d}{DONE}":
                (self._folder / name).unlink(missing_ok=True)

    def _wait(self, mine: Path, deadline: float, ending: Callable[[], bool]) -> None:
        while (first := next(self._alive(), None)) is not None and first[0].name < mine.name:
            if ending():
                raise EndingError
            if time.monotonic() >= deadline:
                raise RefusedError(
                    f"the git lease is held by {first[1].told()}; ask again later, or see `aipass lock`"
                )
            time.sleep(PAUSE_S)

    def _alive(self) -> Iterator[tuple[Path, Ticket]]:
        """Tickets of living processes, oldest first. Releases the tickets of dead ones on the way."""
        try:
            names = sorted(name for name in os.listdir(self._folder) if name.isdecimal())
        except FileNotFoundError:
            return
        for name in names:
            path = self._folder / name
            try:
                ticket = Ticket(**json.loads(path.read_bytes()))
                if ticket.is_alive():
                    yield path, ticket
                    continue
            except FileNotFoundError:
                continue  # released since the folder was listed
            except (ValueError, TypeError):
                pass  # not a ticket of this version: released, so that it blocks no request
            try:
                self._give_back(path)
            except OSError:
                continue  # an agent that only looks must not write to git's folder; the next holder cleans up
