"""The wall: a Landlock domain that limits a run to its own folders, with the rights that this kernel supports."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from aipass.supervisor.fence import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

# linux/landlock.h
WRITE_FILE, REMOVE_DIR, REMOVE_FILE = 1 << 1, 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << n for n in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
ON_FOLDERS = (
    WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_CHAR
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_BLOCK
    | MAKE_SYM
)
#: Devices that store nothing: every run can write to them.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx")


def rights(version: int) -> int:
    """All rights that writing needs and this ABI version has; from version 5 on also device control, above all of terminals."""
    later = (REFER, 2), (TRUNCATE, 3), (IOCTL_DEV, 5)
    return ON_FOLDERS | sum(right for right, since in later if version >= since)


def scopes(version: int) -> int:
    """What processes in the domain cannot reach outside of it, as far as this ABI version supports it."""
    return SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS if version >= 6 else 0


def build(writable: Iterable[str], version: int, *, scoped: bool = True) -> int:
    """Create a ruleset that allows writing below these folders, and to these files and devices; returns its descriptor.

    Missing paths are skipped. `scoped`: signals and abstract sockets are limited to the domain too. Raises
    OSError where the kernel refuses.
    """
    # The kernel rejects rights that its version does not know.
    handled = rights(version)
    ruleset = kernel.landlock_ruleset(handled, scopes(version) if scoped else 0, version)
    try:
        for path in writable:
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                folder = stat.S_ISDIR(os.fstat(handle).st_mode)
                kernel.landlock_allow(
                    ruleset, handled if folder else handled & (WRITE_FILE | TRUNCATE | IOCTL_DEV), handle
                )
            finally:
                os.close(handle)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def enclose(writable: Iterable[str], version: int) -> None:
    """Confine this thread and its children to the wall, irrevocably. Sets no_new_privs. Raises OSError."""
    ruleset = build(writable, version)
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)


def keeper_ground() -> list[str]:
    """The folders that the serving thread can write: everything except the kernel's own filesystems."""
    # A wrongly resolved path must not let the supervisor write its own memory through /proc.
    return ["/" + name for name in os.listdir("/") if name not in {"proc", "sys"}]
