"""What the filesystem source saw, before it is compared with what the ledger knows."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os


class FileVersion(NamedTuple):
    """What tells one version of a file from another: inode, size in bytes, modification time in nanoseconds."""

    ino: int
    size: int
    mtime: int

    def __str__(self) -> str:
        return f"{self.ino}:{self.size}:{self.mtime}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A file is there. `complete`: nobody is writing it any more. `type` is `file`, `symlink` or another kind of node.

    `git`, here and below: it came about while git itself was at work on the tree.
    """

    path: str
    identity: FileVersion
    complete: bool
    type: str = "file"
    git: bool = False
    #: When its inode was changed last (ctime), in nanoseconds; None where nobody looked.
    changed: int | None = None
    #: It is as it was told before git took it away: git's, unless a run is known to have written it.
    back: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """A file or folder has a new name."""

    old: str
    new: str
    folder: bool
    identity: FileVersion | None = None
    git: bool = False
    changed: int | None = None
    back: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """A file or folder is no longer there."""

    path: str
    folder: bool
    git: bool = False
    back: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """All that is in one folder now. `quiet`: take note of it without telling (what was there before anybody watched).

    `ignoring`: other rules of what is ignored brought this about.
    An entry's own `git`: it is what git has put there while nobody looked. `removed`, here and below: paths that git took away then. `hidden`: names of files there that are ignored; below, of folders.
    """

    folder: str
    entries: tuple[Seen, ...]
    quiet: bool = False
    ignoring: bool = False
    #: It was made at the start: what is ignored then was ignored before, as far as anybody knows.
    first: bool = False
    git: bool = False
    removed: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    #: Names of files that are not to be looked at now: they were written a moment ago, and are told by themselves.
    apart: frozenset[str] = frozenset()
    #: Names of files that were ignored until now: that they are there is no news.
    shown: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ScanEnd:
    """A scan of `top` and all below it is over; `folders` were there. `reason` says why it was made."""

    top: str
    folders: frozenset[str]
    reason: str
    removed: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Limited:
    """The kernel gives no more watches; `polled` folders are looked at from time to time instead."""

    limit: str
    polled: int
    remedy: str


@dataclass(frozen=True, slots=True)
class Unused:
    """A file that says what is ignored and is not used; `reason` says why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Configured:
    """Git's configuration, or a hook, was changed: what it starts may lie elsewhere from now on. `inner`: folders below the root that are
    repositories of their own.
    """

    inner: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Touched:
    """A file's time, or something else about it but its content, was set."""

    path: str
    identity: FileVersion
    changed: int | None = None


Observation = Seen | Configured | Touched | Moved | Gone | Listing | ScanEnd | Limited | Unused

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def identity_of(found: os.stat_result) -> FileVersion:
    """The identity in a stat result, as far as SQLite holds it: inode numbers of 64 bits and times after 2262 come back round."""
    return FileVersion(_signed(found.st_ino), _signed(found.st_size), _signed(found.st_mtime_ns))


def changed_of(found: os.stat_result) -> int:
    """When the inode in a stat result was changed last, as SQLite holds it."""
    return _signed(found.st_ctime_ns)


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def type_of(found: os.stat_result) -> str:
    """The kind of node in a stat result, in words."""
    return _TYPES.get(stat.S_IFMT(found.st_mode), "other")
