"""The sandbox self-test of `aipass doctor`: runs behind the fence, tries to escape, prints the result as one JSON object.

Each attempt must fail, and writing its own files must work. An attempt that is impossible on this machine, or
fails for another reason, proves nothing and is reported as untried. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RACES = 2000


def _write(path: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, b"out")
    finally:
        os.close(handle)


def _through_link() -> None:
    os.symlink("../foreign", "own/link")
    _write("own/link")


def _attempts() -> dict[str, Callable[[], object]]:
    return {
        "writing another's file": lambda: _write("foreign"),
        "through a link": _through_link,
        "through a descriptor": lambda: _write(f"/proc/self/fd/{os.open('foreign', os.O_RDONLY)}"),
        "replacing it": lambda: os.rename("own/file", "foreign"),
        "removing it": lambda: os.unlink("foreign"),
        "a second name for it": lambda: os.link("foreign", "own/second"),
        "its mode, by descriptor": lambda: os.fchmod(os.open("foreign", os.O_RDONLY), 0o777),
        "git's files": lambda: os.mkdir(".git/hooks"),
        "datagrams to other programs": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    }


def _walled(supervisor: int, abstract: str) -> dict[str, Callable[[], object]]:
    return {
        "another program's socket": lambda: socket.socket(socket.AF_UNIX).connect("\0" + abstract),
        "ending the supervisor": lambda: os.kill(supervisor, signal.SIGTERM),
        "the supervisor's memory": lambda: os.close(os.open(f"/proc/{supervisor}/mem", os.O_RDWR)),
    }


def race() -> int:
    """How many of RACES opens reached another's file while a second thread exchanged the path (TOCTOU race)."""
    libc = ctypes.CDLL(None, use_errno=True)
    # One buffer, changed in place: the kernel and the supervisor read the path from this memory.
    path = ctypes.create_string_buffer(b"own/file")
    stop, got = False, 0

    def swap() -> None:
        while not stop:
            ctypes.memmove(path, b"foreign\0", 8)
            ctypes.memmove(path, b"own/file", 8)

    thread = threading.Thread(target=swap)
    thread.start()
    foreign = os.stat("foreign").st_ino
    for _ in range(RACES):
        handle = libc.open(path, os.O_WRONLY)
        if handle >= 0:
            got += os.fstat(handle).st_ino == foreign
            os.close(handle)
    stop = True
    thread.join()
    return got


def _try(attempts: dict[str, Callable[[], object]], untried: list[str]) -> list[str]:
    """Names of the attempts that succeeded; appends those that failed for another reason to `untried`."""
    out = []
    for name, attempt in attempts.items():
        try:
            attempt()
        # Only EACCES and EPERM are a refusal.
        except PermissionError:
            continue
        except OSError as exc:
            untried.append(f"{name} ({exc.strerror})")
        else:
            out.append(name)
    return out


def main(arguments: list[str]) -> int:
    """`arguments`: the supervisor's id, the name of another program's abstract socket, and the layers to test."""
    supervisor, abstract, layers = int(arguments[0]), arguments[1], arguments[2].split(",")
    os.makedirs("own", exist_ok=True)
    with open("own/file", "w") as file:
        file.write("mine")
    began = time.perf_counter()
    for _ in range(RACES):
        os.close(os.open("own/file", os.O_WRONLY))
    took = (time.perf_counter() - began) / RACES
    untried: list[str] = []
    found: dict[str, object] = {"write_us": round(took * 1e6, 1), "untried": untried}
    if "fence" in layers:
        found["fence"] = _try(_attempts(), untried) + (["a race between two threads"] if race() else [])
    if "wall" in layers:
        found["wall"] = _try(_walled(supervisor, abstract), untried)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
