"""Processes of a run whose supervisor was killed: found by their marks and ended by the next supervisor."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held, mark, process, wire

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.supervisor.hold import ProcessLock

# They are not our children, so their end is looked for; only while a lost run is cleaned up.
LOOK_EVERY_S = 0.05
TERM_WAIT_S = 2.0


class Strays:
    """What lives of one lost run. `lock` is the hold of its agent, kept until they are gone."""

    def __init__(self, run: int, folder: Path, root: str, lock: ProcessLock) -> None:
        self.run, self.folder, self.root, self.lock = run, folder, root, lock
        self._since = time.monotonic()
        self._told: set[int] = set()
        self.ended: list[str] = []

    def step(self) -> float | None:
        """Signal what is left; seconds until the next look, None when nothing is."""
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
        """Record the run as lost."""
        record = {
            "run": self.run,
            "outcome": "lost",
            "exit": None,
            "signal": None,
            "pid": None,
            "started": None,
            "finished": time.time(),
            "reason": "its supervisor died, so nobody saw it end",
            "left": self.ended,
            "steps": [],
        }
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held.write_atomic(self.folder / wire.EXIT, json.dumps(record))
        return record

    def _members(self, table: dict[int, process.Process]) -> set[int]:
        own = self._own_mark()
        marked = {pid: mark.read(pid) for pid in table}
        roots = {pid for pid, number in marked.items() if number is not None and number == own}
        # Where there was no mark to give: by the environment, and by the session of the first process while that lives.
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
        """What was noted when the run began; nothing in a copy of its folder, whose processes are another repository's."""
        try:
            found = json.loads((self.folder / wire.STARTED).read_text())
            return found if found.get("folder", folder_of(self.folder)) == folder_of(self.folder) else {}
        except (OSError, ValueError, AttributeError):
            return {}

    def _own_mark(self) -> int:
        # As it was given: the repository may have another name by now.
        noted = self._started().get("mark")
        return noted if isinstance(noted, int) else mark.of(self.root, self.run)

    def _leader(self) -> tuple[int, int] | None:
        found = self._started()
        try:
            return int(found["pid"]), int(found["start"])
        except (ValueError, KeyError, TypeError):
            return None


def folder_of(path: Path) -> list[int]:
    """What tells a folder from a copy of it."""
    found = path.stat()
    return [found.st_dev, found.st_ino]
