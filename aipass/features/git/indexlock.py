"""Git's own `index.lock`: taken as git takes it, and a stale one removed only where it is certain that nobody holds it."""

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

#: People's git holds it for moments; a commit whose editor is open, for as long as that.
WAIT_S, PAUSE_S = 10.0, 0.02
#: A lock that is younger may be of a program that has not been seen yet.
MIN_AGE_S = 60.0
HALF = "index.lock.aipass"
#: Programs that may hold the lock with the file closed, as git does while an editor or a hook runs; by the beginnings of their
#: names. All others keep it open, as far as is known.
LOCKERS = ("git", "jgit")


@dataclass(frozen=True, slots=True)
class Lock:
    """An `index.lock` that stands there. `since` in seconds since the epoch; `why_held`: None where nobody holds it."""

    path: Path
    since: float
    why_held: str | None


def look(own: Path) -> Lock | None:
    """The lock of a git folder's index, and whether anybody can hold it; None where there is none."""
    path = own / "index.lock"
    try:
        found = path.lstat()
    except OSError:
        return None
    return Lock(path, found.st_ctime, _why_held(found, _places(own)))


def _why_held(lock: os.stat_result, places: list[str]) -> str | None:
    age = time.time() - lock.st_ctime
    if age < MIN_AGE_S:
        return (
            f"it is {max(0, round(age))} seconds old; younger than {MIN_AGE_S:.0f} seconds nothing is certain"
        )
    if not process.LINUX:
        return "who holds a file cannot be found out on this system"
    for pid in process.table():
        if pid == os.getpid():
            continue
        folder = Path(f"/proc/{pid}")
        try:
            if os.stat(folder).st_uid != lock.st_uid:
                continue  # whoever made the lock is its owner
            name = (folder / "comm").read_text(errors="replace").strip()
            began = os.stat(folder / "stat").st_ctime
        except OSError:
            continue  # it has just ended
        if (why := _has_open(folder, lock, name)) is not None:
            return f"process {pid} ({name}) {why}"
        if name.startswith(LOCKERS) and began <= lock.st_ctime + 1 and _may_work_in(folder, places):
            return f"process {pid} ({name}) was there already when it was made"
    return None


#: How a git is told where its repository is, in its environment or its words.
_NAMED = re.compile(
    rb"(?:GIT_DIR|GIT_WORK_TREE|GIT_INDEX_FILE)=([^\0]+)|(?:--git-dir|--work-tree|(?<=\0)-C)[=\0]([^\0]+)"
)


def _places(own: Path) -> list[str]:
    """Git's own folder and its working tree."""
    found = [own]
    if own.name == ".git":
        found.append(own.parent)
    try:
        found.append(Path((own / "gitdir").read_text().strip()).parent)  # a linked worktree's
    except (OSError, ValueError):
        pass
    return [os.path.realpath(place) for place in found]


def _may_work_in(folder: Path, places: list[str]) -> bool:
    """Whether a process works there, as far as can be seen."""
    try:
        here = os.readlink(folder / "cwd")
        told = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
    except OSError:
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
        # Keepers of keys, sandboxes of browsers, other engines of ours hide theirs; a git does not unless it is asked to.
        if name.startswith(LOCKERS):
            return "may have it open; its files cannot be seen"
    except OSError:
        pass  # it has just ended
    return None


@contextmanager
def taken(own: Path, mark: str, wait_s: float | None = None) -> Iterator[None]:
    """Hold the index as git does, for the time of a block. The lock holds `mark`, so that it is known after a crash whose it is.

    Raises RefusedError where it does not come free within `wait_s`.
    """
    path, half = own / "index.lock", own / HALF
    deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
    half.write_text(mark)
    try:
        while True:
            try:
                os.link(half, path)  # it never stands there without its mark
                break
            except FileExistsError:
                if time.monotonic() >= deadline and not remove_stale(own):
                    there = look(own)
                    since, why = (
                        ("a moment ago", "") if there is None else (iso(there.since), f" ({there.why_held})")
                    )
                    raise RefusedError(
                        f"{path} stands there since {since}{why}: somebody's git is at work; ask again when it is done"
                    ) from None
                time.sleep(PAUSE_S)
    finally:
        half.unlink(missing_ok=True)
    try:
        yield
    finally:
        drop(own, mark)


def drop(own: Path, mark: str) -> None:
    """Give it back, if it is ours: the lock, and what of it a crash has left half made."""
    path = own / "index.lock"
    (own / HALF).unlink(missing_ok=True)
    try:
        if path.read_bytes() == mark.encode():
            path.unlink()
    except FileNotFoundError:
        pass  # it was never taken, or given back already


def remove_stale(own: Path) -> bool:
    """Remove the lock where nobody holds it; whether it is gone. By rename first: it must be the one that was looked at."""
    there = look(own)
    if there is None:
        return True
    if there.why_held is not None:
        return False
    aside = own / f"index.lock.stale-{os.getpid()}"
    try:
        os.rename(there.path, aside)
        if (
            aside.lstat().st_ctime_ns < time.time_ns() - int(MIN_AGE_S * 1e9)
            or aside.lstat().st_mtime <= there.since
        ):
            aside.unlink()
            return True
        os.link(aside, there.path)  # another one has come in its place
        aside.unlink()
    except OSError:
        return look(own) is None
    return False
