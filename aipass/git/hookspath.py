"""Hooks that may be in a commit: theirs are left as they are, git is told of a folder of ours, and ours call them where they lie.

Whoever puts a hook in the place of one that is tracked has the next `git commit -a` take it away from everybody else. `core.hooksPath` stays
as well: a file that the configuration includes says another one, and ours ask git for the one that is said besides. Where that file is
gone, or the repository was moved or copied, git finds theirs.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from aipass.errors import ConfigError
from aipass.git.query import ask

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
    "pre-push",
    "sendemail-validate",
    "pre-receive",
    "update",
    "post-receive",
    "post-update",
]


def is_theirs(root: Path, where: Path, common: Path) -> bool:
    """Whether nothing may be put into a folder of hooks: commits may hold it, of this repository or of another, or it is a link."""
    real, own = os.path.realpath(where), os.path.realpath(common)
    if os.path.islink(common / "hooks") and os.path.realpath(common / "hooks") == real:
        return True
    if real.startswith(own + "/"):
        return False
    top = next(iter(ask(root, "rev-parse", "--show-toplevel")), "").removesuffix("\n")
    is_inside = bool(top) and f"{real}/".startswith(os.path.realpath(top) + "/")
    return is_inside or (os.path.isdir(real) and bool(ask(where, "ls-files", "-z", "--", real)))


def theirs(root: Path, ours: Path) -> str | None:
    """Where the hooks lie that ours call, as seen from where git runs hooks; None where git does not take them from `ours`."""
    words = ("config", "-z", "--type=path", "--get-all", "core.hooksPath")
    said = ask(root, *words, bare=True, hooks=True)
    if said[-1:] != [str(ours)]:
        return None
    others = [value for value in said if value != str(ours)]
    return others[-1] if others else str(ours.parent.parent / "hooks")


def take_over(root: Path, ours: Path) -> None:
    """Have git take its hooks from `ours`. Raises ConfigError."""
    give_back(root, ours)
    ours.parent.mkdir(exist_ok=True)
    ask(root, "config", "--file", str(ours.parent / NAME), "core.hooksPath", str(ours), bare=True)
    place = re.sub(r"([\\*?\[])", r"\\\1", str(ours.parent.parent))
    # For the repository as long as it lies where it does, and for its worktrees.
    for pattern in (place, f"{place}/worktrees/"):
        ask(root, "config", "--local", f"includeIf.gitdir:{pattern}.path", _included(ours), bare=True)
    if theirs(root, ours) is None:
        give_back(root, ours)
        raise ConfigError(
            "commits may hold the hooks of this repository, so ours cannot stand there, and its configuration cannot be changed; "
            "the engine needs no hooks"
        )


def give_back(root: Path, ours: Path) -> None:
    """Have git take its hooks from where it would take them without us."""
    words = ("config", "-z", "--local", "--get-regexp", r"^includeif\..*\.path$")
    for entry in ask(root, *words, bare=True):
        key, _, value = entry.partition("\n")
        if value == _included(ours):
            ask(root, "config", "--local", "--remove-section", key.removesuffix(".path"), bare=True)
            ask(root, "config", "--local", "--unset-all", key, bare=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(ours.parent / NAME)


def _included(ours: Path) -> str:
    return f"{ours.parent.name}/{NAME}"
