"""Processes of a run whose supervisor was killed (strays): the next supervisor finds them by their mark and ends them."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held, mark, process, wire

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.supervisor.hold import ProcessLock

# They are not children of this supervisor, so no SIGCHLD reports their end: poll, only while a lost run is cleaned up.
LOOK_EVERY_S = 0.05
TERM_WAIT_S = 2.0


class Strays:
    """The living processes of one lost run. `lock` is its agent's process lock, kept until they have ended."""

    def __init__(self, run: int, folder: Path, root: str, lock: ProcessLock) -> None:
        self.run, self.folder, self.root, self.lock = run, folder, root, lock
        self._since = time.monotonic()
        self._told: set[int] = set()
        self.ended: list[str] = []

    def step(self) -> float | None:
        """Signal the remaining processes: TERM once each, KILL after TERM_WAIT_S.

        Returns the seconds until the next step; None when no process is left.
        """
        # A new table each time: processes that forked since the last step are ended too.
        table = process.table()
        members = self._members(table)
        if not members:
            return None
        late = time.monotonic() - self._since >= TERM_WAIT_S
        for pid in members:
            if late:
                process.send(table[pid], signal.SIGKILL)
            elif pid not in self._told:
                self._told.add(pid)
                self.ended.append(f"{pid} {process.command_line(pid)}")
                process.send(table[pid], signal.SIGTERM)
        return LOOK_EVERY_S

    def write_exit(self) -> dict[str, Any]:
        """Record the run as `lost` in its `exit` file, atomically, and return the record. Raises OSError."""
        record = {
            "run": self.run,
            "outcome": "lost",
            "exit": None,
            "signal": None,
            "pid": None,
            "started": None,
            "finished": time.time(),
            "reason": "its supervisor was killed, so its exit status is unknown",
            "left": self.ended,
            "steps": [],
        }
        # The agent may have removed its own folder; the result must be recorded all the same.
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held.write_atomic(self.folder / wire.EXIT, json.dumps(record))
        return record

    def _members(self, table: dict[int, process.Process]) -> set[int]:
        own = self._own_mark()
        marked = {pid: mark.read(pid) for pid in table}
        roots = {pid for pid, number in marked.items() if number is not None and number == own}
        # Processes without a mark (see mark.put): by the environment, and by the session of the first process while that lives.
        bare = {pid for pid, number in marked.items() if number is None}
        roots |= {pid for pid in bare if self._is_named(pid)}
        leader = self._leader()
        if leader is not None and leader[0] in bare and table[leader[0]].start == leader[1]:
            roots |= {pid for pid in bare if table[pid].session == leader[0]}
        return process.tree(table, roots)

    def _is_named(self, pid: int) -> bool:
        environment = process.environment(pid)
        return (
            environment.get(wire.MARK_RUN) == str(self.run) and environment.get(wire.MARK_ROOT) == self.root
        )

    def _started(self) -> dict[str, Any]:
        """The `pid` file of the run; empty in a copied run folder: those processes belong to the original repository."""
        try:
            found = json.loads((self.folder / wire.STARTED).read_text())
            return found if found.get("folder", folder_of(self.folder)) == folder_of(self.folder) else {}
        except (OSError, ValueError, AttributeError):
            return {}

    def _own_mark(self) -> int:
        # The recorded one first: a mark depends on the root's path, and the repository may have been renamed.
        noted = self._started().get("mark")
        return noted if isinstance(noted, int) else mark.of(self.root, self.run)

    def _leader(self) -> tuple[int, int] | None:
        found = self._started()
        try:
            return int(found["pid"]), int(found["start"])
        except (ValueError, KeyError, TypeError):
            return None


def folder_of(path: Path) -> list[int]:
    """Device and inode of a folder, which differ in a copy of it."""
    found = path.stat()
    return [found.st_dev, found.st_ino]
