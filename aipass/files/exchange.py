"""Atomic exchange and move of files, so that a write by another program at the same time is not lost."""

from __future__ import annotations

import os

from aipass.supervisor import held
from aipass.supervisor.fence import kernel

#: The ending of a temporary name, where the system has no atomic exchange.
ASIDE = ".aside"


def exchange(folder: int, one: str, other_folder: int, other: str) -> None:
    """Exchange `one` in a folder and `other` in another; atomic where the system can do it. The folders are descriptors. Raises OSError."""
    # Security: folders by descriptor, because another program could replace a folder of a path by a symbolic link.
    if not held.rename(folder, one, other_folder, other, kernel.RENAME_EXCHANGE):
        os.rename(other, one + ASIDE, src_dir_fd=other_folder, dst_dir_fd=folder)
        os.rename(one, other, src_dir_fd=folder, dst_dir_fd=other_folder)
        os.rename(one + ASIDE, one, src_dir_fd=folder, dst_dir_fd=folder)


def move(folder: int, old: str, other_folder: int, new: str) -> None:
    """Rename a file to a name that is free; never overwrites. Raises FileExistsError where the name is in use, else OSError."""
    if not held.rename(folder, old, other_folder, new, kernel.RENAME_NOREPLACE):
        # `rename` would overwrite; `link` fails where the name exists.
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=other_folder, follow_symlinks=False)
        os.unlink(old, dir_fd=folder)
