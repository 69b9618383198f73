"""One run's specification, and its start without fence and wall, from a thread of its own: it may take a moment."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.supervisor import mark, wire

if TYPE_CHECKING:
    from collections.abc import Callable

#: An agent that got INT may save its work; one that got TERM may clean up; KILL is repeated until all are gone.
INT_WAIT_S, TERM_WAIT_S, KILL_WAIT_S = 5.0, 5.0, 1.0
STOP_WAITS_S = (INT_WAIT_S, TERM_WAIT_S, KILL_WAIT_S)


@dataclass(frozen=True, slots=True)
class Spec:
    """All that is needed to start one run. Times in seconds; 0 means no limit."""

    run: int
    agent: str
    folder: Path
    root: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    stdin: bool
    timeout_s: float
    stall_s: float
    linger: bool
    #: How long INT, TERM and each KILL may take.
    waits: tuple[float, float, float]
    #: What fence and wall need to know; None: neither is there.
    ground: dict[str, Any] | None = None

    @classmethod
    def of(cls, message: dict[str, Any]) -> Spec:
        """From a `start` message; raises KeyError, TypeError or ValueError where it is not one."""
        return cls(
            run=int(message["run"]),
            agent=str(message["agent"]),
            folder=Path(message["folder"]),
            root=str(message["root"]),
            argv=tuple(map(str, message["argv"])),
            env={str(name): str(value) for name, value in message["env"].items()},
            cwd=str(message["cwd"]),
            stdin=bool(message["stdin"]),
            timeout_s=float(message["timeout_s"]),
            stall_s=float(message["stall_s"]),
            linger=bool(message["linger"]),
            waits=tuple(map(float, message.get("waits", STOP_WAITS_S)))[:3],  # type: ignore[arg-type]
            ground=message.get("ground"),
        )


def spawn(
    spec: Spec,
    files_limit: int,
    done: Callable[[Spec, int, Exception | None], None],
) -> None:
    """Start the program of `spec` from a new thread; `done(spec, pid, error)` is called from that thread."""

    def work() -> None:
        try:
            pid = _start(spec, files_limit)
        except Exception as exc:  # noqa: BLE001 - whatever stops a start is the run's outcome, never the supervisor's end
            done(spec, 0, exc)
        else:
            done(spec, pid, None)

    threading.Thread(target=work, name=f"spawn-{spec.run}", daemon=True).start()


def _start(spec: Spec, files_limit: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with (
        open(spec.folder / wire.PROMPT if spec.stdin else os.devnull, "rb") as stdin,
        open(os.open(spec.folder / wire.STDOUT, flags, 0o600), "wb") as stdout,
        open(os.open(spec.folder / wire.STDERR, flags, 0o600), "wb") as stderr,
    ):
        process = subprocess.Popen(
            spec.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=spec.cwd,
            env=spec.env,
            start_new_session=True,
        )
    # The main loop reaps every child by waitpid(-1); Popen must not try again when it is collected.
    process.returncode = 0
    try:
        mark.put(process.pid, spec.root, spec.run)
        # The supervisor holds many files; an agent gets the limit that the user's shell had.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hasattr(resource, "prlimit") and soft != files_limit:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files_limit, hard))
    except OSError:
        pass  # it ended already
    return process.pid


def explain(spec: Spec, exc: Exception) -> str:
    """Why a start failed, for people."""
    program = spec.argv[0] if spec.argv else "(no program)"
    if isinstance(exc, FileNotFoundError) and exc.filename == spec.cwd:
        return f"the folder {spec.cwd} is gone"
    if isinstance(exc, FileNotFoundError):
        return f"the program `{program}` was not found; check the agent's command, or install it"
    if isinstance(exc, PermissionError):
        return f"the program `{program}` may not be started ({exc.strerror}); is it executable?"
    if isinstance(exc, OSError):
        return f"`{program}` cannot be started: {exc.strerror}"
    return f"`{program}` cannot be started: {exc}"
