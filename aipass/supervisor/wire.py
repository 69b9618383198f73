"""What engine and supervisor say to each other: one JSON object a line, over a socket that only this user can open."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held

if TYPE_CHECKING:
    from pathlib import Path

# sun_path of sockaddr_un: 108 bytes on Linux, 104 on macOS, with the closing NUL.
SOCKET_PATH_LIMIT = 100
# A start message carries the whole environment; nothing honest is larger.
MAX_LINE_BYTES = 16_000_000

#: Files in a run's folder.
CLAIM, STARTED, EXIT = "claim", "pid", "exit"
STDOUT, STDERR, PROMPT = "stdout.log", "stderr.log", "prompt.md"

#: Environment that marks every process of a run, by which a new supervisor finds what an old one left.
MARK_RUN, MARK_ROOT = "AIPASS_RUN", "AIPASS_ROOT"


def names(version: str) -> tuple[str, str]:
    """Socket and lock of the supervisor of one version, in `.aipass`."""
    return f"supervisor-{version}.sock", f"supervisor-{version}.lock"


def address(path: Path) -> str:
    """An address for a UNIX socket at `path`, which may be longer than the kernel allows.

    Where it is, on Linux, the folder is named through /proc and its descriptor stays open as long as the process.
    """
    if len(os.fsencode(path)) < SOCKET_PATH_LIMIT or sys.platform != "linux":
        return str(path)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{path.name}"


def is_own_user(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user (or root); true where the system cannot tell."""
    if sys.platform != "linux":
        return True
    _, uid, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return uid in (os.geteuid(), 0)


def pack(message: dict[str, Any]) -> bytes:
    """One message as it goes over the wire."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class MessageReader:
    """Bytes as they come in, messages as they are complete."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes. Raises ValueError for what is no message."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError("a message is too long")
        messages = [json.loads(line) for line in whole if line]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message is not an object")
        return messages


def read_exit(folder: Path) -> dict[str, Any] | None:
    """What `exit` in a run's folder says; None where the run has not ended, or the file did not survive a power cut."""
    try:
        with held.open_regular(folder / EXIT) as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
