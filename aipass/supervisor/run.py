"""The supervisor's state of one run, and the `exit` file that records its result."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held, mark, wire

if TYPE_CHECKING:
    from aipass.supervisor.hold import ProcessLock
    from aipass.supervisor.process import Process
    from aipass.supervisor.spawn import Spec


@dataclass(slots=True, eq=False)
class Run:
    """A run from its start until its whole process tree has ended."""

    spec: Spec
    #: The process lock of its agent: at most one run per agent.
    lock: ProcessLock
    leader: Process | None = None
    started: float | None = None
    #: Wait status of the first process; None while it runs.
    status: int | None = None
    #: When the first process ended, on the monotonic clock.
    over_since: float = 0.0
    #: Orphans of this run that became children of the supervisor. Only children: the id of any other process can be reused at any time.
    orphans: set[int] = field(default_factory=set)
    told_orphans: bool = False
    #: When another process of this run was last seen to have ended, on the monotonic clock.
    seen: float = float("-inf")
    #: Index into the stop sequence (INT, TERM, KILL); None until a stop is requested.
    stage: int | None = None
    #: Whether a check for remaining processes is scheduled.
    is_looked_at: bool = False
    #: When the next signal is due, on the monotonic clock.
    due: float = 0.0
    why: str | None = None
    reason: str | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    #: Sizes of stdout and stderr, and (`heard`) when they or a journalled write last changed, on the monotonic clock.
    output: tuple[int, int] = (0, 0)
    heard: float = 0.0
    #: No process is left behind the fence. Without a fence always true; then only the process table can show remaining processes.
    quiet: bool = True
    #: Its unfinished temporary files are being (`tidying`), or have been (`tidied`), moved to quarantine.
    tidying: bool = False
    tidied: bool = False
    quarantined: list[str] = field(default_factory=list)
    #: The mark (resource limit) of all its processes.
    mark: int = field(init=False)

    def __post_init__(self) -> None:
        self.mark = mark.of(self.spec.root, self.spec.run)

    @property
    def id(self) -> int:
        """The run's id."""
        return self.spec.run

    @property
    def is_fenced(self) -> bool:
        """Whether the run has a fence, which reports when its last process has ended."""
        return self.spec.ground is not None and bool(self.spec.ground["fence"])

    def end(self, status: int) -> None:
        """Record the wait status of the first process, and when it ended."""
        self.status, self.over_since = status, time.monotonic()

    def roots(self) -> set[int]:
        """Ids from which the run's process trees descend: the first process while it runs, and its orphans."""
        return self.orphans | ({self.leader.pid} if self.leader and self.status is None else set())

    def record(self) -> dict[str, Any]:
        """The result of the run, for the `exit` file and for the engine."""
        code = None if self.status is None else self.status_code()
        return {
            "run": self.id,
            "outcome": self.why or "exited",
            "exit": code if code is not None and code >= 0 else None,
            "signal": -code if code is not None and code < 0 else None,
            "pid": self.leader.pid if self.leader else None,
            "started": self.started,
            "finished": time.time(),
            "reason": self.reason,
            "left": self.left,
            "steps": self.steps,
            "quarantined": self.quarantined,
        }

    def status_code(self) -> int:
        """Exit status of the first process; negative signal number if a signal ended it."""
        return os.waitstatus_to_exitcode(self.status or 0)

    def write_exit(self) -> dict[str, Any]:
        """Write the `exit` file atomically and return its record. Raises OSError, for example on a full disk."""
        record = self.record()
        # The agent may have removed its own folder; the result must be recorded all the same.
        self.spec.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held.write_atomic(self.spec.folder / wire.EXIT, json.dumps(record))
        return record
