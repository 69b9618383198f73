"""The type of the filesystem of a path, and whether other machines can write to it."""

from __future__ import annotations

import os
from pathlib import Path

#: Filesystems on which file locks, or SQLite's shared memory for the WAL, are not reliable.
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
#: Filesystems with other writers that inotify does not report: network folders, folders shared with a host, and those served by a program
#: (FUSE). Prefixes of names in mountinfo; https://man7.org/linux/man-pages/man7/inotify.7.html, "Limitations and caveats".
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
#: FUSE filesystems on a disk of this machine: all writers are local.
_LOCAL_FUSE = ("fuseblk", "fuse.ntfs-3g", "fuse.exfat-fuse", "fuse.ntfs", "fuse.exfat")


def shared_by(path: Path) -> str | None:
    """Return the type of the filesystem if other machines can write to it unreported by inotify; None where all writers are local."""
    kind = filesystem_of(path)
    return kind if kind.startswith(_SHARED) and kind not in _LOCAL_FUSE else None


def filesystem_of(path: Path) -> str:
    """Return the type of the filesystem of `path`, as the kernel names it; `unknown` where that is not found (not Linux)."""
    try:
        device = path.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == wanted:
                # The number of optional fields before the dash varies.
                return fields[fields.index("-") + 1]
    except (OSError, ValueError):
        pass
    return "unknown"
