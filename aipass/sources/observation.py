"""The data types for observations of the filesystem source, before `Known` compares them with the ledger."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os


class FileVersion(NamedTuple):
    """The identity of one version of a file: inode, size in bytes, modification time in nanoseconds."""

    ino: int
    size: int
    mtime: int

    def __str__(self) -> str:
        return f"{self.ino}:{self.size}:{self.mtime}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A file exists. `complete`: no program writes to it any more. `type`: `file`, `symlink` or another kind of node.

    `git`, here and below: git itself made the change.
    """

    path: str
    identity: FileVersion
    complete: bool
    type: str = "file"
    git: bool = False
    #: The last change of its inode (ctime), in nanoseconds; None where it was not read.
    changed: int | None = None
    #: It is again as it was reported before git removed it: counts as git's change, unless a run is known to have written it.
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
    """A file or folder no longer exists."""

    path: str
    folder: bool
    git: bool = False
    back: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """The current content of one folder. `quiet`: record it without events (it was there before the engine watched).

    `ignoring`: changed ignore rules caused this listing. An entry's own `git`: git put it there while no emitter ran. `removed`, here and
    in `ScanEnd`: paths that git removed in that time. `hidden`: names of ignored files; in `ScanEnd`, paths of ignored folders.
    """

    folder: str
    entries: tuple[Seen, ...]
    quiet: bool = False
    ignoring: bool = False
    #: Made at the start: whether an ignored file was ignored before is not known then, so no event says that it is new.
    first: bool = False
    git: bool = False
    removed: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    #: Names of files to leave out: they were just written, and `UnsettledFiles` reports them later.
    apart: frozenset[str] = frozenset()
    #: Names of files that were ignored until now: they are not new files.
    shown: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ScanEnd:
    """A scan of `top` and all below it has ended and found `folders`. `reason`: `start`, `asked`, `overflow` or `ignore`."""

    top: str
    folders: frozenset[str]
    reason: str
    removed: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Limited:
    """The kernel gives no more watches, so `polled` folders are polled instead. `remedy`: a message for the user."""

    limit: str
    polled: int
    remedy: str


@dataclass(frozen=True, slots=True)
class Unused:
    """A `.gitignore` that aipass does not use, for `reason`."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Configured:
    """Git's configuration or a hook was changed, so git may start other programs from now on.

    `inner`: folders below the root that are repositories of their own.
    """

    inner: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Touched:
    """A time, a mode or another attribute of a file was set; its content did not change."""

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
    """Return the identity in a stat result, as numbers that SQLite can store."""
    return FileVersion(_signed(found.st_ino), _signed(found.st_size), _signed(found.st_mtime_ns))


def changed_of(found: os.stat_result) -> int:
    """Return the ctime in a stat result, in nanoseconds, as a number that SQLite can store."""
    return _signed(found.st_ctime_ns)


def _signed(number: int) -> int:
    # SQLite's integers are signed, 64 bits: larger inode numbers, and times after 2262, wrap around.
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def type_of(found: os.stat_result) -> str:
    """Return the kind of node in a stat result, such as `file` or `symlink`; `other` for an unknown one."""
    return _TYPES.get(stat.S_IFMT(found.st_mode), "other")
