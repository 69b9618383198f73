"""The start of a program behind fence and wall: a thread confines itself, starts the program behind a gate, and ends.

The program inherits the confinement of the thread that starts it. But a thread inside the program's own
Landlock domain could be traced and signalled by the program. So the program is first a shell that waits for a
line, and gets it after the thread has ended.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from aipass.supervisor import mark, wire
from aipass.supervisor.fence import kernel, wall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aipass.supervisor.spawn import Spec

#: A shell that waits for a line, then execs the program. `$0` is the path of the program's standard input.
GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@" <"$0"')
_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class RunStart:
    """One start. The serving thread calls `begin`, and `finish` after `ready` was called."""

    def __init__(
        self, spec: Spec, program: bytes | None, writable: Sequence[str], umask: int, files_limit: int
    ) -> None:
        self.spec = spec
        self._program, self._writable = program, writable
        self._umask, self._files_limit = umask, files_limit
        self.pid, self.listener = 0, -1
        self.error: Exception | None = None
        self._gate = -1
        self._tid = 0
        self._thread: threading.Thread | None = None

    def begin(self, ready: Callable[[], None]) -> None:
        """Start the thread; it calls `ready()` as its last step, also after an error."""

        def work() -> None:
            try:
                self._start()
            except Exception as exc:  # noqa: BLE001 - a failed start is the run's outcome
                self.error = exc
            ready()

        self._thread = threading.Thread(target=work, name=f"spawn-{self.spec.run}", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        self._tid = threading.get_native_id()
        spec = self.spec
        # The serving thread changes its folder and umask for the calls it performs; the program must not inherit those.
        kernel.unshare(kernel.CLONE_FS)
        os.umask(self._umask)
        argv = _found(spec)
        if os.geteuid() == 0:
            kernel.drop_capabilities()
        stdout, stderr = (_append(spec.folder / name) for name in (wire.STDOUT, wire.STDERR))
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        try:
            version = kernel.landlock_version()
            if version and self._writable:
                wall.enclose(self._writable, version)
            else:
                kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
            # After the wall: the filter refuses Landlock's calls.
            if self._program is not None:
                self.listener = kernel.install_filter(self._program)
            process = subprocess.Popen(
                (*GATE, str(spec.folder / wire.PROMPT if spec.stdin else os.devnull), *argv),
                stdin=gate,
                stdout=stdout,
                stderr=stderr,
                cwd=spec.cwd,
                env=spec.env,
                start_new_session=True,
            )
        finally:
            for handle in (gate, stdout, stderr):
                os.close(handle)
        # The supervisor's loop reaps every child; Popen must not try again when it is collected.
        process.returncode = 0
        self.pid = process.pid

    def finish(self) -> None:
        """Wait for the end of the thread, then open the gate. Raises the error that stopped the start."""
        assert self._thread is not None
        self._thread.join()
        # join() returns before the kernel has removed the thread.
        while os.path.exists(f"/proc/self/task/{self._tid}"):
            time.sleep(0)
        try:
            if self.error is not None:
                raise self.error
            self._limit()
            os.write(self._gate, b"\n")
        except BaseException:
            if self.listener >= 0:
                os.close(self.listener)
            raise
        finally:
            if self._gate >= 0:
                os.close(self._gate)

    def _limit(self) -> None:
        try:
            mark.put(self.pid, self.spec.root, self.spec.run)
            # The kernel writes core files itself, and no fence sees it.
            resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))
            # The supervisor holds many files; an agent gets the limit that the user's shell had.
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft != self._files_limit:
                resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (self._files_limit, hard))
        except ProcessLookupError:
            pass  # the process has already ended


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _found(spec: Spec) -> tuple[str, ...]:
    """The words to execute. Raises FileNotFoundError or PermissionError, as a direct start would."""
    # Checked here because the gate's shell would start in any case, and fail later without a clear reason.
    program = spec.argv[0]
    if not os.path.isdir(spec.cwd):
        raise FileNotFoundError(2, "No such file or directory", spec.cwd)
    there = os.path.join(spec.cwd, program) if "/" in program else program
    if shutil.which(there, path=spec.env.get("PATH", os.defpath)) is None:
        if "/" in program and os.path.exists(there):
            raise PermissionError(13, "Permission denied", program)
        raise FileNotFoundError(2, "No such file or directory", program)
    odd = [f"{name}={value}" for name, value in spec.env.items() if not _SHELL_NAME.fullmatch(name)]
    # A shell drops environment variables whose names are no shell names; env(1) sets them again.
    return ("env", *odd, *spec.argv) if odd else spec.argv
