"""Which layers this machine has, found out by trying them in a thread that then ends."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from dataclasses import dataclass
from functools import cache

from aipass.supervisor.fence import bpf, kernel, wall
from aipass.supervisor.fence.program import ALLOW


@dataclass(frozen=True, slots=True)
class Layers:
    """What there is: in words, and why not where there is none."""

    fence: str | None
    wall: str | None
    why_no_fence: str = ""
    why_no_wall: str = ""


@cache
def layers() -> Layers:
    """The layers of this machine. Takes a millisecond; the answer stays the same as long as the machine runs."""
    if not kernel.LINUX:
        why = "this system is not Linux"
        return Layers(None, None, why, why)
    if kernel.MACHINE not in kernel.AUDIT_ARCH:
        return Layers(None, _wall()[0], f"the fence is not built for {kernel.MACHINE}", _wall()[1])
    found: list[str | None] = [None]
    thread = threading.Thread(target=lambda: found.__setitem__(0, _try_fence()))
    thread.start()
    thread.join()
    version, why_no_wall = _wall()
    return Layers(None if found[0] else "seccomp", version, found[0] or "", why_no_wall)


def _wall() -> tuple[str | None, str]:
    version = kernel.landlock_version()
    if not version:
        return None, "the kernel has no Landlock, or it is turned off (security=… at boot)"
    try:
        os.close(wall.build((), version))
    except OSError as exc:
        return None, f"Landlock refuses: {exc.strerror}"
    return f"landlock {version}", ""


def _try_fence() -> str | None:
    """Why there can be no fence; None where there can. This thread is confined afterwards."""
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        listener = kernel.install_filter(bpf.assemble([bpf.answer(ALLOW)]))
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return "this process is behind such a fence already, and there can be only one"
        return f"seccomp refuses: {exc.strerror}"
    try:
        fcntl.ioctl(listener, kernel.NOTIF_ADDFD, kernel.ADDFD.pack(0, kernel.ADDFD_SEND, 0, 0, 0))
    except OSError as exc:
        # ENOENT: there is no such question; anything else: the kernel does not know the request.
        return None if exc.errno == errno.ENOENT else "the kernel is older than 5.14"
    finally:
        os.close(listener)
    return None
