"""Files that change places in one step, or move to where nothing is: what a program has written meanwhile is not lost on the way."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from aipass.supervisor import process
from aipass.supervisor.fence import kernel

if TYPE_CHECKING:
    from pathlib import Path


def exchange(one: Path, other: Path) -> None:
    """Have two files change places, at once where the system can. Raises OSError."""
    if process.LINUX and _rename(one, other, kernel.RENAME_EXCHANGE):
        return
    aside = one.with_name(one.name + ".aside")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def move(old: Path, new: Path) -> None:
    """Give a file another name that nothing has yet. Raises OSError, FileExistsError where something has."""
    if process.LINUX and _rename(old, new, kernel.RENAME_NOREPLACE):
        return
    os.link(old, new, follow_symlinks=False)
    old.unlink()


def _rename(one: Path, other: Path, flags: int) -> bool:
    """Whether the kernel and the filesystem could do it."""
    folders = [os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (one, other)]
    try:
        kernel.rename(folders[0], os.fsencode(one.name), folders[1], os.fsencode(other.name), flags)
    except OSError as exc:
        if exc.errno in {errno.EINVAL, errno.ENOSYS}:
            return False
        raise
    finally:
        for folder in folders:
            os.close(folder)
    return True
