"""What every process of a run bears and, behind the fence, none can put off: a limit of its own number, which the filter keeps it from changing.

An environment can be emptied, a session left, a parent outlived. The limit on real-time computing (RLIMIT_RTTIME, setrlimit(2)) is inherited
by all that a run starts, is nobody's otherwise, and /proc tells it of every process. The number is so large that it limits nothing.
"""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

from aipass.supervisor import process

#: RLIMIT_RTTIME of linux/resource.h; Python has a name for it on Linux only.
RTTIME = getattr(resource, "RLIMIT_RTTIME", None)
_LINE = "Max realtime timeout"


def of(root: str, run: int) -> int:
    """The number of a run of a root: microseconds, thousands of years of them."""
    digest = hashlib.blake2b(f"{root}\0{run}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (1 << 62) | (int.from_bytes(digest, "little") >> 3)


def put(pid: int, root: str, run: int) -> None:
    """Mark a process and all that it will start. Raises OSError where it is gone."""
    if RTTIME is not None:
        number = of(root, run)
        try:
            resource.prlimit(pid, RTTIME, (number, number))
        except (PermissionError, ValueError):
            pass  # a limit was there already: then its environment and its session have to do


def read(pid: int) -> int | None:
    """The number that a process bears; None where it bears none, or cannot be looked at."""
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
    """Every living process that bears a number."""
    if not os.path.isdir("/proc/self"):
        return set()
    found = {int(name) for name in os.listdir("/proc") if name.isdigit() and read(int(name)) == number}
    return {pid for pid in found if (known := process.look(pid)) is not None and known.state not in "ZX"}
