"""Git's own folders, recognised by what they are under any name: what lies in one decides which programs git starts.

Git takes a folder for a repository that has `HEAD`, `objects` and `refs`, or `HEAD` and `commondir` (setup.c, is_git_directory).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What makes a folder a repository, in either of two ways.
WHOLE = (frozenset(("head", "objects", "refs")), frozenset(("head", "commondir")))
PIECES = frozenset().union(*WHOLE)
#: What git reads or runs in a folder of its own (gitrepository-layout(5)); nothing else in it can make git do anything.
_READ = PIECES | frozenset(
    (
        "config", "config.worktree", "hooks", "info", "packed-refs", "index", "logs", "modules", "worktrees", "gitdir", "shallow",
        "branches", "remotes", "common", "reftable", "lfs", "rebase-merge", "rebase-apply", "sequencer", "description",
    )
)  # fmt: skip
WHY = "git's own files, by what lies in this folder; hand in what you have changed with `aipass pr open`"


def around(root: str, path: str) -> str | None:
    """The git folder below the root that a path, relative to it, reaches into; None where it reaches into none."""
    parts = path.split("/")
    for at, part in enumerate(parts):
        if at and is_read(part) and is_one(os.path.join(root, *parts[:at])):
            return "/".join(parts[:at])
    return None


def is_read(name: str) -> bool:
    """Whether git would read something of that name; a name's lock becomes it."""
    return name.casefold().removesuffix(".lock") in _READ


def is_one(folder: str, coming: Iterable[str] = ()) -> bool:
    """Whether a folder is a repository to git, or would be with what is `coming` to lie in it."""
    there = {name.casefold() for name in coming} & PIECES
    for piece in PIECES - there:
        # Either spelling: on a filesystem that folds case both are one.
        if any(os.path.lexists(os.path.join(folder, name)) for name in (piece, piece.upper())):
            there.add(piece)
    return any(whole <= there for whole in WHOLE)
