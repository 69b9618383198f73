"""Git's own `index.lock`: taken in the way git takes it; a stale one is removed only when no process can hold it."""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aipass.errors import RefusedError
from aipass.event import iso
from aipass.supervisor import process

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICKS = os.sysconf("SC_CLK_TCK")
#: A git command holds the lock for moments. A `git commit` with an open editor holds it for minutes; that is refused.
WAIT_S, PAUSE_S = 10.0, 0.02
#: A younger lock is never stale: its process may have started after the process table was read.
MIN_AGE_S = 60.0
#: The file that holds the mark before `link` makes it the lock.
HALF = "index.lock.aipass"
#: Beginnings of the names of programs that may hold the lock while the file is closed, as git does while an editor or
#: a hook runs. All other programs keep the file open, as far as we know.
LOCKERS = ("git", "jgit")
#: When this process first saw a lock, by (device, inode, ctime): seconds since boot, the clock of the start times of processes.
_first_seen: dict[tuple[int, int, int], float] = {}
#: Locks that are remembered; there is one for each repository.
MOST_SEEN = 100


@dataclass(frozen=True, slots=True)
class Lock:
    """An existing `index.lock`. `since`: its ctime, in seconds since the epoch; `why_held`: None where it is certainly stale."""

    path: Path
    since: float
    why_held: str | None


def look(own: Path) -> Lock | None:
    """Returns the index lock of the git folder `own`, with the reason why a process may hold it; None without a lock."""
    path = own / "index.lock"
    try:
        found = path.lstat()
    except OSError:
        return None
    return Lock(path, found.st_ctime, _why_held(found, _places(own)))


def _why_held(lock: os.stat_result, places: list[str]) -> str | None:
    age = time.time() - lock.st_ctime
    if age < MIN_AGE_S:
        return f"it is {max(0, round(age))} seconds old; a lock younger than {MIN_AGE_S:.0f} seconds is never taken for stale"
    # Without /proc there is no list of a process's open files, so no lock is ever certainly stale.
    if not process.LINUX:
        return "aipass cannot find out which process holds a file on this system"
    seen = _seen(lock)
    for pid, about in process.table().items():
        if pid == os.getpid():
            continue
        folder = Path(f"/proc/{pid}")
        try:
            if os.stat(folder).st_uid != lock.st_uid:
                continue  # the process that made the lock runs as the lock's owner
            name = (folder / "comm").read_text(errors="replace").strip()
        except OSError:
            continue  # the process has just ended
        if (why := _has_open(folder, lock, name)) is not None:
            return f"process {pid} ({name}) {why}"
        # A git that began after the lock was seen cannot have made it. Whether one began before the lock was made is unknown:
        # the file has a time of the wall clock, which may have been set since, and processes have times since boot.
        if name.startswith(LOCKERS) and about.start <= seen * _TICKS + 1 and _may_work_in(folder, places):
            return f"process {pid} ({name}) was already running when aipass first saw the lock"
    return None


def _seen(lock: os.stat_result) -> float:
    """The time of the first look at a lock, in seconds since boot."""
    key = lock.st_dev, lock.st_ino, lock.st_ctime_ns
    if key not in _first_seen and len(_first_seen) >= MOST_SEEN:
        del _first_seen[next(iter(_first_seen))]
    return _first_seen.setdefault(key, time.clock_gettime(time.CLOCK_BOOTTIME))


#: The variables and options that name a git process's repository, in its environment and its command line.
_NAMED = re.compile(
    rb"(?:GIT_DIR|GIT_WORK_TREE|GIT_INDEX_FILE)=([^\0]+)|(?:--git-dir|--work-tree|(?<=\0)-C)[=\0]([^\0]+)"
)


def _places(own: Path) -> list[str]:
    """Real paths of the git folder and of its working tree."""
    found = [own]
    if own.name == ".git":
        found.append(own.parent)
    try:
        # A linked worktree: its git folder is inside the main `.git`, and this file names the working tree's `.git`.
        found.append(Path((own / "gitdir").read_text().strip()).parent)
    except (OSError, ValueError):
        pass
    return [os.path.realpath(place) for place in found]


def _may_work_in(folder: Path, places: list[str]) -> bool:
    """Whether a process works in one of these places, by its folder, environment or command line; true where that is hidden."""
    try:
        here = os.readlink(folder / "cwd")
        told = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
    except OSError:
        # Another user's process, or one that protects itself. To remove the lock of a live git would corrupt the index.
        return True
    named = (os.fsdecode(one or other) for one, other in _NAMED.findall(told))
    working_in = (here, *(os.path.realpath(os.path.join(here, one)) for one in named))
    return any(one == place or one.startswith(place + "/") for place in places for one in working_in)


def _has_open(folder: Path, lock: os.stat_result, name: str) -> str | None:
    try:
        for name in os.listdir(folder / "fd"):
            try:
                found = os.stat(folder / "fd" / name)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                return "has it open"
    except PermissionError:
        # Key agents, browser sandboxes and other aipass engines hide their open files, and hold no git lock. Only a
        # git that hides them is taken for the holder; else a stale lock could never be removed beside such programs.
        if name.startswith(LOCKERS):
            return "may have it open; aipass cannot read its list of open files"
    except OSError:
        pass  # the process has just ended
    return None


@contextmanager
def taken(own: Path, mark: str, wait_s: float | None = None) -> Iterator[None]:
    """Hold the index lock as git does, for the time of a block. The lock file contains `mark`, by which `drop` recognises it
    after a crash.

    Raises RefusedError where another process does not release the lock within `wait_s`.
    """
    path, half = own / "index.lock", own / HALF
    deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
    half.write_text(mark)
    try:
        while True:
            try:
                # `link` is atomic and never overwrites: the lock never exists without its mark, even after kill -9.
                os.link(half, path)
                break
            except FileExistsError:
                if time.monotonic() >= deadline and not remove_stale(own):
                    there = look(own)
                    since, why = (
                        ("a moment ago", "") if there is None else (iso(there.since), f" ({there.why_held})")
                    )
                    raise RefusedError(
                        f"{path} exists since {since}{why}: another git command is running; ask again when it has ended"
                    ) from None
                time.sleep(PAUSE_S)
    finally:
        half.unlink(missing_ok=True)
    try:
        yield
    finally:
        drop(own, mark)


def drop(own: Path, mark: str) -> None:
    """Remove the lock if it contains `mark`, and the file that a crash left before the lock was made. Idempotent."""
    path = own / "index.lock"
    (own / HALF).unlink(missing_ok=True)
    try:
        if path.read_bytes() == mark.encode():
            path.unlink()
    except FileNotFoundError:
        pass  # never taken, or removed already


def remove_stale(own: Path) -> bool:
    """Remove the index lock where it is certainly stale. Returns whether there is no lock any more."""
    there = look(own)
    if there is None:
        return True
    if there.why_held is not None:
        return False
    # Race: between `look` and `unlink` a git may remove the stale lock and take a new one. Renamed first, the file
    # can be compared with the one that was looked at, and put back where it is another.
    aside = own / f"index.lock.stale-{os.getpid()}"
    try:
        os.rename(there.path, aside)
        if (
            aside.lstat().st_ctime_ns < time.time_ns() - int(MIN_AGE_S * 1e9)
            or aside.lstat().st_mtime <= there.since
        ):
            aside.unlink()
            return True
        os.link(aside, there.path)  # a new lock had taken its place: its owner gets it back
        aside.unlink()
    except OSError:
        return look(own) is None
    return False
