"""The state folder `.aipass`: created, and checked before the engine stores anything in it."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from aipass import programs
from aipass.errors import ConfigError
from aipass.files.filesystems import REMOTE_FILESYSTEMS, filesystem_of
from aipass.git.exclude import exclude

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.workspace.layout import Layout


def make(layout: Layout) -> None:
    """Create `.aipass` and its folders. Idempotent.

    Raises ConfigError if it is not a folder of this user, or not on the same local filesystem as the root.
    """
    state = layout.state
    try:
        state.mkdir(mode=0o700, exist_ok=True)
        # `lstat`: a link would lead the ledger to a place that its author chose.
        found = state.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(
                f"{state}: is a {'symbolic link' if state.is_symlink() else 'file'}, not a folder; move it away"
            )
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"{state}: belongs to another user (id {found.st_uid}); run aipass as that user, or move it away"
            )
        if found.st_dev != layout.root.stat().st_dev:
            raise ConfigError(
                f"{state}: is on another filesystem than the repository, so files cannot be moved there atomically; move it to the repository's filesystem"
            )
        kind = filesystem_of(state)
        if kind in REMOTE_FILESYSTEMS:
            raise ConfigError(
                f"{state}: is on {kind}, where file locks are not reliable; keep the repository on a local disk"
            )
        # Other users of this machine must not read the texts of the ledger, or write requests. The folder can come from a
        # backup or a copy with another mode.
        if stat.S_IMODE(found.st_mode) != 0o700:
            state.chmod(0o700)
        for folder in (layout.spool, layout.human_spool(), layout.runs, layout.dispatches, layout.quarantine):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not os.access(layout.spool, os.W_OK | os.X_OK):
            raise ConfigError(f"{layout.spool}: cannot be written; check its permissions")
        if _make_repository(state):
            exclude(layout)
    except FileExistsError as exc:
        raise ConfigError(f"{exc.filename}: is a file where a folder must be; move it away") from exc
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename or state}: {exc.strerror}; aipass must be able to write there"
        ) from exc


def last_ids(layout: Layout) -> tuple[int, int]:
    """The highest ids of a dispatch and a run that have a folder or an answer here; 0 if there is none."""
    # For a new ledger beside old files: an id that is used again would mix two dispatches in one folder.
    dispatches = [path.name for path in layout.dispatches.glob("*")]
    dispatches += [
        path.name.removesuffix(".json").rpartition(".")[2] for path in layout.outbox.glob("*/*.json")
    ]
    runs = [path.name for path in layout.runs.glob("*")]
    highest = [
        max((int(n) for n in names if re.fullmatch(r"[1-9][0-9]{0,17}", n)), default=0)
        for names in (dispatches, runs)
    ]
    return highest[0], highest[1]


def _make_repository(state: Path) -> bool:
    """Make `.aipass` a git repository of its own; returns whether it is new."""
    # `git clean -fdx` and `git stash -a` of the user skip a nested repository, and would otherwise delete the ledger. As
    # long as it has no commit, `git add` of the user fails on it; the caller must therefore exclude it immediately.
    if (state / ".git").exists() or programs.of(state.parent).find("git") is None:
        return False
    programs.run(state.parent, ["git", "init", "-q", "--template=", str(state)], capture_output=True)
    return True
