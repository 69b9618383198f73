"""The specification of a run, and its start without sandbox, in a thread of its own because a start can block."""

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

#: After INT an agent can save its work, after TERM it can clean up; KILL is repeated until all processes have ended.
INT_WAIT_S, TERM_WAIT_S, KILL_WAIT_S = 5.0, 5.0, 1.0
STOP_WAITS_S = (INT_WAIT_S, TERM_WAIT_S, KILL_WAIT_S)


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything needed to start one run. Times in seconds; 0 means no limit."""

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
    #: Seconds to wait after INT, after TERM and after each KILL.
    waits: tuple[float, float, float]
    #: Settings of fence (seccomp) and wall (Landlock); None: the run has no sandbox.
    ground: dict[str, Any] | None = None

    @classmethod
    def of(cls, message: dict[str, Any]) -> Spec:
        """A Spec from a `start` message. Raises KeyError, TypeError or ValueError where the message is malformed."""
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
    """Start the program of `spec` in a new thread; does not block.

    `done(spec, pid, error)` is called once, from that thread; `pid` is 0 where the start failed.
    """

    def work() -> None:
        try:
            pid = _start(spec, files_limit)
        except Exception as exc:  # noqa: BLE001 - a failed start is the run's outcome and must not end the supervisor
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
            # A Ctrl-C in the user's terminal must not reach the agent.
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
        pass  # the process has already ended
    return process.pid


def explain(spec: Spec, exc: Exception) -> str:
    """The reason of a failed start as a message for the user."""
    program = spec.argv[0] if spec.argv else "(no program)"
    if isinstance(exc, FileNotFoundError) and exc.filename == spec.cwd:
        return f"the working folder {spec.cwd} does not exist"
    if isinstance(exc, FileNotFoundError):
        return f"the program `{program}` was not found; check the agent's command, or install it"
    if isinstance(exc, PermissionError):
        return f"the program `{program}` cannot be executed ({exc.strerror}); check its path and its mode"
    if isinstance(exc, OSError):
        return f"`{program}` cannot be started: {exc.strerror}"
    return f"`{program}` cannot be started: {exc}"
