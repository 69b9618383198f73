"""The engine's own folder: made, and checked before anything is trusted to it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from aipass import programs
from aipass.errors import ConfigError
from aipass.git.query import ask
from aipass.layout import CONFIG_NAME

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


#: What others may write from another side, of which the kernel here tells nothing: network and shared folders, and whatever a program
#: serves. As mountinfo names them; https://man7.org/linux/man-pages/man7/inotify.7.html, "Limitations and caveats".
_SHARED = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "virtiofs",
    "vboxsf",
    "prl_fs",
    "vmhgfs",
    "fuse",
    "gfs",
    "ocfs",
    "lustre",
    "glusterfs",
)
#: Served by a program, and on a disk of this machine all the same.
_LOCAL_FUSE = ("fuseblk", "fuse.ntfs-3g", "fuse.exfat-fuse", "fuse.ntfs", "fuse.exfat")


def shared_by(path: Path) -> str | None:
    """The kind of file system where others may write without the kernel's telling it; None where all writers are of this machine."""
    kind = filesystem_of(path)
    return kind if kind.startswith(_SHARED) and kind not in _LOCAL_FUSE else None


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


def _make_repository(state: Path) -> bool:
    """A repository of its own, so that `git clean -fdx` and `git stash -a` in the user's leave it alone; whether it is new.

    `git add` fails on one without commits, so that a new one must be excluded at once.
    """
    if (state / ".git").exists() or programs.of(state.parent).find("git") is None:
        return False
    programs.run(state.parent, ["git", "init", "-q", "--template=", str(state)], capture_output=True)
    return True


def exclude(layout: Layout) -> Path | None:
    """Keep our folders out of commits through `.git/info/exclude`; returns that file, None where there is no git.

    What people wrote there stays; our lines stand between two marks, for every root of this repository that is still there.
    """
    words = ("rev-parse", "--path-format=absolute", "--show-toplevel", "--git-path", "info/exclude")
    found = ask(layout.root, *words)
    lines = found[0].removesuffix("\n").split("\n") if found else []
    if len(lines) != 2:
        return None
    top, path = map(Path, lines)
    before = path.read_text("utf-8", "surrogateescape").splitlines() if path.exists() else []
    kept, block = _apart(before)
    ours = _excluded(layout.root, top.resolve())
    others = [line for line in block if line not in ours and _is_root_still(line, top)]
    after = [*kept, _BEGIN, *dict.fromkeys((*others, *ours)), _END]
    if after != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, after)
    return path


def _excluded(root: Path, top: Path) -> list[str]:
    prefix = root.relative_to(top).as_posix()
    start = "/" if prefix == "." else f"/{_escaped(prefix)}/"
    return [f"{start}{name}" if name != ".trinity/" else name for name in EXCLUDED]


def _escaped(path: str) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def _is_root_still(line: str, top: Path) -> bool:
    """Whether a line of our block is of a root that is still one."""
    folder = re.sub(r"\\(.)", r"\1", line.strip("/").rpartition("/")[0])
    return line.startswith("/") and (top / folder / CONFIG_NAME).is_file()


def _apart(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines that people wrote, and those of our block."""
    kept: list[str] = []
    block: list[str] = []
    inside = False
    for line in lines:
        if line == _BEGIN:
            inside = True
        elif line == _END and inside:
            inside = False
        else:
            (block if inside else kept).append(line)
    return kept, block


def _replace(path: Path, lines: list[str]) -> None:
    """Whole or not at all: git may just be reading it."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text("".join(f"{line}\n" for line in lines), "utf-8", "surrogateescape")
    half.replace(path)
