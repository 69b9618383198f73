"""The installation beside a folder of hooks that commits contain: git takes its hooks from a folder of aipass, and those call the tracked ones.

The tracked hooks stay unchanged: after a replacement, the next `git commit -a` would remove the original for all users of the repository. The
existing `core.hooksPath` stays as well: an included file sets a second value, and aipass's hooks ask git for the first. If that file is
gone, or the repository was moved or copied, git finds the tracked hooks again.
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

#: The file beside our folder of hooks that git's configuration includes.
NAME = "hooks.gitconfig"
#: Hooks that a team may add later. A hook of these names that calls a missing one changes nothing, so ours always exist. A hook of any other
#: name exists here only while a tracked one does, because its mere presence changes what git does.
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
    """Return whether aipass must not write into a folder of hooks: commits of some repository may contain it, or it is a link."""
    real, own = os.path.realpath(where), os.path.realpath(common)
    if os.path.islink(common / "hooks") and os.path.realpath(common / "hooks") == real:
        return True
    if real.startswith(own + "/"):
        return False
    top = next(iter(ask(root, "rev-parse", "--show-toplevel")), "").removesuffix("\n")
    is_inside = bool(top) and f"{real}/".startswith(os.path.realpath(top) + "/")
    return is_inside or (os.path.isdir(real) and bool(ask(where, "ls-files", "-z", "--", real)))


def theirs(root: Path, ours: Path) -> str | None:
    """Return the folder of the hooks that ours call, relative to the folder where git runs hooks; None where git does not use `ours`."""
    words = ("config", "-z", "--type=path", "--get-all", "core.hooksPath")
    said = ask(root, *words, bare=True, hooks=True)
    if said[-1:] != [str(ours)]:
        return None
    others = [value for value in said if value != str(ours)]
    return others[-1] if others else str(ours.parent.parent / "hooks")


def take_over(root: Path, ours: Path) -> None:
    """Make git take its hooks from `ours`. Idempotent. Raises ConfigError where git's configuration cannot be changed; then nothing stays changed."""
    give_back(root, ours)
    ours.parent.mkdir(exist_ok=True)
    ask(root, "config", "--file", str(ours.parent / NAME), "core.hooksPath", str(ours), bare=True)
    place = re.sub(r"([\\*?\[])", r"\\\1", str(ours.parent.parent))
    # The condition names the present path, so that a moved or copied repository uses its tracked hooks again.
    for pattern in (place, f"{place}/worktrees/"):
        ask(root, "config", "--local", f"includeIf.gitdir:{pattern}.path", _included(ours), bare=True)
    if theirs(root, ours) is None:
        give_back(root, ours)
        raise ConfigError(
            "commits may contain the hooks of this repository, so aipass does not write there, and git's configuration cannot be changed; "
            "check that `.git/config` is writable, or do without: the engine works without hooks"
        )


def give_back(root: Path, ours: Path) -> None:
    """Undo `take_over`: git takes its hooks from the folder that it would use without aipass. Idempotent."""
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
