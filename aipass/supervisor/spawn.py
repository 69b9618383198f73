"""Starting one agent: a fresh thread confines itself, then starts the program, which inherits the confinement.

Landlock domains, no_new_privs and seccomp filters belong to the thread that takes them on, and a child inherits those
of the thread that started it. So each start has a thread of its own, and the supervisor itself stays free.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.supervisor import wire

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
        )


def confine_nothing(spec: Spec) -> None:
    """What a run's thread does to itself before it starts the program: here, no fence and no wall."""
    del spec


def spawn(
    spec: Spec,
    confine: Callable[[Spec], None],
    files_limit: int,
    done: Callable[[Spec, int, str | None], None],
) -> None:
    """Start the program of `spec` from a new thread; `done(spec, pid, error)` is called from that thread."""

    def work() -> None:
        try:
            pid, error = _start(spec, confine, files_limit), None
        except Exception as exc:  # noqa: BLE001 - whatever stops a start is the run's outcome, never the supervisor's end
            pid, error = 0, _explain(spec, exc)
        done(spec, pid, error)

    threading.Thread(target=work, name=f"spawn-{spec.run}", daemon=True).start()


def _start(spec: Spec, confine: Callable[[Spec], None], files_limit: int) -> int:
    # Everything that the child needs is opened before the thread confines itself.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with (
        open(spec.folder / wire.PROMPT if spec.stdin else os.devnull, "rb") as stdin,
        open(os.open(spec.folder / wire.STDOUT, flags, 0o600), "wb") as stdout,
        open(os.open(spec.folder / wire.STDERR, flags, 0o600), "wb") as stderr,
    ):
        confine(spec)
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
        # The supervisor holds many files; an agent gets the limit that the user's shell had.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hasattr(resource, "prlimit") and soft != files_limit:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files_limit, hard))
    except OSError:
        pass  # it ended already
    return process.pid


def _explain(spec: Spec, exc: Exception) -> str:
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
