"""Short git queries of the engine: bounded in time, without locks, and without starting other programs."""

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

#: Security: these settings could make git start a program outside the sandbox, and no query needs one. `filters.judged` checks filters and
#: merge drivers one by one; the way to a remote is the user's own setting.
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
#: Security: an agent may create a folder in the tree that looks like a bare repository, with settings of its own.
_NO_BARE = ("safe.bareRepository=explicit",)


def _options(*settings: str) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("-c", setting))


_QUIET = (*_STARTS_NOTHING, *_HOOKLESS, *_NO_BARE)
QUIET = _options(*_QUIET)
#: The same settings by name, for the environment of a program that starts git itself.
QUIET_SETTINGS = dict(setting.split("=", 1) for setting in _QUIET)
#: Git answers in milliseconds; the engine must not wait for a git that hangs (a network disk, a lock).
TIMEOUT_S = 5.0


def no_repository(root: Path) -> str:
    """Return why git cannot be used at `root`: no repository, or git's own error. The text continues a sentence that begins with the root."""
    # LC_ALL=C: the answer is compared with git's English messages.
    command = ["git", *QUIET, "rev-parse", "--git-dir"]
    try:
        done = programs.run(root, command, env={"LC_ALL": "C"}, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, SubprocessError, AipassError) as exc:
        return f"git cannot be run: {exc}"
    said = os.fsdecode(done.stderr).strip().partition("\n")[0].removeprefix("fatal: ")
    if "dubious ownership" in said:
        top = _top(root) or root
        remedy = f"git config --global --add safe.directory {shlex.quote(str(top))}"
        return f"git refuses the repository because another user owns it; if you trust it, run `{remedy}`"
    if done.returncode and "not a git repository" not in said.lower():
        return f"git reports: {said[:300]}"
    return "is not in a git repository; create one with `git init`"


def has_repository(root: Path) -> bool:
    """Return whether `root` or a folder above it has a `.git`, also one that git refuses. Starts no program."""
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
    """Run git with these arguments and return its output, split at NUL; empty where git fails, hangs, or finds no repository.

    `bare`: accept a bare repository too; only for commands that a person runs. `hooks`: use the configured folder of hooks. Never use
    this for a command that reads files of the working tree, because git would start filters: `working.ask_of_files` does that.
    """
    quiet = _options(*_STARTS_NOTHING, *(() if hooks else _HOOKLESS), *(() if bare or hooks else _NO_BARE))
    command = ["git", *quiet, "--literal-pathspecs", *words]
    try:
        # A background query must not take git's optional locks: they could make the user's own git fail.
        env = {"GIT_OPTIONAL_LOCKS": "0", **(env or {})}
        done = programs.run(root, command, env=env, capture_output=True, timeout=timeout)
    except (OSError, SubprocessError, AipassError):
        return []
    return [os.fsdecode(entry) for entry in done.stdout.split(b"\0") if entry]
