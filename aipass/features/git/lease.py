"""The repo-wide git lease: one at a time builds or merges, in the order of asking, and nobody who died holds it.

Everyone who wants it leaves a ticket, a file with a number and with the process that it is of: its id, and when it was born, which
is the proof of life. The lowest ticket of a living process holds the lease. Tickets lie in `<git common dir>/aipass/lease`, where
no commit can take them along. No file locks: an agent, which may read everything, could hold one and keep everybody waiting.
"""

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
#: A ticket that was given back; the newest of them stays, so that no number comes twice.
DONE = ".done"
PAUSE_S, WAIT_S = 0.01, 60.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who has the lease or waits for it. `since` in seconds since the epoch; `born` and `boot` tell the process from every other."""

    holder: str
    reason: str
    since: float
    pid: int
    born: int
    boot: str

    @classmethod
    def of(cls, holder: str, reason: str) -> Ticket:
        """One of this process."""
        return cls(holder, reason, time.time(), os.getpid(), born(os.getpid()), boot())

    def is_alive(self) -> bool:
        """Whether its process lives."""
        return self.boot == boot() and born(self.pid) == self.born

    def told(self) -> str:
        """Who, what and since when, for people."""
        return f"{self.holder} (process {self.pid}), since {iso(self.since)}: {self.reason}"


class Held:
    """The lease, as its holder has it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> None:
        """Raise RefusedError where a person has broken the lease meanwhile: asked before anything is changed."""
        if not self._path.exists():
            raise RefusedError(
                "the git lease was broken by a person meanwhile; nothing was changed; ask again"
            )


class EndingError(Exception):
    """Whoever waits for the lease is to end, and asks again another time."""


class Lease:
    """The lease of one repository, shared by all its worktrees."""

    def __init__(self, common: Path) -> None:
        self._folder = common / FOLDER

    @contextmanager
    def hold(
        self, holder: str, reason: str, wait_s: float = WAIT_S, ending: Callable[[], bool] = lambda: False
    ) -> Iterator[Held]:
        """Have it for the time of a block, in the order of asking.

        Raises RefusedError, naming who has it, where it does not come free within `wait_s`; EndingError where `ending` says so
        meanwhile; OSError where its folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._queue(Ticket.of(holder, reason))
        try:
            self._wait(path, time.monotonic() + wait_s, ending)
            yield Held(path)
        finally:
            self._give_back(path)

    def tickets(self) -> list[Ticket]:
        """Who has it, first, and who waits, in their order."""
        return [ticket for _, ticket in self._alive()]

    def break_(self) -> Ticket | None:
        """Take it from whoever has it, who finds out before changing anything; the one it was taken from."""
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
        """Get in line behind all who are there, and were."""
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
                # Whoever looked long ago may have taken a number whose time has passed, ahead of one who holds the lease.
                if all(other <= number for other in self._numbers()):
                    return path
                path.unlink(missing_ok=True)
        finally:
            half.unlink(missing_ok=True)

    def _give_back(self, path: Path) -> None:
        try:
            os.rename(path, path.with_name(path.name + DONE))
        except FileNotFoundError:
            return  # it was broken
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
                    f"the git lease is held by {first[1].told()}; ask again, or look with `aipass lock`"
                )
            time.sleep(PAUSE_S)

    def _alive(self) -> Iterator[tuple[Path, Ticket]]:
        """Tickets whose processes live, oldest first; the others are given back for them."""
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
                continue  # just given back
            except (ValueError, TypeError):
                pass  # no ticket of ours
            try:
                self._give_back(path)
            except OSError:
                continue  # who only looks may not write there
