"""Runs without processes: what was started is written down, and ends when the test says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.features.dispatch.supervisors import Report
from aipass.supervisor import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FIRST_PID = 100_000


class ScriptedRunner:
    """Stands in for the supervisors. `started` holds the start messages of live runs by run id."""

    name = "runs"
    urgent = True

    def __init__(self) -> None:
        self.started: dict[int, dict[str, Any]] = {}
        self.stopped: dict[int, tuple[str, str]] = {}
        self.adopted: list[int] = []
        self.territory: dict[str, Any] = {}
        self.ended: dict[int, dict[str, Any]] = {}
        self.unlocked: list[Path] = []
        self._tell: Callable[[list[Report]], None] | None = None

    def start(self, tell: Callable[[list[Report]], None]) -> None:
        """As a source: remember whom to tell."""
        self._tell = tell

    def stop(self) -> None:
        """As a source: nothing runs."""

    def start_run(self, message: dict[str, Any]) -> None:
        """Remember a start, and report it; once for each run."""
        run = message["run"]
        if run in self.started or run in self.ended:
            return
        self.started[run] = message
        self._report({"tell": "started", "run": run, "pid": FIRST_PID + run, "started": 0.0})

    def end_lockers(self, files: Iterable[Path]) -> None:
        """Noted only."""
        self.unlocked = list(files)

    def set_territory(self, message: dict[str, Any]) -> None:
        """Remember who owns what; old descriptors are no matter here."""
        self.territory = message
        self._report({"tell": "territory", "serial": message["serial"], "replaced": []})

    def stop_run(self, run: int, why: str, reason: str) -> None:
        """Remember that a run was told to stop."""
        self.stopped[run] = (why, reason)

    def adopt(self, run: int, agent: str) -> None:
        """Say of a run what a supervisor would."""
        del agent
        self.adopted.append(run)
        if run in self.started:
            self._report({"tell": "started", "run": run, "pid": FIRST_PID + run, "started": 0.0})
        elif run in self.ended:
            self._report(self.ended[run])
        else:
            self._report({"tell": "unknown", "run": run})

    def prompt(self, run: int) -> str:
        """The prompt that a run was given."""
        return (self._folder(run) / wire.PROMPT).read_text()

    def finish(
        self,
        run: int,
        stdout: str = "",
        *,
        exit_code: int = 0,
        stderr: str = "",
        outcome: str = "exited",
        **more: Any,  # noqa: ANN401 - fields of the report
    ) -> None:
        """End a run, as if its program had said this and left with that status. Raises ValueError where it is not running."""
        folder = self._folder(run)
        del self.started[run]
        (folder / wire.STDOUT).write_text(stdout)
        (folder / wire.STDERR).write_text(stderr)
        report = {
            "tell": "ended",
            "run": run,
            "outcome": outcome,
            "exit": exit_code if outcome == "exited" else None,
            "signal": None,
        }
        self.ended[run] = {**report, "pid": FIRST_PID + run, "started": 0.0, "reason": None, **more}
        (folder / wire.EXIT).write_text(json.dumps(self.ended[run]))
        self._report(self.ended[run])

    def _folder(self, run: int) -> Path:
        if run not in self.started:
            raise ValueError(
                f"run {run} is not running; running are: {', '.join(map(str, self.started)) or 'none'}"
            )
        return Path(self.started[run]["folder"])

    def _report(self, message: dict[str, Any]) -> None:
        assert self._tell is not None, "start the engine first"
        self._tell([Report(message)])
