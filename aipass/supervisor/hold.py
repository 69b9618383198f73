"""Process locks by proof of life instead of flock: engine, supervisor, and each agent's run hold one.

Any process that can read a file can take an flock on it, and agents can read everything: an agent could keep
an engine from starting. So a lock is a file with the identity of its process: its id, start time and boot.
Only processes outside the fence (sandbox) can write that file.

The process also takes an flock on it. Processes in another pid namespace (a container on the same volume)
cannot check the identity, but they see the flock. The file is new each time, so no other process can have
locked it before.

The file also names the folder in which it was made. A copy of that folder (`cp -a` of a repository in use)
holds no lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held, process

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 4096
GUARD = ".guard"
#: The guard serialises processes that take a lock at the same moment. An agent can flock the guard too, so the wait is limited.
GUARD_S, PAUSE_S = 0.5, 0.005


def identity() -> dict[str, Any]:
    """The identity of this process, as a lock file records it."""
    return {"pid": os.getpid(), "born": born(os.getpid()), "boot": boot(), "space": _space()}


def born(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 where it does not exist or has ended (zombie)."""
    found = process.look(pid)
    return 0 if found is None or found.state in "ZX" else found.start


def boot() -> str:
    """The id of this boot; empty where the system has none."""
    try:
        # Start times count from boot: without this, a pid of an earlier boot could match by chance.
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> int:
    """The inode of this process's pid namespace; 0 where the system has none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class ProcessLock:
    """A lock that this process holds until `release` or until it ends."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle
        _mine.add(str(path))

    def release(self) -> None:
        """Release the lock. Idempotent; never raises."""
        if self._handle < 0:
            return
        try:
            with held.above(self.path) as (folder, name), _guarded(folder):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                # If the folder was replaced, the file there may be the lock of another process.
                if found.st_ino == os.fstat(self._handle).st_ino:
                    os.unlink(name, dir_fd=folder)
        except OSError:
            pass  # the folder or the disk is gone: the lock ends with this process
        os.close(self._handle)
        self._handle = -1
        _mine.discard(str(self.path))


#: Paths of the locks that this process holds. A file that names this process but is not in here is left from a release that could
#: not remove it.
_mine: set[str] = set()


def take(path: Path, **more: object) -> ProcessLock | None:
    """Take the lock; None where this or another process holds it.

    The file is put in place by rename, so readers never see half of it. `more` is stored in the file. Raises
    OSError where the file cannot be written.
    """
    with held.above(path) as (folder, name), _guarded(folder):
        if holder(path) is not None:
            return None
        half = f".{name}.{os.getpid()}"
        held.remove(folder, half)
        handle = os.open(half, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            # Before the rename: once the file has its name, an agent could take the flock first.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(handle, json.dumps({**identity(), "folder": _of(folder), **more}).encode())
            os.rename(half, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.close(handle)
            raise
        return ProcessLock(path, handle)


def holder(path: Path) -> dict[str, Any] | None:
    """Content of the lock file where its process lives; None where the lock is free."""
    try:
        with held.above(path) as (folder, name):
            handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            here = _of(folder)
    except OSError:
        return None
    try:
        try:
            found = json.loads(os.pread(handle, MAX_BYTES, 0))
            known = isinstance(found, dict) and {"pid", "born", "boot", "space"} <= found.keys()
        except ValueError:
            found, known = None, False
        if known and found["space"] == _space():
            if found.get("folder", here) != here:
                return None
            if found["pid"] == os.getpid() and str(path) not in _mine:
                return None
            return found if found["boot"] == boot() and born(found["pid"]) == found["born"] else None
        # Written in another container or by an older aipass: only the flock shows whether that process lives.
        return (found if isinstance(found, dict) else {}) if _is_locked(handle) else None
    finally:
        os.close(handle)


def _of(folder: int) -> list[int]:
    found = os.fstat(folder)
    return [found.st_dev, found.st_ino]


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@contextmanager
def _guarded(folder: int) -> Iterator[None]:
    handle = os.open(GUARD, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        until = time.monotonic() + GUARD_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    break  # no process of ours keeps it that long, so an agent has it: go on without
                time.sleep(PAUSE_S)
        yield
    finally:
        os.close(handle)
