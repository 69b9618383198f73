"""A hold that one process has at a time, by proof of life and not by a file lock: engine, supervisor, the run of an agent.

Whoever may read a file can take an flock on it, and agents may read everything: an agent could keep an engine from ever starting. So
a hold is a file that says which process has it (its id, and when and in which boot it was born), and only what stands outside the fence
can write that file. A lock is held on it as well: it is what processes of another pid namespace (a container beside) can see of each
other. The file is new each time, so nobody else can have that lock first.

The file also says in which folder it was made: in a copy of that folder (`cp -a` of a repository at work) it holds nothing.
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
#: Two who take a hold at the same moment come one after the other. An agent that sits on the guard makes it only so much slower.
GUARD_S, PAUSE_S = 0.5, 0.005


def identity() -> dict[str, Any]:
    """This process, as a hold names it."""
    return {"pid": os.getpid(), "born": born(os.getpid()), "boot": boot(), "space": _space()}


def born(pid: int) -> int:
    """When a process was born, in ticks since boot; 0 where there is none, or it is dead already."""
    found = process.look(pid)
    return 0 if found is None or found.state in "ZX" else found.start


def boot() -> str:
    """Which boot of this machine this is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> int:
    """Which process ids these are; 0 where the system has only one kind."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class ProcessLock:
    """A hold that this process has, until `release` or its end."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle
        _mine.add(str(path))

    def release(self) -> None:
        """Let go of it. A second time changes nothing."""
        if self._handle < 0:
            return
        try:
            with held.above(self.path) as (folder, name), _guarded(folder):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if found.st_ino == os.fstat(self._handle).st_ino:
                    os.unlink(name, dir_fd=folder)
        except OSError:
            pass  # its folder is gone, or the disk: then it ends with us
        os.close(self._handle)
        self._handle = -1
        _mine.discard(str(self.path))


#: What this process holds: a file of ours that it does not was left by a release that could not be written.
_mine: set[str] = set()


def take(path: Path, **more: object) -> ProcessLock | None:
    """Have the hold; None where another process, or this one, has it.

    `more` is kept in the file. Raises OSError where it cannot be written.
    """
    with held.above(path) as (folder, name), _guarded(folder):
        if holder(path) is not None:
            return None
        half = f".{name}.{os.getpid()}"
        held.remove(folder, half)
        handle = os.open(half, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(handle, json.dumps({**identity(), "folder": _of(folder), **more}).encode())
            os.rename(half, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.close(handle)
            raise
        return ProcessLock(path, handle)


def holder(path: Path) -> dict[str, Any] | None:
    """What the hold's file says, where the process that it names lives; None where nobody has it."""
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
        # Of another container, or an aipass of before: it has the lock as long as it lives.
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
                    break  # nobody of ours keeps it for that long
                time.sleep(PAUSE_S)
        yield
    finally:
        os.close(handle)
