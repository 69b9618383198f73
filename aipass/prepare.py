"""The engine's own folder: made, and checked before anything is trusted to it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from aipass.errors import ConfigError

if TYPE_CHECKING:
    from aipass.layout import Layout

#: Filesystems on which locks, or SQLite's shared memory, are not to be trusted.
REMOTE_FILESYSTEMS = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "fuse.sshfs",
        "fuse.rclone",
        "virtiofs",
    )
)
EXCLUDED = ("inbox/", "outbox/", ".aipass/", ".trinity/")
_BEGIN, _END = "# aipass: begin", "# aipass: end"


def state_folder(layout: Layout) -> None:
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
        _make_repository(state)
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


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that holds `path`, as the kernel calls it; `unknown` where it does not tell."""
    try:
        device = path.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    except (OSError, ValueError):
        pass
    return "unknown"


def _make_repository(state: Path) -> None:
    """A repository of its own, so that `git clean -fdx` and `git stash -a` in the user's leave it alone."""
    if (state / ".git").exists() or shutil.which("git") is None:
        return
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(
        ["git", "init", "-q", "--template=", str(state)],
        env=env,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )


def exclude(layout: Layout) -> Path | None:
    """Keep our folders out of commits through `.git/info/exclude`; returns that file, None where there is no git.

    What people wrote there stays; our lines stand between two marks and are replaced as a whole.
    """
    from git import InvalidGitRepositoryError, NoSuchPathError, Repo
    from git.exc import GitError

    try:
        repository = Repo(layout.root, search_parent_directories=True)
        top = repository.working_tree_dir
        if top is None:
            return None
        path = Path(top, repository.git.rev_parse("--git-path", "info/exclude"))
        repository.close()
    except (InvalidGitRepositoryError, NoSuchPathError, GitError, ImportError):
        return None
    prefix = layout.root.relative_to(Path(top).resolve()).as_posix()
    start = "/" if prefix == "." else f"/{prefix}/"
    ours = [_BEGIN, *(f"{start}{name}" if name != ".trinity/" else name for name in EXCLUDED), _END]
    before = path.read_text("utf-8", "surrogateescape").splitlines() if path.exists() else []
    kept, inside = [], False
    for line in before:
        if line == _BEGIN:
            inside = True
        if not inside:
            kept.append(line)
        if line == _END:
            inside = False
    after = [*kept, *ours]
    if after != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(after) + "\n", "utf-8", "surrogateescape")
    return path
