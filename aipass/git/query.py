"""Short questions to git that the engine asks on its way: bounded in time, and without locks."""

from __future__ import annotations

import os
import shlex
from subprocess import SubprocessError
from typing import TYPE_CHECKING

from aipass import programs
from aipass.errors import AipassError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: What a configuration may name for git to start, and none of what we ask needs. Filters and merge drivers are judged one by
#: one (`filters.judged`); how to reach a remote is the person's own setting.
_STARTS_NOTHING = (
    "core.fsmonitor=false",
    "log.showSignature=false",
    "core.pager=cat",
    "core.editor=false",
    "sequence.editor=false",
    "core.alternateRefsCommand=",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "push.gpgSign=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "diff.ignoreSubmodules=dirty",
    "protocol.ext.allow=never",
)
_HOOKLESS = ("core.hooksPath=/dev/null",)
#: Whatever lies in the tree is an agent's to write: no folder there is taken for a repository because it looks like one.
_NO_BARE = ("safe.bareRepository=explicit",)


def _options(*settings: str) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("-c", setting))


_QUIET = (*_STARTS_NOTHING, *_HOOKLESS, *_NO_BARE)
QUIET = _options(*_QUIET)
#: The same for the environment of a program that starts git itself.
QUIET_SETTINGS = dict(setting.split("=", 1) for setting in _QUIET)
#: Git answers in milliseconds; nobody waits for one that hangs.
TIMEOUT_S = 5.0


def no_repository(root: Path) -> str:
    """Why git is not used here: that there is no repository, or what git says against the one that is there. Half a sentence."""
    command = ["git", *QUIET, "rev-parse", "--git-dir"]
    try:
        done = programs.run(root, command, env={"LC_ALL": "C"}, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, SubprocessError, AipassError) as exc:
        return f"git cannot be run: {exc}"
    said = os.fsdecode(done.stderr).strip().partition("\n")[0].removeprefix("fatal: ")
    if "dubious ownership" in said:
        top = _top(root) or root
        remedy = f"git config --global --add safe.directory {shlex.quote(str(top))}"
        return f"git does not use the repository of another owner; where you trust it, `{remedy}` says so"
    if done.returncode and "not a git repository" not in said.lower():
        return f"git says: {said[:300]}"
    return "is not in a git repository; `git init` makes one"


def has_repository(root: Path) -> bool:
    """Whether something that looks like a repository lies at `root` or above it, whatever git says to it."""
    return _top(root) is not None


def _top(root: Path) -> Path | None:
    return next((folder for folder in (root, *root.parents) if os.path.lexists(folder / ".git")), None)


def ask(
    root: Path,
    *words: str,
    bare: bool = False,
    hooks: bool = False,
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_S,
) -> list[str]:
    """What git says to these words with `-z`, entry by entry; nothing where there is no git, or no repository.

    `bare`: a bare repository is one as well; for what people ask for themselves. `hooks`: as configured. What makes git read files
    of the working tree is for `working.ask_of_files` alone: git would start filters.
    """
    quiet = _options(*_STARTS_NOTHING, *(() if hooks else _HOOKLESS), *(() if bare or hooks else _NO_BARE))
    command = ["git", *quiet, "--literal-pathspecs", *words]
    try:
        # An engine that a hook has started must not be told about the hook's repository, index and all.
        env = {"GIT_OPTIONAL_LOCKS": "0", **(env or {})}
        done = programs.run(root, command, env=env, capture_output=True, timeout=timeout)
    except (OSError, SubprocessError, AipassError):
        return []
    return [os.fsdecode(entry) for entry in done.stdout.split(b"\0") if entry]
