"""Files that change places in one step, or move to where nothing is: what a program has written meanwhile is not lost on the way.

Folders are held open, so that nobody can put a link in the way.
"""

from __future__ import annotations

import os

from aipass.supervisor import held
from aipass.supervisor.fence import kernel

#: Under this ending lies for a moment what the first of two names shall hold, where the system cannot exchange at once.
ASIDE = ".aside"


def exchange(folder: int, one: str, other_folder: int, other: str) -> None:
    """Have `one` in a folder and `other` in another change places, at once where the system can. Raises OSError."""
    if not held.rename(folder, one, other_folder, other, kernel.RENAME_EXCHANGE):
        os.rename(other, one + ASIDE, src_dir_fd=other_folder, dst_dir_fd=folder)
        os.rename(one, other, src_dir_fd=folder, dst_dir_fd=other_folder)
        os.rename(one + ASIDE, one, src_dir_fd=folder, dst_dir_fd=folder)


def move(folder: int, old: str, other_folder: int, new: str) -> None:
    """Give a file another name that nothing has yet. Raises OSError, FileExistsError where something has."""
    if not held.rename(folder, old, other_folder, new, kernel.RENAME_NOREPLACE):
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=other_folder, follow_symlinks=False)
        os.unlink(old, dir_fd=folder)
