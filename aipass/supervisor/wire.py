"""The protocol between engine and supervisor: one JSON object per line, over a socket that only this user can open."""

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
# The largest message is `start`, which contains the whole environment. The limit protects the supervisor's memory.
MAX_LINE_BYTES = 16_000_000

#: Files in a run's folder.
CLAIM, STARTED, EXIT = "claim", "pid", "exit"
STDOUT, STDERR, PROMPT = "stdout.log", "stderr.log", "prompt.md"

#: Environment variables of every process of a run. A new supervisor finds processes without a mark (see mark.py) by them.
MARK_RUN, MARK_ROOT = "AIPASS_RUN", "AIPASS_ROOT"


def names(version: str) -> tuple[str, str]:
    """Names of the socket and the lock file, in `.aipass`, of the supervisor of one version."""
    return f"supervisor-{version}.sock", f"supervisor-{version}.lock"


def address(path: Path) -> str:
    """A bindable address of a UNIX socket at `path`, also where `path` is longer than the kernel allows.

    On Linux a long path is spelled through /proc/self/fd. The descriptor of its folder stays open as long as
    the process.
    """
    if len(os.fsencode(path)) < SOCKET_PATH_LIMIT or sys.platform != "linux":
        return str(path)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{path.name}"


def is_own_user(connection: socket.socket) -> bool:
    """Whether the peer is a process of this user or of root; True where the system cannot report it."""
    # Elsewhere only the mode of the socket protects it: it is created with umask 177.
    if sys.platform != "linux":
        return True
    _, uid, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return uid in (os.geteuid(), 0)


def pack(message: dict[str, Any]) -> bytes:
    """A message as one line of bytes."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class MessageReader:
    """Splits a byte stream into messages; keeps an incomplete line until the next call."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes, in order. Raises ValueError where a line is too long or no JSON object."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError("a message is too long")
        messages = [json.loads(line) for line in whole if line]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message is not an object")
        return messages


def read_exit(folder: Path) -> dict[str, Any] | None:
    """The record in the `exit` file of a run folder; None where the run has not ended or the file is damaged."""
    try:
        # A power cut can leave a truncated file. The run is then treated as not ended.
        with held.open_regular(folder / EXIT) as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
