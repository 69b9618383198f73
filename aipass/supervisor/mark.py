"""The mark of a run: a resource limit that identifies all its processes and that fenced processes cannot change.

A process can empty its environment, leave its session and outlive its parent. The limit on real-time
computing (RLIMIT_RTTIME, setrlimit(2)) is inherited by every child, other programs do not use it, and /proc
shows it for every process. The seccomp filter refuses to change it. The number is so large that it limits
nothing.
"""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

from aipass.supervisor import process

#: RLIMIT_RTTIME of linux/resource.h; Python defines it on Linux only.
RTTIME = getattr(resource, "RLIMIT_RTTIME", None)
# The text of that line in /proc/<pid>/limits (fs/proc/base.c).
_LINE = "Max realtime timeout"


def of(root: str, run: int) -> int:
    """The mark of a run: a hash of root and run id. As microseconds of real-time computing it is thousands of years."""
    digest = hashlib.blake2b(f"{root}\0{run}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    # Bit 62 distinguishes a mark from any limit that a user would set.
    return (1 << 62) | (int.from_bytes(digest, "little") >> 3)


def put(pid: int, root: str, run: int) -> None:
    """Mark a process and all its future children. Best effort for a limit that is already lower. Raises OSError if it is gone."""
    if RTTIME is not None:
        number = of(root, run)
        try:
            resource.prlimit(pid, RTTIME, (number, number))
        except (PermissionError, ValueError):
            pass  # a lower limit is already set: the environment and the session identify the run instead


def read(pid: int) -> int | None:
    """The mark of a process; None where it has none or cannot be read."""
    try:
        text = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return None
    at = text.find(_LINE)
    if at < 0:
        return None
    word = text[at + len(_LINE) :].split(None, 2)[1]
    number = int(word) if word.isdecimal() else 0
    return number if number >> 62 == 1 else None


def bearers(number: int) -> set[int]:
    """Ids of all living processes with this mark."""
    if not os.path.isdir("/proc/self"):
        return set()
    found = {int(name) for name in os.listdir("/proc") if name.isdigit() and read(int(name)) == number}
    return {pid for pid in found if (known := process.look(pid)) is not None and known.state not in "ZX"}
