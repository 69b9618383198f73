"""Detection of git repositories by content, under any name: files in one decide which programs git runs.

Git accepts a folder with `HEAD`, `objects` and `refs`, or with `HEAD` and `commondir` (setup.c,
is_git_directory).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The two sets of names that make a folder a repository.
WHOLE = (frozenset(("head", "objects", "refs")), frozenset(("head", "commondir")))
PIECES = frozenset().union(*WHOLE)
#: Names that git reads or runs in its own folder (gitrepository-layout(5)); other names there have no effect on git.
READ = PIECES | frozenset(
    (
        "config", "config.worktree", "hooks", "info", "packed-refs", "index", "logs", "modules", "worktrees", "gitdir", "shallow",
        "branches", "remotes", "common", "reftable", "lfs", "rebase-merge", "rebase-apply", "sequencer", "description",
    )
)  # fmt: skip
WHY = "git's own files: this folder is a git repository; submit your changes with `aipass pr open`"


def around(root: str, path: str) -> str | None:
    """The git folder below the root that contains `path` (relative to it) under a name that git reads; None where there is none."""
    parts = path.split("/")
    for at, part in enumerate(parts):
        if at and is_read(part) and is_one(os.path.join(root, *parts[:at])):
            return "/".join(parts[:at])
    return None


def may_be_above(path: str) -> list[str]:
    """The parent folders of a path that are git folders if they contain a `HEAD`: those in which git reads the next name."""
    parts = path.split("/")
    return ["/".join(parts[:at]) for at, part in enumerate(parts) if at and is_read(part)]


def is_read(name: str) -> bool:
    """Whether git reads this name, or its `.lock` file, which git renames to it."""
    # Case-insensitive filesystems: git opens `HEAD` and finds `head`.
    return name.casefold().removesuffix(".lock") in READ


def is_one(folder: str, coming: Iterable[str] = ()) -> bool:
    """Whether git accepts a folder as a repository now, or would with the names in `coming`."""
    there = {name.casefold() for name in coming} & PIECES
    for piece in PIECES - there:
        # Both spellings: on a case-insensitive filesystem they are one file.
        if any(os.path.lexists(os.path.join(folder, name)) for name in (piece, piece.upper())):
            there.add(piece)
    return any(whole <= there for whole in WHOLE)
