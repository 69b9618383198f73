"""The engine's lock: one engine for a root, and who it is."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass import __version__
from aipass.errors import RefusedError
from aipass.event import iso

if TYPE_CHECKING:
    from aipass.layout import Layout

ATTEMPTS, PAUSE_S = 5, 0.02


@dataclass(frozen=True, slots=True)
class Holder:
    """The engine that runs. `started` is seconds since the epoch."""

    pid: int
    version: str
    started: float


def take(layout: Layout, started: float) -> int:
    """Hold the lock as long as the returned descriptor is open. Raises RefusedError naming the engine that has it."""
    handle = os.open(layout.engine_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(PAUSE_S)  # whoever only looks lets go within a moment
    else:
        os.close(handle)
        other = holder(layout)
        who = (
            f"process {other.pid}, version {other.version}, since {iso(other.started)}"
            if other
            else "another process"
        )
        raise RefusedError(
            f"an engine runs here already: {who}; `aipass status` shows it, `aipass down` ends it"
        )
    os.ftruncate(handle, 0)
    os.pwrite(
        handle, json.dumps({"pid": os.getpid(), "version": __version__, "started": started}).encode(), 0
    )
    return handle


def holder(layout: Layout) -> Holder | None:
    """The engine that runs here; None where none does. The kernel frees the lock of one that died."""
    try:
        # Read-only: an agent asks as well, and may not write here.
        handle = os.open(layout.engine_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            found = json.loads(os.pread(handle, 4096, 0))
            return Holder(int(found["pid"]), str(found["version"]), float(found["started"]))
        except (ValueError, KeyError, TypeError):
            return Holder(0, "?", 0.0)  # it is just writing who it is
    finally:
        os.close(handle)
    return None
