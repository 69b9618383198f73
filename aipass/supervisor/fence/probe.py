"""Detection of the sandbox layers of this machine, by trying them in a short-lived thread."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from aipass.supervisor.fence import bpf, kernel, mode, wall
from aipass.supervisor.fence.bpf import ALLOW

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Layers:
    """The available layers as text, or None with the reason."""

    fence: str | None
    wall: str | None
    why_no_fence: str = ""
    why_no_wall: str = ""


@cache
def layers() -> Layers:
    """The layers of this machine. Takes a millisecond; cached, as the answer cannot change while the machine runs."""
    if not kernel.LINUX:
        why = "this system is not Linux"
        return Layers(None, None, why, why)
    if kernel.MACHINE not in kernel.AUDIT_ARCH:
        return Layers(None, _wall()[0], f"the fence does not support {kernel.MACHINE} processors", _wall()[1])
    found: list[str | None] = [None]
    # A filter cannot be removed from a thread, only end with it.
    thread = threading.Thread(target=lambda: found.__setitem__(0, _try_fence()))
    thread.start()
    thread.join()
    version, why_no_wall = _wall()
    return Layers(None if found[0] else "seccomp", version, found[0] or "", why_no_wall)


def described(settings: Mapping[str, object]) -> dict[str, str]:
    """The layers in words, for `status` and `doctor`: `seccomp (compiled)`, `landlock 7`, `off` or `none (reason)`.

    `settings`: those of `[sandbox]`; a layer with the value `off` is off.
    """
    there = layers()
    fence = f"{there.fence} ({mode.described()})"
    found = {
        "fence": fence if there.fence else f"none ({there.why_no_fence})",
        "wall": there.wall or f"none ({there.why_no_wall})",
    }
    return {layer: "off" if settings.get(layer) == "off" else text for layer, text in found.items()}


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
    """The reason why no fence is possible; None where it is. Confines the calling thread."""
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        listener = kernel.install_filter(bpf.assemble([bpf.answer(ALLOW)]))
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return (
                "this process already runs behind a fence (seccomp listener), and the kernel allows only one"
            )
        return f"seccomp refuses: {exc.strerror}"
    try:
        fcntl.ioctl(listener, kernel.NOTIF_ADDFD, kernel.ADDFD.pack(0, kernel.ADDFD_SEND, 0, 0, 0))
    except OSError as exc:
        # ENOENT: the kernel knows ADDFD_SEND and has no such notification. Another error: it does not know the request.
        return None if exc.errno == errno.ENOENT else "the kernel is older than 5.14"
    finally:
        os.close(listener)
    return None
