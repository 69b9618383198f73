"""The engine's own folder: made, and checked before anything is trusted to it."""

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
    """Make `.aipass` and what lies in it.

    Raises ConfigError where it is not this user's own folder on a local filesystem, the root's own.
    """
    state = layout.state
    try:
        state.mkdir(mode=0o700, exist_ok=True)
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
                f"{state}: lies on another filesystem than the repository; files could not be moved there at once"
            )
        kind = filesystem_of(state)
        if kind in REMOTE_FILESYSTEMS:
            raise ConfigError(
                f"{state}: lies on {kind}, where locks cannot be trusted; keep the repository on a local disk"
            )
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
    """The highest dispatch and run whose folders or answers lie here, for a ledger that begins anew beside them."""
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
    """A repository of its own, so that `git clean -fdx` and `git stash -a` in the user's leave it alone; whether it is new.

    `git add` fails on one without commits, so that a new one must be excluded at once.
    """
    if (state / ".git").exists() or programs.of(state.parent).find("git") is None:
        return False
    programs.run(state.parent, ["git", "init", "-q", "--template=", str(state)], capture_output=True)
    return True
