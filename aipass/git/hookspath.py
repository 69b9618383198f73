"""Hooks that commits hold: theirs are left as they are, git is told of a folder of ours, and ours call them where they lie.

Whoever puts a hook in the place of one that is tracked has the next `git commit -a` take it away from everybody else. `core.hooksPath` stays
as well: a file that the configuration includes says another one. Where that file is gone, or the repository was moved or copied, git finds theirs.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from aipass.errors import ConfigError
from aipass.git.ask import ask

if TYPE_CHECKING:
    from pathlib import Path

#: Beside our folder of hooks; git's configuration includes it.
NAME = "hooks.gitconfig"
#: Hooks that a team may add later, and that change nothing where they only call one that is not there. Of all others there is one here
#: while there is one of theirs.
PASSED = [
    "applypatch-msg",
    "pre-applypatch",
    "post-applypatch",
    "pre-merge-commit",
    "prepare-commit-msg",
    "commit-msg",
    "pre-commit",
    "pre-rebase",
    "pre-auto-gc",
]


def is_tracked(root: Path, where: Path) -> bool:
    """Whether commits hold something of a folder, or what it is a link to."""
    return bool(ask(root, "ls-files", "-z", "--", os.path.realpath(where)))


def theirs(root: Path, ours: Path) -> str | None:
    """Where the hooks lie that ours call, as seen from where git runs hooks; None where git does not take them from `ours`."""
    said = ask(root, "config", "-z", "--get-all", "core.hooksPath", bare=True, hooks=True)
    if said[-1:] != [str(ours)]:
        return None
    others = [value for value in said if value != str(ours)]
    return os.path.expanduser(others[-1]) if others else str(ours.parent.parent / "hooks")


def take_over(root: Path, ours: Path) -> None:
    """Have git take its hooks from `ours`. Raises ConfigError."""
    ours.parent.mkdir(exist_ok=True)
    ask(root, "config", "--file", str(ours.parent / NAME), "core.hooksPath", str(ours), bare=True)
    for section in _sections(ours):
        ask(root, "config", "--local", f"{section}.path", f"{ours.parent.name}/{NAME}", bare=True)
    if theirs(root, ours) is None:
        give_back(root, ours)
        raise ConfigError(
            "commits hold the hooks of this repository, so ours cannot stand there, and its configuration cannot be changed; "
            "the engine needs no hooks"
        )


def give_back(root: Path, ours: Path) -> None:
    """Have git take its hooks from where it would take them without us."""
    for section in _sections(ours):
        ask(root, "config", "--local", "--remove-section", section, bare=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(ours.parent / NAME)


def _sections(ours: Path) -> list[str]:
    """For the repository as long as it lies where it does, and for its worktrees."""
    place = re.sub(r"([\\*?\[])", r"\\\1", str(ours.parent.parent))
    return [f"includeIf.gitdir:{place}", f"includeIf.gitdir:{place}/worktrees/"]
