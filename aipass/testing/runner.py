"""A runner for tests: records each run instead of starting a process, and ends it when the test says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.features.dispatch.supervisors import Report
from aipass.supervisor import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Pids of scripted runs count from here. They are only recorded, never signalled.
FIRST_PID = 100_000


class ScriptedRunner:
    """Replaces `Supervisors` in tests. `started`: the start messages of live runs, `ended`: the reports of ended ones, by run id."""

    # `urgent`, as the real source is: the engine takes its reports without making the reporter wait.
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
        """Keep the callback for reports, as a source of the engine does."""
        self._tell = tell

    def stop(self) -> None:
        """Do nothing: there is no thread to stop."""

    def start_run(self, message: dict[str, Any]) -> None:
        """Record the start and report it. Idempotent: a second start of the same run does nothing."""
        # As the supervisor: after a crash the engine sends the start again, and the run must not run twice.
        run = message["run"]
        if run in self.started or run in self.ended:
            return
        self.started[run] = message
        self._report({"tell": "started", "run": run, "pid": FIRST_PID + run, "started": 0.0})

    def end_lockers(self, files: Iterable[Path]) -> None:
        """Record the files; there is no process to end."""
        self.unlocked = list(files)

    def set_territory(self, message: dict[str, Any]) -> None:
        """Record the table of owners and confirm it. `replaced` is empty, because no process has open descriptors."""
        self.territory = message
        self._report({"tell": "territory", "serial": message["serial"], "replaced": []})

    def stop_run(self, run: int, why: str, reason: str) -> None:
        """Record the request to stop a run. The run does not end by it; the test calls `finish`."""
        self.stopped[run] = (why, reason)

    def adopt(self, run: int, agent: str) -> None:
        """Report the state of a run as a supervisor does for a new engine: started, ended or unknown."""
        del agent
        self.adopted.append(run)
        if run in self.started:
            self._report({"tell": "started", "run": run, "pid": FIRST_PID + run, "started": 0.0})
        elif run in self.ended:
            self._report(self.ended[run])
        else:
            self._report({"tell": "unknown", "run": run})

    def prompt(self, run: int) -> str:
        """Return the prompt of a live run. Raises ValueError if it is not running."""
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
        """End a run with this output and exit status. Raises ValueError if it is not running."""
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
        # As the supervisor does: the record of the end is written before the report, and survives a crash of the engine.
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
