"""One run as its supervisor knows it, and the file that says how it ended."""

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
    """A run from its start to the moment when its whole process tree is gone."""

    spec: Spec
    #: The hold of its agent.
    lock: ProcessLock
    leader: Process | None = None
    started: float | None = None
    #: Wait status of the first process, once it ended.
    status: int | None = None
    #: And the monotonic moment of that.
    over_since: float = 0.0
    #: Children of the supervisor that this run left behind. No others: the id of what somebody else waits for may be another's at any time.
    orphans: set[int] = field(default_factory=set)
    told_orphans: bool = False
    #: When another process of it was seen to have ended, on the monotonic clock.
    seen: float = float("-inf")
    #: Index into the stop sequence; None while nobody asked for the end.
    stage: int | None = None
    #: Whether a look at what it has left is due.
    is_looked_at: bool = False
    #: When its next signal is due, on the monotonic clock.
    due: float = 0.0
    why: str | None = None
    reason: str | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    #: Sizes of the output files and the monotonic moment when they were last seen to grow.
    output: tuple[int, int] = (0, 0)
    heard: float = 0.0
    #: Nobody is left behind the fence; without one, only the process table tells.
    quiet: bool = True
    #: What it left half done is being, or has been, taken out of the tree.
    tidying: bool = False
    tidied: bool = False
    quarantined: list[str] = field(default_factory=list)
    #: What all its processes bear.
    mark: int = field(init=False)

    def __post_init__(self) -> None:
        self.mark = mark.of(self.spec.root, self.spec.run)

    @property
    def id(self) -> int:
        """The run's id."""
        return self.spec.run

    @property
    def is_fenced(self) -> bool:
        """Whether the fence knows when nobody of it is left."""
        return self.spec.ground is not None and bool(self.spec.ground["fence"])

    def end(self, status: int) -> None:
        """Its first process has ended, with this wait status."""
        self.status, self.over_since = status, time.monotonic()

    def roots(self) -> set[int]:
        """Where this run's process trees begin."""
        return self.orphans | ({self.leader.pid} if self.leader and self.status is None else set())

    def record(self) -> dict[str, Any]:
        """How it ended, as `exit` holds it and the engine is told."""
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
        """Exit status of the first process; the negative number of the signal that ended it."""
        return os.waitstatus_to_exitcode(self.status or 0)

    def write_exit(self) -> dict[str, Any]:
        """Put the record in place, whole or not at all."""
        record = self.record()
        # An agent may have removed its own folder; how it ended is worth keeping all the same.
        self.spec.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held.write_atomic(self.spec.folder / wire.EXIT, json.dumps(record))
        return record
