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
    if not _at_once(one, other, kernel.RENAME_EXCHANGE):
        aside = one.with_name(one.name + ".aside")
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)


def move(old: Path, new: Path) -> None:
    """Give a file another name that nothing has yet. Raises OSError, FileExistsError where something has."""
    if not _at_once(old, new, kernel.RENAME_NOREPLACE):
        os.link(old, new, follow_symlinks=False)
        old.unlink()


def exchange_in(folder: int, one: str, other: str) -> None:
    """The same as `exchange`, in a folder that is held open."""
    if not _try(folder, one, folder, other, kernel.RENAME_EXCHANGE):
        aside = one + ".aside"
        os.rename(other, aside, src_dir_fd=folder, dst_dir_fd=folder)
        os.rename(one, other, src_dir_fd=folder, dst_dir_fd=folder)
        os.rename(aside, one, src_dir_fd=folder, dst_dir_fd=folder)


def move_in(folder: int, old: str, new: str) -> None:
    """The same as `move`, in a folder that is held open."""
    if not _try(folder, old, folder, new, kernel.RENAME_NOREPLACE):
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.unlink(old, dir_fd=folder)


def _at_once(one: Path, other: Path, flags: int) -> bool:
    folders = [os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (one, other)]
    try:
        return _try(folders[0], one.name, folders[1], other.name, flags)
    finally:
        for folder in folders:
            os.close(folder)


def _try(folder: int, one: str, other_folder: int, other: str, flags: int) -> bool:
    """Whether the kernel and the filesystem could do it."""
    if not process.LINUX:
        return False
    try:
        kernel.rename(folder, os.fsencode(one), other_folder, os.fsencode(other), flags)
    except OSError as exc:
        if exc.errno in {errno.EINVAL, errno.ENOSYS}:
            return False
        raise
    return True
