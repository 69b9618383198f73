"""The filesystem below a path: its type, and whether other machines write to it as well."""

from __future__ import annotations

import os
from pathlib import Path

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
