"""Starting a program behind fence and wall: a thread confines itself, starts it behind a gate, and is gone before it opens.

What a thread of ours has taken on, the program inherits; but a thread inside the program's own domain would be the
program's to trace and signal. So the program is a shell that waits for a line, and gets it when that thread has ended.
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

#: Waits for a line, then becomes the program; its own name is the path of the program's standard input.
GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@" <"$0"')
_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class RunStart:
    """One start: `run` in a thread that the serving thread made, then `finish` in the serving thread."""

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
        """Start the thread; `ready()` is called from it at its very end."""

        def work() -> None:
            try:
                self._start()
            except Exception as exc:  # noqa: BLE001 - whatever stops a start is the run's outcome
                self.error = exc
            ready()

        self._thread = threading.Thread(target=work, name=f"spawn-{self.spec.run}", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        self._tid = threading.get_native_id()
        spec = self.spec
        # The current folder and the umask of a call that is being carried out are not this program's.
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
        """Open the gate when the thread has gone; raises what stopped the start."""
        assert self._thread is not None
        self._thread.join()
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
            # A core file is written by the kernel, past every fence.
            resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))
            # The supervisor holds many files; an agent gets the limit that the user's shell had.
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft != self._files_limit:
                resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (self._files_limit, hard))
        except ProcessLookupError:
            pass  # it ended already


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _found(spec: Spec) -> tuple[str, ...]:
    """The words to execute. Raises FileNotFoundError or PermissionError, as starting the program would."""
    program = spec.argv[0]
    if not os.path.isdir(spec.cwd):
        raise FileNotFoundError(2, "No such file or directory", spec.cwd)
    there = os.path.join(spec.cwd, program) if "/" in program else program
    if shutil.which(there, path=spec.env.get("PATH", os.defpath)) is None:
        if "/" in program and os.path.exists(there):
            raise PermissionError(13, "Permission denied", program)
        raise FileNotFoundError(2, "No such file or directory", program)
    odd = [f"{name}={value}" for name, value in spec.env.items() if not _SHELL_NAME.fullmatch(name)]
    # A shell passes on only what it could name itself.
    return ("env", *odd, *spec.argv) if odd else spec.argv
